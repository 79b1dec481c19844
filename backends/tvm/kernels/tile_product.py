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
from .choices import choose_flag, choose_size
from .emit import Statements
from .interface import Index
from .microkernel import Writer
from .product import SERIAL_FLOPS
from .tile import TargetNumbers, Tile, blocks
from .tile_left import Left, Packed, Rows
from .tile_panels import Reduction
from .tile_plan import Tiling
from .tile_registers import LANES, Registers, release

_FEWEST_ROWS = 512
"""Rows per task that make reading all weights, which come from the third-level cache, worth while."""
_PIECE = 16
"""Steps of a piece of a panel."""
_MOST_KEPT = 16
"""Blocks whose sums wait in memory for the next piece."""
_LINE = 64
_AHEAD = 4096
"""Bytes between use and request of weights that are used once."""


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
        weights = self.panel_size * form.size * tiling.panels * prod(self.batch)
        streams = self.is_constant and weights > target.l2_bytes // 2
        chunk = self._chunk(row_size * form.size * form.parts, streams, target)
        chunks = blocks(tiling.row_blocks, chunk)
        tasks = prod(self.batch) * chunks * tiling.panels
        ahead = self.is_constant and choose_flag("ahead", streams)
        held = chunk * row_size * form.parts + 2 * self.panel_size
        pieces = self._pieces(chunk, held * form.size > target.l2_bytes) if ahead else 1

        def task(t: Any) -> Any:
            *batch, part, panel = emit.unravel(t, (*self.batch, chunks, tiling.panels))
            panel, bound = emit.bind("panel", panel)
            return self._configured(
                [*bound],
                chunk if pieces > 1 else 1,
                lambda sums: self._sweep(
                    writer, tuple(batch), part * chunk, chunk, panel, sums, ahead, pieces
                ),
            )

        return emit.parallel("task", tasks, task, enabled=flops > SERIAL_FLOPS)

    def _configured(self, before: Statements, kept: int, body: Callable[[Any], Any]) -> Statements:
        """`body` of a buffer for the sums of `kept` blocks, with the registers' shapes declared."""
        registers = self.tiling.registers
        size = kept * registers.row_count * registers.block
        scope = "local" if kept == 1 else "global"
        sums, allocation = emit.allocate_whole("sums", size, registers.format.sums, scope)
        return [*before, *allocation, *registers.configure(), body(sums), release()]

    def _sweep(
        self,
        writer: Writer,
        batch: Index,
        first: Any,
        chunk: int,
        panel: Any,
        sums: Any,
        ahead: bool,
        pieces: int = 1,
    ) -> Any:
        """Blocks of rows from `first` on, all by one panel, piece by piece if there are several."""
        count: Any = chunk
        if self.tiling.row_blocks % chunk:
            count = emit.minimum(chunk, self.tiling.row_blocks - first)

        def block(i: Any, piece: Any) -> Statements:
            kept = i if pieces > 1 else 0
            return self._block(
                batch, first + i, panel, sums, (i, chunk) if ahead else None, (piece, pieces), kept
            )

        def finish(i: Any) -> Statements:
            return self._finish(writer, batch, first + i, panel, sums, i if pieces > 1 else 0)

        if pieces == 1:
            return emit.loop("rows", count, lambda i: [*block(i, 0), *finish(i)])
        return emit.flatten(
            [
                emit.loop("piece", pieces, lambda piece: emit.loop("rows", count, lambda i: block(i, piece))),
                emit.loop("rows", count, finish),
            ]
        )

    def _pieces(self, chunk: int, pays: bool) -> int:
        """Pieces of a panel that all blocks use before the next one comes from memory; one where a panel is
        used once, or stays in the cache as a whole.
        """
        steps = self.reduction.steps
        lengths = [length for length in range(_PIECE // 2, 2 * _PIECE) if steps % length == 0]
        if self.reduction.outer or not 1 < chunk <= _MOST_KEPT or not lengths or steps < 2 * _PIECE:
            return 1
        length = min(lengths, key=lambda each: abs(each - _PIECE))
        return steps // length if choose_flag("pieces", pays) else 1

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
                1,
                lambda sums: emit.loop(
                    "sweep", prod(self.batch) * tiling.panels, lambda number: sweep(number, sums)
                ),
            )

        return emit.parallel("task", blocks(tiling.row_blocks, chunk), task, enabled=flops > SERIAL_FLOPS)

    def _chunk(self, row_bytes: int, streams: bool, target: TargetNumbers) -> int:
        """Blocks of rows that a panel sweeps: what the second-level cache holds, shared by the cores, or more
        where weights stream from memory, which is slower than that cache.
        """
        whole = self.tiling.row_blocks
        size = max(1, min(whole, target.l2_bytes // 2 // max(row_bytes, 1)))
        if streams and not self.reduction.outer:
            size = max(size, blocks(whole, blocks(whole, _MOST_KEPT)))
        panels = prod(self.batch) * self.tiling.panels
        while size > 1 and _imbalance(panels * blocks(whole, size), target.cores) > 1.1:
            size -= max(1, size // 8)
        return choose_size("row_blocks", blocks(whole, blocks(whole, size)), whole)

    def _first(self, number: Any) -> tuple[Any, Statements]:
        """The first register of rows of a block."""
        tiling, registers = self.tiling, self.tiling.registers
        first: Any = number * registers.down
        if tiling.tiles % registers.down:
            first = emit.minimum(first, tiling.tiles - registers.down)
        return emit.bind("first", first)

    def _block(
        self,
        batch: Index,
        number: Any,
        panel: Any,
        sums: Any,
        sweep: tuple[Any, int] | None,
        piece: tuple[Any, int],
        kept: Any,
    ) -> Statements:
        """Add a piece of the panel to the sums of a block, which are the `kept`-th in memory."""
        tiling, registers = self.tiling, self.tiling.registers
        first, bound = self._first(number)
        places = [emit.bind("place", self.left.place(batch, first + i)) for i in range(registers.down)]
        matrix = self.own_batch(batch) if self.own_batch else emit.ravel(batch, self.batch)
        begin, begins = emit.bind("begin", (matrix * tiling.panels + panel) * self.panel_size)
        step_size, part_size = registers.across * registers.right_size, registers.depth * LANES
        which, pieces = piece
        length = self.reduction.steps // pieces

        def step(outer: Index, at: Any) -> Statements:
            run = emit.ravel(outer, [count for count, _ in self.reduction.outer])
            done = run * self.reduction.steps + at
            offset = self.reduction.place(at)
            for index, (_, stride) in zip(outer, self.reduction.outer, strict=True):
                offset = offset + index * stride
            own = begin + done * step_size
            requests: Statements = []
            if sweep and pieces > 1:
                requests = self._share(own + length * step_size, sweep)
            elif sweep:
                requests = self._requests(own, done, begin, sweep)
            return [
                *requests,
                *registers.multiply_add(
                    lambda i, part: self.left.at(places[i][0], offset, done, part),
                    lambda i, part: (self.right, own + i * registers.right_size + part * part_size),
                ),
            ]

        def loops(outer: Index) -> Any:
            if len(outer) < len(self.reduction.outer):
                count = self.reduction.outer[len(outer)][0]
                return emit.loop("tap", count, lambda i: loops((*outer, i)))
            return emit.loop("k", length, lambda at: step(outer, at), start=which * length)

        at = kept * (registers.row_count * registers.block)
        clear = emit.flatten(registers.clear())
        return [
            *bound,
            *(each[1] for each in places),
            *begins,
            emit.when(which > 0, emit.flatten(registers.load(sums, at)), clear) if pieces > 1 else clear,
            loops(()),
            *registers.store(sums, at),
        ]

    def _finish(
        self, writer: Writer, batch: Index, number: Any, panel: Any, sums: Any, kept: Any
    ) -> Statements:
        """What follows the sums of a block."""
        first, bound = self._first(number)
        down = self.tiling.registers.down
        return [
            *bound,
            emit.loop(
                "register", down, lambda i: self._write(writer, batch, first, i, panel, sums, kept * down)
            ),
        ]

    def _share(self, begin: Any, sweep: tuple[Any, int]) -> Statements:
        """Requests for one step of the next piece, divided between the blocks that use this one."""
        number, count = sweep
        registers = self.tiling.registers
        line = _LINE // registers.format.size
        each = blocks(registers.across * registers.right_size // line, count)
        return [emit.prefetch(self.right, [begin + (number * each + i) * line]) for i in range(each)]

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

    def _write(
        self, writer: Writer, batch: Index, first: Any, number: Any, panel: Any, sums: Any, skipped: Any
    ) -> Any:
        tiling, registers = self.tiling, self.tiling.registers
        last = self.columns - (tiling.panels - 1) * registers.block
        correct = self.correct

        def own(value: Any, row: Any, column: Any) -> Any:
            assert correct is not None
            return correct(value, batch, first + number, row, column)

        return writer.write_tile(
            Sums(sums, registers, (skipped + number) * registers.rows, own if correct else None),
            lambda row, column: self.index(batch, first + number, row, column),
            panel * registers.block,
            panel == tiling.panels - 1 if tiling.panels > 1 else True,
            last,
        )


def _imbalance(tasks: int, cores: int) -> float:
    return blocks(tasks, cores) * cores / tasks
