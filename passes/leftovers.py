"""What a rewrite leaves behind: readers are handed on, and what nothing reads any more goes at once."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import onnx_ir as ir

from .rewriter import Rewriter


def drop_unread(rewriter: Rewriter, values: Iterable[ir.Value | None]) -> None:
    """Removes those of `values` that are initializers or Constant nodes and that nothing reads any more.

    Args:
        rewriter: what changes the graph.
        values: former operands; None and values of any other kind are passed over.
    """
    for value in dict.fromkeys(values):
        if value is None or value.uses() or value.is_graph_output() or value.is_graph_input():
            continue
        producer = value.producer()
        if producer is None:
            if value.is_initializer():
                rewriter.remove_initializer(value)
        elif producer.op_type == "Constant" and producer.graph is not None:
            rewriter.erase(producer)


def hand_on(node: ir.Node, value: ir.Value, rewriter: Rewriter) -> bool:
    """Let the readers of the first output of `node` read `value`; erase what nothing reads any more.

    Where that output is a graph output and `value` cannot take its name (an input, a constant, a value of
    another graph, another graph output), an Identity does.
    """
    output = node.outputs[0]
    producer = value.producer()
    if output.is_graph_output() and (
        producer is None or value.is_graph_output() or producer.graph is not node.graph
    ):
        (value,) = rewriter.insert_before(node, "Identity", [value])
    makers = [operand.producer() for operand in node.inputs if operand is not None]
    rewriter.replace(node, [value, *[None] * (len(node.outputs) - 1)])
    for maker in dict.fromkeys(makers):
        rewriter.erase_unread(maker)
    return True


def supersede(
    node: ir.Node,
    op_type: str,
    inputs: Sequence[ir.Value | None],
    rewriter: Rewriter,
    attributes: Mapping[str, Any] | None = None,
) -> bool:
    """Put a new node in the place of `node`, which has one output; erase what nothing reads any more."""
    makers = [operand.producer() for operand in node.inputs if operand is not None]
    rewriter.replace(node, rewriter.insert_before(node, op_type, inputs, attributes))
    for maker in dict.fromkeys(makers):
        rewriter.erase_unread(maker)
    return True
