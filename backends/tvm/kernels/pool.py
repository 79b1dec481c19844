"""Max and average pooling over windows, and their global forms. Padding is never an element of a window."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import inf
from typing import Any

import numpy as np
from tvm import tirx

from . import emit
from .arithmetic import FLOAT, Arithmetic
from .channelwise import SERIAL_OPERATIONS, Sweep, choose_channel_tile
from .emit import Statements
from .interface import Epilogue, Kernel, PoolSpec, nhwc
from .microkernel import Accumulators, Writer
from .tile import TargetNumbers, Tile, blocks, lanes_of
from .window import MAX_BORDER_TILES, border_tiles, columns_inside, rows_inside

_UNROLLED_TAPS = 7
"""Kernel columns that are unrolled at most."""


def pool(spec: PoolSpec, epilogue: Epilogue | None, target: TargetNumbers) -> Kernel:
    """Pooling, global pooling being a window as large as the image.

    Buffers: data (N, H, W, C), extra inputs, output (N, OH, OW, C).
    """
    arithmetic = _arithmetic(spec)
    writer = Writer(epilogue, spec.out_shape, nhwc, arithmetic.accumulator)
    data = emit.buffer("data", spec.data_shape, spec.dtype)
    packing = 4 // np.dtype(arithmetic.accumulator).itemsize
    tile = choose_channel_tile(spec, spec.channels, 0, target, packing)
    if spec.kernel[1] > _UNROLLED_TAPS or border_tiles(spec, tile.pixels) > MAX_BORDER_TILES:
        lanes = min(lanes_of(target) * packing, spec.channels)
        rolled = _RolledPool(spec, Tile(1, max(1, min(8, spec.channels // lanes)), lanes), data)
        body, note = rolled.body(writer), f"{spec.mode}_pool {rolled.tile} rolled"
    else:
        body, note = _sweep(spec, tile, data).body(writer), f"{spec.mode}_pool {tile}"
    func = emit.function(f"{spec.mode}_pool", [data, *writer.extras, writer.output], [body])
    note = note if spec.dtype == "float32" else f"{spec.dtype} {note}"
    return Kernel(func, (), spec.flops, note)


def _arithmetic(spec: PoolSpec) -> Arithmetic:
    """Element types of the registers: maxima keep the type of the data."""
    if spec.mode == "average" or spec.dtype == "float32":
        return FLOAT
    return replace(FLOAT, name="max", accumulator=spec.dtype, column=spec.dtype, value=spec.dtype)


def _initial(spec: PoolSpec) -> float:
    if spec.mode != "max":
        return 0.0
    return -inf if spec.dtype == "float32" else int(np.iinfo(spec.dtype).min)


def _load(spec: PoolSpec, source: Any, index: Any, lanes: int) -> Any:
    """A vector of the data in the type of the registers."""
    loaded = emit.load(source, index, lanes)
    if spec.mode == "max" or spec.dtype == "float32":
        return loaded
    wide = "int32" if lanes == 1 else f"int32x{lanes}"
    value = tirx.Cast(wide.replace("int32", "float32"), tirx.Cast(wide, loaded))
    return value - emit.constant(spec.zero_point, lanes) if spec.zero_point else value


def _take(spec: PoolSpec, accumulators: Accumulators, pixel: int, vector: int, value: Any) -> Any:
    if spec.mode == "max":
        return accumulators.update(pixel, vector, value, tirx.max)
    return accumulators.update(pixel, vector, value)


def _divide(spec: PoolSpec, accumulators: Accumulators, oh: Any, ow: Any) -> Statements:
    """Turn sums into averages, for the pixels from `ow` on."""
    if spec.mode == "max":
        return []
    tile = accumulators.tile
    statements: Statements = []
    _, rows = rows_inside(spec, oh * spec.stride[0] - spec.pads[0], spec.count_include_pad)
    for pixel in range(tile.pixels):
        left = (ow + pixel) * spec.stride[1] - spec.pads[1]
        _, columns = columns_inside(spec, left, spec.count_include_pad)
        count = rows * columns
        inverse = tirx.const(1.0 / max(count, 1), "float32") if isinstance(count, int) else None
        if inverse is None:
            inverse = tirx.const(1.0, "float32") / emit.maximum(count, 1).astype("float32")
        name, bound = emit.hold(f"inverse{pixel}", inverse)
        statements.append(bound)
        statements.extend(
            accumulators.update(pixel, v, emit.splat(name, tile.lanes), lambda total, scale: total * scale)
            for v in range(tile.vectors)
        )
    return statements


def _sweep(spec: PoolSpec, tile: Tile, data: Any) -> Sweep:
    return Sweep(
        spec,
        spec.channels,
        tile,
        data,
        _initial(spec),
        lambda kh, channel: (None, []),
        lambda accumulators, pixel, vector, value, tap, _: _take(spec, accumulators, pixel, vector, value),
        lambda accumulators, ow, oh: _divide(spec, accumulators, oh, ow),
        arithmetic=_arithmetic(spec),
        load=lambda source, index, lanes: _load(spec, source, index, lanes),
    )


@dataclass(frozen=True)
class _RolledPool:
    """One output pixel at a time, with loops over both kernel axes: for large windows and odd paddings."""

    spec: PoolSpec
    tile: Tile
    data: Any

    def body(self, writer: Writer) -> Any:
        spec, tile = self.spec, self.tile
        count = blocks(spec.channels, tile.block)

        def task(t: Any) -> Any:
            n, oh, block = emit.unravel(t, (spec.batch, spec.out_height, count))
            start: Any = block * tile.block
            if spec.channels % tile.block:
                start = emit.minimum(start, spec.channels - tile.block)
            channel, bound = emit.bind("channel", start)
            return [
                *bound,
                emit.loop("ow", spec.out_width, lambda ow: self._pixel(writer, n, oh, ow, channel)),
            ]

        return emit.parallel(
            "task", spec.batch * spec.out_height * count, task, enabled=spec.flops > SERIAL_OPERATIONS
        )

    def _pixel(self, writer: Writer, n: Any, oh: Any, ow: Any, channel: Any) -> Statements:
        spec, tile = self.spec, self.tile
        accumulators = Accumulators(tile, _arithmetic(spec))
        top, left = oh * spec.stride[0] - spec.pads[0], ow * spec.stride[1] - spec.pads[1]
        first_row, rows = rows_inside(spec, top)
        first_column, columns = columns_inside(spec, left)

        def tap(kh: Any, kw: Any) -> Statements:
            row, column = top + kh * spec.dilation[0], left + kw * spec.dilation[1]
            return [
                _take(
                    spec,
                    accumulators,
                    0,
                    v,
                    _load(spec, self.data, [n, row, column, channel + v * tile.lanes], tile.lanes),
                )
                for v in range(tile.vectors)
            ]

        def kernel_row(kh: Any) -> Any:
            return emit.loop("kw", columns, lambda kw: tap(kh, kw), start=first_column)

        return [
            *accumulators.clear(_initial(spec)),
            emit.loop("kh", rows, kernel_row, start=first_row),
            *_divide(spec, accumulators, oh, ow),
            *writer.write_tile(accumulators, lambda _, c: (n, c, oh, ow), channel, False, tile.block),
        ]
