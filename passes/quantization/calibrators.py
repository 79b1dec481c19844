"""Calibrators: from what flows through a value to the range it is quantized in.

A calibrator sees statistics of one value per batch, computed inside the reference session (`reductions`), so
that activations never leave it. Another estimator is one more class here and one more name in `CALIBRATORS`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol


class Calibrator(Protocol):
    """Gathers the range of one value over all batches.

    Attributes:
        reductions: ONNX reductions over all axes that `observe` wants, in that order.
    """

    reductions: tuple[str, ...]

    def observe(self, statistics: Sequence[float]) -> None:
        """Takes the reductions of one batch."""

    def range(self) -> tuple[float, float]:
        """The range seen so far; not finite where the value was not."""


class MinMax:
    """The smallest and the largest number ever seen."""

    reductions: tuple[str, ...] = ("ReduceMin", "ReduceMax")

    def __init__(self) -> None:
        self._low, self._high = float("inf"), float("-inf")

    def observe(self, statistics: Sequence[float]) -> None:
        """Widens the range by a batch's minimum and maximum."""
        low, high = statistics
        self._low, self._high = min(self._low, low), max(self._high, high)

    def range(self) -> tuple[float, float]:
        """(minimum, maximum)."""
        return self._low, self._high


class MeanMinMax:
    """The mean over batches of their minimum and maximum: outliers of single batches weigh less."""

    reductions: tuple[str, ...] = ("ReduceMin", "ReduceMax")

    def __init__(self) -> None:
        self._low = self._high = 0.0
        self._batches = 0

    def observe(self, statistics: Sequence[float]) -> None:
        """Adds a batch's minimum and maximum to the mean."""
        low, high = statistics
        self._batches += 1
        self._low += (low - self._low) / self._batches
        self._high += (high - self._high) / self._batches

    def range(self) -> tuple[float, float]:
        """(mean minimum, mean maximum)."""
        return self._low, self._high


class MovingAverage:
    """An exponential average over batches of their minimum and maximum, new batches weighing 0.1."""

    reductions: tuple[str, ...] = ("ReduceMin", "ReduceMax")
    weight = 0.1

    def __init__(self) -> None:
        self._range: tuple[float, float] | None = None

    def observe(self, statistics: Sequence[float]) -> None:
        """Moves the range towards a batch's minimum and maximum."""
        low, high = statistics
        old_low, old_high = self._range or (low, high)
        self._range = (old_low + self.weight * (low - old_low), old_high + self.weight * (high - old_high))

    def range(self) -> tuple[float, float]:
        """(average minimum, average maximum)."""
        return self._range or (float("inf"), float("-inf"))


CALIBRATORS: Mapping[str, Callable[[], Calibrator]] = {
    "minmax": MinMax,
    "mean": MeanMinMax,
    "moving-average": MovingAverage,
}
"""Calibrators by the name that `insert-qdq{calibration=...}` takes."""
