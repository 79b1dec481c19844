"""Did somebody change a graph without telling? The objects it consists of, before and after."""

from __future__ import annotations

from typing import Any

import onnx_ir as ir

from ..ir.bodies import all_graphs


class Fingerprint:
    """The nodes, operators, edges, attributes, shapes and constants of a model, by identity."""

    def __init__(self, model: ir.Model):
        self._parts = _parts(model)

    def differs(self, model: ir.Model) -> bool:
        """Whether `model` consists of other objects, or of the same in another way."""
        now = _parts(model)
        return len(now) != len(self._parts) or any(a is not b for a, b in zip(now, self._parts, strict=True))


def interface_of(model: ir.Model) -> list[list[str | None]]:
    """What the world outside knows a model by, which no pass may change."""
    return [[value.name for value in values] for values in (model.graph.inputs, model.graph.outputs)]


def _parts(model: ir.Model) -> list[Any]:
    parts: list[Any] = list(model.functions)
    for graph in all_graphs(model):
        parts += [*graph.inputs, *graph.outputs]
        parts += [value.name for value in (*graph.inputs, *graph.outputs)]
        for value in graph.initializers.values():
            parts += [value, value.const_value]
        for node in graph:
            parts += [node, node.domain, node.op_type, node.overload, *node.inputs, *node.attributes.values()]
            for value in node.outputs:
                parts += [value.shape, *(value.shape or ()), value.type, value.dtype]
    return parts
