"""Calls of known functions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import onnx_ir as ir

from ...ir.errors import PassError
from ...ir.opset import CANONICAL_OPSET
from ..rewriter import Rewriter
from .definitions import DOMAIN, KnownFunction


def call_function(
    rewriter: Rewriter,
    anchor: ir.Node,
    function: KnownFunction,
    inputs: Sequence[ir.Value | None],
    attributes: Mapping[str, Any] | None = None,
    *,
    name: str | None = None,
) -> list[ir.Value]:
    """Insert a call in front of `anchor`, adding the function to the model where it is not there yet.

    Args:
        rewriter: Of the model.
        anchor: The node in whose graph, and before which, the call goes.
        function: What to call.
        inputs: Operands; None for one that is left out.
        attributes: Attribute parameters, as plain Python values or `ir.Attr`.
        name: Name of the node to start from.

    Returns:
        All outputs of the function. Shapes and types come with `rewriter.replace` or the next inference.

    Raises:
        PassError: Too many inputs, or attributes are missing or unknown.
    """
    attributes = {key: value for key, value in (attributes or {}).items() if value is not None}
    _check(function, inputs, attributes)
    identifier = _added(rewriter, function)
    return rewriter.insert_before(
        anchor,
        identifier[1],
        inputs,
        attributes,
        domain=DOMAIN,
        num_outputs=len(function.outputs),
        name=name or f"{anchor.name or 'node'}/{function.name}",
    )


def called(value: ir.Value | None, *functions: KnownFunction) -> ir.Node | None:
    """The call of one of `functions` whose first output is `value`; None where it is something else."""
    node = value.producer() if value is not None else None
    if node is None or node.domain != DOMAIN or node.op_type not in {each.name for each in functions}:
        return None
    return node if value is node.outputs[0] else None


def is_known(function: ir.Function) -> bool:
    """Whether a function of a model is one of ours: its body is a definition, not something to optimize."""
    return function.domain == DOMAIN


def _check(function: KnownFunction, inputs: Sequence[Any], attributes: Mapping[str, Any]) -> None:
    if len(inputs) > len(function.inputs):
        raise PassError(f"function '{function.name}' takes {len(function.inputs)} inputs, not {len(inputs)}")
    missing = function.required - attributes.keys()
    if missing:
        raise PassError(f"a call of function '{function.name}' lacks {', '.join(sorted(missing))}")
    unknown = attributes.keys() - function.required - function.optional
    if unknown:
        raise PassError(f"function '{function.name}' has no attribute {', '.join(sorted(unknown))}")


def _added(rewriter: Rewriter, function: KnownFunction) -> ir.OperatorIdentifier:
    """The identifier under which the model has the function; a body of another origin keeps its name."""
    functions = rewriter.model.functions
    opset = rewriter.model.opset_imports.get("", CANONICAL_OPSET)
    name, number = function.name, 0
    while True:
        identifier = (DOMAIN, name, "")
        if identifier not in functions:
            break
        if _same_body(functions[identifier], function, opset):
            return identifier
        number += 1
        name = f"{function.name}_{number}"
    body = function.build(opset)
    body.name = name
    for node in body.all_nodes():
        node.name = rewriter.unique_name(f"{name}/{node.op_type}")
    body.meta[_TEXT_KEY] = function.text
    rewriter.add_function(body)
    return identifier


def _same_body(present: ir.Function, function: KnownFunction, opset: int) -> bool:
    if present.meta.get(_TEXT_KEY) != function.text:
        if _skeleton(present) != _skeleton(function.build(opset)):
            return False
        present.meta[_TEXT_KEY] = function.text
    return True


_TEXT_KEY = "graphwright.definition"


def _skeleton(function: ir.Function) -> bytes:
    """The function without what does not change its meaning."""
    proto = ir.serde.serialize_function(function)
    proto.ClearField("name")
    proto.ClearField("doc_string")
    proto.ClearField("value_info")
    proto.ClearField("metadata_props")
    proto.ClearField("opset_import")
    for node in proto.node:
        node.ClearField("name")
        node.ClearField("metadata_props")
        node.ClearField("doc_string")
    return proto.SerializeToString(deterministic=True)
