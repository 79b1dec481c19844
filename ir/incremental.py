"""Shapes after a rewrite: only the nodes that changed, and what follows from them.

A lossless rewrite leaves nearly every shape as it was, so inferring the whole model again after each pass is
wasted. Where the neighbourhood alone does not tell (bodies, functions, sizes computed at run time) this says
so, and the whole model is inferred after all.
"""

from __future__ import annotations

from collections.abc import Iterable

import onnx_ir as ir

from .bodies import GRAPH_TYPES, graphs_in
from .errors import ShapeError
from .shapes import _check, _engine, _reason, infer_shapes
from .verify_nodes import describe

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
    if infer_near(model, nodes):
        infer_shapes(model)
        return False
    return True


def infer_near(model: ir.Model, nodes: Iterable[ir.Node]) -> list[ir.Node]:
    """Infer `nodes` and, as long as shapes change, their readers.

    Args:
        model: Changed in place.
        nodes: As for `infer_changed`.

    Returns:
        Nodes whose neighbourhood does not tell their shapes: the whole model has to be inferred for them.

    Raises:
        ShapeError: Shapes contradict each other; names the node.
    """
    pending = {node: None for node in nodes if node.graph is not None}
    if not pending:
        return []
    engine = _engine()
    context = engine.Context(model.opset_imports, calls=False)
    foreign = [graph for function in model.functions.values() for graph in graphs_in(function.graph)]
    budget = _VISITS_PER_NODE * len(pending) + 10_000
    unknown: list[ir.Node] = []
    try:
        while pending:
            node = next(iter(pending))
            del pending[node]
            budget -= 1
            if budget < 0:
                return [*unknown, node, *pending]
            if any(a.type in GRAPH_TYPES for a in node.attributes.data.values()):
                unknown.append(node)
                continue
            if foreign and any(node.graph is graph for graph in foreign):
                unknown.append(node)
                continue
            changed = _infer(node, model, engine, context)
            if changed is None or any(v.is_graph_output() and v.graph is not model.graph for v in changed):
                unknown.append(node)
                continue
            for value in changed:
                pending.update(dict.fromkeys(value.consumers()))
    finally:
        context.clear()
    return unknown


def _infer(node: ir.Node, model: ir.Model, engine, context) -> list[ir.Value] | None:
    """Apply the shape rule of `node`; returns the outputs that changed, None where it cannot be told here."""
    rule = engine.rule(node, model.opset_imports)
    if rule is None:
        # A foreign operator, or a call of a function.
        return [] if all(value.shape is not None for value in node.outputs) else None
    for value in node.inputs:
        if value is not None and (value.shape is None or value.shape.has_unknown_dim()):
            return None
    before = [(value, value.shape, value.dtype) for value in node.outputs]
    try:
        if not engine.infer(context, node):
            rule(context, node)
            _check(node)
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
