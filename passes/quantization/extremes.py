"""Calibrators: from what flows through a value to the range it is quantized in.

A calibrator appends a few nodes to the graph that boil one value down to some numbers (`probe`), and takes
those numbers batch by batch (`observe`). Everything large stays inside the reference session. One that needs
to see the data twice says so (`rounds`). Another estimator is one more class here and one more name in
`CALIBRATORS`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
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


class MinMax:
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


class Percentile:
    """Clips outliers: the range that leaves a given share of the numbers out at each end.

    The first round finds the extremes, the second fills a histogram between them inside the reference
    session.
    """

    rounds = 2
    bins = 2048

    def __init__(self, percentile: float = 99.99) -> None:
        self._share = 1.0 - percentile / 100.0
        self._extremes = MinMax()
        self._counts = np.zeros(self.bins, np.int64)

    def probe(self, graph: ProbeGraph, value: ir.Value, round_index: int) -> list[ir.Value]:
        """Extremes in the first round; in the second a histogram, counted by scattering ones."""
        low, high = self._extremes.range()
        if round_index == 0:
            return self._extremes.probe(graph, value, 0)
        if not (np.isfinite([low, high]).all() and low < high):
            return []
        per_bin = np.asarray((high - low) / self.bins, np.float32)
        if not (np.isfinite(per_bin) and per_bin > 0):
            return []
        flat = graph.op("Reshape", [value, graph.constant(np.array([-1], np.int64))], {})
        moved = graph.op("Sub", [flat, graph.constant(np.asarray(low, np.float32))], {})
        scaled = graph.op("Div", [moved, graph.constant(per_bin)], {})
        last = graph.constant(np.asarray(self.bins - 1, np.float32))
        inside = graph.op("Clip", [scaled, graph.constant(np.asarray(0, np.float32)), last], {})
        index = graph.op("Cast", [inside], {"to": int(ir.DataType.INT64)})
        ones = graph.op("Sub", [index, index], {})
        ones = graph.op("Add", [ones, graph.constant(np.asarray(1, np.int64))], {})
        zeros = graph.constant(np.zeros(self.bins, np.int64))
        return [graph.op("ScatterElements", [zeros, index, ones], {"axis": 0, "reduction": "add"})]

    def observe(self, results: Sequence[np.ndarray], round_index: int) -> None:
        """Widens the extremes, then adds to the histogram."""
        if round_index == 0:
            self._extremes.observe(results, 0)
        elif results:
            self._counts += results[0]

    def range(self) -> Range:
        """The inner edges of the outermost bins that are needed to keep the share."""
        low, high = self._extremes.range()
        total = int(self._counts.sum())
        if total == 0:
            return low, high
        allowed = self._share * total
        edges = np.linspace(low, high, self.bins + 1)
        below = int(np.searchsorted(np.cumsum(self._counts), allowed, side="right"))
        above = int(np.searchsorted(np.cumsum(self._counts[::-1]), allowed, side="right"))
        return float(edges[min(below, self.bins)]), float(edges[max(self.bins - above, 0)])


CALIBRATORS: Mapping[str, Callable[[], Calibrator]] = {
    "minmax": MinMax,
    "mean": MeanMinMax,
    "moving-average": MovingAverage,
    "percentile": Percentile,
}
"""Calibrators by the name that `insert-qdq{calibration=...}` takes."""
