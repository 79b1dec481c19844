"""The loops of a matrix product, whatever its operands are: used by matmul and by 1x1 convolution."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from typing import Any

from . import emit
from .arithmetic import FLOAT, Arithmetic
from .emit import Statements
from .interface import Index
from .microkernel import Accumulators, Writer
from .prefetch import PanelPrefetch, Requests, StreamPrefetch, reduction
from .tile import Slices, TargetNumbers, Tile, blocks, choose_chunks, choose_slices
from .window import choose_order

SERIAL_FLOPS = 200_000
"""Below this, starting the worker threads costs more than they save."""


@dataclass(frozen=True)
class Product:
    """`batch` products of (m, k) by (k, n), divided into register tiles.

    The last tile of rows is moved up to end with the rows, so that every tile is full. The same is done with
    columns if `overlap` (the right operand is read in place); otherwise the right operand is packed into
    blocks filled with zeros and only the write-back of the last block is shorter.
    """

    batch: tuple[int, ...]
    m: int
    n: int
    k: int
    tile: Tile
    row: Callable[[Index, Any, Any], Any]
    """(batch index, row, k) -> one value of the left operand."""
    column: Callable[[Index, Any, Any, Any], Any]
    """(batch index, block, k, vector of the block) -> one vector of the right operand."""
    index: Callable[[Index, Any, Any], Index]
    """(batch index, row, column) -> logical output index."""
    overlap: bool = False
    weights: Any = None
    """The packed right operand as one axis, blocks in order, if it is constant."""
    arithmetic: Arithmetic = FLOAT
    """Where it takes several values per step, `k` counts steps."""
    step: Callable[[Accumulators, Index, Any, Any, Any], Statements] | None = None
    """(accumulators, batch index, first row, block, k) -> the multiply-adds of a step, if special."""

    @property
    def blocks(self) -> int:
        """Blocks of columns."""
        return blocks(self.n, self.tile.block)

    @property
    def flops(self) -> int:
        """Additions and multiplications."""
        return 2 * prod(self.batch) * self.m * self.n * self.k

    def first_column(self, block: Any) -> Any:
        """First column of a block."""
        start = block * self.tile.block
        return emit.minimum(start, self.n - self.tile.block) if self.overlap else start

    def body(self, writer: Writer, target: TargetNumbers) -> Any:
        """The loops."""
        weight_bytes = 4 * self.k * self.blocks * self.tile.block
        slices = None
        if prod(self.batch) == 1:
            slices = choose_slices(self.m, self.k, weight_bytes, self.tile, target)
        if slices:
            return self._sliced(writer, slices, target)
        tiles = blocks(self.m, self.tile.pixels)
        row_bytes = 4 * self.k * self.tile.pixels
        swept = 4 * self.m * max(self.k, self.n) if self.weights is not None else None
        chunks = choose_chunks(tiles, row_bytes, weight_bytes, prod(self.batch), self.blocks, target, swept)

        prefetch = stream = None
        if self.weights is not None:
            panels = prod(self.batch) * self.blocks
            panel = self.k * self.tile.block
            stream = StreamPrefetch.plan(self.tile, tiles * prod(self.batch), weight_bytes, target)
            prefetch = PanelPrefetch.plan(
                self.k, panel, self.tile, panels, chunks.rows, target, self.arithmetic
            )

        order = choose_order()

        def task(t: Any) -> Any:
            *batch, chunk, block = order(t, self.batch, chunks.count, self.blocks)
            block, bound = emit.bind("block", block)
            first = chunk * chunks.rows
            count: Any = chunks.rows
            if tiles % chunks.rows:
                count = emit.minimum(count, tiles - first)
            return [
                *bound,
                emit.loop(
                    "tile",
                    count,
                    lambda i: self._tile(
                        writer,
                        tuple(batch),
                        first + i,
                        block,
                        self._requests(prefetch, tuple(batch), block, i),
                        stream,
                    ),
                ),
            ]

        return emit.parallel(
            "task", prod(self.batch) * chunks.count * self.blocks, task, enabled=self.flops > SERIAL_FLOPS
        )

    def _requests(
        self, prefetch: PanelPrefetch | None, batch: Index, block: Any, sweep: Any
    ) -> Requests | None:
        if prefetch is None:
            return None
        panel = (emit.ravel(batch, self.batch) * self.blocks + block) * (self.k * self.tile.block)
        return lambda step: prefetch.requests(self.weights, panel, sweep, step)

    def _sliced(self, writer: Writer, slices: Slices, target: TargetNumbers) -> Any:
        """Chunks of rows, slices of the reduction, then blocks of columns, which threads divide."""
        tile, tiles = self.tile, blocks(self.m, self.tile.pixels)
        batch = (0,) * len(self.batch)
        shape = (min(slices.tiles, tiles), self.blocks, tile.pixels * tile.block)
        sums, allocation = emit.allocate("sums", shape, self.arithmetic.accumulator, "global")
        is_even = self.k % slices.steps == 0
        prefetch = None
        if self.weights is not None and is_even:
            panel = self.k * tile.block
            prefetch = PanelPrefetch.plan(
                slices.steps, panel, tile, self.blocks, shape[0], target, self.arithmetic
            )

        def piece(chunk: Any, part: Any, block: Any) -> Any:
            first = chunk * slices.tiles
            count = emit.minimum(slices.tiles, tiles - first)
            return emit.loop("tile", count, lambda i: one_tile(first + i, part, block, (i, block)))

        def one_tile(number: Any, part: Any, block: Any, place: Index) -> Any:
            first, bound = emit.bind("first", emit.minimum(number * tile.pixels, self.m - tile.pixels))
            accumulators = Accumulators(tile, self.arithmetic)
            begin = part * slices.steps
            steps = slices.steps if is_even else emit.minimum(slices.steps, self.k - begin)
            panel = (block * self.k + begin) * tile.block

            def requests(step: Any) -> Statements:
                return prefetch.requests(self.weights, panel, place[0], step - begin) if prefetch else []

            return [
                *bound,
                *accumulators.declare(),
                emit.when(part == 0, accumulators.fill(), accumulators.copy_from(sums, place)),
                reduction(
                    "k",
                    begin,
                    steps,
                    lambda k: self._step(accumulators, batch, first, block, k),
                    requests if prefetch else None,
                ),
                emit.when(
                    part == slices.count - 1,
                    self._write(writer, accumulators, batch, first, block),
                    accumulators.copy_to(sums, place),
                ),
            ]

        return [
            allocation,
            emit.loop(
                "chunk",
                blocks(tiles, slices.tiles),
                lambda chunk: emit.loop(
                    "part",
                    slices.count,
                    lambda part: emit.parallel("block", self.blocks, lambda block: piece(chunk, part, block)),
                ),
            ),
        ]

    def _tile(
        self,
        writer: Writer,
        batch: Index,
        number: Any,
        block: Any,
        requests: Requests | None,
        stream: StreamPrefetch | None,
    ) -> Any:
        pixels = self.tile.pixels
        first, bound = emit.bind("first", emit.minimum(number * pixels, self.m - pixels))
        accumulators = Accumulators(self.tile, self.arithmetic)

        def step(k: Any) -> Statements:
            ahead = stream.requests(self.weights, (block * self.k + k) * self.tile.block) if stream else []
            return [*ahead, *self._step(accumulators, batch, first, block, k)]

        return [
            *bound,
            *accumulators.clear(),
            reduction("k", 0, self.k, step, requests),
            *self._write(writer, accumulators, batch, first, block),
        ]

    def _step(self, accumulators: Accumulators, batch: Index, first: Any, block: Any, k: Any) -> Statements:
        if self.step is not None:
            return self.step(accumulators, batch, first, block, k)
        return accumulators.multiply_add(
            range(self.tile.pixels),
            lambda p: self.row(batch, first + p, k),
            lambda v: self.column(batch, block, k, v),
        )

    def _write(
        self, writer: Writer, accumulators: Accumulators, batch: Index, first: Any, block: Any
    ) -> Statements:
        last = self.n - (self.blocks - 1) * self.tile.block
        return writer.write_tile(
            accumulators,
            lambda pixel, column: self.index(batch, first + pixel, column),
            self.first_column(block),
            block == self.blocks - 1 if self.blocks > 1 else True,
            self.tile.block if self.overlap else last,
        )
