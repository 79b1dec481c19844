"""Calibrators that look at the distribution of a value: a first round finds its extremes, a second counts.

The histogram is filled inside the reference session, so that only its bins come out; what they are made into
is what the classes differ in.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from .extremes import MinMax, ProbeGraph, Range, Remembering
from .importance import Importance

# Of larger values every so-many-th number is counted; counting costs more than computing them.
_NUMBERS_PER_BATCH = 1 << 16


class Histogram(Remembering):
    """A histogram of 2048 bins between the extremes, of 65,536 to 131,072 numbers of each batch or all."""

    rounds = 2
    bins = 2048

    def __init__(self, importance: Importance | None = None) -> None:
        self._extremes = MinMax()
        self._importance = importance
        self._counts = np.zeros(self.bins, np.int64 if importance is None else np.float64)

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
        flat = _sampled(graph, value)
        moved = graph.op("Sub", [flat, graph.constant(np.asarray(low, np.float32))], {})
        scaled = graph.op("Div", [moved, graph.constant(per_bin)], {})
        last = graph.constant(np.asarray(self.bins - 1, np.float32))
        inside = graph.op("Clip", [scaled, graph.constant(np.asarray(0, np.float32)), last], {})
        # 32 bits, as these take more memory than the value itself; a batch has fewer numbers than that.
        index = graph.op("Cast", [inside], {"to": int(ir.DataType.INT32)})
        zeros = graph.constant(np.zeros(self.bins, np.int32 if self._importance is None else np.float32))
        added = self._weights(graph, value, index)
        return [graph.op("ScatterElements", [zeros, index, added], {"axis": 0, "reduction": "add"})]

    def _weights(self, graph: ProbeGraph, value: ir.Value, index: ir.Value) -> ir.Value:
        """What every number counts: one, or as much as its channel matters."""
        if self._importance is None:
            zeros = graph.op("Sub", [index, index], {})
            return graph.op("Add", [zeros, graph.constant(np.asarray(1, np.int32))], {})
        channels = graph.constant(self._importance.spread)
        return _sampled(graph, graph.op("Expand", [channels, graph.op("Shape", [value], {})], {}))

    def observe(self, results: Sequence[np.ndarray], round_index: int) -> None:
        """Widens the extremes, then adds to the histogram."""
        if round_index == 0:
            self._extremes.observe(results, 0)
        elif results:
            self._counts += results[0]

    def range(self) -> Range:
        """What `estimate` makes of the histogram, or the extremes where there is none."""
        low, high = self._extremes.range()
        if not self._counts.any():
            return low, high
        return self.estimate(self._counts, np.linspace(low, high, self.bins + 1))

    def estimate(self, counts: np.ndarray, edges: np.ndarray) -> Range:
        """The range that is best for a distribution.

        Args:
            counts: `[bins]`, not all zero; int64, or float64 where channels differ in what they count.
            edges: float64 `[bins + 1]`, ascending.
        """
        raise NotImplementedError


class Percentile(Histogram):
    """The range that leaves a given share of the numbers out at each end."""

    def __init__(self, percentile: float = 99.99) -> None:
        super().__init__()
        self._share = 1.0 - percentile / 100.0

    def estimate(self, counts: np.ndarray, edges: np.ndarray) -> Range:
        """The inner edges of the outermost bins that are needed to keep the share."""
        allowed = self._share * int(counts.sum())
        below = int(np.searchsorted(np.cumsum(counts), allowed, side="right"))
        above = int(np.searchsorted(np.cumsum(counts[::-1]), allowed, side="right"))
        return float(edges[min(below, self.bins)]), float(edges[max(self.bins - above, 0)])


class Entropy(Histogram):
    """The range whose quantized distribution tells least of the original apart (Kullback-Leibler).

    As in TensorRT (S. Migacz, "8-bit inference with TensorRT", GTC 2017), for ranges that need not be
    symmetric: both ends move in towards zero together, what lies outside is counted at the ends.
    """

    candidates = 128

    def __init__(self, levels: int = 255) -> None:
        super().__init__()
        self._levels = levels

    def estimate(self, counts: np.ndarray, edges: np.ndarray) -> Range:
        """The candidate of least divergence; the widest where several are as good."""
        weights = _without_spike(counts, edges)
        if not weights.any() or self.bins <= self._levels:
            return float(edges[0]), float(edges[-1])
        reach = max(-edges[0], edges[-1])
        smallest = self._levels / self.bins
        best, least = (0, self.bins), np.inf
        for share in np.linspace(1.0, smallest, self.candidates):
            first = int(np.searchsorted(edges, -share * reach, side="right")) - 1
            last = int(np.searchsorted(edges, share * reach, side="left"))
            kept = max(first, 0), min(last, self.bins)
            if kept[1] - kept[0] < self._levels:
                continue
            divergence = _divergence(weights, *kept, self._levels)
            if divergence < least:
                best, least = kept, divergence
        return float(edges[best[0]]), float(edges[best[1]])


class MeanSquaredError(Histogram):
    """The range of least squared error: what rounding costs inside and what clipping costs outside.

    Both ends are searched independently. Inside, the error of rounding is that of an even distribution,
    step^2 / 12 per number; exact zeros, which stay exact, cost nothing. Errors count as much as they matter
    to the layers that read the value, where that is known.
    """

    candidates = 96

    def __init__(
        self, levels: int = 255, symmetric: bool = False, importance: Importance | None = None
    ) -> None:
        super().__init__(importance)
        self._levels = levels
        self._symmetric = symmetric

    def estimate(self, counts: np.ndarray, edges: np.ndarray) -> Range:
        """The pair of ends of least error."""
        weights = _without_spike(counts, edges, keep_average=False)
        centres = (edges[1:] + edges[:-1]) / 2
        lows = _ends(min(edges[0], 0.0), self.candidates)
        highs = _ends(max(edges[-1], 0.0), self.candidates)
        below = np.array([(weights * np.maximum(low - centres, 0.0) ** 2).sum() for low in lows])
        above = np.array([(weights * np.maximum(centres - high, 0.0) ** 2).sum() for high in highs])
        spans = highs[None, :] - lows[:, None]
        if self._symmetric:
            spans = 2.0 * np.maximum(highs[None, :], -lows[:, None])
        rounding = weights.sum() * (spans / self._levels) ** 2 / 12.0
        error = below[:, None] + above[None, :] + rounding
        i, j = np.unravel_index(int(np.argmin(error)), error.shape)
        return max(float(lows[i]), float(edges[0])), min(float(highs[j]), float(edges[-1]))


def _sampled(graph: ProbeGraph, value: ir.Value) -> ir.Value:
    """A value as a vector; of a large one every n-th number, n odd, so that all columns of an image count."""

    def number(content: int) -> ir.Value:
        return graph.constant(np.array([content], np.int64))

    flat = graph.op("Reshape", [value, number(-1)], {})
    halves = graph.op("Div", [graph.op("Shape", [flat], {}), number(2 * _NUMBERS_PER_BATCH)], {})
    step = graph.op("Add", [graph.op("Mul", [halves, number(2)], {}), number(1)], {})
    return graph.op("Slice", [flat, number(0), number(2**62), number(0), step], {})


def _ends(end: float, count: int) -> np.ndarray:
    """Candidates between an extreme and one twentieth of it; zero has only itself."""
    return end * np.linspace(1.0, 0.05, count) if end else np.zeros(1)


def _without_spike(counts: np.ndarray, edges: np.ndarray, *, keep_average: bool = True) -> np.ndarray:
    """The counts as float64, the bin of zero brought to the mean of its neighbours (or the lesser of both).

    Behind a ReLU half of all numbers are exactly zero. They stay so in any range and say nothing about it.
    """
    weights = counts.astype(np.float64)
    zero = int(np.clip(np.searchsorted(edges, 0.0, side="right") - 1, 0, len(counts) - 1))
    if edges[0] > 0.0 or edges[-1] < 0.0:
        return weights
    around = [weights[i] for i in (zero - 1, zero + 1) if 0 <= i < len(weights)]
    usual = float(np.mean(around)) if keep_average else min(around)
    weights[zero] = min(weights[zero], usual)
    return weights


def _divergence(weights: np.ndarray, first: int, last: int, levels: int) -> float:
    """Kullback-Leibler divergence of the distribution from what is left of it in `levels` steps."""
    inside = weights[first:last]
    clipped = inside.copy()
    clipped[0] += weights[:first].sum()
    clipped[-1] += weights[last:].sum()
    step = np.arange(len(inside)) * levels // len(inside)
    filled = clipped > 0.0
    sums = np.bincount(step, inside, levels)
    sizes = np.bincount(step, filled, levels)
    spread = np.where(filled, (sums / np.maximum(sizes, 1.0))[step], 0.0)
    total, kept = clipped.sum(), spread.sum()
    if kept <= 0.0:
        return np.inf
    original = clipped[filled] / total
    quantized = np.maximum(spread[filled] / kept, 1e-12)
    return float((original * np.log(original / quantized)).sum())
