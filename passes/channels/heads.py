"""Whether attention loses heads or positions within them: what a walk leaves to choose of either.

A product of two activations that has further axes runs once per head: those axes hold the heads, and the axis
that it sums over, or the last one of its result, the positions within a head.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import numpy as np
import onnx_ir as ir

if TYPE_CHECKING:
    from .analysis import Dependencies

Attention = Literal["auto", "heads", "dims"]


def attention_products(found: Dependencies) -> list[ir.Node]:
    """Attention nodes, and products of two activations with axes that hold heads."""
    return [node for node in found.nodes if node.op_type == "Attention" or _is_product(found, node)]


def next_splits(found: Dependencies) -> list[ir.Node]:
    """The splits that attention products read from without another split in between."""
    reached: set[ir.Node] = set()
    near: dict[ir.Node, None] = {}
    makers = {made.node for made in found.tracer.producers}
    pending = attention_products(found)
    for node in pending:
        if node in found.tracer.splits:
            near[node] = None
    while pending:
        for value in pending.pop().inputs:
            maker = value.producer() if value is not None else None
            if maker is None or maker in reached:
                continue
            reached.add(maker)
            if maker in found.tracer.splits:
                near[maker] = None
            elif maker not in makers:
                pending.append(maker)
    return list(near)


def choices(found: Dependencies, what: Attention) -> int:
    """Number of classes of heads ("heads") or positions within them ("dims") that could go, over products."""
    return sum(_choices(found, node, what) for node in attention_products(found))


def _is_product(found: Dependencies, node: ir.Node) -> bool:
    if node.op_type != "MatMul" or node.domain not in ("", "ai.onnx") or node in found.tracer.stopped:
        return False
    values = [value for value in node.inputs if value is not None]
    return len(found.tracer.known_dims(node.outputs[0]) or ()) > 2 and not any(
        map(found.tracer.is_weight, values)
    )


def _choices(found: Dependencies, node: ir.Node, what: Attention) -> int:
    first, output = node.inputs[0], node.outputs[0]
    rank = len(found.tracer.known_dims(output) or ())
    if first is None or rank < 3:
        return 0
    if node.op_type == "MatMul":
        if what == "heads":
            return sum(_free(found, output, axis) for axis in range(rank - 2))
        return _free(found, first, len(found.tracer.dims(first)) - 1) + _free(found, output, rank - 1)
    if rank == 4:
        return _free(found, output, 1 if what == "heads" else 3)
    classes = found.classes_of(output, 2)
    # One class holds a whole head, whose positions lie side by side, or one position of every head.
    by_head = len(classes) > 1 and classes[0] == classes[1]
    return _free(found, output, 2) if by_head == (what == "heads") else 0


def _free(found: Dependencies, value: ir.Value, axis: int) -> int:
    classes = found.classes_of(value, axis)
    return len(np.unique(classes[classes >= 0]))
