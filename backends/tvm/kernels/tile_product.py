"""Products on tile registers, of 8-bit integers or split float32: panels of packed weights, blocks of rows.

A block is `down x across` registers of sums. Its rows are read where they lie, every row of a register a
fixed number of bytes behind the one above; its columns are a panel that was packed in the order in which it
is read. Finished sums go through a few kilobytes of the stack to what follows them, as vectors.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from math import prod
from typing import Any

from . import emit
from .choices import Option, choose, choose_flag, choose_size
from .emit import Statements
from .interface import Index
from .microkernel import Writer
from .product import SERIAL_FLOPS
from .tile import MEMORY_BYTES_PER_CYCLE, TargetNumbers, Tile, blocks
from .tile_left import Left, Packed, Rows
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
_SPLIT_SLOWNESS = 1.3
"""Measured over estimated time of products of float32, whose operands come from farther away."""
_FEWEST_ROWS = 96
"""Rows per task that make reading all weights, which come from the third-level cache, worth while."""
_LINE = 64
_AHEAD = 4096
"""Bytes between use and request of weights that are used once."""
_WORST = 2.0
"""Shapes that are estimated to take longer than this many times the best are not worth trying."""


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
    return max(_SPLIT_SLOWNESS * tiling.cycles, stream) + numbers / STAGED_PER_CYCLE


Correct = Callable[[Any, Any, Any], Any]
"""(sum, row of the register, column) -> the sum without the zero points' share."""


class Sums:
    """Finished sums of one register of rows, as `Writer` reads them: vectors in memory."""

    in_memory = True

    def __init__(self, buffer: Any, registers: Registers, first: Any, correct: Correct | None):
        self.tile = Tile(registers.rows, registers.across, LANES)
        self.buffer, self._first, self._block, self._correct = buffer, first, registers.block, correct

    def position(self, pixel: Any, vector: Any) -> Any:
        """Where the vector of a pixel begins."""
        return (self._first + pixel) * self._block + vector * LANES

    def element(self, source: Any, position: Any, pixel: Any, column: Any) -> Any:
        """One sum, without the zero points' share."""
        loaded = emit.load(source, [position])
        return self._correct(loaded, pixel, column) if self._correct else loaded

    def copy_to(self, _target: Any, _index: Index = ()) -> Statements:
        """Nothing: they lie in memory already."""
        return []


@dataclass(frozen=True)
class TileProduct:
    """`batch` products, divided into blocks of registers."""

    tiling: Tiling
    reduction: Reduction
    batch: tuple[int, ...]
    columns: int
    left: Left
    right: Any
    """The panels as one axis."""
    index: Callable[[Index, Any, Any, Any], Index]
    """(batch index, register of rows, row in it, column) -> logical output index."""
    is_constant: bool = True
    """Whether panels are weights, which come from memory, rather than made here."""
    own_batch: Callable[[Index], Any] | None = None
    """Batch index -> number of the first panel's matrix, where it is not simply the batch in order."""
    correct: Callable[[Any, Index, Any, Any, Any], Any] | None = None
    """(sum, batch index, register of rows, row in it, column) -> sum without the zero points' share."""

    @property
    def panel_size(self) -> int:
        """Elements of one panel."""
        registers = self.tiling.registers
        return self.reduction.total * registers.across * registers.right_size

    def body(self, writer: Writer, target: TargetNumbers, row_size: int, flops: int) -> Any:
        """The loops; `row_size` are the elements that a block of rows reads, `flops` decide about threads."""
        tiling, form = self.tiling, self.tiling.registers.format
        chunk = self._chunk(row_size * form.size * form.parts, target)
        chunks = blocks(tiling.row_blocks, chunk)
        tasks = prod(self.batch) * chunks * tiling.panels
        weights = self.panel_size * form.size * tiling.panels * prod(self.batch)
        ahead = self.is_constant and choose_flag("ahead", weights > target.l2_bytes // 2)

        def task(t: Any) -> Any:
            *batch, part, panel = emit.unravel(t, (*self.batch, chunks, tiling.panels))
            panel, bound = emit.bind("panel", panel)
            return self._configured(
                [*bound],
                lambda sums: self._sweep(writer, tuple(batch), part * chunk, chunk, panel, sums, ahead),
            )

        return emit.parallel("task", tasks, task, enabled=flops > SERIAL_FLOPS)

    def _configured(self, before: Statements, body: Callable[[Any], Any]) -> Statements:
        """`body` of a buffer for finished sums, with the registers' shapes declared."""
        registers = self.tiling.registers
        sums, allocation = emit.allocate_whole(
            "sums", registers.row_count * registers.block, registers.format.sums
        )
        return [*before, *allocation, *registers.configure(), body(sums), registers.release()]

    def _sweep(
        self, writer: Writer, batch: Index, first: Any, chunk: int, panel: Any, sums: Any, ahead: bool
    ) -> Any:
        """Blocks of rows from `first` on, all by one panel."""
        count: Any = chunk
        if self.tiling.row_blocks % chunk:
            count = emit.minimum(chunk, self.tiling.row_blocks - first)
        return emit.loop(
            "rows",
            count,
            lambda i: self._block(writer, batch, first + i, panel, sums, (i, chunk) if ahead else None),
        )

    def split_body(self, matrix: Rows, writer: Writer, target: TargetNumbers, flops: int) -> Any:
        """The loops for a left operand of float32, whose rows are split on the way.

        Where there are enough rows every task splits those it reads, which then lie in its cache. Otherwise
        all are split before, and tasks share them.
        """
        chunk = self._split_chunk(matrix, target)
        if choose_flag("fused", bool(chunk)) and chunk:
            return self._fused_body(matrix, chunk, writer, target, flops)
        tiles = self.tiling.tiles
        packed, allocation = self._packed(0, tiles)
        stage = emit.parallel(
            "stage",
            tiles,
            lambda t: matrix.pack(packed, t, 1),
            enabled=matrix.count * matrix.length > SERIAL_FLOPS,
        )
        size = self.tiling.registers.row_count * matrix.length
        return [*allocation, stage, replace(self, left=packed).body(writer, target, size, flops)]

    def _packed(self, first: Any, tiles: int) -> tuple[Packed, Statements]:
        """Room for the rows of `tiles` registers, and the statements that allocate it."""
        packed = Packed(None, first, self.batch, self.tiling.registers, self.reduction)
        size = tiles * prod(self.batch) * self.reduction.steps * packed.step_size
        flat, allocation = emit.allocate_whole("split", size, self.tiling.registers.format.left, "global")
        return replace(packed, flat=flat), allocation

    def _split_chunk(self, matrix: Rows, target: TargetNumbers) -> int:
        """Blocks of rows per task; 0 where there are too few rows for tasks of their own."""
        tiling, form = self.tiling, self.tiling.registers.format
        block = tiling.registers.row_count
        most = target.l2_bytes // 4 // (matrix.length * form.parts * form.size * block)
        weights = self.panel_size * form.size * tiling.panels * prod(self.batch)
        least = 1 if weights <= target.l2_bytes // 2 else blocks(_FEWEST_ROWS, block)
        size = min(most, tiling.row_blocks)
        while size > least and _imbalance(blocks(tiling.row_blocks, size), target.cores) > 1.1:
            size -= 1
        if size < max(least, 1) or blocks(tiling.row_blocks, size) < target.cores:
            return 0
        return size

    def _fused_body(self, matrix: Rows, chunk: int, writer: Writer, target: TargetNumbers, flops: int) -> Any:
        tiling, form = self.tiling, self.tiling.registers.format
        weights = self.panel_size * form.size * tiling.panels * prod(self.batch)
        ahead = choose_flag("ahead", weights > target.l2_bytes // 2)
        tiles = min(chunk * tiling.registers.down, tiling.tiles)

        def task(t: Any) -> Any:
            first, bound = emit.bind(
                "first", emit.minimum(t * (chunk * tiling.registers.down), tiling.tiles - tiles)
            )
            packed, allocation = self._packed(first, tiles)
            own = replace(self, left=packed)

            def sweep(number: Any, sums: Any) -> Any:
                *batch, panel = emit.unravel(number, (*self.batch, tiling.panels))
                return own._sweep(writer, tuple(batch), t * chunk, chunk, panel, sums, ahead)

            return self._configured(
                [*bound, *allocation, matrix.pack(packed, 0, tiles)],
                lambda sums: emit.loop(
                    "sweep", prod(self.batch) * tiling.panels, lambda number: sweep(number, sums)
                ),
            )

        return emit.parallel("task", blocks(tiling.row_blocks, chunk), task, enabled=flops > SERIAL_FLOPS)

    def _chunk(self, row_bytes: int, target: TargetNumbers) -> int:
        """Blocks of rows that a panel sweeps: what the second-level cache holds, shared by the cores."""
        whole = self.tiling.row_blocks
        size = max(1, min(whole, target.l2_bytes // 2 // max(row_bytes, 1)))
        panels = prod(self.batch) * self.tiling.panels
        while size > 1 and _imbalance(panels * blocks(whole, size), target.cores) > 1.1:
            size -= max(1, size // 8)
        return choose_size("row_blocks", blocks(whole, blocks(whole, size)), whole)

    def _block(
        self, writer: Writer, batch: Index, number: Any, panel: Any, sums: Any, sweep: tuple[Any, int] | None
    ) -> Statements:
        tiling, registers = self.tiling, self.tiling.registers
        first: Any = number * registers.down
        if tiling.tiles % registers.down:
            first = emit.minimum(first, tiling.tiles - registers.down)
        first, bound = emit.bind("first", first)
        places = [emit.bind("place", self.left.place(batch, first + i)) for i in range(registers.down)]
        matrix = self.own_batch(batch) if self.own_batch else emit.ravel(batch, self.batch)
        begin, begins = emit.bind("begin", (matrix * tiling.panels + panel) * self.panel_size)
        step_size, part_size = registers.across * registers.right_size, registers.depth * LANES

        def step(outer: Index, at: Any) -> Statements:
            run = emit.ravel(outer, [count for count, _ in self.reduction.outer])
            done = run * self.reduction.steps + at
            offset = self.reduction.place(at)
            for index, (_, stride) in zip(outer, self.reduction.outer, strict=True):
                offset = offset + index * stride
            own = begin + done * step_size
            return [
                *(self._requests(own, done, begin, sweep) if sweep else []),
                *registers.multiply_add(
                    lambda i, part: self.left.at(places[i][0], offset, done, part),
                    lambda i, part: (self.right, own + i * registers.right_size + part * part_size),
                ),
            ]

        def loops(outer: Index) -> Any:
            if len(outer) < len(self.reduction.outer):
                count = self.reduction.outer[len(outer)][0]
                return emit.loop("tap", count, lambda i: loops((*outer, i)))
            return emit.loop("k", self.reduction.steps, lambda at: step(outer, at))

        return [
            *bound,
            *(each[1] for each in places),
            *begins,
            *registers.clear(),
            loops(()),
            *registers.store(sums),
            emit.loop(
                "register", registers.down, lambda i: self._write(writer, batch, first, i, panel, sums)
            ),
        ]

    def _requests(self, own: Any, done: Any, begin: Any, sweep: tuple[Any, int]) -> Statements:
        """Requests for the next panel, divided between the blocks that use this one, or for what is next."""
        number, count = sweep
        registers = self.tiling.registers
        line = _LINE // registers.format.size
        lines = registers.across * registers.right_size // line
        if count == 1:
            ahead = _AHEAD // registers.format.size
            return [emit.prefetch(self.right, [own + ahead + i * line]) for i in range(lines)]
        each = blocks(lines, count)
        first = begin + self.panel_size + (number * self.reduction.total + done) * (each * line)
        return [emit.prefetch(self.right, [first + i * line]) for i in range(each)]

    def _write(self, writer: Writer, batch: Index, first: Any, number: Any, panel: Any, sums: Any) -> Any:
        tiling, registers = self.tiling, self.tiling.registers
        last = self.columns - (tiling.panels - 1) * registers.block
        correct = self.correct

        def own(value: Any, row: Any, column: Any) -> Any:
            assert correct is not None
            return correct(value, batch, first + number, row, column)

        return writer.write_tile(
            Sums(sums, registers, number * registers.rows, own if correct else None),
            lambda row, column: self.index(batch, first + number, row, column),
            panel * registers.block,
            panel == tiling.panels - 1 if tiling.panels > 1 else True,
            last,
        )


def _imbalance(tasks: int, cores: int) -> float:
    return blocks(tasks, cores) * cores / tasks
