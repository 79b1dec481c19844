"""Levels that weights themselves ask for: k-means in one dimension."""

from __future__ import annotations

import numpy as np

_LLOYD_ROUNDS = 40
# Beyond this many numbers an even sample of the sorted ones is looked at.
_KMEANS_SAMPLE = 1 << 20


def kmeans_levels(numbers: np.ndarray, count: int) -> np.ndarray:
    """Lloyd's algorithm in one dimension, started from quantiles.

    Args:
        numbers: finite floats of any shape.
        count: levels wanted; fewer come back where there are fewer different numbers.

    Returns:
        float32 levels, ascending and different.
    """
    ordered = np.sort(numbers.reshape(-1)).astype(np.float64)
    if ordered.size > _KMEANS_SAMPLE:
        ordered = ordered[np.linspace(0, ordered.size - 1, _KMEANS_SAMPLE).astype(np.int64)]
    if not ordered.size:
        return np.zeros(1, np.float32)
    distinct = np.unique(ordered)
    if len(distinct) <= count:
        return np.unique(distinct.astype(np.float32))
    # Between quantiles, which serve the middle, and even spacing, which serves the tails.
    quantiles = ordered[((np.arange(count) + 0.5) / count * ordered.size).astype(np.int64)]
    levels = 0.5 * (quantiles + np.linspace(ordered[0], ordered[-1], count))
    sums = np.concatenate([[0.0], np.cumsum(ordered)])
    for _ in range(_LLOYD_ROUNDS):
        cuts = np.searchsorted(ordered, (levels[1:] + levels[:-1]) / 2)
        edges = np.concatenate([[0], cuts, [ordered.size]])
        sizes = np.diff(edges)
        moved = np.where(sizes > 0, np.diff(sums[edges]) / np.maximum(sizes, 1), levels)
        if np.allclose(moved, levels, rtol=1e-7, atol=0.0):
            break
        levels = moved
    return np.unique(levels.astype(np.float32))
