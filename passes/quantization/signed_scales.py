"""Symmetric scales of either sign: the lowest integer serves whichever side of a block reaches further."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np


def least_error_scales(
    blocks: np.ndarray, scales: np.ndarray, high: float, shares: Iterable[float]
) -> np.ndarray:
    """Scales of least squared error on the integers -high - 1 to high.

    Args:
        blocks: float32 `[rows, blocks, size]`.
        scales: positive float32 `[rows, blocks]`, what there is without the lowest integer.
        high: the highest integer.
        shares: of a block's largest magnitude that the lowest integer may stand for.

    Returns:
        float32 `[rows, blocks]`, of blocks whose larger numbers are positive often below zero.
    """
    peak = np.abs(blocks).max(axis=-1)
    best, least = scales, _error(blocks, scales, high)
    for share in shares:
        for sign in (1.0, -1.0):
            tried = (peak * np.float32(sign * share / (high + 1.0))).astype(np.float32)
            tried = np.where(np.abs(tried) >= np.finfo(np.float32).tiny, tried, scales)
            error = _error(blocks, tried, high)
            best = np.where(error < least, tried, best)
            least = np.minimum(error, least)
    return best


def _error(blocks: np.ndarray, scales: np.ndarray, high: float) -> np.ndarray:
    scaled = blocks / scales[..., None]
    near = np.clip(np.rint(scaled), -high - 1.0, high)
    return np.square(near - scaled).sum(axis=-1) * np.square(scales)
