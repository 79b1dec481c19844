"""float32 as sums of bfloat16, which tile registers multiply."""

from __future__ import annotations

import ml_dtypes
import numpy as np


def split_float32(values: np.ndarray, parts: int) -> list[np.ndarray]:
    """The bits (uint16) of as many bfloat16, each nearest to what the ones before leave of `values`.

    Infinite numbers have no second part.
    """
    found, rest = [], values
    for _ in range(parts):
        part = rest.astype(ml_dtypes.bfloat16)
        found.append(part.view(np.uint16))
        rounded = part.astype(np.float32)
        rest = np.subtract(rest, rounded, out=np.zeros_like(values), where=np.isfinite(rounded))
    return found
