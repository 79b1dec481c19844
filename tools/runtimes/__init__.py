"""`make bench-runtimes`: ours beside ONNX Runtime, OpenVINO and torch.compile on full-size models."""
