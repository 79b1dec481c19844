"""CPU anchor kernels: convolution, matmul and pooling that need no tuning.

Every kernel takes a spec, an epilogue and a target description and returns a `Kernel`: one scheduled function
and the packing of its weights. Tiles come from `tile.py`, from the target's numbers alone.
"""

from __future__ import annotations

from .conv2d import conv2d
from .conv_transpose import conv_transpose
from .interface import (
    Conv2dSpec,
    ConvTransposeSpec,
    Epilogue,
    ExtraInput,
    Kernel,
    MatmulSpec,
    Operand,
    PoolSpec,
)
from .matmul import matmul
from .pool import pool

__all__ = [
    "Conv2dSpec",
    "ConvTransposeSpec",
    "Epilogue",
    "ExtraInput",
    "Kernel",
    "MatmulSpec",
    "Operand",
    "PoolSpec",
    "conv2d",
    "conv_transpose",
    "matmul",
    "pool",
]
