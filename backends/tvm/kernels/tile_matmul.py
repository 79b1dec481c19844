"""Products on tile registers: rows of activations, integers or split float32, by packed weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from . import emit
from .arithmetic import integer_arithmetic
from .choices import choose_flag
from .interface import Kernel, MatmulSpec, Operand
from .microkernel import Writer
from .tile import MEMORY_BYTES_PER_CYCLE, TargetNumbers, blocks, tile_cycles
from .tile_left import Rows, Strided
from .tile_panels import Reduction, pack_panels, panel_shape
from .tile_plan import Tiling, flat_rows, plan_tiling, split_cycles
from .tile_product import TileProduct
from .tile_registers import float_format, has_tiles, integer_format

_SMALL = ("int8", "uint8")
_FEWEST_ROWS = 4
"""With fewer rows weights arrive too slowly for either instruction to matter, and vectors waste nothing."""


def tiles_pay(
    tiling: Tiling,
    rows: int,
    columns: int,
    depth: int,
    types: tuple[str, str],
    target: TargetNumbers,
    groups: int = 1,
) -> bool:
    """Whether tile registers are estimated to beat the vector instruction, or a record says so.

    Args:
        tiling: the registers.
        rows: of the output.
        columns: of the output.
        depth: products that are summed for one output.
        types: element types.
        target: numbers and features of the target.
        groups: how many such products there are.
    """
    arithmetic = integer_arithmetic(*types, target)
    other = groups * tile_cycles(rows, columns, blocks(depth, arithmetic.depth), target)
    return choose_flag("tiles", rows >= _FEWEST_ROWS and tiling.cycles < other)


def tile_matmul(
    spec: MatmulSpec, types: tuple[str, str], writer: Writer, target: TargetNumbers
) -> Kernel | None:
    """A product by constant weights; None where tile registers are missing or do not pay."""
    if not has_tiles(target) or types[0] not in _SMALL or types[1] not in _SMALL:
        return None
    rows, columns = prod(spec.out_shape[:-1]), spec.out_shape[-1]
    form = integer_format(*types)
    reduction = Reduction.of(form, spec.k)
    if reduction is None:
        return None
    tiling = plan_tiling(flat_rows(rows), columns, 1, reduction, form)
    if not tiles_pay(tiling, rows, columns, spec.k, types, target):
        return None
    a = emit.buffer("a", spec.a.shape, types[0])
    flat, declare = emit.flat_view(a, prod(spec.a.shape))
    product, weights = _product(spec, flat, reduction, tiling)
    loops = product.body(writer, target, tiling.registers.row_count * spec.k, spec.flops)
    func = emit.function(
        "integer_matmul", [a, weights.buffer, *writer.extras, writer.output], [declare, weights.view, loops]
    )
    return Kernel(func, (weights.pack,), spec.flops, f"int8 matmul {tiling}")


def split_matmul(spec: MatmulSpec, writer: Writer, target: TargetNumbers) -> Kernel | None:
    """A product of float32 by constant weights; None where tile registers are missing or do not pay."""
    form = float_format(target)
    if form is None:
        return None
    rows, columns = prod(spec.out_shape[:-1]), spec.out_shape[-1]
    reduction = Reduction.of(form, spec.k, slack=True)
    if reduction is None or spec.a.strides[-1] != 1:
        return None
    tiling = plan_tiling(flat_rows(rows), columns, 1, reduction, form)
    cycles = split_cycles(tiling, spec.k * columns, rows * spec.k)
    stream = 4 * spec.k * columns / MEMORY_BYTES_PER_CYCLE
    if not split_pays(cycles, rows, max(tile_cycles(rows, columns, spec.k, target), stream)):
        return None
    a = emit.buffer("a", spec.a.shape)
    flat, declare = emit.flat_view(a, prod(spec.a.shape))
    shape, strides = spec.a.logical[:-1], spec.a.strides[:-1]

    def row(number: Any) -> Any:
        place: Any = 0
        for index, stride in zip(emit.unravel(number, shape), strides, strict=True):
            place = place + index * stride
        return place

    matrix = Rows(flat, rows, spec.k, None if spec.a.strides == Operand(spec.a.logical).strides else row)
    product, weights = _product(spec, flat, reduction, tiling)
    loops = product.split_body(matrix, writer, target, spec.flops)
    func = emit.function(
        "matmul", [a, weights.buffer, *writer.extras, writer.output], [declare, weights.view, loops]
    )
    return Kernel(func, (weights.pack,), spec.flops, f"matmul {tiling}")


def split_pays(cycles: float, rows: int, other: float) -> bool:
    """Whether tile registers are estimated to beat vectors of float32, or a record says so."""
    return choose_flag("tiles", rows >= _FEWEST_ROWS and cycles < other)


@dataclass(frozen=True)
class _Weights:
    """Packed weights: their buffer, its view as one axis, and how they are packed."""

    buffer: Any
    view: Any
    pack: Callable[[np.ndarray], np.ndarray]


def _product(
    spec: MatmulSpec, left: Any, reduction: Reduction, tiling: Tiling
) -> tuple[TileProduct, _Weights]:
    registers = tiling.registers
    rows, columns = prod(spec.out_shape[:-1]), spec.out_shape[-1]
    shape = panel_shape(1, tiling.panels, reduction, registers)
    b = emit.buffer("b", shape, registers.format.right)
    flat_b, declare_b = emit.flat_view(b, prod(shape))

    def first_row(tile: Any) -> Any:
        return emit.minimum(tile * registers.rows, rows - registers.rows)

    product = TileProduct(
        tiling,
        reduction,
        (),
        columns,
        Strided(left, lambda _, tile: first_row(tile) * spec.k, spec.k),
        flat_b,
        lambda _, tile, row, column: (*emit.unravel(first_row(tile) + row, spec.out_shape[:-1]), column),
    )
    return product, _Weights(
        b, declare_b, lambda weights: pack_matrix_panels(weights, spec.b, reduction, tiling)
    )


def pack_matrix_panels(
    weights: np.ndarray, operand: Operand, reduction: Reduction, tiling: Tiling
) -> np.ndarray:
    """A stored matrix, logically (K, N), as panels."""
    matrix = weights if operand.view is None else weights.reshape(operand.view)
    matrix = matrix if operand.perm is None else matrix.transpose(operand.perm)
    return pack_panels(matrix[None, None], reduction, tiling.registers)
