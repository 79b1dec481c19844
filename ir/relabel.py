"""A model told another opset, where all its operators mean the same in both."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import onnx_ir as ir

from .bodies import all_graphs
from .sweep import nodes_in
from .verify import problems

if TYPE_CHECKING:
    import onnx


def relabel(model: ir.Model, version: int) -> None:
    """Makes a model and its functions import opset `version`, whatever their operators mean there."""
    model.opset_imports[""] = version
    for function in model.functions.values():
        function.opset_imports[""] = version
    for graph in all_graphs(model):
        for node in nodes_in(graph):
            if node._domain == "":
                node.version = version


def lower(model: ir.Model, target: int) -> str | None:
    """Relabels a model with an earlier opset, in place, if no node uses anything that came later.

    Most new versions of operators only add element types.

    Returns:
        What needs the later opset; None where the model was relabelled.
    """
    version = model.opset_imports[""]
    for graph in all_graphs(model):
        for node in graph:
            if not means_the_same(node, version, target):
                return f"node '{node.name}' ({node.op_type})"
    before = problems(model)
    relabel(model, target)
    if problems(model) == before:
        return None
    relabel(model, version)
    return "a node with newer element types"


def means_the_same(node: ir.Node, version: int, target: int) -> bool:
    """Whether a node reads alike in opset `version` and in the earlier `target`, element types aside."""
    import onnx

    if node.domain != "" or same_version(node.op_type, version, target):
        return True
    try:
        newer = onnx.defs.get_schema(node.op_type, version, "")
        older = onnx.defs.get_schema(node.op_type, target, "")
    except onnx.defs.SchemaError:
        return False
    return (
        _formal(newer.inputs)[: len(older.inputs)] == _formal(older.inputs)
        and len(node.inputs) <= older.max_input
        and _formal(newer.outputs)[: len(older.outputs)] == _formal(older.outputs)
        and len(node.outputs) <= older.max_output
        and all(_same_default(newer, older, name) for name in older.attributes)
        and all(name in older.attributes for name in node.attributes)
    )


def same_version(op_type: str, version: int, target: int) -> bool:
    """Whether a standard operator has the same version in both opsets."""
    import onnx

    try:
        here = onnx.defs.get_schema(op_type, version, "").since_version
        there = onnx.defs.get_schema(op_type, target, "").since_version
    except onnx.defs.SchemaError:
        return False
    return here == there


def _formal(parameters: Sequence[onnx.defs.OpSchema.FormalParameter]) -> list[tuple[str, str]]:
    return [(parameter.name, str(parameter.option)) for parameter in parameters]


def _same_default(newer: onnx.defs.OpSchema, older: onnx.defs.OpSchema, name: str) -> bool:
    if name not in newer.attributes:
        return False
    return newer.attributes[name].default_value == older.attributes[name].default_value
