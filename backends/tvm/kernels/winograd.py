"""3x3 convolution with fewer multiplications: Winograd's F(2x2, 3x3) and F(4x4, 3x3).

Chunks of tiles stay in the second-level cache on their way through the three stages: input tiles are
transformed, one product of matrices is formed per frequency, and its results are transformed back, finished
by the epilogue and stored. Weights are transformed at compile time, in float64, and stored
[frequencies * blocks, C, block].
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from ...coding import Transform
from . import emit
from .emit import Statements
from .interface import Conv2dSpec, Epilogue, Kernel, nhwc
from .microkernel import Accumulators, Writer
from .minimal_filtering import TAPS, MinimalFilter, multiply
from .prefetch import PanelPrefetch, reduction
from .tile import TargetNumbers, Tile, blocks
from .winograd_plan import Plan, tile_grid


def winograd(spec: Conv2dSpec, epilogue: Epilogue | None, plan: Plan, target: TargetNumbers) -> Kernel:
    """A 3x3 convolution of stride one.

    Buffers: data (N, H, W, C), packed weights, extra inputs, output (N, OH, OW, O).
    """
    return Winograd(spec, plan, Writer(epilogue, spec.out_shape, nhwc), target).kernel()


@dataclass(frozen=True)
class WinogradPacking:
    """(O, C, 3, 3) -> (frequencies * blocks, C, block), filled with zeros."""

    filter: MinimalFilter
    out_channels: int
    in_channels: int
    block: int

    def __call__(self, weights: np.ndarray) -> np.ndarray:
        """The transformed weights."""
        return self.transform.apply(weights).astype(weights.dtype, copy=False)

    @property
    def transform(self) -> Transform:
        """The same for whoever restores weights from a file."""
        taps = np.eye(TAPS * TAPS).reshape(TAPS * TAPS, 1, TAPS, TAPS)
        matrix = self.filter.transform_weights(taps).reshape(self.filter.products, TAPS * TAPS)
        return Transform(matrix, self.out_channels, self.in_channels, self.block)


class Winograd:
    """The three stages of one convolution."""

    def __init__(self, spec: Conv2dSpec, plan: Plan, writer: Writer, target: TargetNumbers):
        self.spec, self.plan, self.filter, self.writer, self.target = spec, plan, plan.filter, writer, target
        self.tile, self.lanes = plan.tile, plan.tile.lanes
        self.grid = tile_grid(spec, plan.filter)
        self.blocks = blocks(spec.out_channels, plan.tile.block)
        self.row_tiles = blocks(plan.tiles, plan.tile.pixels)
        self.data = emit.buffer("data", spec.data_shape)
        self.weights = emit.buffer(
            "weights", (plan.filter.products * self.blocks, spec.in_channels, plan.tile.block)
        )

    def kernel(self) -> Kernel:
        """The function and the packing of its weights."""
        flat, declaration = emit.flat_view(self.weights, prod(map(int, self.weights.shape)))
        self.flat_weights = flat
        divides_chunks = self.plan.chunks >= self.target.cores
        body = emit.parallel(
            "chunk", self.plan.chunks, lambda chunk: self._chunk(chunk, not divides_chunks), divides_chunks
        )
        func = emit.function(
            "conv2d_winograd",
            [self.data, self.weights, *self.writer.extras, self.writer.output],
            [*self._prologue(), declaration, body],
        )
        packing = WinogradPacking(self.filter, self.spec.out_channels, self.spec.in_channels, self.tile.block)
        return Kernel(func, (packing,), self.spec.flops, f"winograd {self.plan}")

    def _prologue(self) -> Statements:
        """What is done once, before everything else."""
        return []

    def _read(self, n: Any, h: Any, w: Any, channel: Any, lanes: int) -> Any:
        """Neighbouring channels of an input pixel."""
        return emit.load(self.data, [n, h, w, channel], lanes)

    def _chunk(self, chunk: Any, is_inner_parallel: bool) -> Statements:
        """The three stages of one chunk; the last chunk is moved back to end with the tiles."""
        products, rows = self.filter.products, self.row_tiles * self.tile.pixels
        first, bound = emit.bind(
            "first_tile", emit.minimum(chunk * self.plan.tiles, prod(self.grid) - self.plan.tiles)
        )
        self.inputs, inputs = emit.allocate(
            "frequencies", (products, rows, self.spec.in_channels), scope="global"
        )
        self.sums, sums = emit.allocate(
            "sums",
            (products, self.blocks, self.row_tiles, self.tile.pixels * self.tile.block),
            scope="global",
        )

        def over(name: str, extent: int, body: Callable[[Any], Any]) -> Any:
            return emit.parallel(name, extent, body, is_inner_parallel)

        return [
            *bound,
            inputs,
            sums,
            over("tile", self.plan.tiles, lambda t: self._forward(first + t, t)),
            over("panel", products * self.blocks, self._multiply),
            over("tile", self.plan.tiles, lambda t: self._backward(first + t, t)),
        ]

    def _origin(self, number: Any) -> tuple[Any, Any, Any, Statements]:
        """Image and first output row and column of a tile; the last of a row or column is moved back."""
        size = self.filter.outputs
        n, th, tw = emit.unravel(number, self.grid)
        top, bind_top = emit.bind("top", emit.minimum(th * size, self.spec.out_height - size))
        left, bind_left = emit.bind("left", emit.minimum(tw * size, self.spec.out_width - size))
        return n, top, left, [*bind_top, *bind_left]

    def _forward(self, number: Any, place: Any) -> Statements:
        """B^T d B of one tile, for all input channels."""
        spec, size = self.spec, self.filter.size
        n, top, left, bound = self._origin(number)
        top, left = top - spec.pads[0], left - spec.pads[1]

        def inside(first: Any, length: int, out: int, pads: tuple[int, int]) -> Any:
            if not any(pads):
                return True
            return emit.all_of(first >= 0, first + size <= length)

        is_inner = emit.all_of(
            inside(top, spec.height, spec.out_height, (spec.pads[0], spec.pads[2])),
            inside(left, spec.width, spec.out_width, (spec.pads[1], spec.pads[3])),
        )

        def gathered(first: Any, lanes: int) -> tuple[Any, Statements]:
            """The tile with zeros outside the image."""
            patch, allocation = emit.allocate("patch", (size * size * lanes,))

            def copy(place: Any) -> Any:
                h, w = top + emit.floordiv(place, size), left + emit.floormod(place, size)
                is_read = emit.all_of(h >= 0, h < spec.height, w >= 0, w < spec.width)
                at = [place * lanes]
                read = emit.store(patch, self._read(n, h, w, first, lanes), at, lanes)
                return emit.when(is_read, read, emit.store(patch, emit.constant(0.0, lanes), at, lanes))

            return patch, [allocation, emit.loop("place", size * size, copy)]

        def transform(first: Any, lanes: int, is_checked: bool) -> Statements:
            patch, prepare = gathered(first, lanes) if is_checked else (None, [])

            def value(i: int, j: int) -> Any:
                if patch is None:
                    return self._read(n, top + i, left + j, first, lanes)
                return emit.load(patch, [(i * size + j) * lanes], lanes)

            result, statements = self._transform(self.filter.data, value, size, lanes)
            return [
                *prepare,
                *statements,
                *(
                    emit.store(self.inputs, each, [e * size + f, place, first], lanes)
                    for e, row in enumerate(result)
                    for f, each in enumerate(row)
                ),
            ]

        def sweep(is_checked: bool) -> Statements:
            whole, rest = divmod(spec.in_channels, self.lanes)
            return [
                emit.loop("c", whole, lambda c: transform(c * self.lanes, self.lanes, is_checked)),
                transform(whole * self.lanes, rest, is_checked) if rest else [],
            ]

        return [*bound, emit.when(is_inner, sweep(False), sweep(True))]

    def _transform(
        self,
        matrix: tuple[tuple[float, ...], ...],
        value: Callable[[int, int], Any],
        size: int,
        lanes: int,
    ) -> tuple[list[list[Any]], Statements]:
        """`matrix x matrix^T` of a `size x size` array of vectors."""
        statements: Statements = []
        columns = []
        for j in range(size):
            loaded = []
            for i in range(size):
                name, bound = emit.hold(f"x{i}_{j}", value(i, j), lanes)
                loaded.append(name)
                statements.append(bound)
            column, made = multiply(matrix, loaded, lanes, f"a{j}_")
            columns.append(column)
            statements += made
        result = []
        for e in range(len(matrix)):
            row, made = multiply(matrix, [column[e] for column in columns], lanes, f"b{e}_")
            result.append(row)
            statements += made
        return result, statements

    def _multiply(self, panel: Any) -> Statements:
        """One block of output channels at one frequency, for all tiles of the chunk."""
        spec, tile = self.spec, self.tile
        frequency, block = emit.unravel(panel, (self.filter.products, self.blocks))
        size = spec.in_channels * tile.block
        prefetch = PanelPrefetch.plan(
            spec.in_channels, size, tile, self.filter.products * self.blocks, self.row_tiles, self.target
        )
        requests = None
        if prefetch is not None:
            plan = prefetch

            def requests(step: Any, row_tile: Any) -> Statements:
                return plan.requests(self.flat_weights, panel * size, row_tile, step)

        def product(row_tile: Any) -> Statements:
            accumulators = Accumulators(tile)

            def step(k: Any) -> Any:
                return accumulators.multiply_add(
                    range(tile.pixels),
                    lambda p: emit.load(self.inputs, [frequency, row_tile * tile.pixels + p, k]),
                    lambda v: emit.load(
                        self.flat_weights, [panel * size + k * tile.block + v * tile.lanes], tile.lanes
                    ),
                )

            ask = (lambda k: requests(k, row_tile)) if requests is not None else None
            return [
                *accumulators.clear(),
                reduction("k", 0, spec.in_channels, step, ask),
                *accumulators.copy_to(self.sums, (frequency, block, row_tile)),
            ]

        return [emit.loop("row_tile", self.row_tiles, product)]

    def _backward(self, number: Any, place: Any) -> Statements:
        """A^T m A of one tile, the epilogue, and the store, for all output channels."""
        spec, size, outputs = self.spec, self.filter.size, self.filter.outputs
        n, top, left, bound = self._origin(number)
        row_tile, pixel = emit.floordiv(place, self.tile.pixels), emit.floormod(place, self.tile.pixels)
        whole, rest = divmod(spec.out_channels, self.lanes)

        def block(vector: Any, last: int) -> Statements:
            accumulators = Accumulators(Tile(outputs * outputs, 1, self.lanes))
            of_block = emit.floormod(vector, self.tile.vectors)
            position = (pixel * self.tile.vectors + of_block) * self.lanes

            def value(i: int, j: int) -> Any:
                at = [i * size + j, emit.floordiv(vector, self.tile.vectors), row_tile, position]
                return emit.load(self.sums, at, self.lanes)

            result, statements = self._transform(self.filter.result, value, size, self.lanes)
            flat = [each for row in result for each in row]
            return [
                *accumulators.declare(),
                *statements,
                *(
                    emit.store(accumulators.buffer, each, [p * self.lanes], self.lanes)
                    for p, each in enumerate(flat)
                ),
                *self.writer.write_tile(
                    accumulators,
                    lambda p, c: (
                        n,
                        c,
                        top + emit.floordiv(p, outputs),
                        left + emit.floormod(p, outputs),
                    ),
                    vector * self.lanes,
                    True,
                    last,
                ),
            ]

        return [
            *bound,
            emit.loop("vector", whole, lambda v: block(v, self.lanes)),
            block(whole, rest) if rest else [],
        ]
