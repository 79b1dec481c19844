"""Stepping through a graph node by node, from anywhere in it."""

from __future__ import annotations

from typing import Any

import onnx_ir as ir

_LIST = "_nodes"


def node_behind(node: ir.Node) -> ir.Node | None:
    """Return the node behind `node` in its graph, or None where it is the last."""
    return _step(node, "next")


def node_before(node: ir.Node) -> ir.Node | None:
    """Return the node before `node` in its graph, or None where it is the first."""
    return _step(node, "prev")


def _step(node: ir.Node, direction: str) -> ir.Node | None:
    graph: Any = node.graph
    try:
        # `onnx_ir` keeps a linked list but offers no way to enter it in the middle.
        return getattr(getattr(graph, _LIST)._value_ids_to_boxes[id(node)], direction).value
    except AttributeError:
        nodes = list(graph)
        at = nodes.index(node) + (1 if direction == "next" else -1)
        return nodes[at] if 0 <= at < len(nodes) else None
