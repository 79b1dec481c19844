"""Shapes after a rewrite: only the nodes that changed, and what follows from them.

A lossless rewrite leaves nearly every shape as it was, so inferring the whole model again after each pass is
wasted. Where the neighbourhood alone does not tell (bodies, functions, sizes computed at run time) this says
so, and the whole model is inferred after all.
"""

from __future__ import annotations

from collections.abc import Iterable

import onnx_ir as ir

from .errors import ShapeError
from .shapes import _check, _engine, _reason, infer_shapes
from .verify_nodes import describe

_GRAPH_TYPES = (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)
_VISITS_PER_NODE = 16


def infer_changed(model: ir.Model, nodes: Iterable[ir.Node]) -> bool:
    """Bring the shapes of a model whose shapes were inferred up to date after `nodes` were made or changed.

    Args:
        model: Changed in place.
        nodes: Nodes that are new or whose inputs or attributes changed, producers before their readers as
            far as possible; those that are no longer in a graph are passed over.

    Returns:
        Whether only the neighbourhood was looked at; False where the whole model was inferred.

    Raises:
        ShapeError: Shapes contradict each other; names the node.
    """
    pending = {node: None for node in nodes if node.graph is not None}
    if pending and (model.functions or not _propagate(model, pending)):
        infer_shapes(model)
        return False
    return True


def _propagate(model: ir.Model, pending: dict[ir.Node, None]) -> bool:
    """Infer `pending` and, as long as shapes change, their readers; False where that is not enough."""
    engine = _engine()
    context = engine.Context(model.opset_imports, calls=False)
    budget = _VISITS_PER_NODE * len(pending) + 10_000
    try:
        while pending:
            node = next(iter(pending))
            del pending[node]
            budget -= 1
            if budget < 0 or any(a.type in _GRAPH_TYPES for a in node.attributes.data.values()):
                return False
            changed = _infer(node, model, engine, context)
            if changed is None:
                return False
            for value in changed:
                if value.is_graph_output() and value.graph is not model.graph:
                    return False
                pending.update(dict.fromkeys(value.consumers()))
            _check(node)
    finally:
        context.clear()
    return True


def _infer(node: ir.Node, model: ir.Model, engine, context) -> list[ir.Value] | None:
    """Apply the shape rule of `node`; returns the outputs that changed, None where it cannot be told here."""
    rule = engine.rule(node, model.opset_imports)
    if rule is None:
        return [] if all(value.shape is not None for value in node.outputs) else None
    for value in node.inputs:
        if value is not None and (value.shape is None or value.shape.has_unknown_dim()):
            return None
    before = [(value, value.shape, value.dtype) for value in node.outputs]
    try:
        rule(context, node)
    except ValueError as error:
        raise ShapeError(f"{describe(node)}: {_reason(error)}") from error
    changed = []
    for value, shape, dtype in before:
        if value.shape is None and value.name:
            return None
        if value.shape is shape and value.dtype == dtype:
            continue
        if value.shape is not None and any(type(d) is not int and context.is_guess(d) for d in value.shape):
            value.shape = shape
            return None
        if value.shape != shape or value.dtype != dtype:
            changed.append(value)
    return changed
