"""3x3 convolution of integers with fewer multiplications, exactly: Winograd's F(2x2, 3x3) in 16 bits.

For two outputs the data's transform has only 0, 1 and -1, the weights' one half besides: twice of it, along
both axes, is of integers, and sums are four times what they should be. Transformed data stay within 4 * 255,
weights within 9 * 128, so that `vpmaddwd` multiplies pairs of them, as it does in direct convolution; 4/9 of
the products are left. Weights are transformed when the kernel runs: that takes a fraction of the products,
and they stay bytes in the artifact.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from math import prod
from typing import Any

import numpy as np
from tvm import tirx

from . import emit
from .arithmetic import Arithmetic, integer_arithmetic
from .choices import Option, choose
from .emit import Statements
from .interface import Conv2dSpec, Kernel
from .microkernel import Accumulators, Writer
from .minimal_filtering import F2, TAPS, multiply
from .prefetch import reduction
from .spatial import pack_conv_weights
from .tile import TargetNumbers, Tile, blocks, lanes_of, tile_cycles
from .winograd_plan import Plan, divisions, tile_grid

_FILTER = ((2, 0, 0), (1, 1, 1), (1, -1, 1), (0, 0, 2))
"""Twice the transform of weights."""
_MOST_CHANNELS = (1 << 31) // (4 * TAPS * TAPS * 255 * 128)
"""int32 holds four times the sum of so many channels."""
_FEWEST_CHANNELS = 16
_DIRECT, _FEWER = "direct", "F(2,3)"
_WEIGHT_CYCLES = 16.0
"""Of transforming one vector of weights."""
_SLOWNESS = 1.5
"""What a product takes, over what the estimate for floats says of half as many steps."""


def choose_integer_winograd(spec: Conv2dSpec, types: tuple[str, str], target: TargetNumbers) -> Plan | None:
    """The quickest division; None where direct convolution is estimated to be quicker, or only it applies."""
    lanes, channels = lanes_of(target), spec.in_channels
    if (spec.kernel, spec.stride, spec.dilation, spec.groups) != ((TAPS, TAPS), (1, 1), (1, 1), 1):
        return None
    if types not in (("uint8", "int8"), ("int8", "int8")) or channels % 2 or channels > _MOST_CHANNELS:
        return None
    if (
        min(channels, spec.out_channels) < _FEWEST_CHANNELS
        or min(spec.out_height, spec.out_width) < F2.outputs
    ):
        return None
    if min(spec.pads) < 0 or integer_arithmetic(*types, target).name != "vpmaddwd":
        return None
    halved = replace(spec, in_channels=channels // 2)
    plan = min(divisions(halved, F2, target), key=lambda each: each.cycles)
    rows, steps = spec.batch * spec.out_height, TAPS * TAPS * channels // 2
    direct = _SLOWNESS * rows * tile_cycles(spec.out_width, spec.out_channels, steps, target, rows)
    products = F2.products * plan.chunks * tile_cycles(plan.tiles, spec.out_channels, channels // 2, target)
    own = plan.cycles + (_SLOWNESS - 1) * products
    own += _WEIGHT_CYCLES * channels * spec.out_channels / (2 * lanes)
    costs = {_DIRECT: direct, _FEWER: own}
    quickest = min(costs, key=costs.__getitem__)
    chosen = choose(
        "algorithm", quickest, lambda: [Option(name, cost / costs[quickest]) for name, cost in costs.items()]
    )
    return None if chosen == _DIRECT else plan


def pack_pairs(weights: np.ndarray, block: int) -> np.ndarray:
    """(O, C, 3, 3) -> (blocks, C / 2, 9, block, 2), filled with zeros."""
    packed = pack_conv_weights(weights, 1, block)
    split = packed.reshape(len(packed), TAPS * TAPS, weights.shape[1] // 2, 2, block)
    return np.ascontiguousarray(split.transpose(0, 2, 1, 4, 3))


class IntegerWinograd:
    """The stages of one convolution: weights once, then chunks of tiles as in `winograd.py`.

    Buffers: data (N, H, W, C), packed weights, extra inputs, output (N, OH, OW, O).
    """

    def __init__(
        self,
        spec: Conv2dSpec,
        types: tuple[str, str],
        zero_point: int,
        plan: Plan,
        writer: Writer,
        target: TargetNumbers,
    ):
        self.spec, self.zero_point, self.plan, self.writer, self.target = (
            spec,
            zero_point,
            plan,
            writer,
            target,
        )
        self.tile, self.lanes = plan.tile, plan.tile.lanes
        self.arithmetic: Arithmetic = integer_arithmetic("int16", "int16", target)
        self.grid, self.pairs = tile_grid(spec, F2), spec.in_channels // 2
        self.blocks = blocks(spec.out_channels, self.tile.block)
        self.row_tiles = blocks(plan.tiles, self.tile.pixels)
        self.data = emit.buffer("data", spec.data_shape, types[0])
        self.weights = emit.buffer(
            "weights", (self.blocks, self.pairs, TAPS * TAPS, self.tile.block, 2), types[1]
        )

    def kernel(self) -> Kernel:
        """The function and the packing of its weights."""
        flat, declaration = emit.flat_view(self.weights, prod(map(int, self.weights.shape)))
        self.flat_weights, before = flat, []
        if self.plan.chunks > 1:
            count = self.blocks * self.pairs
            filters = self._allocate_filters(self.blocks)
            before = [
                filters,
                emit.parallel("pair", count, lambda pair: self._filter(pair, self.blocks, pair)),
            ]
        divides_chunks = self.plan.chunks >= self.target.cores
        body = emit.parallel(
            "chunk", self.plan.chunks, lambda chunk: self._chunk(chunk, not divides_chunks), divides_chunks
        )
        func = emit.function(
            "integer_winograd",
            [self.data, self.weights, *self.writer.extras, self.writer.output],
            [declaration, *before, body],
        )
        block = self.tile.block
        note = f"int8 conv2d winograd F(2,3) {self.tile} {self.arithmetic.name}"
        return Kernel(func, (lambda weights: pack_pairs(weights, block),), self.spec.flops, note)

    def _allocate_filters(self, count: int) -> Any:
        """Room for the transformed weights of some blocks."""
        size = F2.products * count * self.pairs * self.tile.block * 2
        self.filters, allocation = emit.allocate("filters", (size,), "int16", "global")
        return allocation

    def _filter(self, number: Any, count: int, to: Any) -> Statements:
        """Transforms the weights of one block and pair of channels.

        Args:
            number: of the pair among those of all blocks.
            count: blocks that there is room for.
            to: number of the pair among those of them.
        """
        block, pair = emit.unravel(to, (count, self.pairs))
        width, wide = self.tile.block * 2, self.lanes * 2

        def vector(v: Any) -> Statements:
            def value(i: int, j: int) -> Any:
                at = (number * (TAPS * TAPS) + i * TAPS + j) * width + v * wide
                return tirx.Cast(f"int16x{wide}", emit.load(self.flat_weights, [at], wide))

            result, statements = _transform(_FILTER, value, wide, "int16")
            for f, each in enumerate(result):
                at = ((f * count + block) * self.pairs + pair) * width + v * wide
                statements.append(emit.store(self.filters, each, [at], wide))
            return statements

        return [emit.loop("v", self.tile.vectors, vector)]

    def _chunk(self, chunk: Any, is_inner_parallel: bool) -> Statements:
        """The stages of one chunk; the last chunk is moved back to end with the tiles."""
        self.rows = self.row_tiles * self.tile.pixels
        first, bound = emit.bind(
            "first_tile", emit.minimum(chunk * self.plan.tiles, prod(self.grid) - self.plan.tiles)
        )
        size = F2.products * self.rows * self.spec.in_channels
        self.inputs, inputs = emit.allocate("frequencies", (size,), "int16", "global")
        shape = (F2.products, self.blocks, self.row_tiles, self.tile.pixels * self.tile.block)
        self.sums, sums = emit.allocate("sums", shape, "int32", "global")

        def over(name: str, extent: int, body: Callable[[Any], Any]) -> Any:
            return emit.parallel(name, extent, body, is_inner_parallel)

        return [
            *bound,
            inputs,
            sums,
            over("tile", self.plan.tiles, lambda t: self._forward(first + t, t)),
            over("block", self.blocks, self._block)
            if self.plan.chunks == 1
            else over("panel", F2.products * self.blocks, lambda panel: self._multiply(panel, self.blocks)),
            over("tile", self.plan.tiles, lambda t: self._backward(first + t, t)),
        ]

    def _origin(self, number: Any) -> tuple[Any, Any, Any, Statements]:
        """Image and first output row and column of a tile; the last of a row or column is moved back."""
        n, th, tw = emit.unravel(number, self.grid)
        top, bind_top = emit.bind("top", emit.minimum(th * F2.outputs, self.spec.out_height - F2.outputs))
        left, bind_left = emit.bind("left", emit.minimum(tw * F2.outputs, self.spec.out_width - F2.outputs))
        return n, top, left, [*bind_top, *bind_left]

    def _forward(self, number: Any, place: Any) -> Statements:
        """B^T d B of one tile, for all input channels; padding holds the zero point."""
        spec, size = self.spec, F2.size
        n, top, left, bound = self._origin(number)
        top, left = top - spec.pads[0], left - spec.pads[1]

        def inside(first: Any, length: int, pads: tuple[int, int]) -> Any:
            return emit.all_of(first >= 0, first + size <= length) if any(pads) else True

        is_inner = emit.all_of(
            inside(top, spec.height, (spec.pads[0], spec.pads[2])),
            inside(left, spec.width, (spec.pads[1], spec.pads[3])),
        )

        def read(h: Any, w: Any, first: Any, lanes: int) -> Any:
            wide = "int16" if lanes == 1 else f"int16x{lanes}"
            return tirx.Cast(wide, emit.load(self.data, [n, h, w, first], lanes))

        def gathered(first: Any, lanes: int) -> tuple[Any, Statements]:
            """The tile with the zero point outside the image."""
            patch, allocation = emit.allocate("patch", (size * size * lanes,), "int16")
            blank = emit.constant(self.zero_point, lanes, "int16")

            def copy(number: Any) -> Any:
                h, w = top + emit.floordiv(number, size), left + emit.floormod(number, size)
                is_read = emit.all_of(h >= 0, h < spec.height, w >= 0, w < spec.width)
                at = [number * lanes]
                own = emit.store(patch, read(h, w, first, lanes), at, lanes)
                return emit.when(is_read, own, emit.store(patch, blank, at, lanes))

            return patch, [allocation, emit.loop("place", size * size, copy)]

        def transform(first: Any, lanes: int, is_checked: bool) -> Statements:
            patch, prepare = gathered(first, lanes) if is_checked else (None, [])

            def value(i: int, j: int) -> Any:
                if patch is None:
                    return read(top + i, left + j, first, lanes)
                return emit.load(patch, [(i * size + j) * lanes], lanes)

            result, statements = _transform(F2.data, value, lanes, "int16")
            stores = [
                emit.store(self.inputs, each, [(f * self.rows + place) * spec.in_channels + first], lanes)
                for f, each in enumerate(result)
            ]
            return [*prepare, *statements, *stores]

        def sweep(is_checked: bool) -> Statements:
            wide = 2 * self.lanes
            whole, rest = divmod(spec.in_channels, wide)
            return [
                emit.loop("c", whole, lambda c: transform(c * wide, wide, is_checked)),
                transform(whole * wide, rest, is_checked) if rest else [],
            ]

        return [*bound, emit.when(is_inner, sweep(False), sweep(True))]

    def _block(self, block: Any) -> Statements:
        """One block of output channels at all frequencies; its weights stay in the cache in between."""
        return [
            self._allocate_filters(1),
            emit.loop("pair", self.pairs, lambda pair: self._filter(block * self.pairs + pair, 1, pair)),
            emit.loop("frequency", F2.products, lambda f: self._multiply(f, 1, block)),
        ]

    def _multiply(self, panel: Any, count: int, first_block: Any = 0) -> Statements:
        """One of `count` blocks of output channels at one frequency, for all tiles of the chunk."""
        tile, arithmetic = self.tile, self.arithmetic
        frequency, own = emit.unravel(panel, (F2.products, count))
        block = first_block + own

        def product(row_tile: Any) -> Statements:
            accumulators = Accumulators(tile, arithmetic)
            first = frequency * self.rows + row_tile * tile.pixels

            def step(k: Any) -> Any:
                return accumulators.multiply_add(
                    range(tile.pixels),
                    lambda p: arithmetic.read(self.inputs, (first + p) * self.pairs + k),
                    lambda v: arithmetic.columns(
                        self.filters, (panel * self.pairs + k) * tile.block + v * tile.lanes, tile.lanes
                    ),
                )

            return [
                *accumulators.clear(),
                reduction("k", 0, self.pairs, step, None),
                *accumulators.copy_to(self.sums, (frequency, block, row_tile)),
            ]

        return [emit.loop("row_tile", self.row_tiles, product)]

    def _backward(self, number: Any, place: Any) -> Statements:
        """A^T m A of one tile, a fourth of it, the epilogue, and the store, for all output channels."""
        spec, outputs = self.spec, F2.outputs
        n, top, left, bound = self._origin(number)
        row_tile, pixel = emit.floordiv(place, self.tile.pixels), emit.floormod(place, self.tile.pixels)
        whole, rest = divmod(spec.out_channels, self.lanes)

        def block(vector: Any, last: int) -> Statements:
            accumulators = Accumulators(Tile(outputs * outputs, 1, self.lanes), self.arithmetic)
            of_block = emit.floormod(vector, self.tile.vectors)
            position = (pixel * self.tile.vectors + of_block) * self.lanes

            def value(i: int, j: int) -> Any:
                at = [i * F2.size + j, emit.floordiv(vector, self.tile.vectors), row_tile, position]
                return emit.load(self.sums, at, self.lanes)

            result, statements = _transform(F2.result, value, self.lanes, "int32")
            two = emit.constant(2, self.lanes, "int32")
            stores = [
                emit.store(accumulators.buffer, tirx.shift_right(each, two), [p * self.lanes], self.lanes)
                for p, each in enumerate(result)
            ]
            written = self.writer.write_tile(
                accumulators,
                lambda p, c: (n, c, top + emit.floordiv(p, outputs), left + emit.floormod(p, outputs)),
                vector * self.lanes,
                True,
                last,
            )
            return [*accumulators.declare(), *statements, *stores, *written]

        return [
            *bound,
            emit.loop("vector", whole, lambda v: block(v, self.lanes)),
            block(whole, rest) if rest else [],
        ]


def _transform(
    matrix: Sequence[Sequence[float]], value: Callable[[int, int], Any], lanes: int, dtype: str
) -> tuple[list[Any], Statements]:
    """`matrix x matrix^T` of a square of vectors, row by row."""
    size, statements, columns = len(matrix[0]), [], []
    for j in range(size):
        loaded = []
        for i in range(size):
            name, bound = emit.hold(f"x{i}_{j}", value(i, j), lanes, dtype)
            loaded.append(name)
            statements.append(bound)
        column, made = multiply(matrix, loaded, lanes, f"a{j}_", dtype)
        columns.append(column)
        statements += made
    result = []
    for e in range(len(matrix)):
        row, made = multiply(matrix, [column[e] for column in columns], lanes, f"b{e}_", dtype)
        result += row
        statements += made
    return result, statements
