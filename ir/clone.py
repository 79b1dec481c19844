"""A copy of a model whose graph can be changed without touching the original."""

from __future__ import annotations

import onnx_ir as ir

from .errors import ModelError


def clone(model: ir.Model) -> ir.Model:
    """Copies graph, nodes, values and functions; tensors (weights) are shared, so the cost is O(nodes).

    Raises:
        ModelError: a node uses a value that no earlier node, input or initializer makes.
    """
    try:
        copy = model.clone()
    except RuntimeError as error:
        raise ModelError(
            f"cannot copy the graph: {_dangling(model)}; run `verify` for all problems"
        ) from error
    copy.meta.update(model.meta)
    return copy


def _dangling(model: ir.Model) -> str:
    for graph in (model.graph, *(function.graph for function in model.functions.values())):
        known = set(graph.inputs) | set(graph.initializers.values())
        for node in graph:
            for value in node.inputs:
                if value is not None and value not in known:
                    return f"node '{node.name}' ({node.op_type}) uses '{value.name}' before it is made"
            known.update(node.outputs)
    return "a nested graph uses a value before it is made"
