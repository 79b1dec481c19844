"""Graphs inside nodes: the bodies of If, Loop, Scan and their kin."""

from __future__ import annotations

import onnx_ir as ir


def bodies_of(node: ir.Node) -> list[ir.Graph]:
    """Return the subgraphs a node carries in its attributes, in attribute order."""
    bodies: list[ir.Graph] = []
    for attribute in node.attributes.values():
        if attribute.is_ref():
            continue
        if attribute.type == ir.AttributeType.GRAPH:
            bodies.append(attribute.as_graph())
        elif attribute.type == ir.AttributeType.GRAPHS:
            bodies.extend(attribute.as_graphs())
    return bodies
