"""Calibrators that go through the data once: what they are, and those that look at extremes and moments.

A calibrator appends a few nodes to the graph that boil one value down to some numbers (`probe`), and takes
those numbers batch by batch (`observe`). Everything large stays inside the reference session. One that needs
to see the data twice says so (`rounds`). What it has seen so far can be saved and taken up again (`state`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import onnx_ir as ir

Range = tuple[float, float]
_NOTHING: Range = (float("inf"), float("-inf"))


class ProbeGraph(Protocol):
    """Where a calibrator adds its nodes."""

    def op(self, op_type: str, inputs: Sequence[ir.Value], attributes: Mapping[str, Any]) -> ir.Value:
        """Adds a node and returns its output."""

    def constant(self, array: np.ndarray) -> ir.Value:
        """Adds a constant."""


class Calibrator(Protocol):
    """Gathers the range of one value over all batches.

    Attributes:
        rounds: how often the data is gone through.
    """

    rounds: int

    def probe(self, graph: ProbeGraph, value: ir.Value, round_index: int) -> list[ir.Value]:
        """Adds the nodes of a round (from 0) that reduce `value`; their outputs reach `observe`."""

    def observe(self, results: Sequence[np.ndarray], round_index: int) -> None:
        """Takes what the probes of one batch gave."""

    def range(self) -> Range:
        """The range seen so far; not finite where the value was not."""

    def state(self) -> dict[str, np.ndarray]:
        """What was seen so far, as arrays by name."""

    def restore(self, state: Mapping[str, np.ndarray]) -> None:
        """Takes up what `state` gave."""


class Remembering:
    """Saves and restores the numbers and arrays that an object holds, those of its parts included."""

    def state(self) -> dict[str, np.ndarray]:
        """Every attribute that is a number, an array or remembers itself, as arrays by name."""
        found: dict[str, np.ndarray] = {}
        for name, held in vars(self).items():
            if isinstance(held, Remembering):
                found.update({f"{name}.{inner}": array for inner, array in held.state().items()})
            elif isinstance(held, (int, float, np.ndarray)):
                found[name] = np.asarray(held)
        return found

    def restore(self, state: Mapping[str, np.ndarray]) -> None:
        """Sets the attributes that `state` gave."""
        for name, held in vars(self).items():
            if isinstance(held, Remembering):
                start = f"{name}."
                held.restore({k[len(start) :]: v for k, v in state.items() if k.startswith(start)})
            elif isinstance(held, np.ndarray):
                setattr(self, name, np.array(state[name], held.dtype))
            elif isinstance(held, (int, float)):
                setattr(self, name, type(held)(state[name]))


class MinMax(Remembering):
    """The smallest and the largest number ever seen."""

    rounds = 1

    def __init__(self) -> None:
        self.low, self.high = _NOTHING

    def probe(self, graph: ProbeGraph, value: ir.Value, round_index: int) -> list[ir.Value]:
        """Minimum and maximum over all axes."""
        return [graph.op(reduction, [value], {"keepdims": 0}) for reduction in ("ReduceMin", "ReduceMax")]

    def observe(self, results: Sequence[np.ndarray], round_index: int) -> None:
        """Widens the range by a batch's minimum and maximum."""
        low, high = (float(result) for result in results)
        self.low, self.high = min(self.low, low), max(self.high, high)

    def range(self) -> Range:
        """(minimum, maximum)."""
        return self.low, self.high


class MeanMinMax(MinMax):
    """The mean over batches of their minimum and maximum: outliers of single batches weigh less."""

    def __init__(self) -> None:
        super().__init__()
        self._batches = 0

    def observe(self, results: Sequence[np.ndarray], round_index: int) -> None:
        """Adds a batch's minimum and maximum to the mean."""
        low, high = (float(result) for result in results)
        self._batches += 1
        if self._batches == 1:
            self.low, self.high = low, high
        self.low += (low - self.low) / self._batches
        self.high += (high - self.high) / self._batches


class MovingAverage(MinMax):
    """An exponential average over batches of their minimum and maximum, new batches weighing 0.1."""

    weight = 0.1

    def observe(self, results: Sequence[np.ndarray], round_index: int) -> None:
        """Moves the range towards a batch's minimum and maximum."""
        low, high = (float(result) for result in results)
        if (self.low, self.high) == _NOTHING:
            self.low, self.high = low, high
        self.low += self.weight * (low - self.low)
        self.high += self.weight * (high - self.high)


class Clipped(MinMax):
    """Outliers cut: the mean and so many standard deviations to both sides, never beyond the extremes."""

    def __init__(self, deviations: float = 6.0) -> None:
        super().__init__()
        self._deviations = deviations
        self._count = 0
        self._sum = self._squares = 0.0

    def probe(self, graph: ProbeGraph, value: ir.Value, round_index: int) -> list[ir.Value]:
        """Extremes, number, sum and sum of squares, the sums in double."""
        double = graph.op("Cast", [value], {"to": int(ir.DataType.DOUBLE)})
        sums = [graph.op(each, [double], {"keepdims": 0}) for each in ("ReduceSum", "ReduceSumSquare")]
        return [*super().probe(graph, value, round_index), graph.op("Size", [value], {}), *sums]

    def observe(self, results: Sequence[np.ndarray], round_index: int) -> None:
        """Adds a batch to the moments."""
        super().observe(results[:2], round_index)
        self._count += int(results[2])
        self._sum += float(results[3])
        self._squares += float(results[4])

    def range(self) -> Range:
        """Mean and deviations, cut to what was seen."""
        if not self._count or not np.isfinite(self._squares):
            return self.low, self.high
        mean = self._sum / self._count
        spread = self._deviations * np.sqrt(max(self._squares / self._count - mean**2, 0.0))
        return max(self.low, mean - spread), min(self.high, mean + spread)
