"""Operators that make channels: what of theirs a factor per channel divides."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from ....ir.constants import constant_tensor
from ....ir.static import rank_of, static_shape
from .scaling import Edit

_DEFAULT = ("", "ai.onnx")


@dataclass(frozen=True)
class Root:
    """An operator that makes channels.

    Attributes:
        node: The operator.
        value: Its result.
        axis: The axis of the result that holds the channels.
        channels: How many.
        divided: Its constants; the first is its weight or scale.
    """

    node: ir.Node
    value: ir.Value
    axis: int
    channels: int
    divided: tuple[Edit, ...]


def root_of(node: ir.Node) -> Root | str | None:
    """What a node makes, why no factor can start there, or None where it is no candidate."""
    if node.domain not in _DEFAULT:
        return None
    value = node.outputs[0]
    rank = rank_of(value)
    if node.op_type in ("Conv", "ConvTranspose"):
        groups = node.attributes.get_int("group", 1)
        if node.op_type == "ConvTranspose" and groups > 1:
            return "it is grouped and transposed"
        return _weighted_root(node, value, 1, 0 if node.op_type == "Conv" else 1, 2)
    if node.op_type == "Gemm":
        return _weighted_root(node, value, 1, 0 if node.attributes.get_int("transB", 0) else 1, 2)
    if node.op_type == "MatMul":
        weight = static_shape(node.inputs[1])
        if rank is None or weight is None or len(weight) != 2 or constant_tensor(node.inputs[1]) is None:
            return None if constant_tensor(node.inputs[1]) is None else "its weight is not a matrix"
        return _weighted_root(node, value, rank - 1, 1, None)
    if node.op_type in ("LayerNormalization", "RMSNormalization"):
        if rank is None or node.attributes.get_int("axis", -1) not in (-1, rank - 1):
            return "it normalizes over several axes"
        return _weighted_root(node, value, rank - 1, 0, 2)
    if node.op_type in ("BatchNormalization", "InstanceNormalization", "GroupNormalization"):
        if node.attributes.get_int("training_mode", 0):
            return "it is in training mode"
        return _weighted_root(node, value, 1, 0, 2)
    if node.op_type == "Mul":
        return _product_root(node, value)
    return None


def _weighted_root(
    node: ir.Node, value: ir.Value, axis: int, weight_axis: int, bias: int | None
) -> Root | str | None:
    shape = static_shape(node.inputs[1])
    if constant_tensor(node.inputs[1]) is None or shape is None or not _is_float(node.inputs[1]):
        return "its weight is not a constant" if node.op_type != "MatMul" else None
    if value.shape is None or len(shape) <= weight_axis:
        return "its shape is not known"
    size = shape[weight_axis]
    if value.shape[axis] != size:
        return "its weight has not one entry per channel"
    edits = [Edit((node, 1), (weight_axis,), (size,), 0, True)]
    second = node.inputs[bias] if bias is not None and len(node.inputs) > bias else None
    if bias is not None and second is not None:
        dims = static_shape(second)
        if constant_tensor(second) is None or dims is None:
            return "its bias is not a constant"
        rank = max(len(dims), 1)
        if dims and dims[-1] not in (1, size):
            return "its bias has not one entry per channel"
        edits.append(Edit((node, bias), (rank - 1,), (size,), rank, True))
    return Root(node, value, axis, size, tuple(edits))


def _product_root(node: ir.Node, value: ir.Value) -> Root | str | None:
    """A product with a constant per channel: the scale of a normalization written in single steps."""
    for index in (0, 1):
        operand = node.inputs[index]
        dims = static_shape(operand)
        if operand is None or constant_tensor(operand) is None or dims is None or not _is_float(operand):
            continue
        wide = [axis for axis, size in enumerate(dims) if size != 1]
        rank = rank_of(value)
        if len(wide) != 1 or rank is None or len(dims) > rank:
            return None
        size = dims[wide[0]]
        axis = wide[0] + rank - len(dims)
        if value.shape is None or value.shape[axis] != size:
            return None
        edit = Edit((node, index), (wide[0],), (size,), len(dims), True)
        return Root(node, value, axis, size, (edit,))
    return None


def _is_float(value: ir.Value | None) -> bool:
    return value is not None and value.dtype in (
        ir.DataType.FLOAT,
        ir.DataType.FLOAT16,
        ir.DataType.BFLOAT16,
        ir.DataType.DOUBLE,
    )
