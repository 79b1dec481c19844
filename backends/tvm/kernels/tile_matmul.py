"""Products on tile registers: rows of activations, integers or split float32, by packed weights."""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np

from . import emit
from .arithmetic import integer_arithmetic
from .choices import choose_flag
from .interface import Kernel, MatmulSpec, Operand
from .microkernel import Writer
from .tile import TargetNumbers, blocks, tile_cycles
from .tile_product import Reduction, TileProduct, Tiling, flat_rows, pack_panels, panel_shape, plan_tiling
from .tile_registers import SPLIT, has_float_tiles, has_tiles, integer_format
from .tile_split import STAGED_PER_CYCLE, Planes, split_rows

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
    planes = Planes(flat, 0, [declare])
    return _kernel("integer_matmul", spec, a, planes, reduction, tiling, writer, target)


def split_matmul(spec: MatmulSpec, writer: Writer, target: TargetNumbers) -> Kernel | None:
    """A product of float32 by constant weights; None where tile registers are missing or do not pay."""
    if not has_float_tiles(target):
        return None
    rows, columns = prod(spec.out_shape[:-1]), spec.out_shape[-1]
    reduction = Reduction.of(SPLIT, spec.k)
    if reduction is None or spec.a.strides[-1] != 1:
        return None
    tiling = plan_tiling(flat_rows(rows), columns, 1, reduction, SPLIT)
    copy = rows * spec.k / STAGED_PER_CYCLE
    if not split_pays(tiling.cycles + copy, rows, tile_cycles(rows, columns, spec.k, target)):
        return None
    a = emit.buffer("a", spec.a.shape)
    flat, declare = emit.flat_view(a, prod(spec.a.shape))
    shape, strides = spec.a.logical[:-1], spec.a.strides[:-1]

    def row(number: Any) -> Any:
        place: Any = 0
        for index, stride in zip(emit.unravel(number, shape), strides, strict=True):
            place = place + index * stride
        return place

    planes = split_rows(flat, rows, row, spec.k)
    planes = Planes(planes.flat, planes.plane, [declare, *planes.statements])
    return _kernel("matmul", spec, a, planes, reduction, tiling, writer, target)


def split_pays(cycles: float, rows: int, other: float) -> bool:
    """Whether tile registers are estimated to beat vectors of float32, or a record says so."""
    return choose_flag("tiles", rows >= _FEWEST_ROWS and cycles < other)


def _kernel(
    name: str,
    spec: MatmulSpec,
    a: Any,
    planes: Planes,
    reduction: Reduction,
    tiling: Tiling,
    writer: Writer,
    target: TargetNumbers,
) -> Kernel:
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
        planes.flat,
        lambda _, tile: first_row(tile) * spec.k,
        spec.k,
        flat_b,
        lambda _, tile, row, column: (*emit.unravel(first_row(tile) + row, spec.out_shape[:-1]), column),
        plane=planes.plane,
    )
    loops = product.body(writer, target, registers.row_count * spec.k, spec.flops)
    func = emit.function(name, [a, b, *writer.extras, writer.output], [*planes.statements, declare_b, loops])
    kind = "int8 matmul" if registers.format.parts == 1 else "matmul"
    return Kernel(
        func,
        (lambda weights: pack_matrix_panels(weights, spec.b, reduction, tiling),),
        spec.flops,
        f"{kind} {tiling}",
    )


def pack_matrix_panels(
    weights: np.ndarray, operand: Operand, reduction: Reduction, tiling: Tiling
) -> np.ndarray:
    """A stored matrix, logically (K, N), as panels."""
    matrix = weights if operand.view is None else weights.reshape(operand.view)
    matrix = matrix if operand.perm is None else matrix.transpose(operand.perm)
    return pack_panels(matrix[None, None], reduction, tiling.registers)
