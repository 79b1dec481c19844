"""Damage that parses: names that are no text, versions that are no numbers of this world."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from .errors import ModelError

if TYPE_CHECKING:
    import onnx

_NEWEST_THINKABLE = 10_000


def check_names(model: onnx.ModelProto) -> None:
    """Checks that every name in a message is text and every operator-set version is sane.

    Protobuf hands out bytes where text is not UTF-8, which nothing behind this point expects.

    Raises:
        ModelError: the first name or version that is damaged.
    """
    for name in _names(model):
        if not isinstance(name, str):
            raise ModelError(f"the name {name!r} is not valid text; the file is damaged")
    for imported in _imports(model):
        if not 0 < imported.version <= _NEWEST_THINKABLE:
            raise ModelError(
                f"it imports version {imported.version} of operator set '{imported.domain or 'ai.onnx'}'"
            )


def _imports(model: onnx.ModelProto) -> Iterator[Any]:
    yield from model.opset_import
    for function in model.functions:
        yield from function.opset_import


def _names(model: onnx.ModelProto) -> Iterator[str]:
    yield from (imported.domain for imported in _imports(model))
    yield from _graph_names(model.graph)
    for function in model.functions:
        yield from (function.name, function.domain, function.overload)
        yield from function.input
        yield from function.output
        yield from function.attribute
        for node in function.node:
            yield from _node_names(node)


def _graph_names(graph: onnx.GraphProto) -> Iterator[str]:
    yield graph.name
    for info in (*graph.input, *graph.output, *graph.value_info):
        yield info.name
        if info.type.HasField("tensor_type"):
            yield from (dim.dim_param for dim in info.type.tensor_type.shape.dim)
    yield from (tensor.name for tensor in graph.initializer)
    for node in graph.node:
        yield from _node_names(node)


def _node_names(node: onnx.NodeProto) -> Iterator[str]:
    yield from (node.name, node.op_type, node.domain, node.overload)
    yield from node.input
    yield from node.output
    for attribute in node.attribute:
        yield from (attribute.name, attribute.ref_attr_name)
        if attribute.HasField("g"):
            yield from _graph_names(attribute.g)
        for graph in attribute.graphs:
            yield from _graph_names(graph)
