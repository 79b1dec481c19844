"""Removes constants that a rewrite left unread, so that files shrink without waiting for eliminate-dead."""

from __future__ import annotations

from collections.abc import Iterable

import onnx_ir as ir

from .rewriter import Rewriter


def drop_unread(rewriter: Rewriter, values: Iterable[ir.Value | None]) -> None:
    """Removes those of `values` that are initializers or Constant nodes and that nothing reads any more.

    Args:
        rewriter: what changes the graph.
        values: former operands; None and values of any other kind are passed over.
    """
    for value in dict.fromkeys(values):
        if value is None or value.uses() or value.is_graph_output() or value.is_graph_input():
            continue
        producer = value.producer()
        if producer is None:
            if value.is_initializer():
                rewriter.remove_initializer(value)
        elif producer.op_type == "Constant" and producer.graph is not None:
            rewriter.erase(producer)
