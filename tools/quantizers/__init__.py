"""`make bench-quantization`: int8 of ours beside ONNX Runtime, NNCF and torchao."""
