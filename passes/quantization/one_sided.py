"""Values that are never negative, by what computes them, and layers that likely read such values."""

from __future__ import annotations

import math
from collections.abc import Sequence

import onnx_ir as ir

from ...ir.constants import constant_array
from ...ir.static import input_of
from .operators import DEFAULT_DOMAINS

_NEVER_NEGATIVE = ("Relu", "Sigmoid", "HardSigmoid", "Softmax", "Exp", "Abs", "Sqrt", "Softplus")
_KEEPS_SIGNS = (
    *("MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool", "ReduceMean", "ReduceMax", "ReduceSum"),
    *("Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze", "Identity", "Dropout", "Slice", "Gather"),
)
_KEEPS_SIGNS_OF_ALL = ("Add", "Mul", "Concat", "Max")
_FURTHEST = 16


def never_negative(value: ir.Value | None, depth: int = _FURTHEST) -> bool:
    """Whether a value is known to be at least zero everywhere."""
    if value is None or depth == 0:
        return False
    node = value.producer()
    if node is None:
        array = constant_array(value)
        return array is not None and array.size <= 1 << 16 and bool((array >= 0).all())
    if node.domain not in DEFAULT_DOMAINS:
        return False
    if node.op_type in _NEVER_NEGATIVE:
        return True
    if node.op_type == "Clip":
        least = constant_array(input_of(node, 1))
        return least is not None and bool((least >= 0).all())
    if node.op_type in _KEEPS_SIGNS:
        return never_negative(node.inputs[0], depth - 1)
    if node.op_type in _KEEPS_SIGNS_OF_ALL:
        return all(never_negative(each, depth - 1) for each in node.inputs)
    return False


def one_sided_window(node: ir.Node, index: int, shape: Sequence[int]) -> int:
    """How `keep_sums` takes the weights of a layer: columns that belong to one channel, 0 for not at all.

    Args:
        node: the layer; what convolutions read is taken to be one-sided, as it mostly is.
        index: which of its inputs the weights are.
        shape: of the weights.
    """
    if node.op_type == "Conv":
        return math.prod(shape[2:])
    if node.op_type == "ConvTranspose":
        return 1
    return int(node.op_type in ("MatMul", "Gemm") and never_negative(node.inputs[1 - index]))
