"""The loops of a matrix product, whatever its operands are: used by matmul and by 1x1 convolution."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from typing import Any

from . import emit
from .interface import Index
from .microkernel import Accumulators, Writer
from .tile import TargetNumbers, Tile, blocks, choose_chunks

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
        tiles = blocks(self.m, self.tile.pixels)
        chunks = choose_chunks(
            tiles,
            4 * self.k * self.tile.pixels,
            4 * self.k * self.blocks * self.tile.block,
            prod(self.batch),
            self.blocks,
            target,
        )

        def task(t: Any) -> Any:
            *batch, chunk, block = emit.unravel(t, (*self.batch, chunks.count, self.blocks))
            block, bound = emit.bind("block", block)
            first = chunk * chunks.rows
            count: Any = chunks.rows
            if tiles % chunks.rows:
                count = emit.minimum(count, tiles - first)
            return [
                *bound,
                emit.loop("tile", count, lambda i: self._tile(writer, tuple(batch), first + i, block)),
            ]

        return emit.parallel(
            "task", prod(self.batch) * chunks.count * self.blocks, task, enabled=self.flops > SERIAL_FLOPS
        )

    def _tile(self, writer: Writer, batch: Index, number: Any, block: Any) -> Any:
        tile = self.tile
        first, bound = emit.bind("first", emit.minimum(number * tile.pixels, self.m - tile.pixels))
        accumulators = Accumulators(tile)

        def step(k: Any) -> Any:
            return accumulators.multiply_add(
                range(tile.pixels),
                lambda p: self.row(batch, first + p, k),
                lambda v: self.column(batch, block, k, v),
            )

        last = self.n - (self.blocks - 1) * tile.block
        return [
            *bound,
            *accumulators.clear(),
            emit.loop("k", self.k, step),
            *writer.write_tile(
                accumulators,
                lambda pixel, column: self.index(batch, first + pixel, column),
                self.first_column(block),
                block == self.blocks - 1 if self.blocks > 1 else True,
                tile.block if self.overlap else last,
            ),
        ]
