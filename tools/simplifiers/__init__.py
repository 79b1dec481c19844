"""`make bench-simplify`: `simplify` beside onnxsim, onnxslim, onnxscript and ONNX Runtime."""
