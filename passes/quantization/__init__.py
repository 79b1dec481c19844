"""Quantization: what targets can do, where to quantize, measured ranges, and the arithmetic."""
