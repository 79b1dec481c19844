"""Tile registers as attention uses them: products of several widths with one configuration."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tvm import tirx

from . import emit
from .emit import Statements
from .interface import Index
from .tile import Tile
from .tile_registers import (
    BYTES,
    LANES,
    REGISTERS,
    ROWS,
    Format,
    _address,
    _call,
    _load,
    _number,
    _size,
)

_PALETTE = 1
_WORD = 4
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
        words = [_PALETTE, 0, 0, 0]
        words += [BYTES | BYTES << 16] * (REGISTERS // 2) + [0] * (REGISTERS // 2)
        words += [sum(heights[i + place] << 8 * place for place in range(4)) for i in range(0, REGISTERS, 4)]
        words += [0] * (ROWS - len(words))
        configuration, allocation = emit.allocate("configuration", (ROWS,), "int32")
        stores = [emit.store(configuration, tirx.const(word, "int32"), [i]) for i, word in enumerate(words)]
        return [allocation, *stores, _call("ldtilecfg", _address(configuration, 0))]

    def release(self) -> Any:
        """Give the registers back, so that the thread's state is small again."""
        return _call("tilerelease")

    def clear(self, width: int) -> Statements:
        """Set the sums of `width` registers side by side to zero."""
        return [_call("tilezero", _number(self._sum(i, j))) for i in range(self.down) for j in range(width)]

    def load(self, width: int, buffer: Any, place: Any, stride: int) -> Statements:
        """Read sums from a flat float32 buffer with `stride` elements between rows."""
        return self._move("tileloadd64", width, buffer, place, stride)

    def store(self, width: int, buffer: Any, place: Any, stride: int) -> Statements:
        """Write sums, likewise."""
        return self._move("tilestored64", width, buffer, place, stride)

    def _move(self, name: str, width: int, buffer: Any, place: Any, stride: int) -> Statements:
        return [
            _call(
                name,
                _number(self._sum(i, j)),
                _address(buffer, place + (i * self.rows * stride + j * LANES)),
                _size(stride * _WORD),
            )
            for i in range(self.down)
            for j in range(width)
        ]

    def multiply_add(
        self,
        width: int,
        left: Callable[[int, int], tuple[Any, Any, int]],
        right: Callable[[int, int], tuple[Any, Any]],
    ) -> Statements:
        """One step of the products of all parts for `width` registers of sums side by side.

        A register of sums comes again after all others: what it waits for is done by then.

        Args:
            width: columns of registers.
            left: (row of registers, part) -> (flat buffer of words, first word, words between rows).
            right: (column of registers, part) -> (flat buffer of words, first word).
        """
        first_right = _SUMS + self.down
        held: dict[int, tuple[int, int]] = {}
        done: Statements = []

        def is_new(register: int, what: tuple[int, int]) -> bool:
            old, held[register] = held.get(register), what
            return old != what

        for part, other in self.format.pairs:
            for i in range(self.down):
                if is_new(_SUMS + i, (i, part)):
                    buffer, place, stride = left(i, part)
                    done.append(_load(_SUMS + i, buffer, place, stride * _WORD))
            for j in range(width):
                own = first_right + j % (REGISTERS - first_right)
                if is_new(own, (j, other)):
                    done.append(_load(own, *right(j, other), BYTES))
                done += [
                    _call(self.format.dot, _number(self._sum(i, j)), _number(_SUMS + i), _number(own))
                    for i in range(self.down)
                ]
        return done

    def _sum(self, row: int, column: int) -> int:
        return row * self.most + column


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
