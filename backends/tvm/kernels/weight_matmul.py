"""Products of floats with weights of few bits, which become floats in registers.

Weights are stored [N / block, steps, block]: int8 with one row of the reduction per step, or bytes that hold
the codes of two, four or eight rows, the first in the lowest bits. Scales and offsets are stored
[N / block, groups, block]; a weight stands for `(stored - zero) * scale + offset` of its group of rows, or,
with a table of up to 16 levels (NF4, k-means, powers of two), for `levels[stored] * scale`.
"""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any

import numpy as np

from . import emit
from .arithmetic import cast
from .emit import Statements
from .interface import Epilogue, Index, Kernel, MatmulSpec
from .matmul import pack_matrix
from .microkernel import Accumulators, Writer
from .product import Product
from .tables import LEVELS, pack_levels
from .tile import TargetNumbers, Tile, blocks, choose_tile
from .weight_form import WeightForm, decoded


def weight_matmul(
    spec: MatmulSpec, form: WeightForm, epilogue: Epilogue | None, target: TargetNumbers
) -> Kernel:
    """A product by ONNX MatMul's rules whose right operand is a constant matrix of small integers.

    Buffers: a, packed weights, packed scales and offsets if there are any, the levels if there are any, extra
    inputs, output (..., M, N). The rows of a byte must divide the reduction.
    """
    writer = Writer(epilogue, spec.out_shape, lambda index: index)
    a = emit.buffer("a", spec.a.shape)
    rows, columns = prod(spec.out_shape[:-1]), spec.out_shape[-1]
    flat_a, declare_a = emit.flat_view(a, prod(spec.a.shape))
    tile = choose_tile(rows, columns, spec.k, target)
    count, parts, groups = blocks(columns, tile.block), 8 // form.bits, blocks(spec.k, form.group)
    stored = "int8" if parts == 1 else "uint8"
    b = emit.buffer("b", (count, spec.k // parts, tile.block), stored)
    # One group takes the room of two: TVM's elimination of common subexpressions would find that its index is
    # that of the epilogue's operands, and define it in the one loop for both.
    room = max(groups, 2)
    tables = [
        emit.buffer(name, (count, room, tile.block))
        for name, given in (("scale", form.has_scale), ("offset", form.has_offset))
        if given
    ]

    levels = [emit.buffer("levels", (LEVELS,))] if form.has_levels else []

    def column(block: Any, step: Any, part: int, v: Any) -> Any:
        lanes = tile.lanes
        at = v * lanes
        wide = cast(emit.load(b, [block, step, at], lanes), "int32", lanes)
        value = decoded(wide, part, form, levels[0] if levels else None, lanes, target)
        group = emit.floordiv(step * parts + part, form.group) if groups > 1 else 0
        if form.has_scale:
            value = value * emit.load(tables[0], [block, group, at], lanes)
        if form.has_offset:
            value = value + emit.load(tables[1], [block, group, at], lanes)
        return value

    def step(accumulators: Accumulators, _: Index, first: Any, block: Any, k: Any) -> Statements:
        def row(part: int) -> Callable[[Any], Any]:
            return lambda p: emit.load(flat_a, [(first + p) * spec.k + k * parts + part])

        def columns_of(part: int) -> Callable[[Any], Any]:
            return lambda v: column(block, k, part, v)

        pixels = range(tile.pixels)
        return [accumulators.multiply_add(pixels, row(i), columns_of(i)) for i in range(parts)]

    product = Product(
        (),
        rows,
        columns,
        spec.k // parts,
        tile,
        lambda *_: None,
        lambda *_: None,
        lambda _, row, column: (*emit.unravel(row, spec.out_shape[:-1]), column),
        step=step,
    )
    func = emit.function(
        "weight_matmul",
        [a, b, *tables, *levels, *writer.extras, writer.output],
        [declare_a, product.body(writer, target)],
    )
    packs = (
        _packer(spec, form, tile),
        *[_table_packer(tile, room)] * len(tables),
        *[pack_levels] * len(levels),
    )
    kind = f"{min(1 << form.bits, LEVELS)} levels" if levels else f"int{form.bits}"
    return Kernel(func, packs, spec.flops, f"{kind} weights matmul {tile}")


def _packer(spec: MatmulSpec, form: WeightForm, tile: Tile) -> Callable[[np.ndarray], np.ndarray]:
    def pack(weights: np.ndarray) -> np.ndarray:
        packed = pack_matrix(weights, spec.b, tile.block)
        if form.bits == 8:
            return packed
        parts, codes = 8 // form.bits, packed.astype(np.uint8)
        made = codes[:, 0::parts].copy()
        for part in range(1, parts):
            made |= codes[:, part::parts] << (part * form.bits)
        return made

    return pack


def _table_packer(tile: Tile, room: int) -> Callable[[np.ndarray], np.ndarray]:
    """(groups, N) -> (N / block, room, block), with zeros beyond the last column and group."""

    def pack(table: np.ndarray) -> np.ndarray:
        groups, columns = table.shape
        count = blocks(columns, tile.block)
        packed = np.pad(table, ((0, room - groups), (0, count * tile.block - columns)))
        return np.ascontiguousarray(packed.reshape(room, count, tile.block).swapaxes(0, 1))

    return pack
