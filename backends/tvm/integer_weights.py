"""Weights of few bits in a graph that computes in floats: stored as they are, restored inside the product.

`integer::WeightMatMul(a, w, scale[, offset])` multiplies floats by `(w - zero) * scale + offset`, where rows
`i * group ... (i + 1) * group - 1` of the reduction share row i of scale and offset. `w` is int8; codes of
4, 2 or 1 bits, not negative, where attribute `bits` says so. With attribute `levels` it is
`WeightMatMul(a, w[, scale], levels)` and multiplies by `levels[w] * scale`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from ...ir.constants import constant_array, evaluate_values
from ...ir.static import input_of, producer_of, static_shape
from ...passes.rewriter import Rewriter
from ..encoding import Source
from .integer_ops import DOMAIN
from .op import attributes_of
from .stored_weights import level_source

_INTEGERS = (ir.DataType.INT8, ir.DataType.UINT8, ir.DataType.INT4, ir.DataType.UINT4)
_ROWS_PER_BYTE = {1: 8, 2: 4, 4: 2}
_UNPACKING = ("Cast", "Gather", "Reshape", "Slice", "Mul", "Identity")
_MOST_STEPS = 32
_MOST_LEVELS = 16
"""Of a table that is looked up in registers."""


@dataclass(frozen=True)
class Stored:
    """A weight matrix as (K, N): integers, scale and offset per group of rows."""

    weights: np.ndarray
    bits: int
    group: int
    scale: np.ndarray
    offset: np.ndarray | None
    zero: float
    flipped: bool
    levels: np.ndarray | None = None


def keep_weights_small(node: ir.Node, rewriter: Rewriter) -> None:
    """Rewrite a MatMul or Gemm of a float activation and a dequantized constant matrix."""
    _keep_small(node, rewriter, _stored)


def keep_levels_small(model: ir.Model, rewriter: Rewriter) -> None:
    """The same for all matrices of a model that hold up to 16 different numbers, but for scales."""
    for node in list(model.graph):
        if node.op_type in ("MatMul", "Gemm") and node.domain in ("", "ai.onnx"):
            _keep_small(node, rewriter, _tabulated)


def _keep_small(
    node: ir.Node, rewriter: Rewriter, stored_in: Callable[[ir.Value | None, bool], Stored | None]
) -> None:
    gemm, attributes = node.op_type == "Gemm", attributes_of(node)
    left, out = node.inputs[0], static_shape(node.outputs[0])
    shape = static_shape(left)
    if left is None or out is None or shape is None or len(shape) < 2 or left.dtype != ir.DataType.FLOAT:
        return
    if gemm and attributes.get("transA", 0):
        return
    weights, flipped = _unturned(node.inputs[1], bool(attributes.get("transB", 0)))
    stored = stored_in(weights, flipped)
    if stored is None:
        return
    alpha, beta = np.float32(attributes.get("alpha", 1.0)), attributes.get("beta", 1.0)

    def constant(name: str, array: np.ndarray | np.floating) -> ir.Value:  # type: ignore[type-arg]
        return rewriter.initializer(f"{node.name}/{name}", np.asarray(array))

    def new(op_type: str, inputs: list[ir.Value | None], domain: str = "", **own: float) -> ir.Value:
        (value,) = rewriter.insert_before(node, op_type, inputs, own, domain=domain)
        value.type, value.shape = ir.TensorType(ir.DataType.FLOAT), node.outputs[0].shape
        return value

    inputs: list[ir.Value | None] = [left, constant("weights", stored.weights)]
    whole = len(stored.scale) == 1 and stored.offset is None
    if not whole:
        inputs.append(constant("scale", stored.scale * alpha))
    if stored.offset is not None:
        inputs.append(constant("offset", stored.offset * alpha))
    own = {"bits": stored.bits, "group": stored.group, "transB": int(stored.flipped)}
    if stored.levels is not None:
        inputs.append(constant("levels", stored.levels))
        own["levels"] = 1
    result = new("WeightMatMul", inputs, DOMAIN, **own, zero=stored.zero)
    if whole:
        result = new("Mul", [result, constant("scale", stored.scale[0] * alpha)])
    bias = input_of(node, 2)
    if bias is not None:
        if beta != 1.0:
            (bias,) = rewriter.insert_before(node, "Mul", [bias, constant("beta", np.float32(beta))])
            bias.type, bias.shape = ir.TensorType(ir.DataType.FLOAT), node.inputs[2].shape  # type: ignore[union-attr]
        result = new("Add", [result, bias])
    maker = node.inputs[1].producer() if node.inputs[1] is not None else None
    rewriter.replace(node, [result])
    rewriter.erase_unread(maker)


def _unturned(value: ir.Value | None, flipped: bool) -> tuple[ir.Value | None, bool]:
    """The matrix in front of transpositions, which recurrent layers have there, and how it lies."""
    while (turn := producer_of(value, "Transpose")) is not None:
        if list(turn.attributes.get_ints("perm", (1, 0)) or ()) != [1, 0]:
            break
        value, flipped = turn.inputs[0], not flipped
    return value, flipped


def _stored(value: ir.Value | None, flipped: bool) -> Stored | None:
    """What a constant matrix is dequantized from; `flipped` if it is (N, K)."""
    shape = static_shape(value)
    return None if value is None or shape is None or len(shape) != 2 else dequantized(value, shape, flipped)


def dequantized(value: ir.Value, shape: tuple[int, ...], flipped: bool) -> Stored | None:
    """What a constant is dequantized from that is read as a matrix of `shape`, its last axis left whole."""
    node = value.producer()
    merged = producer_of(value, "Reshape")
    if merged is not None and merged.inputs[0] is not None:
        node = merged.inputs[0].producer()
    if node is None or node.op_type != "DequantizeLinear" or node.domain != "" or len(node.inputs) < 2:
        return None
    source = node.inputs[0]
    if source is None or source.dtype not in _INTEGERS or not _is_stored(source):
        return None
    scale, given = constant_array(node.inputs[1]), input_of(node, 2)
    inner = static_shape(source)
    if scale is None or inner is None or 0 in shape:
        return None
    (array,) = evaluate_values(None, [source])
    point = np.zeros(scale.shape, np.int32) if given is None else constant_array(given)
    if point is None or scale.dtype != np.float32 or not np.isfinite(scale).all():
        return None
    attributes = attributes_of(node)
    axis, block = attributes.get("axis", 1) % max(len(inner), 1), attributes.get("block_size", 0)
    if tuple(inner) != tuple(shape):
        # Leading axes, such as directions of a recurrent layer, become one; blocks lie along the last.
        last = len(inner) - 1
        if not inner or inner[-1] != shape[1] or (scale.size > 1 and (axis == last) != bool(block)):
            return None
        if scale.size > 1 and not block:
            wide = [size if k == axis else 1 for k, size in enumerate(inner[:-1])]
            scale, point = (np.broadcast_to(each.reshape(wide), inner[:-1]) for each in (scale, point))
            block = shape[1]
        array, axis = array.reshape(shape), 1
        if scale.size > 1:
            scale, point = (each.reshape(shape[0], -1) for each in (scale, point))
    tables = [_by_group(each, array.shape, axis, block, flipped) for each in (scale, point.astype(np.int32))]
    if tables[0] is None or tables[1] is None:
        return None
    rows = array.shape[1 if flipped else 0]
    group = block if block and len(tables[0]) > 1 else rows
    return _as_codes(array, group, tables[0], tables[1], flipped)


def _tabulated(value: ir.Value | None, flipped: bool) -> Stored | None:
    """What a constant matrix is looked up from, by Gather in a table of levels."""
    shape = static_shape(value)
    return None if value is None or shape is None or len(shape) != 2 else tabulated(value, shape, flipped)


def tabulated(value: ir.Value, shape: tuple[int, ...], flipped: bool) -> Stored | None:
    """What a constant is looked up from that is read as a matrix of `shape`."""
    made = value.producer()
    if made is None or made.op_type == "DequantizeLinear" or value.const_value is not None:
        return None
    if 0 in shape or value.dtype != ir.DataType.FLOAT:
        return None
    if not _is_stored(value):
        return None
    (array,) = evaluate_values(None, [value])
    source = level_source(value, array)
    if source is None:
        return None
    levels, codes = np.unique(source.numbers, return_inverse=True)
    rows = shape[1 if flipped else 0]
    most = len(levels) - 1
    if most >= _MOST_LEVELS:
        return None
    bits = next((b for b, count in _ROWS_PER_BYTE.items() if most < 1 << b and rows % count == 0), 8)
    codes, array = codes.reshape(shape), array.reshape(shape)
    scales = np.broadcast_to(_spread(source), source.view).reshape(shape)
    across = scales.T if flipped else scales
    for group in dict.fromkeys((rows, source.block or rows)):
        if rows % group:
            continue
        split = across.reshape(-1, group, across.shape[1])
        table = np.ascontiguousarray(split[:, 0])
        if (split == split[:, :1]).all() and np.array_equal(levels[codes] * scales, array):
            numbers = levels.astype(np.float32)
            return Stored(codes.astype(np.int8), bits, group, table, None, 0.0, flipped, numbers)
    return None


def _spread(source: Source) -> np.ndarray:
    """Scales with one per number along the axis that has blocks."""
    if not source.block:
        return source.scales
    size = source.view[source.axis]
    return np.repeat(source.scales, source.block, axis=source.axis).take(range(size), axis=source.axis)


def _by_group(
    table: np.ndarray, shape: tuple[int, ...], axis: int, block: int, flipped: bool
) -> np.ndarray | None:
    """Scales or zero points as (groups of rows, columns)."""
    row_axis = 1 if flipped else 0
    columns = shape[1 - row_axis]
    if table.size == 1:
        return np.array(np.broadcast_to(table.reshape(1, 1), (1, columns)))
    if not block:
        return table.reshape(1, -1) if axis != row_axis and table.size == columns else None
    if axis != row_axis or table.ndim != 2:
        return None
    return np.ascontiguousarray(table.T) if flipped else table


def _is_stored(value: ir.Value) -> bool:
    """Whether integers are constant, or taken out of constant bytes."""
    pending, seen = [value], 0
    while pending:
        node = (each := pending.pop()).producer()
        seen += 1
        if each.const_value is not None:
            continue
        if node is None or seen > _MOST_STEPS or node.op_type not in _UNPACKING:
            return False
        pending.extend(operand for operand in node.inputs if operand is not None)
    return True


def _as_codes(array: np.ndarray, group: int, scale: np.ndarray, point: np.ndarray, flipped: bool) -> Stored:
    """Integers in the fewest bits that hold them, and what brings them back."""
    wide = array.astype(np.int32)
    low, step = int(wide.min()), 2 if not ((wide - wide.min()) & 1).any() else 1
    most, rows = (int(wide.max()) - low) // step, array.shape[1 if flipped else 0]
    bits = next((b for b, count in _ROWS_PER_BYTE.items() if most < 1 << b and rows % count == 0), 8)
    if bits == 8:
        # Signed bytes; what is left of the zero points then mostly is nothing.
        step, low = 1, 128 if low < -128 or int(wide.max()) > 127 else 0
    codes = ((wide - low) // step).astype(np.int8)
    zeros = (point - low) / step
    steps = (scale * step).astype(np.float32)
    if (zeros == zeros.reshape(-1)[0]).all():
        return Stored(codes, bits, group, steps, None, float(zeros.reshape(-1)[0]), flipped)
    return Stored(codes, bits, group, steps, -(zeros * steps).astype(np.float32), 0.0, flipped)
