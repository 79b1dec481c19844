"""What files with int8 activations need, so that ONNX Runtime loads them on x86, too.

It lets Reshape, Transpose and the like move integers and puts pairs of its own behind them. On x86 it then
makes uint8 of int8, forgets the attribute that says so, and does not load its own result (issue 25526 there).
So there must be no moves behind which it finds no pair, neither in the file nor among those that it makes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import onnx_ir as ir

from ...ir.constants import constant_array
from ..rewriter import Rewriter
from .operators import DEFAULT_DOMAINS, WeightedNode, constant_addend
from .tables import Table

# What ONNX Runtime moves integers through, and Flatten, a Reshape to it.
_MOVES = ("MaxPool", "Reshape", "Transpose", "Squeeze", "Unsqueeze", "Slice", "Flatten")


def moved_results(value: ir.Value, table: Table, selects: Callable[[ir.Node], bool]) -> Iterator[ir.Value]:
    """Float values that hold nothing but numbers of a restored one and are not quantized.

    Each belongs on the grid of `value`; a pair there changes no number.

    Args:
        value: what a DequantizeLinear restores.
        table: what the target moves.
        selects: whether the user lets a node be quantized.
    """
    producer = value.producer()
    graph = None if producer is None else producer.graph
    for node in dict.fromkeys(user for user, index in value.uses() if index == 0):
        if node.op_type not in _MOVES or node.op_type not in table.shared or node.graph is not graph:
            continue
        known = node.domain in DEFAULT_DOMAINS and selects(node)
        results = [result for result in node.outputs if result.name]
        if known and len(results) == 1 and not _is_quantized(results[0]):
            yield results[0]


def _is_quantized(value: ir.Value) -> bool:
    return any(user.op_type == "QuantizeLinear" for user in value.consumers())


def widen_bias(matched: WeightedNode, rewriter: Rewriter) -> None:
    """Makes a row `[1, N]` of the float bias `[N]` behind a product of more than two dimensions.

    With a vector ONNX Runtime makes a Gemm of the two, between a Reshape to two dimensions and one back.
    """
    found = constant_addend(matched.node)
    shape = matched.node.outputs[0].shape
    if found is None or matched.bias_node is not None or shape is None or len(shape) < 3:
        return
    add, index = found
    vector = add.inputs[index]
    bias = constant_array(vector)
    if vector is not None and bias is not None and bias.ndim == 1:
        row = rewriter.initializer(f"{vector.name}_row", np.ascontiguousarray(bias[np.newaxis]))
        rewriter.set_input(add, index, row)
