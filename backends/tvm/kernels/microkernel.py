"""The register tile shared by convolution and matmul: accumulate in registers, finish and store once."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any, Protocol

from tvm import tirx
from tvm.tirx import ForKind

from .arithmetic import FLOAT, Arithmetic
from .emit import (
    Statements,
    allocate,
    buffer,
    constant,
    count_operations,
    hold,
    load,
    loop,
    store,
    unrolled,
    when,
)
from .interface import Epilogue, Index
from .tile import Tile

_UNROLLED_OPERATIONS = 12
"""Epilogues up to this size are repeated for every vector of the tile; larger ones are looped over."""


class Accumulators:
    """`tile.pixels x tile.vectors` vector registers.

    Once loops are unrolled every index is a constant, which lets LLVM keep the buffer in registers.
    """

    in_memory = False

    def __init__(self, tile: Tile, arithmetic: Arithmetic = FLOAT):
        self.tile, self.arithmetic = tile, arithmetic
        self.buffer, self._allocation = allocate("acc", (tile.pixels * tile.block,), arithmetic.accumulator)
        self._columns, self._columns_allocation = allocate("columns", (tile.block,), arithmetic.column)

    def position(self, pixel: Any, vector: Any) -> Any:
        """Where the register of a pixel and a vector begins."""
        return (pixel * self.tile.vectors + vector) * self.tile.lanes

    def element(self, source: Any, position: Any, _pixel: Any, _column: Any) -> Any:
        """One sum."""
        return load(source, [position])

    def declare(self) -> Statements:
        """Allocate the registers."""
        return [self._allocation, self._columns_allocation]

    def fill(self, value: float = 0.0) -> Statements:
        """Set all registers to `value`."""
        lanes, dtype = self.tile.lanes, self.arithmetic.accumulator
        return [self._each(lambda at: store(self.buffer, constant(value, lanes, dtype), [at], lanes))]

    def clear(self, value: float = 0.0) -> Statements:
        """Allocate and set to `value`."""
        return [*self.declare(), *self.fill(value)]

    def copy_to(self, target: Any, index: Index = ()) -> Statements:
        """Copy all registers to the row `index` of a buffer."""
        lanes = self.tile.lanes
        return [self._each(lambda at: store(target, load(self.buffer, [at], lanes), [*index, at], lanes))]

    def copy_from(self, source: Any, index: Index) -> Statements:
        """Set all registers from the row `index` of a buffer."""
        lanes = self.tile.lanes
        return [self._each(lambda at: store(self.buffer, load(source, [*index, at], lanes), [at], lanes))]

    def _each(self, statement: Callable[[Any], Any]) -> Any:
        tile = self.tile
        return unrolled("cell", tile.pixels * tile.vectors, lambda cell: statement(cell * tile.lanes))

    def multiply_add(
        self, pixels: range, row: Callable[[Any], Any], column: Callable[[Any], Any]
    ) -> Statements:
        """acc[p, v] += row(p) * column(v), with a scalar per pixel and a vector per column."""
        lanes = self.tile.lanes

        def own(vector: Any) -> list[Any]:
            return [vector * lanes]

        def pixel_row(pixel: Any) -> Statements:
            name, bound = hold("x", row(pixel), dtype=self.arithmetic.value)

            def cell(vector: Any) -> Any:
                column = load(self._columns, own(vector), lanes)
                combine = self.arithmetic.combine
                return self.update(pixel, vector, column, lambda acc, _: combine(acc, name, column, lanes))

            return [bound, unrolled("vector", self.tile.vectors, cell)]

        return [
            unrolled("vector", self.tile.vectors, lambda v: store(self._columns, column(v), own(v), lanes)),
            unrolled("pixel", len(pixels), pixel_row, start=pixels.start),
        ]

    def update(
        self, pixel: Any, vector: Any, value: Any, combine: Callable[[Any, Any], Any] = operator.add
    ) -> Any:
        """acc[pixel, vector] = combine(acc[pixel, vector], value)."""
        at = [self.position(pixel, vector)]
        return store(self.buffer, combine(load(self.buffer, at, self.tile.lanes), value), at, self.tile.lanes)


class Finished(Protocol):
    """Sums of a tile, in registers or in memory."""

    tile: Tile
    buffer: Any
    in_memory: bool

    def position(self, pixel: Any, vector: Any) -> Any:
        """Where the vector of a pixel begins."""

    def element(self, source: Any, position: Any, pixel: Any, column: Any) -> Any:
        """One sum, read from `source`."""

    def copy_to(self, target: Any, index: Index = ()) -> Statements:
        """Copy all of them."""


class Writer:
    """Applies the epilogue and stores; owns the buffers of the extra inputs and the output."""

    def __init__(
        self,
        epilogue: Epilogue | None,
        shape: tuple[int, ...],
        storage: Callable[[Index], Index],
        dtype: str = "float32",
    ):
        self._dtype = dtype
        self._epilogue = epilogue or Epilogue()
        self._storage = self._epilogue.out_index or storage
        self._rank = len(shape)
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
        index = tuple(tirx.Var(f"i{axis}", "int32") for axis in range(self._rank))
        return count_operations(self.value(tirx.Var("value", self._dtype), index)) > _UNROLLED_OPERATIONS

    def write_tile(
        self,
        accumulators: Finished,
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
        self, accumulators: Finished, index_of: Callable[[Any, Any], Index], first: Any, channels: int
    ) -> Statements:
        tile = accumulators.tile

        def vector(source: Any, position: Any, pixel: Any, channel: Any, width: int) -> Any:
            return loop(
                "lane",
                width,
                lambda lane: self.store(
                    accumulators.element(source, position + lane, pixel, first + channel + lane),
                    index_of(pixel, first + channel + lane),
                ),
                ForKind.VECTORIZED,
            )

        whole, rest = divmod(channels, tile.lanes)
        source, prepare = accumulators.buffer, []
        repeat: Callable[..., Any] = unrolled
        over_pixels: Callable[..., Any] = unrolled
        if accumulators.in_memory:
            repeat, over_pixels = loop if self.is_heavy else unrolled, loop
        elif self.is_heavy:
            source, allocation = allocate("staged", (tile.pixels * tile.block,), self._dtype)
            prepare = [allocation, *accumulators.copy_to(source)]
            repeat = over_pixels = loop

        def pixel_row(pixel: Any) -> Statements:
            tail = vector(source, accumulators.position(pixel, whole), pixel, whole * tile.lanes, rest)
            return [
                repeat(
                    "vector",
                    whole,
                    lambda v: vector(
                        source, accumulators.position(pixel, v), pixel, v * tile.lanes, tile.lanes
                    ),
                ),
                tail if rest else [],
            ]

        return [*prepare, over_pixels("pixel", tile.pixels, pixel_row)]
