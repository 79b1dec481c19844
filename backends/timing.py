"""Latency: a summary of measured runs, and what can be measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np


@dataclass(frozen=True)
class Timing:
    """How long one run takes, in milliseconds: the median with its spread."""

    median_ms: float
    p10: float
    p90: float
    min: float
    samples: int
    threads: int
    raw: tuple[float, ...] = field(default=(), repr=False, compare=False)
    """Every sample in the order taken."""

    @classmethod
    def of(cls, samples_ms: Sequence[float], threads: int) -> Timing:
        """The summary of measured times."""
        low, middle, high = np.percentile(samples_ms, [10, 50, 90])
        return cls(
            median_ms=float(middle),
            p10=float(low),
            p90=float(high),
            min=float(np.min(samples_ms)),
            samples=len(samples_ms),
            threads=threads,
            raw=tuple(float(sample) for sample in samples_ms),
        )

    def to_json(self) -> dict[str, Any]:
        """A JSON-able dictionary without the single samples."""
        return {
            "median_ms": self.median_ms,
            "p10_ms": self.p10,
            "p90_ms": self.p90,
            "min_ms": self.min,
            "samples": self.samples,
            "threads": self.threads,
        }

    def __str__(self) -> str:
        return f"{self.median_ms:.3f} ms ({self.p10:.3f}-{self.p90:.3f}, {self.threads} thread(s))"


class Timed(Protocol):
    """Whatever can time its own runs, as every `Executable` can."""

    def benchmark(
        self,
        feeds: Mapping[str, Any] | None = None,
        *,
        threads: int = 1,
        repeats: int | None = None,
        warmup: int = 3,
    ) -> Timing:
        """Time single runs; see `Executable.benchmark`."""


def fitting_repeats(milliseconds: float, seconds: float, *, least: int, most: int) -> int:
    """How many runs fit into a time.

    Args:
        milliseconds: what one takes.
        seconds: the time.
        least: runs to make in any case.
        most: runs that are enough.
    """
    return max(least, min(most, int(seconds * 1e3 / max(milliseconds, 1e-3))))
