"""Products of integers: exact int32 sums of activations by packed weights, or by another activation.

A constant right operand is stored [N / block, steps, block, values per step], zero points already taken off.
Two activations are both copied as int16 without their zero points, the right one into blocks.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
from tvm import tirx

from . import emit
from .arithmetic import Arithmetic, integer_arithmetic, wide_arithmetic
from .integer_stage import Staged, batch_strides, stage_rows
from .interface import Epilogue, Index, Kernel, MatmulSpec, Operand
from .matmul import _view, pack_matrix
from .microkernel import Writer
from .product import SERIAL_FLOPS, Product
from .tile import TargetNumbers, Tile, blocks, choose_tile
from .tile_batch import tile_batch_matmul
from .tile_matmul import tile_matmul


@dataclass(frozen=True)
class IntegerOperands:
    """Element types and zero points of both operands."""

    types: tuple[str, str]
    zero_points: tuple[int, int] = (0, 0)


def integer_matmul(
    spec: MatmulSpec, operands: IntegerOperands, epilogue: Epilogue | None, target: TargetNumbers
) -> Kernel:
    """A product by ONNX MatMul's rules; the epilogue gets int32 sums.

    With a constant right operand the sums are those of the stored numbers, otherwise zero points are taken
    off. The left operand must be stored as ONNX orders it.

    Buffers: a, b (packed if constant), extra inputs, output (..., M, N).
    """
    writer = Writer(epilogue, spec.out_shape, lambda index: index, "int32")
    if spec.constant_b:
        tiled = tile_matmul(spec, operands.types, writer, target)
        return tiled or _by_weights(spec, operands, writer, target)
    tiled = tile_batch_matmul(spec, operands.types, operands.zero_points, writer, target)
    return tiled or _by_activation(spec, operands, writer, target)


def pack_integer_matrix(weights: np.ndarray, operand: Operand, block: int, depth: int) -> np.ndarray:
    """A stored matrix, logically (K, N) -> (N / block, steps, block, depth), filled with zeros."""
    packed = pack_matrix(weights, operand, block)
    packed = np.pad(packed, ((0, 0), (0, -packed.shape[1] % depth), (0, 0)))
    count, k, _ = packed.shape
    return np.ascontiguousarray(packed.reshape(count, k // depth, depth, block).swapaxes(-1, -2))


def _left(buffer: Any, spec: MatmulSpec, dtype: str, zero_point: int, arithmetic: Arithmetic) -> Staged:
    """The rows of the left operand as tiles read them."""
    flat, declaration = emit.flat_view(buffer, prod(spec.a.shape))
    if dtype == arithmetic.data and spec.k % arithmetic.depth == 0 and not zero_point:
        return Staged(flat, spec.k, [declaration])
    shape = (prod(spec.a.logical[:-1]), spec.k)
    staged = stage_rows(flat, shape, arithmetic.data, arithmetic.depth, zero_point)
    return Staged(staged.flat, staged.channels, [declaration, *staged.statements])


def _by_weights(spec: MatmulSpec, operands: IntegerOperands, writer: Writer, target: TargetNumbers) -> Kernel:
    arithmetic = integer_arithmetic(*operands.types, target)
    a = emit.buffer("a", spec.a.shape, operands.types[0])
    rows, columns = prod(spec.out_shape[:-1]), spec.out_shape[-1]
    staged = _left(a, spec, operands.types[0], 0, arithmetic)
    steps = staged.channels // arithmetic.depth
    tile = choose_tile(rows, columns, steps, target)
    count = blocks(columns, tile.block)
    shape = (count, steps, tile.block, arithmetic.depth)
    b = emit.buffer("b", shape, arithmetic.weights)
    flat_b, declare_b = emit.flat_view(b, prod(shape))

    product = Product(
        (),
        rows,
        columns,
        steps,
        tile,
        lambda _, row, k: arithmetic.read(staged.flat, row * steps + k),
        lambda _, block, k, v: arithmetic.columns(
            flat_b, (block * steps + k) * tile.block + v * tile.lanes, tile.lanes
        ),
        lambda _, row, column: (*emit.unravel(row, spec.out_shape[:-1]), column),
        weights=flat_b,
        arithmetic=arithmetic,
    )
    func = emit.function(
        "integer_matmul",
        [a, b, *writer.extras, writer.output],
        [*staged.statements, declare_b, product.body(writer, target)],
    )
    copied = " staged" if len(staged.statements) > 1 else ""
    return Kernel(
        func,
        (lambda weights: pack_integer_matrix(weights, spec.b, tile.block, arithmetic.depth),),
        spec.flops,
        f"int8 matmul {tile} {arithmetic.name}{copied}",
    )


def _by_activation(
    spec: MatmulSpec, operands: IntegerOperands, writer: Writer, target: TargetNumbers
) -> Kernel:
    arithmetic = wide_arithmetic(target)
    batch, rows, columns = spec.batch, spec.out_shape[-2], spec.out_shape[-1]
    a = emit.buffer("a", spec.a.shape, operands.types[0])
    b = emit.buffer("b", spec.b.shape, operands.types[1])
    staged = _left(a, spec, operands.types[0], operands.zero_points[0], arithmetic)
    steps = staged.channels // arithmetic.depth
    tile = choose_tile(rows, columns, steps, target)
    packed, own, statements = _pack_right(b, spec, operands.zero_points[1], arithmetic, tile)
    count = blocks(columns, tile.block)
    left_batch = batch_strides(spec.a.logical[:-2], len(batch), rows * steps)

    def row(outer: Index, number: Any, k: Any) -> Any:
        at = number * steps + k
        for index, stride in zip(outer, left_batch, strict=True):
            at = at + index * stride if stride else at
        return arithmetic.read(staged.flat, at)

    def column(outer: Index, block: Any, k: Any, v: int) -> Any:
        place = emit.ravel([i if size > 1 else 0 for i, size in zip(outer, own, strict=True)], own)
        position = ((place * count + block) * steps + k) * tile.block + v * tile.lanes
        return arithmetic.columns(packed, position, tile.lanes)

    product = Product(
        batch,
        rows,
        columns,
        steps,
        tile,
        row,
        column,
        lambda outer, number, col: (*outer, number, col),
        arithmetic=arithmetic,
    )
    func = emit.function(
        "integer_batch_matmul",
        [a, b, *writer.extras, writer.output],
        [*staged.statements, *statements, product.body(writer, target)],
    )
    return Kernel(func, (), spec.flops, f"int16 batch_matmul {tile} {arithmetic.name} packed")


def _pack_right(
    buffer: Any, spec: MatmulSpec, zero_point: int, arithmetic: Arithmetic, tile: Tile
) -> tuple[Any, tuple[int, ...], list[Any]]:
    """The right operand as flat (batch..., blocks, steps, block, depth), its batch, and the statements."""
    columns, depth = spec.out_shape[-1], arithmetic.depth
    view = _view(buffer, spec.b, spec.batch)
    own = tuple(size if stride else 1 for size, stride in zip(spec.batch, view.batch_strides, strict=True))
    count, steps = blocks(columns, tile.block), blocks(spec.k, depth)
    packed, allocation = emit.allocate(
        "packed", (prod(own) * count * steps * tile.block * depth,), "int16", "global"
    )

    def fill(t: Any) -> Any:
        *outer, block = emit.unravel(t, (*own, count))

        def place(k: int | Any, lane: Any) -> Any:
            step, rest = emit.floordiv(k, depth), emit.floormod(k, depth)
            return ((t * steps + step) * tile.block + lane) * depth + rest

        def copy(lane: Any) -> Any:
            column = block * tile.block + lane

            def value(k: Any) -> Any:
                loaded = tirx.Cast("int16", view.at(tuple(outer), k, column))
                return loaded - tirx.const(zero_point, "int16")

            nothing = tirx.const(0, "int16")
            inside = column < columns if columns % tile.block else True
            rest = steps * depth - spec.k
            return [
                emit.when(
                    inside,
                    emit.loop("k", spec.k, lambda k: emit.store(packed, value(k), [place(k, lane)])),
                    emit.loop("k", spec.k, lambda k: emit.store(packed, nothing, [place(k, lane)])),
                ),
                emit.loop("k", rest, lambda k: emit.store(packed, nothing, [place(k, lane)]), start=spec.k),
            ]

        return emit.loop("lane", tile.block, copy)

    stage = emit.parallel("pack", prod(own) * count, fill, enabled=spec.flops > SERIAL_FLOPS)
    return packed, own, [view.declaration, allocation, stage]
