"""Where 8-bit convolutions stay in float because that was measured to be quicker."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from ..target import Target

_SWEPT = "in float: windows of single channels over several planes take longer by vpmaddwd"


def quicker_in_float(weights: np.ndarray, groups: int, target: Target) -> str | None:
    """Why a convolution by these weights (O, C / groups, taps...) stays in float; None where it does not.

    `vpmaddwd` has as many products per cycle as float32 where nothing is summed over channels, and windows of
    several planes need a copy besides. Measured with AVX2 and AVX-512BW: 10 to 45 % longer, the quantization
    behind the float kernel included. Over one plane, or along the depth alone, integers are as quick.
    """
    single = weights.ndim == 5 and weights.shape[1] == 1 and weights.shape[0] == groups > 1
    if not single or target.kind != "llvm" or target.family != "x86" or target.vector_bits < 256:
        return None
    if weights.shape[2] == 1 or max(weights.shape[3:]) == 1:
        return None
    from .kernels.arithmetic import integer_arithmetic

    return _SWEPT if integer_arithmetic("uint8", "int8", target).name == "vpmaddwd" else None
