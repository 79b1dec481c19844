"""Depthwise convolution and convolution of small groups: vectors run over the channels of many groups.

Weights are stored [KH, KW, C / groups, O]. In a depthwise convolution a vector of outputs reads the vector of
the same inputs; in small groups each input of a group is first repeated in the lanes of the group's outputs.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from . import emit
from .channelwise import Sweep, choose_channel_tile
from .emit import Statements
from .interface import Conv2dSpec, Epilogue, Kernel, nhwc
from .microkernel import Accumulators, Writer
from .tile import TargetNumbers, lanes_of
from .window import choose_padded, pad_stage, padded_spec

_MOST_TAPS = 32
"""Kernel columns times inputs of a group that are written out at most."""
_MOST_UPDATES = 96
"""Updates of a kernel row that are written out at most."""


def suits_small_groups(spec: Conv2dSpec, target: TargetNumbers) -> bool:
    """Whether four groups or more fit one vector, evenly."""
    depth, per_group = spec.in_channels // spec.groups, spec.out_channels // spec.groups
    lanes = lanes_of(target)
    if spec.groups == 1 or spec.kernel[1] * depth > _MOST_TAPS:
        return False
    return lanes % per_group == 0 and 4 * per_group <= lanes


def pack_grouped_weights(weights: np.ndarray) -> np.ndarray:
    """(O, C / groups, KH, KW) -> (KH, KW, C / groups, O)."""
    return np.ascontiguousarray(weights.transpose(2, 3, 1, 0))


def depthwise(spec: Conv2dSpec, epilogue: Epilogue | None, target: TargetNumbers) -> Kernel:
    """A convolution whose groups are small (`suits_small_groups`).

    Buffers: data (N, H, W, C), packed weights, extra inputs, output (N, OH, OW, O).
    """
    channels, taps = spec.out_channels, spec.kernel[1]
    group = (spec.in_channels // spec.groups, spec.out_channels // spec.groups)
    writer = Writer(epilogue, spec.out_shape, nhwc)
    data = source = emit.buffer("data", spec.data_shape)
    weights = emit.buffer("weights", (*spec.kernel, group[0], channels))
    is_held = group[0] == 1
    tile = choose_channel_tile(spec, channels, taps if is_held else 1, target)
    most_pixels = _MOST_UPDATES // (taps * group[0] * tile.vectors)
    if not is_held and tile.pixels > most_pixels:
        tile = replace(tile, pixels=max(1, most_pixels))
    padding: Statements = []
    if choose_padded(spec, tile):
        source, padding = pad_stage(spec, spec.in_channels, data)
        spec = padded_spec(spec)

    def load(kh: Any, kw: int, member: int, channel: Any, vector: int) -> Any:
        return emit.load(weights, [kh, kw, member, channel + vector * tile.lanes], tile.lanes)

    def prepare(kh: Any, channel: Any) -> tuple[Any, Statements]:
        """The weights of a kernel row: in registers if they are few, else where to read them."""
        if not is_held:
            return lambda kw, member, vector: load(kh, kw, member, channel, vector), []
        held: dict[tuple[int, int, int], Any] = {}
        statements: Statements = []
        for kw in range(taps):
            for vector in range(tile.vectors):
                name, bound = emit.hold(f"w{kw}_{vector}", load(kh, kw, 0, channel, vector), tile.lanes)
                held[kw, 0, vector] = name
                statements.append(bound)
        return lambda *place: held[place], statements

    def combine(
        accumulators: Accumulators, pixel: int, vector: int, value: Any, tap: tuple[int, int], weight: Any
    ) -> Any:
        return accumulators.update(pixel, vector, value * weight(*tap, vector))

    sweep = Sweep(spec, channels, tile, source, 0.0, prepare, combine, lambda *_: [], group)
    func = emit.function(
        "depthwise", [data, weights, *writer.extras, writer.output], [*padding, sweep.body(writer)]
    )
    return Kernel(func, (pack_grouped_weights,), spec.flops, f"depthwise {tile} groups {group[0]}:{group[1]}")
