"""Depthwise convolution of integers with several rows of the window per instruction.

Numbers of neighbouring rows of the image are interleaved, so that a lane of `vpdpbusd` holds four rows of its
channel and a lane of `vpdpwssd` or `vpmaddwd` two. A column interleaved once serves every pixel whose window
covers it. Rows outside of the image are read at the nearest one inside; their weights are masked or, where
padding is not zero, they are replaced by it. Nothing is copied.

Weights are stored [KW, C, rows of a step] for each step in turn. A step of two or three rows has zeros for
the others, unless `vpermb` can spread them over lanes. The orders in which that permutes come first: LLVM
would make two slower instructions of an order that it knows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
from tvm import tirx

from . import emit
from .arithmetic import Arithmetic, has_features, intrinsic, lane_arithmetic, lane_value
from .channelwise import SERIAL_OPERATIONS
from .emit import Statements
from .interface import Conv2dSpec, Kernel
from .microkernel import Accumulators, Writer
from .tile import TargetNumbers, Tile, blocks, lanes_of
from .window import tile_starts

_DEPTH = {"vpdpbusd": 4, "vpdpwssd": 2, "vpmaddwd": 2}
"""Rows per lane."""
_MOST_ROWS = 27
"""Rows of a window that are written out at most."""


def suits_interleaved(spec: Conv2dSpec, types: tuple[str, str], target: TargetNumbers) -> bool:
    """Whether lanes have room for several rows and the window has them."""
    arithmetic = lane_arithmetic(*types, target)
    return (
        arithmetic.name in _DEPTH
        and 1 < spec.kernel[0] <= _MOST_ROWS
        and spec.out_channels >= lanes_of(target)
        and types[1] == "int8"
    )


@dataclass(frozen=True)
class _Step:
    """Rows of the window that one instruction takes, and where their weights begin."""

    first: int
    rows: int
    stored: int
    weights: int


def _steps(spec: Conv2dSpec, depth: int, begin: int, permutes: bool) -> list[_Step]:
    found = []
    for first in range(0, spec.kernel[0], depth):
        rows = min(depth, spec.kernel[0] - first)
        stored = rows if rows == 1 or permutes else depth
        found.append(_Step(first, rows, stored, begin))
        begin += spec.kernel[1] * spec.out_channels * stored
    return found


def pack_interleaved_weights(weights: np.ndarray, steps: Sequence[_Step], size: int) -> np.ndarray:
    """(C, 1, KH, KW) -> `size` bytes on one axis, as this module's head says, but for the orders."""
    parts = []
    for step in steps:
        part = weights[:, 0, step.first : step.first + step.rows].transpose(2, 0, 1)
        parts.append(np.pad(part, ((0, 0), (0, 0), (0, step.stored - step.rows))).reshape(-1))
    packed = np.concatenate(parts)
    return np.pad(packed, (0, size - packed.size))


def interleaved_depthwise(
    spec: Conv2dSpec,
    types: tuple[str, str],
    zero_point: int,
    tile: Tile,
    writer: Writer,
    target: TargetNumbers,
) -> Kernel:
    """A depthwise convolution that `suits_interleaved`; at most `window.MAX_BORDER_TILES` tiles at borders.

    Buffers: data (N, H, W, C), packed weights, extra inputs, output (N, OH, OW, C).
    """
    arithmetic = lane_arithmetic(*types, target)
    depth = _DEPTH[arithmetic.name]
    permutes = depth == 4 and tile.lanes == 16 and has_features(target, "avx512vbmi")
    orders = _orders(tile.lanes, depth, spec.kernel[0] % depth) if permutes else []
    steps = _steps(spec, depth, len(orders), permutes)
    data = emit.buffer("data", spec.data_shape, types[0])
    size = len(orders) + sum(spec.kernel[1] * spec.out_channels * step.stored for step in steps)
    if permutes and 1 < steps[-1].rows < depth:
        # Whole vectors are read where three or two fourths of one are wanted.
        size += tile.lanes * (depth - steps[-1].rows)
    weights = emit.buffer("weights", (size,), types[1])
    loops = _Interleaved(spec, zero_point, tile, steps, arithmetic, data, weights, writer, permutes)
    func = emit.function("integer_depthwise", [data, weights, *writer.extras, writer.output], [loops.body()])
    note = f"int8 depthwise {tile} {arithmetic.name} {depth} rows"

    def pack(given: np.ndarray) -> np.ndarray:
        packed = pack_interleaved_weights(given, steps, size - len(orders))
        return np.concatenate([np.array(orders, packed.dtype), packed])

    return Kernel(func, (pack,), spec.flops, note)


def _order(lanes: int, depth: int) -> list[int]:
    """Where the bytes of `depth` vectors go that are interleaved."""
    return [row * lanes + lane for lane in range(lanes) for row in range(depth)]


def _orders(lanes: int, depth: int, rest: int) -> list[int]:
    """The order above, and where rows come from that lie `rest` to a lane; others are masked."""
    spread = [lane * rest + min(row, rest - 1) for lane in range(lanes) for row in range(depth)]
    return _order(lanes, depth) + (spread if rest > 1 else [])


@dataclass(frozen=True)
class _Interleaved:
    spec: Conv2dSpec
    zero_point: int
    tile: Tile
    steps: list[_Step]
    arithmetic: Arithmetic
    data: Any
    weights: Any
    writer: Writer
    permutes: bool
    """Whether one instruction permutes all bytes of a vector."""

    @property
    def _starts(self) -> list[int]:
        """First pixels of the tiles of a row."""
        return tile_starts(self.spec.out_width, self.tile.pixels)

    @property
    def _has_outer_rows(self) -> bool:
        spec = self.spec
        last = (spec.out_height - 1) * spec.stride[0] - spec.pads[0]
        return spec.pads[0] > 0 or last + (spec.kernel[0] - 1) * spec.dilation[0] >= spec.height

    def body(self) -> Any:
        """The loops."""
        spec, tile = self.spec, self.tile
        rows = spec.batch * spec.out_height

        def row(t: Any) -> Any:
            n, oh = emit.unravel(t, (spec.batch, spec.out_height))
            if len(self._starts) == 1:
                return self._tile(n, oh, 0)
            last = self._starts[-1]
            moved = last % tile.pixels

            def column(number: Any) -> Any:
                start = number * tile.pixels
                return self._tile(n, oh, emit.minimum(start, last) if moved else start)

            return emit.loop("column", len(self._starts), column)

        work = rows * spec.out_width * spec.out_channels * prod(spec.kernel)
        return emit.parallel("row", rows, row, enabled=work > SERIAL_OPERATIONS)

    def _tile(self, n: Any, oh: Any, ow: Any) -> Any:
        tile, channels = self.tile, self.spec.out_channels

        def block(b: Any) -> Any:
            start: Any = b * tile.block
            if channels % tile.block:
                start = emit.minimum(start, channels - tile.block)
            channel, bound = emit.bind("channel", start)
            accumulators = Accumulators(tile, self.arithmetic)
            return [
                *bound,
                *accumulators.clear(),
                *(self._step(accumulators, step, n, oh, ow, channel) for step in self.steps),
                *self.writer.write_tile(
                    accumulators, lambda pixel, c: (n, c, oh, ow + pixel), channel, False, tile.block
                ),
            ]

        return emit.loop("block", blocks(channels, tile.block), block)

    def _step(
        self, accumulators: Accumulators, step: _Step, n: Any, oh: Any, ow: Any, channel: Any
    ) -> Statements:
        spec, tile, lanes = self.spec, self.tile, self.tile.lanes
        places = [
            oh * spec.stride[0] - spec.pads[0] + (step.first + row) * spec.dilation[0]
            for row in range(step.rows)
        ]
        rows, statements = [], []
        for number, place in enumerate(places):
            inside = emit.maximum(emit.minimum(place, spec.height - 1), 0) if self._has_outer_rows else place
            name, bound = emit.bind(f"row{number}", inside)
            rows.append(name)
            statements += bound
        mask = None
        if self._has_outer_rows:
            mask, bound_mask = emit.hold("mask", self._mask(places), dtype="int32")
            statements.append(bound_mask)
        held: dict[tuple[int, int], Any] = {}
        for kw in range(spec.kernel[1]):
            for v in range(tile.vectors):
                value = self._weights(step, kw, channel + v * lanes)
                if mask is not None and not self.zero_point:
                    value = value & emit.splat(mask, lanes)
                held[kw, v], bound_weight = emit.hold(f"w{kw}_{v}", value, lanes, "int32")
                statements.append(bound_weight)
        left = ow * spec.stride[1] - spec.pads[1]
        for offset, covered in self._covered().items():

            def combined(value: Callable[[int], Any], covered: list[tuple[int, int]] = covered) -> Statements:
                parts: Statements = []
                for v in range(tile.vectors):
                    name, bound_value = emit.hold("x", value(v), lanes, "int32")
                    parts.append(bound_value)
                    parts += [self._update(accumulators, p, v, name, held[kw, v]) for p, kw in covered]
                return parts

            def image(v: int, offset: int = offset) -> Any:
                value = self._column(rows, n, left + offset, channel + v * lanes)
                if mask is None or not self.zero_point:
                    return value
                # What is outside of the image is the zero point.
                own = emit.splat(mask, lanes)
                return (value & own) | (self._outside(step) & ~own)

            padding = combined(lambda _: self._outside(step)) if self.zero_point else []
            inside = {0 <= at * spec.stride[1] - spec.pads[1] + offset < spec.width for at in self._starts}
            if inside == {True}:
                statements += combined(image)
            elif inside == {False}:
                statements += padding
            else:
                # One body serves all tiles of a row, whose columns at the borders are outside for some.
                condition = emit.all_of(left + offset >= 0, left + offset < spec.width)
                statements.append(emit.when(condition, combined(image), padding))
        return statements

    def _update(self, accumulators: Accumulators, pixel: int, vector: int, value: Any, weight: Any) -> Any:
        lanes = self.tile.lanes
        return accumulators.update(
            pixel, vector, value, lambda total, x: self.arithmetic.combine(total, x, weight, lanes)
        )

    def _covered(self) -> dict[int, list[tuple[int, int]]]:
        """For every input column of a tile, from its left end on: pixels and the taps that read it."""
        found: dict[int, list[tuple[int, int]]] = {}
        for pixel in range(self.tile.pixels):
            for kw in range(self.spec.kernel[1]):
                offset = pixel * self.spec.stride[1] + kw * self.spec.dilation[1]
                found.setdefault(offset, []).append((pixel, kw))
        return dict(sorted(found.items()))

    @property
    def _bits(self) -> int:
        """Bits that a row takes in a lane."""
        return 32 // _DEPTH[self.arithmetic.name]

    def _mask(self, places: list[Any]) -> Any:
        """The bits of a lane that rows inside of the image take."""
        mask: Any = tirx.const(0, "int32")
        for number, place in enumerate(places):
            own = ((1 << self._bits) - 1) << (number * self._bits)
            signed = own - (1 << 32) if own >= 1 << 31 else own
            inside = emit.all_of(place >= 0, place < self.spec.height)
            mask = mask | tirx.Select(inside, tirx.const(signed, "int32"), tirx.const(0, "int32"))
        return mask

    def _outside(self, step: _Step) -> Any:
        """A column of padding."""
        field = (1 << self._bits) - 1
        lane = sum((self.zero_point & field) << (row * self._bits) for row in range(step.rows))
        return emit.constant(lane - (1 << 32) if lane >= 1 << 31 else lane, self.tile.lanes, "int32")

    def _weights(self, step: _Step, kw: int, channel: Any) -> Any:
        lanes, stored, depth = self.tile.lanes, step.stored, _DEPTH[self.arithmetic.name]
        at = step.weights + (kw * self.spec.out_channels + channel) * stored
        if 1 < stored < depth:
            # The bytes that were loaded, and where they go.
            given = (emit.load(self.weights, [each], lanes * depth) for each in (at, lanes * depth))
            spread = intrinsic("llvm.x86.avx512.permvar.qi.512", f"int8x{lanes * depth}", *given)
            own = (1 << (self._bits * stored)) - 1
            return tirx.reinterpret(f"int32x{lanes}", spread) & emit.constant(own, lanes, "int32")
        loaded = emit.load(self.weights, [at], lanes * stored)
        if stored == 1:
            return self._alone(loaded)
        return tirx.reinterpret(f"int32x{lanes}", self._widened(loaded, stored))

    def _column(self, rows: list[Any], n: Any, column: Any, channel: Any) -> Any:
        """The bytes of some rows of a column, interleaved."""
        lanes, depth = self.tile.lanes, _DEPTH[self.arithmetic.name]
        loaded = [emit.load(self.data, [n, row, column, channel], lanes) for row in rows]
        if len(loaded) == 1:
            return self._alone(loaded[0])
        # What fills a step may be anything: its weights are zero.
        loaded += loaded[-1:] * (depth - len(loaded))
        order = range(lanes * depth) if self.permutes else _order(lanes, depth)
        mixed = tirx.Shuffle(loaded, [tirx.const(each, "int32") for each in order])
        if self.permutes:
            given = emit.load(self.weights, [0], lanes * depth)
            mixed = intrinsic("llvm.x86.avx512.permvar.qi.512", f"int8x{lanes * depth}", mixed, given)
        return tirx.reinterpret(f"int32x{lanes}", self._widened(mixed, depth))

    def _alone(self, loaded: Any) -> Any:
        """One row per lane, the rest of its bits zero where another row might be."""
        return lane_value(loaded, self.arithmetic)

    def _widened(self, value: Any, depth: int) -> Any:
        """Bytes as what the instruction multiplies."""
        if depth == 4:
            return value
        return tirx.Cast(f"int16x{self.tile.lanes * depth}", value)
