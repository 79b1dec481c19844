"""Products on tile registers, of 8-bit integers or of split float32: panels of packed weights swept by blocks of rows.

A block is `down x across` registers of sums. Its rows are read where they lie, every row of a register a
fixed number of bytes behind the one above; its columns are a panel that was packed in the order in which it
is read. Finished sums go through a few kilobytes of the stack to what follows them, as vectors.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from typing import Any

import ml_dtypes
import numpy as np

from . import emit
from .choices import Option, choose, choose_flag, choose_size
from .emit import Statements
from .interface import Index
from .microkernel import Writer
from .product import SERIAL_FLOPS
from .tile import TargetNumbers, Tile, blocks
from .tile_registers import LANES, ROWS, Format, Registers

_SHAPES = ((2, 2), (1, 4), (1, 3), (3, 1), (1, 2), (2, 1), (1, 1))
"""Registers of sums down and across that leave room for operands."""
_LATENCY = 52.0
_LOAD_CYCLES = 8.0
_STORE_CYCLES = 16.0
_VECTOR_CYCLES = 2.0
_BLOCK_CYCLES = 40.0
_LINE = 64
_AHEAD = 4096
"""Bytes between use and request of weights that are used once."""
_WORST = 2.0
"""Shapes that are estimated to take longer than this many times the best are not worth trying."""


@dataclass(frozen=True)
class Reduction:
    """What is summed for one output: `outer` nested loops around runs of neighbouring elements, in steps.

    The last step of a run is moved up to end with the run; weights of what is read twice are zero. Where the
    data end in elements to spare (`slack`), it reads beyond the run instead, and weights are zero there.

    Attributes:
        outer: (iterations, elements between them) per loop.
        run: elements of a run.
        steps: steps of a run.
        depth: elements per step.
        slack: whether there are elements to spare.
    """

    outer: tuple[tuple[int, int], ...]
    run: int
    steps: int
    depth: int
    slack: bool = False

    @classmethod
    def of(
        cls, form: Format, run: int, outer: tuple[tuple[int, int], ...] = (), slack: bool = False
    ) -> Reduction | None:
        """The fewest steps of equal length; None for runs shorter than four bytes."""
        steps = blocks(run, form.most)
        depth = blocks(blocks(run, steps), form.word) * form.word
        if depth > run and not slack:
            steps, depth = 2, run // form.word * form.word
        return cls(outer, run, steps, depth, slack) if depth else None

    @property
    def runs(self) -> int:
        """How many runs there are."""
        return prod(count for count, _ in self.outer)

    @property
    def total(self) -> int:
        """Steps of all runs."""
        return self.runs * self.steps

    def place(self, step: Any) -> Any:
        """First element of a step of a run."""
        if self.slack or self.steps * self.depth == self.run:
            return step * self.depth
        return emit.minimum(step * self.depth, self.run - self.depth)


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
        own = self.registers
        return f"{own.row_count}x{own.across}x{LANES} {own.format.dot}"


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
    loads = form.parts * (registers.down + registers.across) * _LOAD_CYCLES
    step = max(form.products * max(sums * registers.rows, _LATENCY), loads)
    finish = sums * (_STORE_CYCLES + registers.rows * _VECTOR_CYCLES) + _BLOCK_CYCLES
    return steps * step + _LATENCY + finish


def pack_panels(weights: np.ndarray, reduction: Reduction, registers: Registers) -> np.ndarray:
    """(groups, runs, run, columns) -> panels as `panel_shape` says, float32 in parts."""
    groups, runs, _, columns = weights.shape
    panels = blocks(columns, registers.block)
    wide = np.zeros((groups, runs, reduction.steps, reduction.depth, panels * registers.block), weights.dtype)
    for step in range(reduction.steps):
        first, known = int(reduction.place(step)), step * reduction.depth
        own = weights[:, :, known : first + reduction.depth]
        wide[:, :, step, known - first : known - first + own.shape[2], :columns] = own
    word = registers.format.word
    split = wide.reshape(
        groups,
        runs * reduction.steps,
        reduction.depth // word,
        word,
        panels,
        registers.across,
        LANES,
    )
    packed = np.ascontiguousarray(split.transpose(0, 4, 1, 5, 2, 6, 3))
    if registers.format.parts > 1:
        packed = np.stack(split_float32(packed), axis=4)
    return packed.reshape(panel_shape(groups, panels, reduction, registers))


def panel_shape(groups: int, panels: int, reduction: Reduction, registers: Registers) -> tuple[int, ...]:
    """Shape of packed panels: (groups * panels, steps, across, parts * depth / word, 16, word)."""
    form = registers.format
    words = form.parts * registers.depth // form.word
    return (groups * panels, reduction.total, registers.across, words, LANES, form.word)


def split_float32(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The bits (uint16) of two bfloat16 whose sum is nearest to `values`; infinite numbers have no second."""
    high = values.astype(ml_dtypes.bfloat16)
    rounded = high.astype(np.float32)
    rest = np.zeros_like(values)
    np.subtract(values, rounded, out=rest, where=np.isfinite(rounded))
    return high.view(np.uint16), rest.astype(ml_dtypes.bfloat16).view(np.uint16)


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
    left: Any
    """The left operand as one axis."""
    row: Callable[[Index, Any], Any]
    """(batch index, register of rows) -> where its first row begins."""
    stride: int
    """Elements between rows."""
    right: Any
    """The panels as one axis."""
    index: Callable[[Index, Any, Any, Any], Index]
    """(batch index, register of rows, row in it, column) -> logical output index."""
    is_constant: bool = True
    """Whether panels are weights, which come from memory, rather than made here."""
    own_batch: Callable[[Index], Any] | None = None
    """Batch index -> number of the first panel's matrix, where it is not simply the batch in order."""
    plane: int = 0
    """Elements between the parts of the left operand's numbers."""
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
            first = part * chunk
            count: Any = chunk
            if tiling.row_blocks % chunk:
                count = emit.minimum(chunk, tiling.row_blocks - first)
            sums, allocation = emit.allocate_whole(
                "sums", tiling.registers.row_count * tiling.registers.block, form.sums
            )
            return [
                *bound,
                *allocation,
                *tiling.registers.configure(),
                emit.loop(
                    "rows",
                    count,
                    lambda i: self._block(
                        writer, tuple(batch), first + i, panel, sums, (i, chunk) if ahead else None
                    ),
                ),
                tiling.registers.release(),
            ]

        return emit.parallel("task", tasks, task, enabled=flops > SERIAL_FLOPS)

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
        places = [emit.bind("place", self.row(batch, first + i)) for i in range(registers.down)]
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
                    lambda i, part: (self.left, places[i][0] + offset + part * self.plane, self.stride),
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
