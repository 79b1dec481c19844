"""Damage that parses: names that are no text, versions that are no numbers of this world."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from .errors import ModelError

if TYPE_CHECKING:
    import onnx

NEWEST_THINKABLE = 10_000
# FLOAT, INT, STRING, FLOATS, INTS, STRINGS: attributes that hold neither tensors nor graphs, whatever other
# fields of theirs are set.
PLAIN_KINDS = frozenset({1, 2, 3, 6, 7, 8})


def check_names(model: onnx.ModelProto) -> None:
    """Checks that every name in a message is text and every operator-set version is sane.

    Protobuf hands out bytes where text is not UTF-8, which nothing behind this point expects.

    Raises:
        ModelError: the first name or version that is damaged.
    """
    names = _names(model)
    if set(map(type, names)) - {str}:
        name = next(name for name in names if not isinstance(name, str))
        raise ModelError(f"the name {name!r} is not valid text; the file is damaged")
    for imported in _imports(model):
        if not 0 < imported.version <= NEWEST_THINKABLE:
            raise ModelError(
                f"it imports version {imported.version} of operator set '{imported.domain or 'ai.onnx'}'"
            )


def _imports(model: onnx.ModelProto) -> Iterator[Any]:
    yield from model.opset_import
    for function in model.functions:
        yield from function.opset_import


def _names(model: onnx.ModelProto) -> list[str | bytes]:
    names: list[str | bytes] = [imported.domain for imported in _imports(model)]
    _add_graph(model.graph, names)
    for function in model.functions:
        names += (function.name, function.domain, function.overload)
        names += (*function.input, *function.output, *function.attribute)
        for node in function.node:
            _add_node(node, names)
    return names


def _add_graph(graph: onnx.GraphProto, names: list[str | bytes]) -> None:
    names.append(graph.name)
    for info in (*graph.input, *graph.output, *graph.value_info):
        names.append(info.name)
        if info.type.HasField("tensor_type"):
            names += [dim.dim_param for dim in info.type.tensor_type.shape.dim]
    names += [tensor.name for tensor in graph.initializer]
    for node in graph.node:
        _add_node(node, names)


def _add_node(node: onnx.NodeProto, names: list[str | bytes]) -> None:
    names += (node.name, node.op_type, node.domain, node.overload)
    names += node.input
    names += node.output
    for attribute in node.attribute:
        names += (attribute.name, attribute.ref_attr_name)
        if attribute.type in PLAIN_KINDS:
            continue
        if attribute.HasField("g"):
            _add_graph(attribute.g, names)
        for graph in attribute.graphs:
            _add_graph(graph, names)
