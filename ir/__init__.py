"""The graph IR (`onnx_ir.Model`) and its faces: from torch and ONNX, verified, measured, run, compared."""
