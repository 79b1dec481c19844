"""Which strength of smoothing serves a site: tried on rows of its inputs, quantized to 8 bits and not."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from .walk import Walk

STRENGTHS = (0.25, 0.35, 0.45, 0.5, 0.55, 0.65, 0.75, 0.85)
_ROWS = 512


def rows_at(walk: Walk, name: str, generator: np.random.Generator, most: int = _ROWS) -> np.ndarray:
    """At most so many rows of a value, over all batches: float64 `[rows, channels]`.

    Raises:
        PassError: The walk cannot run up to the value.
    """
    parts = [values[0].reshape(-1, values[0].shape[-1]) for values in walk.values([name])]
    every = np.concatenate(parts).astype(np.float64)
    if len(every) > most:
        every = every[np.sort(generator.choice(len(every), most, replace=False))]
    return every


def best_strength(
    rows: np.ndarray,
    weights: Sequence[np.ndarray],
    factors_of: Callable[[np.ndarray, float], np.ndarray | None],
) -> float | None:
    """The strength with the least error on rows that were held out, or None where none helps.

    Args:
        rows: Inputs, float64 `[rows, features]`.
        weights: Weights that read them, `[features, outputs]` each.
        factors_of: Factors for (largest magnitudes, strength).
    """
    if len(rows) < 8 or not np.isfinite(rows).all():
        return None
    fit, held = rows[::2], rows[1::2]
    wanted = [held @ weight for weight in weights]
    largest = np.abs(fit).max(axis=0)

    def error(factors: np.ndarray) -> float:
        low, high = (fit / factors).min(), (fit / factors).max()
        inputs = _rounded(held / factors, min(low, 0.0), max(high, 0.0))
        total = 0.0
        for weight, expected in zip(weights, wanted, strict=True):
            scaled = weight * factors[:, None]
            step = np.maximum(np.abs(scaled).max(axis=0), np.finfo(np.float64).tiny) / 127.0
            total += float(np.square(inputs @ (np.rint(scaled / step) * step) - expected).sum())
        return total

    best, least = None, error(np.ones(rows.shape[1]))
    for strength in STRENGTHS:
        factors = factors_of(largest, strength)
        found = error(factors) if factors is not None else np.inf
        if found < least:
            best, least = strength, found
    return best


def _rounded(numbers: np.ndarray, low: float, high: float) -> np.ndarray:
    """Numbers on a grid of 256 between two bounds."""
    step = (high - low) / 255.0
    if not step > 0.0:
        return numbers
    zero = np.rint(-low / step)
    return step * (np.clip(np.rint(numbers / step) + zero, 0.0, 255.0) - zero)
