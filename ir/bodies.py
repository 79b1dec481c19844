"""Graphs inside nodes: the bodies of If, Loop, Scan and their kin."""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir

from .sweep import GRAPH_TYPES, nodes_with_bodies

__all__ = ["GRAPH_TYPES", "all_graphs", "bodies_of", "graphs_in", "graphs_of", "nodes_at", "nodes_of"]


def bodies_of(node: ir.Node) -> list[ir.Graph]:
    """Return the subgraphs a node carries in its attributes, in attribute order."""
    bodies: list[ir.Graph] = []
    for attribute in node.attributes.data.values():
        if attribute.type not in GRAPH_TYPES or attribute.is_ref():
            continue
        if attribute.type == ir.AttributeType.GRAPH:
            bodies.append(attribute.as_graph())
        else:
            bodies.extend(attribute.as_graphs())
    return bodies


def graphs_of(model: ir.Model) -> list[ir.Graph]:
    """Return the main graph and all bodies in it, outer ones first (`Model.graphs`, only faster)."""
    return graphs_in(model.graph)


def graphs_in(root: ir.Graph) -> list[ir.Graph]:
    """Return a graph and all bodies in it, outer ones first."""
    graphs = [root]
    for graph in graphs:
        for node in nodes_with_bodies(graph):
            graphs.extend(bodies_of(node))
    return graphs


def nodes_of(graph: ir.Graph) -> Iterator[ir.Node]:
    """Yield the nodes of a graph, each followed by those of its bodies (`Graph.all_nodes`, only faster)."""
    for node in graph:
        yield node
        for attribute in node.attributes.data.values():
            if attribute.type in GRAPH_TYPES and not attribute.is_ref():
                for body in bodies_of(node):
                    yield from nodes_of(body)
                break


def nodes_at(node: ir.Node) -> Iterator[ir.Node]:
    """Yield a node and those of its bodies."""
    yield node
    for body in bodies_of(node):
        yield from nodes_of(body)


def all_graphs(model: ir.Model) -> Iterator[ir.Graph]:
    """Yield the main graph, those of functions (`Model.graphs` leaves them out), and every body inside."""
    for root in (model.graph, *(function.graph for function in model.functions.values())):
        yield root
        yield from _bodies_in(root)


def _bodies_in(graph: ir.Graph) -> Iterator[ir.Graph]:
    for node in nodes_with_bodies(graph):
        bodies = bodies_of(node)
        yield from bodies
        for body in bodies:
            yield from _bodies_in(body)
