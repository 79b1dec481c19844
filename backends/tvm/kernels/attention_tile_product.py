"""Tile registers as attention uses them: products of several widths with one configuration."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from . import emit
from .emit import Statements
from .interface import Index
from .tile import Tile
from .tile_registers import (
    BYTES,
    LANES,
    REGISTERS,
    ROWS,
    WORD,
    Format,
    clear,
    declare,
    load,
    products,
    store,
)

_SUMS = 4
"""Registers of sums: two by two, or one by four."""


@dataclass(frozen=True)
class SplitRegisters:
    """Four registers of sums, as many for the left operand as are below each other, the rest for the right.

    Attributes:
        rows: rows of sums and of the left operand per register.
        down: one or two.
        format: what is multiplied.
    """

    rows: int
    down: int
    format: Format

    @property
    def most(self) -> int:
        """Registers of sums side by side, at most."""
        return _SUMS // self.down

    def configure(self) -> Statements:
        """Declare the shapes of the registers, in this thread."""
        heights = [self.rows if number < _SUMS + self.down else ROWS for number in range(REGISTERS)]
        return declare(heights, [BYTES] * REGISTERS)

    def clear(self, width: int) -> Statements:
        """Set the sums of `width` registers side by side to zero."""
        return [clear(number) for row in self._sums(width) for number in row]

    def load(self, width: int, buffer: Any, place: Any, stride: int) -> Statements:
        """Read sums from a flat float32 buffer with `stride` elements between rows."""
        return self._move(load, width, buffer, place, stride)

    def store(self, width: int, buffer: Any, place: Any, stride: int) -> Statements:
        """Write sums, likewise."""
        return self._move(store, width, buffer, place, stride)

    def _move(
        self, one: Callable[[int, Any, Any, int], Any], width: int, buffer: Any, place: Any, stride: int
    ) -> Statements:
        return [
            one(number, buffer, place + (i * self.rows * stride + j * LANES), stride * WORD)
            for i, row in enumerate(self._sums(width))
            for j, number in enumerate(row)
        ]

    def multiply_add(
        self,
        width: int,
        left: Callable[[int, int], tuple[Any, Any, int]],
        right: Callable[[int, int], tuple[Any, Any]],
    ) -> Statements:
        """One step of the products of all parts for `width` registers of sums side by side.

        Args:
            width: columns of registers.
            left: (row of registers, part) -> (flat buffer of words, first word, words between rows).
            right: (column of registers, part) -> (flat buffer of words, first word).
        """
        return products(self.format, self._sums(width), _SUMS, left, right, WORD)

    def _sums(self, width: int) -> list[list[int]]:
        return [[row * self.most + column for column in range(width)] for row in range(self.down)]


class Sums:
    """Finished sums of a register of rows, as `Writer` reads them: vectors in memory, times a number per row.

    Args:
        buffer: flat rows of `panels` vectors.
        first: number of the first row.
        shares: flat numbers per row.
        share: place of the first row's.
        rows: how many.
        panels: vectors of a row.
    """

    in_memory = True

    def __init__(self, buffer: Any, first: Any, shares: Any, share: Any, rows: int, panels: int):
        self.tile, self.buffer = Tile(rows, panels, LANES), buffer
        self._first, self._shares, self._share = first, shares, share

    def position(self, pixel: Any, vector: Any) -> Any:
        """Where the vector of a row begins."""
        return (self._first + pixel) * self.tile.block + vector * LANES

    def element(self, source: Any, position: Any, pixel: Any, _column: Any) -> Any:
        """One finished number."""
        return emit.load(source, [position]) * emit.load(self._shares, [self._share + pixel])

    def copy_to(self, _target: Any, _index: Index = ()) -> Statements:
        """Nothing: they lie in memory already."""
        return []
