"""The left operand of a product on tile registers: rows where they lie, or packed as registers read them.

Rows a power of two apart share few sets of the first-level cache, sixteen at once more than it has ways. What
has to be split anyway is therefore written in the order in which registers are loaded.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from typing import Any, Protocol

from . import emit
from .emit import Statements
from .interface import Index
from .tile_panels import Reduction
from .tile_registers import Registers
from .tile_split import split_run, zeros


class Left(Protocol):
    """Where registers find the left operand."""

    def place(self, batch: Index, tile: Any) -> Any:
        """Where the rows of a register begin."""

    def at(self, place: Any, offset: Any, step: Any, part: int) -> tuple[Any, Any, int]:
        """(flat buffer, first element, elements between rows) of a part at a step, `offset` into the rows."""


@dataclass(frozen=True)
class Strided:
    """Rows a fixed distance apart.

    Attributes:
        flat: the operand as one axis.
        row: (batch index, register of rows) -> where its first row begins.
        stride: elements between rows.
        plane: elements between the parts of a number.
    """

    flat: Any
    row: Callable[[Index, Any], Any]
    stride: int
    plane: int = 0

    def place(self, batch: Index, tile: Any) -> Any:
        """Where the rows of a register begin."""
        return self.row(batch, tile)

    def at(self, place: Any, offset: Any, _step: Any, part: int) -> tuple[Any, Any, int]:
        """The rows from `offset` on."""
        return self.flat, place + offset + part * self.plane, self.stride


@dataclass(frozen=True)
class Packed:
    """Registers one behind the other: rows, batch, steps, parts.

    Attributes:
        flat: the buffer.
        first: number of the first register of rows in it.
        batch: the product's batch, which divides each row.
        registers: their shapes.
        reduction: the steps.
    """

    flat: Any
    first: Any
    batch: tuple[int, ...]
    registers: Registers
    reduction: Reduction

    @property
    def part_size(self) -> int:
        """Elements of one part of a register."""
        return self.registers.rows * self.registers.depth

    @property
    def step_size(self) -> int:
        """Elements of a register, all parts."""
        return self.part_size * self.registers.format.parts

    def place(self, batch: Index, tile: Any) -> Any:
        """Where the rows of a register begin."""
        number = (tile - self.first) * prod(self.batch) + emit.ravel(batch, self.batch)
        return number * (self.reduction.steps * self.step_size)

    def at(self, place: Any, _offset: Any, step: Any, part: int) -> tuple[Any, Any, int]:
        """The register of a step."""
        return self.flat, place + step * self.step_size + part * self.part_size, self.registers.depth


@dataclass(frozen=True)
class Rows:
    """A float32 matrix in memory whose rows are contiguous.

    Attributes:
        source: the flat buffer.
        count: rows.
        length: elements of a row, the whole batch.
        place: number of a row -> where it begins; None where rows follow each other.
    """

    source: Any
    count: int
    length: int
    place: Callable[[Any], Any] | None = None

    def pack(self, to: Packed, start: Any, tiles: int) -> Any:
        """Split the rows of `tiles` registers, from number `start` of `to` on, the last step filled up."""
        registers, reduction, parts = to.registers, to.reduction, to.registers.format.parts
        depth, rows, groups = registers.depth, registers.rows, prod(to.batch)
        last = reduction.run - (reduction.steps - 1) * depth

        def step(begin: Any, dest: Any, number: Any, known: int) -> Statements:
            at = dest + number * to.step_size
            return [
                *split_run(self.source, begin + number * depth, to.flat, at, to.part_size, parts, known),
                *(zeros(to.flat, at + part * to.part_size + known, depth - known) for part in range(parts)),
            ]

        def row(tile: Any, first: Any, r: Any) -> Any:
            own = first + r
            begin = own * self.length if self.place is None else self.place(own)
            begin, bound = emit.bind("begin", begin)

            def group(g: Any) -> Statements:
                at = begin + g * reduction.run
                dest = (tile * groups + g) * (reduction.steps * to.step_size) + r * depth
                whole = reduction.steps - (last < depth)
                return [
                    emit.loop("step", whole, lambda number: step(at, dest, number, depth)),
                    *(step(at, dest, reduction.steps - 1, last) if last < depth else []),
                ]

            return [*bound, emit.loop("group", groups, group)]

        def register(tile: Any) -> Any:
            first, bound = emit.bind("first", emit.minimum((to.first + tile) * rows, self.count - rows))
            return [*bound, emit.loop("r", rows, lambda r: row(tile, first, r))]

        return emit.loop("tile", tiles, register, start=start)
