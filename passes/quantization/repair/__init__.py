"""Repair without training: what is changed before, and what is rounded anew after quantization."""
