"""Transposed depthwise convolution: vectors over the channels, one sweep per output phase."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from . import emit
from .channelwise import Sweep, choose_channel_tile
from .emit import Statements
from .interface import Conv2dSpec, Index
from .microkernel import Accumulators, Finished, Writer
from .tile import TargetNumbers, lanes_of
from .window import MAX_BORDER_TILES, border_tiles

_MOST_TAPS = 8
"""Kernel columns of a phase, whose weights are held in registers."""


@dataclass(frozen=True)
class PlacedWriter:
    """A writer whose tiles lie at other places of the output than they were computed for."""

    writer: Writer
    place: Callable[[Index], Index]

    @property
    def extras(self) -> list[Any]:
        """See `Writer`."""
        return self.writer.extras

    @property
    def output(self) -> Any:
        """See `Writer`."""
        return self.writer.output

    def write_tile(
        self,
        accumulators: Finished,
        index_of: Callable[[Any, Any], Index],
        first_channel: Any,
        is_last: Any,
        last_channels: int,
    ) -> Statements:
        """See `Writer.write_tile`."""
        return self.writer.write_tile(
            accumulators,
            lambda pixel, channel: self.place(index_of(pixel, channel)),
            first_channel,
            is_last,
            last_channels,
        )


@dataclass(frozen=True)
class PhaseSweep:
    """One phase of a transposed convolution with one input channel per group.

    `conv` is the ordinary convolution that the phase is, `place` as in `SpatialConvolution`.
    """

    conv: Conv2dSpec
    place: Callable[[Index], Index]
    target: TargetNumbers

    @property
    def multiplier(self) -> int:
        """Output channels of one group."""
        return self.conv.out_channels // self.conv.groups

    @property
    def length(self) -> int:
        """Weights of the phase."""
        return self.conv.out_channels * self.conv.kernel[0] * self.conv.kernel[1]

    @property
    def fits(self) -> bool:
        """Whether a sweep serves it."""
        conv = self.conv
        if not 0 < conv.kernel[1] <= _MOST_TAPS or not conv.kernel[0]:
            return False
        lanes = min(lanes_of(self.target), conv.out_channels)
        if conv.in_channels != conv.groups or lanes % self.multiplier or 2 * self.multiplier > lanes:
            return False
        tile = choose_channel_tile(conv, conv.out_channels, conv.kernel[1], self.target)
        return border_tiles(conv, tile.pixels) <= MAX_BORDER_TILES

    def body(self, data: Any, weights: Any, first: int, writer: Writer) -> Any:
        """The loops, over data (N, H, W, C) and flat weights of which this phase's begin at `first`."""
        conv, channels, taps = self.conv, self.conv.out_channels, self.conv.kernel[1]
        tile = choose_channel_tile(conv, channels, taps, self.target)

        def prepare(kh: Any, channel: Any) -> tuple[Callable[..., Any], Statements]:
            held, statements = {}, []
            for kw in range(taps):
                for vector in range(tile.vectors):
                    at = (kh * taps + kw) * channels + channel + vector * tile.lanes + first
                    held[kw, 0, vector], bound = emit.hold(
                        f"w{kw}_{vector}", emit.load(weights, [at], tile.lanes), tile.lanes
                    )
                    statements.append(bound)
            return lambda *place: held[place], statements

        def combine(
            accumulators: Accumulators, pixel: int, vector: int, value: Any, tap: tuple[int, int], weight: Any
        ) -> Any:
            return accumulators.update(pixel, vector, value * weight(*tap, vector))

        group = (1, self.multiplier)
        sweep = Sweep(conv, channels, tile, data, 0.0, prepare, combine, lambda *_: [], group)
        return sweep.body(PlacedWriter(writer, self.place))  # type: ignore[arg-type]


def pack_phase(weights: np.ndarray, rows: Sequence[int], columns: Sequence[int]) -> np.ndarray:
    """(C, O / C, KH, KW) -> (taps of the phase, O), flat."""
    taken = weights[:, :, rows][..., columns]
    return np.ascontiguousarray(taken.transpose(2, 3, 0, 1)).ravel()
