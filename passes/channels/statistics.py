"""Normalizations in the masked model: statistics over the indices that stay, built from plain sums.

When indices of a normalized axis go, its mean and variance change, so there is no original to be equal to.
What the pruned model must equal then is this: the normalization of the full tensor with weighted sums in
which removed indices weigh zero and the number of elements is the number of those that stay. Nothing is
sliced, so the reference is independent of how the removal works.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from ..rewriter import Rewriter

NORMALIZATIONS = (
    "LayerNormalization",
    "RMSNormalization",
    "InstanceNormalization",
    "GroupNormalization",
)
_HALF = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)


class _Builder:
    """Inserts nodes in front of one node; all arithmetic is in one type."""

    def __init__(self, node: ir.Node, rewriter: Rewriter):
        self.node, self.rewriter = node, rewriter
        data = node.inputs[0]
        assert data is not None and data.dtype is not None and data.shape is not None
        self.outer = data.dtype
        self.inner = ir.DataType.FLOAT if data.dtype in _HALF else data.dtype
        self.rank = len(data.shape)
        self.data = self.to_inner(data)

    def op(self, op_type: str, *inputs: ir.Value, **attributes: object) -> ir.Value:
        (made,) = self.rewriter.insert_before(self.node, op_type, list(inputs), attributes)
        made.type = ir.TensorType(ir.DataType.INT64 if op_type == "Shape" else self.inner)
        return made

    def number(self, array: np.ndarray | float) -> ir.Value:
        return self.rewriter.initializer("mask", np.asarray(array, np.float64).astype(self.inner.numpy()))

    def ints(self, *values: int) -> ir.Value:
        return self.rewriter.initializer("mask", np.array(values, np.int64))

    def to_inner(self, value: ir.Value) -> ir.Value:
        return value if value.dtype == self.inner else self.op("Cast", value, to=int(self.inner))

    def to_outer(self, value: ir.Value) -> ir.Value:
        if self.outer == self.inner:
            return value
        cast = self.op("Cast", value, to=int(self.outer))
        cast.type = ir.TensorType(self.outer)
        return cast

    def mean(self, data: ir.Value, axes: list[int], masks: Mapping[int, np.ndarray], rank: int) -> ir.Value:
        """Mean over `axes` of the elements that stay."""
        whole = [axis for axis in axes if axis not in masks]
        if whole:
            data = self.op("ReduceMean", data, self.ints(*whole), keepdims=1)
        weights = np.ones([1] * rank)
        for axis, mask in masks.items():
            weights = weights * mask.reshape([-1 if index == axis else 1 for index in range(rank)])
        share = self.number(weights / weights.sum())
        return self.op("ReduceSum", self.op("Mul", data, share), self.ints(*masks), keepdims=1)


def replace_normalization(
    node: ir.Node, masks: Mapping[int, np.ndarray], groups: int, rewriter: Rewriter
) -> None:
    """Replace a normalization by its definition over the indices that stay.

    Args:
        node: One of `NORMALIZATIONS`.
        masks: For every normalized axis of which indices go, one bool per index: whether it stays.
        groups: Number of channel groups of a GroupNormalization.
        rewriter: The rewriter of its model.
    """
    build = _Builder(node, rewriter)
    data, axes, rank = build.data, _axes_of(node, build.rank), build.rank
    if node.op_type == "GroupNormalization":
        channels = len(masks[1])
        data = build.op("Reshape", data, build.ints(0, groups, channels // groups, -1))
        axes, rank = [2, 3], 4
        masks = {2: masks[1].reshape(groups, -1)[0]}
    if node.op_type == "RMSNormalization":
        centered, mean = data, None
    else:
        mean = build.mean(data, axes, masks, rank)
        centered = build.op("Sub", data, mean)
    variance = build.mean(build.op("Mul", centered, centered), axes, masks, rank)
    epsilon = build.number(node.attributes.get_float("epsilon", 1e-5))
    deviation = build.op("Sqrt", build.op("Add", variance, epsilon))
    result = build.op("Div", centered, deviation)
    if node.op_type == "GroupNormalization":
        result = build.op("Reshape", result, build.op("Shape", build.data))
    result = build.to_outer(_affine(node, build, result))
    outputs: list[ir.Value | None] = [result]
    if len(node.outputs) > 1:
        outputs.append(mean)
    if len(node.outputs) > 2:
        outputs.append(build.op("Reciprocal", deviation))
    rewriter.replace(node, outputs)


def _axes_of(node: ir.Node, rank: int) -> list[int]:
    if node.op_type == "InstanceNormalization":
        return list(range(2, rank))
    return list(range(node.attributes.get_int("axis", -1) % rank, rank))


def _affine(node: ir.Node, build: _Builder, result: ir.Value) -> ir.Value:
    per_channel = node.op_type in ("InstanceNormalization", "GroupNormalization")
    for op_type, parameter in zip(("Mul", "Add"), node.inputs[1:3], strict=False):
        if parameter is None or parameter.name == "":
            continue
        factor = build.to_inner(parameter)
        if per_channel:
            factor = build.op("Reshape", factor, build.ints(1, -1, *[1] * (build.rank - 2)))
        result = build.op(op_type, result, factor)
    return result
