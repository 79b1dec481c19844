"""Rounding the weights of a layer anew on grids that stay as they are: samples, errors, and writing back.

Everything here is batched over the groups of a convolution: weights `[groups, outputs, features]`, rows of
inputs `[groups, rows, features]`, with one group for all other layers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from ...base import PassContext
from ...rewriter import Rewriter
from .layers import QuantizedLayer
from .pairs import Sample


@dataclass(frozen=True)
class Grids:
    """A layer's weights and the grids they are rounded to, `[groups, outputs of a group, features]`.

    Attributes:
        weight: Float weights, float64.
        codes: The integers as they are, int32.
        scales, zeros: Of every number, float64 and int32.
        low, high: The integers that may be used.
    """

    weight: np.ndarray
    codes: np.ndarray
    scales: np.ndarray
    zeros: np.ndarray
    low: int
    high: int

    @classmethod
    def of(cls, layer: QuantizedLayer) -> Grids:
        """Those of a quantized layer."""
        stored, groups = layer.stored, layer.linear.groups
        shape = (groups, layer.linear.outputs // groups, layer.linear.features)
        return cls(
            layer.weight.reshape(shape),
            stored.codes.reshape(shape),
            stored.scales.reshape(shape),
            stored.zeros.reshape(shape),
            stored.low,
            stored.high,
        )

    def decode(self, codes: np.ndarray) -> np.ndarray:
        """The numbers that codes stand for."""
        return self.scales * (codes - self.zeros)

    def nearest(self, numbers: np.ndarray) -> np.ndarray:
        """Codes of the nearest numbers on the grids, float64."""
        return np.clip(np.rint(numbers / self.scales) + self.zeros, self.low, self.high)


def input_rows(sample: Sample, generator: np.random.Generator, most: int) -> Iterator[np.ndarray]:
    """Per batch what the quantized layer reads, float64 `[groups, rows, features]`, at most `most` rows."""
    linear = sample.layer.linear
    for found, results in zip(sample.inputs, sample.float_results, strict=True):
        yield np.stack([rows for rows, _ in linear.rows(found, results, generator, most)])


def split_grams(rows: Iterator[np.ndarray]) -> tuple[np.ndarray, np.ndarray, int]:
    """Sums of x x^T over three quarters of the rows and over the last one, and how many rows there were.

    Returns:
        (float64 `[groups, features, features]`, the same, rows).
    """
    sums: list[np.ndarray] = []
    count = 0
    for inputs in rows:
        held = (count + np.arange(inputs.shape[1])) % 4 == 3
        count += inputs.shape[1]
        parts = [inputs[:, ~held], inputs[:, held]]
        products = [np.matmul(part.transpose(0, 2, 1), part) for part in parts]
        sums = [total + product for total, product in zip(sums, products, strict=True)] if sums else products
    return sums[0], sums[1], count


def quadratic_error(difference: np.ndarray, gram: np.ndarray) -> np.ndarray:
    """Squared error of each output for a difference of weights, `[groups, outputs]`."""
    return (np.matmul(difference, gram) * difference).sum(axis=-1)


def replace_codes(
    layer: QuantizedLayer,
    codes: np.ndarray,
    rewriter: Rewriter,
) -> int:
    """Store other integers; returns how many differ."""
    flat = codes.reshape(layer.stored.codes.shape).astype(np.int32)
    moved = int((flat != layer.stored.codes).sum())
    if moved:
        rewriter.set_initializer(layer.stored.integers, layer.stored_form(flat))
    return moved


def keep_better(
    grids: Grids, found: np.ndarray, error: Callable[[np.ndarray], np.ndarray]
) -> tuple[np.ndarray, float, float]:
    """For each output the codes with the smaller error: the ones found, or those there are.

    Returns:
        (codes, error of those there are, error now), summed over outputs.
    """
    before, after = error(grids.codes), error(found)
    better = after < before
    codes = np.where(better[..., None], found, grids.codes)
    return codes, float(before.sum()), float(np.where(better, after, before).sum())


def report(
    context: PassContext, layer: QuantizedLayer, moved: int, before: float, after: float, signal: float
) -> None:
    """Record what became of a layer; errors in dB below the signal."""
    rows = context.details.setdefault("layers", [])

    def decibels(error: float) -> float | None:
        return 10.0 * float(np.log10(signal / error)) if error > 0.0 and signal > 0.0 else None

    rows.append(
        {
            "node": layer.node.name,
            "moved": moved,
            "numbers": layer.stored.codes.size,
            "sqnr_before_db": decibels(before),
            "sqnr_after_db": decibels(after),
        }
    )
    context.count("layers rounded anew")
    context.count("weights moved", moved)
