"""Matrix products: rows of activations by packed weights, or by another activation.

A constant right operand is stored [N / block, K, block] with zeros beyond the last column. An activation is
read in place if its columns are neighbours in memory, else packed by a first stage of the kernel.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from ....ir.errors import CompileError
from . import emit
from .interface import Epilogue, Index, Kernel, MatmulSpec, Operand
from .microkernel import Writer
from .product import SERIAL_FLOPS, Product
from .tile import TargetNumbers, Tile, blocks, choose_tile, streaming_tile
from .tile_matmul import split_matmul


def pack_matrix(weights: np.ndarray, operand: Operand, block: int) -> np.ndarray:
    """A stored matrix, logically (K, N) -> (N / block, K, block), with zeros beyond the last column."""
    logical = weights.reshape(operand.stored).transpose(operand.perm or range(len(operand.stored)))
    k, n = logical.shape
    whole, rest = divmod(n, block)
    # One pass over the weights: splitting an axis copies nothing, and weights may be large.
    packed = np.empty((blocks(n, block), k, block), weights.dtype)
    packed[:whole] = logical[:, : whole * block].reshape(k, whole, block).transpose(1, 0, 2)
    if rest:
        packed[whole, :, :rest] = logical[:, whole * block :]
        packed[whole, :, rest:] = 0
    return packed


@dataclass(frozen=True)
class _View:
    """An operand in flat memory, addressed by the batch index of the product."""

    flat: Any
    declaration: Any
    batch_strides: tuple[int, ...]
    row_stride: int
    column_stride: int

    def at(self, batch: Index, row: Any, column: Any, lanes: int = 1) -> Any:
        offset = row * self.row_stride + column * self.column_stride
        for index, stride in zip(batch, self.batch_strides, strict=True):
            if stride:
                offset = offset + index * stride
        return emit.load(self.flat, [offset], lanes)


def _view(buffer: Any, operand: Operand, batch: tuple[int, ...]) -> _View:
    flat, declaration = emit.flat_view(buffer, prod(operand.shape))
    shape, strides = operand.logical, operand.strides
    missing = len(batch) - (len(shape) - 2)
    steps = [0] * missing + [
        0 if size == 1 else stride for size, stride in zip(shape[:-2], strides[:-2], strict=True)
    ]
    return _View(flat, declaration, tuple(steps), strides[-2], strides[-1])


def matmul(spec: MatmulSpec, epilogue: Epilogue | None, target: TargetNumbers) -> Kernel:
    """A product by ONNX MatMul's rules.

    Buffers: a, b (packed if constant), extra inputs, output (..., M, N).

    Raises:
        CompileError: a constant right operand is not a matrix.
    """
    if spec.constant_b and len(spec.b.logical) != 2:
        raise CompileError(f"matmul: a constant right operand must have rank 2, not {len(spec.b.logical)}")
    writer = Writer(epilogue, spec.out_shape, lambda index: index)
    if spec.constant_b:
        return _by_weights(spec, writer, target)
    return _by_activation(spec, writer, target)


def _is_contiguous(operand: Operand) -> bool:
    return operand.strides == Operand(operand.logical).strides


def _by_weights(spec: MatmulSpec, writer: Writer, target: TargetNumbers) -> Kernel:
    tiles = split_matmul(spec, writer, target)
    if tiles is not None:
        return tiles
    a = emit.buffer("a", spec.a.shape)
    columns = spec.out_shape[-1]
    if _is_contiguous(spec.a):
        batch: tuple[int, ...] = ()
        rows = prod(spec.out_shape[:-1])
        a_view = _view(a, Operand((rows, spec.k)), ())
    else:
        batch, rows = spec.batch, spec.out_shape[-2]
        a_view = _view(a, spec.a, batch)
    streaming = None if batch else streaming_tile(rows, columns, spec.k, target)
    tile = choose_tile(rows, columns, spec.k, target, preferred=streaming)
    count = blocks(columns, tile.block)
    b = emit.buffer("b", (count, spec.k, tile.block))
    flat_b, declare_b = emit.flat_view(b, count * spec.k * tile.block)

    def index(outer: Index, row: Any, column: Any) -> Index:
        if batch:
            return (*outer, row, column)
        return (*emit.unravel(row, spec.out_shape[:-1]), column)

    product = Product(
        batch,
        rows,
        columns,
        spec.k,
        tile,
        a_view.at,
        lambda _, block, k, v: emit.load(b, [block, k, v * tile.lanes], tile.lanes),
        index,
        weights=None if batch else flat_b,
    )
    func = emit.function(
        "matmul",
        [a, b, *writer.extras, writer.output],
        [a_view.declaration, declare_b, product.body(writer, target)],
    )
    pack = (lambda weights: pack_matrix(weights, spec.b, tile.block),)
    return Kernel(func, pack, spec.flops, f"matmul {tile}")


def _by_activation(spec: MatmulSpec, writer: Writer, target: TargetNumbers) -> Kernel:
    batch, rows, columns = spec.batch, spec.out_shape[-2], spec.out_shape[-1]
    a, b = emit.buffer("a", spec.a.shape), emit.buffer("b", spec.b.shape)
    a_view, b_view = _view(a, spec.a, batch), _view(b, spec.b, batch)
    tile = choose_tile(rows, columns, spec.k, target)
    in_place = b_view.column_stride == 1 or columns == 1
    stages: list[Any] = [a_view.declaration, b_view.declaration]
    if in_place:
        tile = _inside(tile, columns)

        def column(outer: Index, block: Any, k: Any, v: int) -> Any:
            first = product.first_column(block)
            return b_view.at(outer, k, first + v * tile.lanes, tile.lanes)

    else:
        packed, stage = _pack_stage(b_view, spec, tile)
        stages += stage

        def column(outer: Index, block: Any, k: Any, v: int) -> Any:
            own = [i if stride else 0 for i, stride in zip(outer, b_view.batch_strides, strict=True)]
            return emit.load(packed, [*own, block, k, v * tile.lanes], tile.lanes)

    product = Product(
        batch,
        rows,
        columns,
        spec.k,
        tile,
        a_view.at,
        column,
        lambda outer, row, col: (*outer, row, col),
        overlap=in_place,
    )
    func = emit.function(
        "batch_matmul", [a, b, *writer.extras, writer.output], [*stages, product.body(writer, target)]
    )
    return Kernel(func, (), spec.flops, f"batch_matmul {tile}{'' if in_place else ' packed'}")


def _inside(tile: Tile, columns: int) -> Tile:
    """A tile no wider than the matrix, so that overlapping blocks stay inside."""
    if columns < tile.lanes:
        return Tile(tile.pixels, 1, columns)
    return Tile(tile.pixels, min(tile.vectors, columns // tile.lanes), tile.lanes)


def _pack_stage(view: _View, spec: MatmulSpec, tile: Tile) -> tuple[Any, list[Any]]:
    """A scratch copy of the right operand as (batch..., blocks, K, block) and the statements that fill it."""
    columns = spec.out_shape[-1]
    count = blocks(columns, tile.block)
    own = tuple(size if stride else 1 for size, stride in zip(spec.batch, view.batch_strides, strict=True))
    packed, allocation = emit.allocate("packed", (*own, count, spec.k, tile.block), scope="global")

    def fill(t: Any) -> Any:
        *outer, block = emit.unravel(t, (*own, count))

        def copy(lane: Any) -> Any:
            column = block * tile.block + lane

            def element(k: Any, value: Any) -> Any:
                return emit.store(packed, value, [*outer, block, k, lane])

            inside = column < columns if columns % tile.block else True
            return emit.when(
                inside,
                emit.loop("k", spec.k, lambda k: element(k, view.at(tuple(outer), k, column))),
                emit.loop("k", spec.k, lambda k: element(k, emit.constant(0))),
            )

        return emit.loop("lane", tile.block, copy)

    stage = emit.parallel("pack", prod(own) * count, fill, enabled=spec.flops > SERIAL_FLOPS)
    return packed, [allocation, stage]
