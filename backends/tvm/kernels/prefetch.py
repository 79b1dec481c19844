"""Bringing the next panel of weights into the second-level cache while the current one is being used.

Where weights are larger than the cache, the first tile that reads a panel waits for memory and the others do
not. Every tile therefore asks for its share of the next panel, a few lines every few steps of its reduction,
so that requests arrive no faster than the panel is used.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from . import emit
from .arithmetic import FLOAT, Arithmetic
from .choices import choose_flag
from .emit import Statements
from .tile import TargetNumbers, Tile, blocks

_LINE_FLOATS = 16
_STEPS_PER_REQUEST = 8
_MOST_LINES = 12
"""Lines per request; where more were needed, too few tiles use a panel for prefetching to keep up."""
_LEAST_BYTES = 1 << 16
"""Fewer weights than this are not waited for long."""

_STREAM_AHEAD = 1024
"""Weights between use and request: a page, enough for the latency of memory at its full rate."""
_STREAMED_LINES = 2

Requests = Callable[[Any], Statements]
"""Step of the reduction (a multiple of the steps per request) -> the requests made there."""


@dataclass(frozen=True)
class PanelPrefetch:
    """Requests for the panel after the current one."""

    steps: int
    """Steps for which one tile uses a panel."""
    stride: int
    """Weights between the beginnings of neighbouring panels."""
    lines: int
    unit: int = 1
    """Elements in memory per weight of the steps counted here."""

    @classmethod
    def plan(
        cls,
        steps: int,
        stride: int,
        tile: Tile,
        panels: int,
        sweeps: int,
        target: TargetNumbers,
        arithmetic: Arithmetic = FLOAT,
    ) -> PanelPrefetch | None:
        """The requests of `sweeps` tiles that use each of `panels` panels; None where they do not pay."""
        lines = blocks(_STEPS_PER_REQUEST * tile.block, _LINE_FLOATS * max(sweeps, 1))
        if steps % _STEPS_PER_REQUEST or sweeps < 2 or lines > _MOST_LINES:
            return None
        # In a network other layers have driven the weights out of the cache, however few they are.
        pays = 4 * stride * panels > _LEAST_BYTES
        return cls(steps, stride, lines, arithmetic.depth) if choose_flag("prefetch", pays) else None

    def requests(self, weights: Any, panel: Any, sweep: Any, step: Any) -> Statements:
        """The requests of tile number `sweep` at a step; the current panel begins at `panel` in `weights`."""
        number = emit.floordiv(sweep * self.steps + step, _STEPS_PER_REQUEST)
        first = panel + self.stride + number * (self.lines * _LINE_FLOATS)
        lines = [(first + line * _LINE_FLOATS) * self.unit for line in range(self.lines)]
        return [emit.prefetch(weights, [line]) for line in lines]


@dataclass(frozen=True)
class StreamPrefetch:
    """Requests for weights that are used once, a fixed distance ahead of their use.

    The hardware's own prefetchers stop at the end of a page; these go on into the next one.
    """

    stride: int
    """Weights of one step."""

    @classmethod
    def plan(cls, tile: Tile, tiles: int, weight_bytes: int, target: TargetNumbers) -> StreamPrefetch | None:
        """The requests of `tiles` tiles of rows; None where weights are used again or lie in the cache."""
        if tiles > 1 or tile.pixels == 1 or tile.block > _STREAMED_LINES * _LINE_FLOATS:
            return None
        return cls(tile.block) if choose_flag("prefetch", weight_bytes > target.l2_bytes) else None

    def requests(self, weights: Any, place: Any) -> Statements:
        """The requests of the step whose weights begin at `place`."""
        lines = range(0, self.stride, _LINE_FLOATS)
        return [emit.prefetch(weights, [place + _STREAM_AHEAD + line]) for line in lines]


def reduction(
    name: str, start: Any, extent: Any, step: Callable[[Any], Any], requests: Requests | None
) -> Any:
    """A loop over steps, with requests every few steps if there are any."""
    aligned = isinstance(extent, int) and extent % _STEPS_PER_REQUEST == 0
    if requests is None or not aligned or (isinstance(start, int) and start % _STEPS_PER_REQUEST):
        return emit.loop(name, extent, step, start=start)
    ask = requests

    def group(number: Any) -> Statements:
        first = start + number * _STEPS_PER_REQUEST
        return [*ask(first), emit.loop(name, _STEPS_PER_REQUEST, step, start=first)]

    return emit.loop(f"{name}_group", extent // _STEPS_PER_REQUEST, group)
