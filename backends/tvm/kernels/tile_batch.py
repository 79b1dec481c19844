"""Products of two 8-bit activations on tile registers.

The right operand is packed into panels on the fly. The stored numbers are multiplied; what the zero points
add to a sum is taken off behind it: `(a - p)(b - q)` summed is `ab` less `p` times the column's sum, less `q`
times the row's sum, plus a constant.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import Any

from tvm import tirx

from . import emit
from .arithmetic import intrinsic
from .emit import Statements
from .integer_stage import batch_strides
from .interface import Index, Kernel, MatmulSpec
from .matmul import _view
from .microkernel import Writer
from .product import SERIAL_FLOPS
from .tile import TargetNumbers
from .tile_left import Strided
from .tile_matmul import tiles_pay
from .tile_panels import Reduction
from .tile_plan import Tiling, flat_rows, plan_tiling
from .tile_product import TileProduct
from .tile_registers import LANES, WORD, has_tiles, integer_format

_GROUP = LANES * WORD


def tile_batch_matmul(
    spec: MatmulSpec,
    types: tuple[str, str],
    zero_points: tuple[int, int],
    writer: Writer,
    target: TargetNumbers,
) -> Kernel | None:
    """A product of two activations; None where tile registers are missing or do not pay.

    Buffers: a, b, extra inputs, output (..., M, N).
    """
    if not has_tiles(target) or not set(types) <= {"int8", "uint8"}:
        return None
    form = integer_format(*types)
    reduction = Reduction.of(form, spec.k)
    if reduction is None:
        return None
    rows, columns = spec.out_shape[-2:]
    count = prod(spec.batch)
    tiling = plan_tiling(flat_rows(rows), columns, count, reduction, form)
    if not tiles_pay(tiling, rows, columns, spec.k, ("int16", "int16"), target, count):
        return None
    return _Batch(spec, types, zero_points, reduction, tiling).kernel(writer, target)


@dataclass(frozen=True)
class _Batch:
    """The buffers and loops of one such product."""

    spec: MatmulSpec
    types: tuple[str, str]
    zero_points: tuple[int, int]
    reduction: Reduction
    tiling: Tiling

    @property
    def rows(self) -> int:
        """Rows of one product."""
        return self.spec.out_shape[-2]

    @property
    def columns(self) -> int:
        """Columns of one product."""
        return self.spec.out_shape[-1]

    @cached_property
    def own(self) -> tuple[int, ...]:
        """Batch of the right operand: one where it is repeated."""
        shape = self.spec.b.logical[:-2]
        return (*[1] * (len(self.spec.batch) - len(shape)), *shape)

    @property
    def panel_size(self) -> int:
        """Elements of one packed panel."""
        return self.reduction.total * self.tiling.registers.across * self.tiling.registers.right_size

    def matrix(self, outer: Index) -> Any:
        """Number of the right operand's matrix."""
        return emit.ravel([i if size > 1 else 0 for i, size in zip(outer, self.own, strict=True)], self.own)

    def kernel(self, writer: Writer, target: TargetNumbers) -> Kernel:
        """The function."""
        spec, registers = self.spec, self.tiling.registers
        a = emit.buffer("a", spec.a.shape, self.types[0])
        b = emit.buffer("b", spec.b.shape, self.types[1])
        left, declaration = emit.flat_view(a, prod(spec.a.shape))
        enabled = spec.flops > SERIAL_FLOPS
        packed, statements = self._pack(b, enabled)
        row_sums, summed_rows = self._row_sums(left, enabled)
        column_sums, summed_columns = self._column_sums(packed, enabled)
        strides = batch_strides(spec.a.logical[:-2], len(spec.batch), self.rows * spec.k)
        row_strides = batch_strides(spec.a.logical[:-2], len(spec.batch), self.rows)

        def first_row(tile: Any) -> Any:
            return emit.minimum(tile * registers.rows, self.rows - registers.rows)

        def correct(value: Any, outer: Index, tile: Any, row: Any, column: Any) -> Any:
            p, q = self.zero_points
            share: Any = tirx.const(-p * q * spec.k, "int32")
            if p:
                at = self.matrix(outer) * (self.tiling.panels * registers.block) + column
                share = share + emit.load(column_sums, [at]) * tirx.const(p, "int32")
            if q:
                at = _offset(outer, row_strides) + first_row(tile) + row
                share = share + emit.load(row_sums, [at]) * tirx.const(q, "int32")
            return value - share

        product = TileProduct(
            self.tiling,
            self.reduction,
            spec.batch,
            self.columns,
            Strided(left, lambda outer, tile: _offset(outer, strides) + first_row(tile) * spec.k, spec.k),
            packed,
            lambda outer, tile, row, column: (*outer, first_row(tile) + row, column),
            is_constant=False,
            own_batch=self.matrix,
            correct=correct if any(self.zero_points) else None,
        )
        func = emit.function(
            "integer_batch_matmul",
            [a, b, *writer.extras, writer.output],
            [
                declaration,
                *statements,
                *summed_rows,
                *summed_columns,
                product.body(writer, target, registers.row_count * spec.k, spec.flops),
            ],
        )
        return Kernel(func, (), spec.flops, f"int8 batch_matmul {self.tiling} packed")

    def _pack(self, b: Any, enabled: bool) -> tuple[Any, Statements]:
        """The right operand as flat panels, and the statements that make them."""
        reduction, registers, panels = self.reduction, self.tiling.registers, self.tiling.panels
        view = _view(b, self.spec.b, self.spec.batch)
        packed, allocation = emit.allocate(
            "packed", (prod(self.own) * panels * self.panel_size,), self.types[1], "global"
        )
        twice = reduction.steps * reduction.depth - reduction.run
        ragged = bool(twice) or self.columns % registers.block != 0
        groups = reduction.depth // WORD
        nothing = tirx.const(0, self.types[1])

        def panel(t: Any) -> Statements:
            *outer, number = emit.unravel(t, (*self.own, panels))
            begin = t * self.panel_size

            def across(part: Any) -> Statements:
                column = number * registers.block + part * LANES
                lanes: Any = LANES
                if self.columns % registers.block:
                    lanes = emit.maximum(emit.minimum(LANES, self.columns - column), 0)

                def group(step: Any, at: Any, first: int = 0) -> Any:
                    """Four neighbours of the reduction, from the first that the step does not read twice."""
                    word = begin + ((step * registers.across + part) * groups + at) * _GROUP
                    k = reduction.place(step) + at * WORD

                    def lane(i: Any) -> Statements:
                        return [
                            emit.store(
                                packed, view.at(tuple(outer), k + j, column + i), [word + i * WORD + j]
                            )
                            for j in range(first, WORD)
                        ]

                    return emit.loop("lane", lanes, lane)

                last = reduction.steps - 1
                skipped, partly = divmod(twice, WORD)
                whole = skipped + (1 if partly else 0)
                return [
                    emit.loop(
                        "step",
                        last if twice else reduction.steps,
                        lambda step: emit.loop("group", groups, lambda at: group(step, at)),
                    ),
                    group(last, skipped, partly) if partly else [],
                    emit.loop("group", groups - whole, lambda at: group(last, at), start=whole)
                    if twice
                    else [],
                ]

            return [
                emit.loop("i", self.panel_size, lambda i: emit.store(packed, nothing, [begin + i]))
                if ragged
                else [],
                emit.loop("part", registers.across, across),
            ]

        stage = emit.parallel("pack", prod(self.own) * panels, panel, enabled)
        return packed, [view.declaration, allocation, stage]

    def _row_sums(self, left: Any, enabled: bool) -> tuple[Any, Statements]:
        """Sums of the left operand's rows, where the right one has a zero point."""
        if not self.zero_points[1]:
            return None, []
        rows, k = prod(self.spec.a.logical[:-1]), self.spec.k
        sums, allocation = emit.allocate("row_sums", (rows,), "int32", "global")

        def row(r: Any) -> Statements:
            total, own = emit.allocate("total", (1,), "int32")

            def add(i: Any) -> Any:
                value = tirx.Cast("int32", emit.load(left, [r * k + i]))
                return emit.store(total, emit.load(total, [0]) + value, [0])

            return [
                own,
                emit.store(total, tirx.const(0, "int32"), [0]),
                emit.loop("k", k, add),
                emit.store(sums, emit.load(total, [0]), [r]),
            ]

        return sums, [allocation, emit.parallel("row", rows, row, enabled)]

    def _column_sums(self, packed: Any, enabled: bool) -> tuple[Any, Statements]:
        """Sums of the packed columns, sixteen at a time, where the left operand has a zero point."""
        if not self.zero_points[0]:
            return None, []
        registers, panels = self.tiling.registers, self.tiling.panels
        sums, allocation = emit.allocate(
            "column_sums", (prod(self.own) * panels * registers.block,), "int32", "global"
        )
        groups = registers.depth // WORD

        def vector(t: Any) -> Statements:
            number, part = emit.unravel(t, (prod(self.own) * panels, registers.across))
            total, own = emit.allocate("total", (LANES,), "int32")

            def add(step: Any, group: Any) -> Any:
                at = number * self.panel_size + ((step * registers.across + part) * groups + group) * _GROUP
                words = emit.load(packed, [at], _GROUP)
                ones = emit.constant(1, _GROUP, "int8" if self.types[1] == "uint8" else "uint8")
                pair = (words, ones) if self.types[1] == "uint8" else (ones, words)
                old = emit.load(total, [0], LANES)
                new = intrinsic("llvm.x86.avx512.vpdpbusd.512", f"int32x{LANES}", old, *pair)
                return emit.store(total, new, [0], LANES)

            return [
                own,
                emit.store(total, emit.constant(0, LANES, "int32"), [0], LANES),
                emit.loop(
                    "step",
                    self.reduction.steps,
                    lambda step: emit.loop("group", groups, lambda group: add(step, group)),
                ),
                emit.store(sums, emit.load(total, [0], LANES), [t * LANES], LANES),
            ]

        count = prod(self.own) * panels * registers.across
        return sums, [allocation, emit.parallel("column", count, vector, enabled)]


def _offset(outer: Index, strides: list[int]) -> Any:
    place: Any = 0
    for index, stride in zip(outer, strides, strict=True):
        place = place + index * stride if stride else place
    return place
