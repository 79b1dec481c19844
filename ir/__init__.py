"""The graph IR (`onnx_ir.Model`) and its faces: in from torch and ONNX, verified, measured, executed, compared."""
