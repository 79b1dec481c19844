"""Depthwise convolution of integers: one vector of channels per tap, int32 sums.

Weights are stored [KH, KW, 1, O] as int8 or int16. A lane holds one channel, so `vpdpbusd`, `vpdpwssd` and
`vpmaddwd` serve as exact multiply-adds of what fits their lowest operand, the others being zero.
"""

from __future__ import annotations

from typing import Any

from tvm import tirx

from . import emit
from .arithmetic import lane_arithmetic, lane_value
from .channelwise import Sweep, choose_channel_tile
from .depthwise import pack_grouped_weights
from .emit import Statements
from .integer_stage import stage_image
from .integer_taps import interleaved_depthwise, suits_interleaved
from .interface import Conv2dSpec, Kernel
from .microkernel import Accumulators, Writer
from .tile import TargetNumbers
from .window import MAX_BORDER_TILES, border_tiles, choose_padded, padded_spec, padding_of

_MOST_TAPS = 32
"""Kernel columns that are written out at most."""


def suits_integer_depthwise(spec: Conv2dSpec) -> bool:
    """Whether every group is one channel in and one out."""
    return 1 < spec.groups == spec.in_channels == spec.out_channels and spec.kernel[1] <= _MOST_TAPS


def integer_depthwise(
    spec: Conv2dSpec, types: tuple[str, str], zero_point: int, writer: Writer, target: TargetNumbers
) -> Kernel:
    """A depthwise convolution.

    Buffers: data (N, H, W, C), packed weights, extra inputs, output (N, OH, OW, C).
    """
    flops, channels, taps = spec.flops, spec.out_channels, spec.kernel[1]
    data = source = emit.buffer("data", spec.data_shape, types[0])
    weights = emit.buffer("weights", (*spec.kernel, 1, channels), types[1])
    arithmetic = lane_arithmetic(*types, target)
    tile = choose_channel_tile(spec, channels, taps, target)
    if suits_interleaved(spec, types, target) and border_tiles(spec, tile.pixels) <= MAX_BORDER_TILES:
        return interleaved_depthwise(spec, types, zero_point, tile, writer, target)
    padding: Statements = []
    if any(padding_of(spec.pads)) and (zero_point != 0 or choose_padded(spec, tile)):
        staged = stage_image(data, spec.data_shape, padding_of(spec.pads), 1, types[0], 1, zero_point)
        spec = padded_spec(spec)
        source = tirx.decl_buffer(spec.data_shape, types[0], name="padded", data=staged.flat.data)
        padding = [*staged.statements, tirx.DeclBuffer(source, data=staged.flat.data)]

    def load(buffer: Any, index: Any, lanes: int) -> Any:
        return lane_value(emit.load(buffer, index, lanes), arithmetic)

    def weight_of(at: Any, lanes: int) -> Any:
        return tirx.Cast("int32" if lanes == 1 else f"int32x{lanes}", emit.load(weights, at, lanes))

    def prepare(kh: Any, channel: Any) -> tuple[Any, Statements]:
        held: dict[tuple[int, int, int], Any] = {}
        statements: Statements = []
        for kw in range(taps):
            for vector in range(tile.vectors):
                at = [kh, kw, 0, channel + vector * tile.lanes]
                value = weight_of(at, tile.lanes)
                name, bound = emit.hold(f"w{kw}_{vector}", value, tile.lanes, "int32")
                held[kw, 0, vector] = name
                statements.append(bound)
        return lambda *place: held[place], statements

    def combine(
        accumulators: Accumulators, pixel: int, vector: int, value: Any, tap: tuple[int, int], weight: Any
    ) -> Any:
        own = weight(*tap, vector)
        return accumulators.update(
            pixel, vector, value, lambda total, x: arithmetic.combine(total, x, own, tile.lanes)
        )

    sweep = Sweep(
        spec,
        channels,
        tile,
        source,
        0,
        prepare,
        combine,
        lambda *_: [],
        arithmetic=arithmetic,
        load=load,
    )
    func = emit.function(
        "integer_depthwise", [data, weights, *writer.extras, writer.output], [*padding, sweep.body(writer)]
    )
    copied = " staged" if padding else ""
    return Kernel(func, (pack_grouped_weights,), flops, f"int8 depthwise {tile} {arithmetic.name}{copied}")
