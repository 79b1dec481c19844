"""Where the nodes and values of a model are, bodies included, in terms that hold for every copy of it."""

from __future__ import annotations

import onnx_ir as ir

from ...ir.bodies import bodies_of


def ordered_nodes(model: ir.Model) -> list[ir.Node]:
    """The nodes of the main graph in order, then those of its bodies, outer ones first."""
    nodes = list(model.graph)
    for node in nodes:
        # The list grows while it is walked, which is how inner bodies are reached.
        for body in bodies_of(node):
            nodes.extend(body)
    return nodes


def addresses(model: ir.Model) -> dict[str, ir.Value]:
    """All values that are given, made or stored, by name.

    Names may occur again in another body; later ones, in the order of `ordered_nodes`, are numbered.
    """
    nodes = ordered_nodes(model)
    bodies = [body for node in nodes for body in bodies_of(node)]
    found: dict[str, ir.Value] = {}
    values = [value for node in nodes for value in node.outputs]
    values += [*model.graph.initializers.values(), *model.graph.inputs]
    for body in bodies:
        values += [*body.inputs, *body.initializers.values()]
    for value in dict.fromkeys(values):
        name, number = str(value.name), 0
        while name in found:
            number += 1
            name = f"{value.name}#{number}"
        found[name] = value
    return found
