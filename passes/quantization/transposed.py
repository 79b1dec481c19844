"""Products with a transposed constant, as heads have that share their weights with an embedding (GPT-2).

Folding leaves such a Transpose where it is, because the weights would then stand twice in the file. Once
quantized, both take half of what the one did: rows for the embedding, columns for the product.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
import onnx_ir as ir

from ...ir.constants import constant_array, constant_tensor
from ...ir.static import producer_of
from ..rewriter import Rewriter
from .operators import DEFAULT_DOMAINS


def turn_weights(nodes: Iterable[ir.Node], wanted: Callable[[ir.Node], bool], rewriter: Rewriter) -> None:
    """Let MatMuls read transposed copies of their own of constant float32 matrices.

    Args:
        nodes: of any graphs of a model.
        wanted: whether a MatMul is going to be quantized.
        rewriter: what changes the graph.
    """
    made: dict[ir.Value, ir.Value] = {}
    for node in list(nodes):
        if node.op_type != "MatMul" or node.domain not in DEFAULT_DOMAINS:
            continue
        turn = producer_of(node.inputs[1], "Transpose")
        if turn is None or not wanted(node):
            continue
        weight = turn.inputs[0]
        tensor = constant_tensor(weight)
        # A matrix has one transposition but the identity.
        if tensor is None or weight is None or weight.dtype != ir.DataType.FLOAT or len(tensor.shape) != 2:
            continue
        if list(turn.attributes.get_ints("perm", (1, 0)) or ()) == [0, 1]:
            continue
        if weight not in made:
            array = constant_array(weight)
            assert array is not None
            made[weight] = rewriter.initializer(f"{weight.name}_transposed", np.ascontiguousarray(array.T))
        rewriter.set_input(node, 1, made[weight])
        rewriter.erase_unread(turn)
