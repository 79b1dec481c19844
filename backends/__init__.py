"""Targets and compilation: TVM, ONNX Runtime, artifacts."""
