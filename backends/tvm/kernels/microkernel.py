"""The register tile shared by convolution and matmul: accumulate in registers, finish and store once."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable
from typing import Any

from tvm import tirx
from tvm.tirx import ForKind

from .emit import (
    Statements,
    allocate,
    buffer,
    constant,
    count_operations,
    hold,
    load,
    loop,
    splat,
    store,
    when,
)
from .interface import Epilogue, Index
from .tile import Tile

_UNROLLED_OPERATIONS = 12
"""Epilogues up to this size are repeated for every vector of the tile; larger ones are looped over."""


class Accumulators:
    """`tile.pixels x tile.vectors` vector registers.

    Every index is a constant, which lets LLVM keep the buffer in registers.
    """

    def __init__(self, tile: Tile):
        self.tile = tile
        self.buffer, self._allocation = allocate("acc", (tile.pixels * tile.block,))

    def position(self, pixel: int, vector: int) -> int:
        """Where the register of a pixel and a vector begins."""
        return (pixel * self.tile.vectors + vector) * self.tile.lanes

    def clear(self, value: float = 0.0) -> Statements:
        """Allocate and set to `value`."""
        lanes = self.tile.lanes
        cells = range(0, self.tile.pixels * self.tile.block, lanes)
        return [
            self._allocation,
            *(store(self.buffer, constant(value, lanes), [cell], lanes) for cell in cells),
        ]

    def multiply_add(
        self, pixels: Iterable[int], row: Callable[[int], Any], column: Callable[[int], Any]
    ) -> Statements:
        """acc[p, v] += row(p) * column(v), with a scalar per pixel and a vector per column."""
        lanes = self.tile.lanes
        statements: Statements = []
        columns = []
        for vector in range(self.tile.vectors):
            name, bound = hold(f"w{vector}", column(vector), lanes)
            statements.append(bound)
            columns.append(name)
        for pixel in pixels:
            name, bound = hold(f"x{pixel}", row(pixel))
            statements.append(bound)
            for vector in range(self.tile.vectors):
                statements.append(self.update(pixel, vector, splat(name, lanes) * columns[vector]))
        return statements

    def update(
        self, pixel: int, vector: int, value: Any, combine: Callable[[Any, Any], Any] = operator.add
    ) -> Any:
        """acc[pixel, vector] = combine(acc[pixel, vector], value)."""
        at = [self.position(pixel, vector)]
        return store(self.buffer, combine(load(self.buffer, at, self.tile.lanes), value), at, self.tile.lanes)


class Writer:
    """Applies the epilogue and stores; owns the buffers of the extra inputs and the output."""

    def __init__(self, epilogue: Epilogue | None, shape: tuple[int, ...], storage: Callable[[Index], Index]):
        self._epilogue = epilogue or Epilogue()
        self._storage = self._epilogue.out_index or storage
        out_shape = self._epilogue.out_shape or shape
        self.extras = [
            buffer(f"extra{i}", extra.shape, extra.dtype) for i, extra in enumerate(self._epilogue.extra)
        ]
        self.output = buffer("out", out_shape, self._epilogue.out_dtype)

    def value(self, accumulated: Any, index: Index) -> Any:
        """The finished value of one element."""
        if self._epilogue.apply is None:
            return accumulated
        return self._epilogue.apply(accumulated, index, self.extras)

    def store(self, accumulated: Any, index: Index) -> Any:
        """The statement that finishes and stores one element."""
        return tirx.BufferStore(self.output, self.value(accumulated, index), list(self._storage(index)))

    @property
    def is_heavy(self) -> bool:
        """Whether repeating the epilogue for every vector would bloat the code."""
        if self._epilogue.apply is None:
            return False
        rank = len(self._epilogue.out_shape or self.output.shape)
        index = tuple(tirx.Var(f"i{axis}", "int32") for axis in range(rank))
        return count_operations(self.value(tirx.Var("value", "float32"), index)) > _UNROLLED_OPERATIONS

    def write_tile(
        self,
        accumulators: Accumulators,
        index_of: Callable[[Any, Any], Index],
        first_channel: Any,
        is_last: Any,
        last_channels: int,
    ) -> Statements:
        """Finish and store a tile.

        Args:
            accumulators: the finished sums.
            index_of: (pixel of the tile, channel) -> logical output index.
            first_channel: channel of the tile's first lane.
            is_last: condition (or bool) under which only `last_channels` of the tile's channels exist.
            last_channels: channels of the last block.
        """
        tile = accumulators.tile
        if last_channels == tile.block:
            return self._write(accumulators, index_of, first_channel, tile.block)
        return [
            when(
                is_last,
                self._write(accumulators, index_of, first_channel, last_channels),
                self._write(accumulators, index_of, first_channel, tile.block),
            )
        ]

    def _write(
        self, accumulators: Accumulators, index_of: Callable[[Any, Any], Index], first: Any, channels: int
    ) -> Statements:
        tile = accumulators.tile

        def vector(source: Any, position: Any, pixel: Any, channel: Any, width: int) -> Any:
            return loop(
                "lane",
                width,
                lambda lane: self.store(
                    load(source, [position + lane]), index_of(pixel, first + channel + lane)
                ),
                ForKind.VECTORIZED,
            )

        whole, rest = divmod(channels, tile.lanes)
        if not self.is_heavy:
            widths = [tile.lanes] * whole + ([rest] if rest else [])
            return [
                vector(accumulators.buffer, accumulators.position(p, v), p, v * tile.lanes, width)
                for p in range(tile.pixels)
                for v, width in enumerate(widths)
            ]
        staged, allocation = allocate("staged", (tile.pixels * tile.block,))
        copies = [
            store(staged, load(accumulators.buffer, [cell], tile.lanes), [cell], tile.lanes)
            for cell in range(0, tile.pixels * tile.block, tile.lanes)
        ]

        def pixel_row(pixel: Any) -> Any:
            row = pixel * tile.block
            parts: Statements = []
            if whole:
                parts.append(
                    loop(
                        "vector",
                        whole,
                        lambda v: vector(staged, row + v * tile.lanes, pixel, v * tile.lanes, tile.lanes),
                    )
                )
            if rest:
                parts.append(vector(staged, row + whole * tile.lanes, pixel, whole * tile.lanes, rest))
            return parts

        return [allocation, *copies, loop("pixel", tile.pixels, pixel_row)]
