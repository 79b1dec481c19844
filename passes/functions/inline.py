"""The body of a function in place of its call."""

from __future__ import annotations

from collections.abc import Callable

import onnx_ir as ir

from ...ir.bodies import all_graphs, bodies_of
from ...ir.errors import PassError
from ..rewriter import Rewriter

FUNCTION_KEY = "graphwright.function"
"""Metadata of inlined nodes: the outermost function they come from, as `domain::name`."""

_GRAPHS = (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)


def inline_calls(
    rewriter: Rewriter, wanted: Callable[[ir.Node, ir.Function], bool] | None = None
) -> dict[str, int]:
    """Replace calls of the model's functions by the nodes of their bodies, calls inside of bodies included.

    Inlined nodes are named `call/node` and carry `FUNCTION_KEY`. Functions that are left without a call are
    removed. Shapes inside are to be inferred afterwards.

    Args:
        rewriter: Of the model.
        wanted: Which calls; all by default.

    Returns:
        Number of inlined calls by function (`domain::name`).

    Raises:
        PassError: A wanted call cannot be inlined; `why_not_inline` tells beforehand.
    """
    model = rewriter.model
    counts: dict[str, int] = {}
    if not model.functions:
        return counts
    worklist = [node for graph in all_graphs(model) for node in graph]
    worklist.reverse()
    gone: set[ir.OperatorIdentifier] = set()
    while worklist:
        node = worklist.pop()
        function = model.functions.get(node.op_identifier())
        if node.graph is None or function is None or (wanted is not None and not wanted(node, function)):
            continue
        reason = why_not_inline(node, function, model)
        if reason:
            raise PassError(f"cannot inline node '{node.name}' ({node.domain}::{node.op_type}): {reason}")
        key = f"{function.domain}::{function.name}"
        worklist.extend(reversed(_inline(node, function, key, rewriter)))
        counts[key] = counts.get(key, 0) + 1
        gone.add(function.identifier())
    _drop_uncalled(rewriter, gone)
    return counts


def why_not_inline(node: ir.Node, function: ir.Function, model: ir.Model) -> str:
    """Why a call cannot be replaced by the body; empty where it can."""
    for domain, version in function.opset_imports.items():
        present = model.opset_imports.get(domain, version)
        if present != version and any(inner.domain == domain for inner in function.all_nodes()):
            return f"its function is written in opset {version} of '{domain}', the model in {present}"
    given = [*node.attributes.values(), *function.attributes.values()]
    if any(attribute.type in _GRAPHS for attribute in given):
        return "it hands a graph to its function"
    if len(node.inputs) > len(function.inputs) or len(node.outputs) > len(function.outputs):
        return "it has more inputs or outputs than its function"
    return ""


def _inline(node: ir.Node, function: ir.Function, key: str, rewriter: Rewriter) -> list[ir.Node]:
    """Replace one call; returns the new nodes, those in subgraphs included."""
    body = function.clone()
    attributes = {name: each for name, each in function.attributes.items() if each.value is not None}
    attributes.update(node.attributes.items())
    inner = list(body.all_nodes())
    for each in inner:
        _resolve(each, attributes)
    actual = [*node.inputs, *[None] * (len(body.inputs) - len(node.inputs))]
    given = dict(zip(body.inputs, actual, strict=True))
    results = [given.get(value, value) for value in body.outputs][: len(node.outputs)]
    body.graph.outputs.clear()
    for formal, value in given.items():
        for user, index in tuple(formal.uses()):
            user.replace_input_with(index, value)
    origin = node.metadata_props.get(FUNCTION_KEY, key)
    top = list(body)
    for each in inner:
        _prepare(each, node, origin, rewriter, nested=each.graph is not body.graph)
    for each in top:
        body.remove(each)
    rewriter.adopt(node, top)
    rewriter.replace(node, results)
    return inner


def _resolve(node: ir.Node, attributes: dict[str, ir.Attr]) -> None:
    """Put the values of attribute parameters in; one that neither call nor default gives is left out."""
    for name, attribute in list(node.attributes.items()):
        if not attribute.is_ref():
            continue
        found = attributes.get(attribute.ref_attr_name or "")
        if found is None:
            del node.attributes[name]
        elif found.is_ref():
            node.attributes[name] = ir.RefAttr(name, found.ref_attr_name or "", found.type)
        else:
            node.attributes[name] = ir.Attr(name, found.type, found.value)


def _prepare(node: ir.Node, call: ir.Node, origin: str, rewriter: Rewriter, nested: bool) -> None:
    """Names, provenance, and types that the body could not know."""
    node.metadata_props[FUNCTION_KEY] = origin
    node.name = f"{call.name}/{node.name or node.op_type}"
    if nested:
        node.name = rewriter.unique_name(node.name)
    for value in node.outputs:
        if value.name:
            value.name = f"{call.name}/{value.name}"
            value.name = rewriter.unique_name(value.name) if nested else value.name
        value.shape = value.type = None
    for body in bodies_of(node):
        for value in body.inputs:
            value.name = rewriter.unique_name(f"{call.name}/{value.name}")
    like = node.inputs[1] if node.op_type == "CastLike" and len(node.inputs) == 2 else None
    if like is not None and like.dtype is not None and not node.domain:
        node.op_type = "Cast"
        node.resize_inputs(1)
        node.attributes["to"] = ir.AttrInt64("to", like.dtype)


def _drop_uncalled(rewriter: Rewriter, candidates: set[ir.OperatorIdentifier]) -> None:
    """Remove functions that were inlined everywhere, and then those that only they had called."""
    model = rewriter.model
    while candidates:
        calls = {node.op_identifier() for graph in all_graphs(model) for node in graph}
        dead = [key for key in candidates if key in model.functions and key not in calls]
        if not dead:
            return
        candidates = candidates - set(dead)
        for key in dead:
            rewriter.remove_function(key)
