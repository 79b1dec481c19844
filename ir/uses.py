"""Who reads a value, without a copy of the list: a constant may have thousands of readers."""

from __future__ import annotations

import onnx_ir as ir


def use_count(value: ir.Value) -> int:
    """Number of node inputs that read `value` (graph outputs do not count)."""
    return len(value._uses)


def is_read(value: ir.Value) -> bool:
    """Whether a node reads `value` or a graph returns it."""
    return bool(value._uses) or value.is_graph_output()


def is_unread(node: ir.Node) -> bool:
    """Whether nothing reads any output of `node`."""
    return not any(value._uses or value.is_graph_output() for value in node.outputs)
