"""How many tile registers lie below and beside each other, chosen by estimated time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from .choices import Option, choose
from .tile import MEMORY_BYTES_PER_CYCLE, blocks
from .tile_panels import Reduction
from .tile_registers import LANES, ROWS, Format, Registers
from .tile_split import STAGED_PER_CYCLE

_SHAPES = ((2, 2), (1, 4), (1, 3), (3, 1), (1, 2), (2, 1), (1, 1))
"""Registers of sums down and across that leave room for operands."""
_LATENCY = 52.0
_LOAD_CYCLES = 8.0
_STORE_CYCLES = 16.0
_VECTOR_CYCLES = 2.0
_BLOCK_CYCLES = 40.0
_WORST = 2.0
"""Shapes that are estimated to take longer than this many times the best are not worth trying."""
_SPLIT_SLOWNESS = 1.3
"""Measured over estimated time of products of float32, whose operands come from farther away."""


@dataclass(frozen=True)
class Tiling:
    """Registers, and how many blocks of them cover the output."""

    registers: Registers
    tiles: int
    """Registers of rows that cover all rows."""
    row_blocks: int
    panels: int
    cycles: float
    """Estimated, of one core for everything."""

    def __str__(self) -> str:
        own, count = self.registers, len(self.registers.format.pairs)
        return f"{own.row_count}x{own.across}x{LANES} {own.format.dot}{f' x{count}' if count > 1 else ''}"


RowTiles = Callable[[int], tuple[int, int]]
"""Registers of rows per block -> (registers that cover all rows, rows of each)."""


def flat_rows(rows: int) -> RowTiles:
    """Rows that can be divided anywhere: as even as possible, so that nothing is computed twice."""

    def divide(down: int) -> tuple[int, int]:
        count = blocks(blocks(rows, ROWS), down) * down
        own = blocks(rows, count)
        return max(blocks(rows, own), down), own

    return divide


def image_rows(width: int, lines: int) -> RowTiles:
    """`lines` rows of `width` pixels; no register holds pixels of two of them."""
    count = blocks(width, ROWS)
    return lambda down: (lines * count, blocks(width, count))


def plan_tiling(rows: RowTiles, columns: int, batch: int, reduction: Reduction, form: Format) -> Tiling:
    """The registers for a product by estimated time, or by a record."""
    found: dict[tuple[int, ...], Tiling] = {}
    for down, across in _SHAPES:
        tiles, own = rows(down)
        if tiles < down or across > blocks(columns, LANES) or own < 1:
            continue
        registers = Registers(own, reduction.depth, down, across, form)
        row_blocks, panels = blocks(tiles, down), blocks(columns, registers.block)
        cycles = batch * row_blocks * panels * _block_cycles(registers, reduction.total)
        found[down, across] = Tiling(registers, tiles, row_blocks, panels, cycles)
    best = min(found, key=lambda shape: found[shape].cycles)
    least = found[best].cycles
    options = [
        Option(shape, each.cycles / least) for shape, each in found.items() if each.cycles <= _WORST * least
    ]
    chosen = choose("registers", best, lambda: options)
    assert isinstance(chosen, tuple)
    return found[chosen]


def _block_cycles(registers: Registers, steps: int) -> float:
    sums, form = registers.down * registers.across, registers.format
    loads = len(form.pairs) * (registers.down + registers.across) * _LOAD_CYCLES / min(form.parts, 2)
    step = max(len(form.pairs) * max(sums * registers.rows, _LATENCY), loads)
    finish = sums * (_STORE_CYCLES + registers.rows * _VECTOR_CYCLES) + _BLOCK_CYCLES
    return steps * step + _LATENCY + finish


def split_cycles(tiling: Tiling, weights: int, numbers: int) -> float:
    """Estimated cycles of one core for a product of float32, the splitting of its left operand included.

    Args:
        tiling: the registers.
        weights: elements that are packed, which come from memory.
        numbers: how many are split.
    """
    stream = weights * tiling.registers.format.parts * tiling.registers.format.size / MEMORY_BYTES_PER_CYCLE
    compute = _SPLIT_SLOWNESS * tiling.cycles
    # The shorter of the two does not hide behind the longer one altogether.
    return max(compute, stream) + min(compute, stream) / 4 + numbers / STAGED_PER_CYCLE
