"""Values that cannot be negative, by the operators that make them."""

from __future__ import annotations

import onnx_ir as ir

from ..ir.constants import constant_array
from ..ir.static import input_of

# NaN may pass through any of these; a rule that relies on the sign must hand NaN on.
_NEVER_NEGATIVE = frozenset(
    {"Abs", "Exp", "HardSigmoid", "Relu", "Sigmoid", "Softmax", "Softplus", "Sqrt"}
    | {"ReduceL1", "ReduceL2", "ReduceSumSquare"}
)
_KEEPS_SIGNS = frozenset(
    {"AveragePool", "Ceil", "Expand", "Flatten", "Floor", "Gather", "GlobalAveragePool", "GlobalMaxPool"}
    | {"Identity", "MaxPool", "Reshape", "Round", "Slice", "Squeeze", "Tile", "Transpose", "Unsqueeze"}
    | {"ReduceMax", "ReduceMean", "ReduceMin", "ReduceSum"}
)
_ALL_OPERANDS = frozenset({"Add", "Concat", "Max", "Mean", "Min", "Mul", "Sum"})
_FLOATS = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.DOUBLE)
_DEPTH = 6
_MOST_NUMBERS = 1 << 16


def never_negative(value: ir.Value | None, depth: int = _DEPTH) -> bool:
    """Whether a float tensor holds no number below zero (NaN aside), as far as the last operators tell."""
    if value is None or depth == 0 or value.dtype not in _FLOATS:
        return False
    stored = constant_array(value, _MOST_NUMBERS)
    if stored is not None:
        return stored.size > 0 and float(stored.min()) >= 0
    node = value.producer()
    if node is None or node.domain not in ("", "ai.onnx") or value is not node.outputs[0]:
        return False
    if node.op_type in _NEVER_NEGATIVE:
        return True
    if node.op_type == "Clip":
        low, high = (constant_array(input_of(node, index), 1) for index in (1, 2))
        # With crossed bounds the upper one wins.
        bounded = input_of(node, 2) is None or (
            high is not None and high.size == 1 and float(high.item()) >= 0
        )
        return bounded and low is not None and low.size == 1 and float(low.item()) >= 0
    if node.op_type in _KEEPS_SIGNS:
        return never_negative(node.inputs[0], depth - 1)
    if node.op_type in _ALL_OPERANDS:
        return all(never_negative(operand, depth - 1) for operand in node.inputs)
    return False
