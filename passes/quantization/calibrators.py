"""Calibrators by name: from what flows through a value to the range it is quantized in.

Another estimator is one more class beside those in `extremes.py` and `histograms.py`, and one more name here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields

from ...ir.errors import PassError
from .extremes import Calibrator, Clipped, MeanMinMax, MinMax, MovingAverage
from .histograms import Entropy, MeanSquaredError, Percentile
from .importance import Importance

__all__ = ["CALIBRATORS", "Calibrator", "Method", "MinMax", "Percentile"]

CALIBRATORS: Mapping[str, Callable[[], Calibrator]] = {
    "minmax": MinMax,
    "mean": MeanMinMax,
    "moving-average": MovingAverage,
    "percentile": Percentile,
    "entropy": Entropy,
    "mse": MeanSquaredError,
    "clipped": Clipped,
}
"""Calibrators by the name that `insert-qdq{calibration=...}` takes."""


@dataclass(frozen=True)
class Method:
    """A calibrator and its parameters; calling it makes one.

    Attributes:
        name: one of `CALIBRATORS`.
        percentile: share of the numbers, in percent, that neither end cuts ("percentile").
        deviations: standard deviations to both sides of the mean ("clipped").
        levels: steps of the grid that the range is for ("entropy", "mse").
        symmetric: whether that grid is ("mse").
        importance: of the channels of a value, by its name; follows from the model ("mse").
    """

    name: str
    percentile: float = 99.99
    deviations: float = 6.0
    levels: int = 255
    symmetric: bool = False
    importance: Callable[[str], Importance | None] | None = field(default=None, compare=False)

    def of(self, value: str) -> Calibrator:
        """A calibrator for the value of that name, which has seen nothing yet.

        Raises:
            PassError: there is no calibrator of that name.
        """
        if self.name == "mse" and self.importance is not None:
            return MeanSquaredError(self.levels, self.symmetric, self.importance(value))
        return self()

    def __call__(self) -> Calibrator:
        """A calibrator that has seen nothing yet.

        Raises:
            PassError: there is no calibrator of that name.
        """
        if self.name == "percentile":
            return Percentile(self.percentile)
        if self.name == "clipped":
            return Clipped(self.deviations)
        if self.name == "entropy":
            return Entropy(self.levels)
        if self.name == "mse":
            return MeanSquaredError(self.levels, self.symmetric)
        if self.name not in CALIBRATORS:
            raise PassError(f"there is no calibrator '{self.name}'; there are: {', '.join(CALIBRATORS)}")
        return CALIBRATORS[self.name]()

    @property
    def key(self) -> str:
        """What distinguishes its results from those of others."""
        plain = [each.name for each in fields(self) if each.name != "importance"]
        key = ",".join(f"{name}={getattr(self, name)}" for name in plain)
        return key if self.importance is None else f"{key},weighted by readers"
