"""`eliminate-dead`: remove what no output depends on."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from ..ir.bodies import graphs_in, graphs_of
from ..ir.uses import is_read, is_unread
from .base import Pass, PassContext
from .registry import register
from .rewriter import Rewriter


@register
@dataclass(frozen=True)
class EliminateDead(Pass):
    """Remove nodes, initializers and functions that no graph output depends on.

    A node is dead when none of its outputs is read or is a graph output; uses inside If/Loop/Scan bodies
    count. Graph inputs stay, used or not: they are the model's signature.
    """

    name: ClassVar[str] = "eliminate-dead"
    settles: ClassVar[bool] = True

    def apply(self, model: ir.Model, context: PassContext) -> None:
        """Sweep every graph backwards once, then drop unused initializers and functions."""
        rewriter = context.rewriter(model)
        families = [rewriter.graphs(), *(graphs_in(f.graph) for f in model.functions.values())]
        for graphs in families:
            for graph in reversed(graphs):
                self._sweep(graph, rewriter, context)
        for graph in rewriter.graphs():
            for value in list(graph.initializers.values()):
                if not is_read(value) and not value.is_graph_input():
                    rewriter.remove_initializer(value)
                    context.count("initializers removed")
        for identifier in _unused_functions(model):
            del model.functions[identifier]
            rewriter.changes += 1
            context.count("functions removed")

    def may_change(self, model: ir.Model, touched: Collection[ir.Node]) -> bool:
        """Whether something is unread now: what was read before is touched when its reader goes."""
        if model.functions or any(node.graph is not None and is_unread(node) for node in touched):
            return True
        return any(not is_read(value) for value in model.graph.initializers.values())

    def _sweep(self, graph: ir.Graph, rewriter: Rewriter, context: PassContext) -> None:
        for node in reversed(graph):
            if not is_unread(node):
                continue
            if not self.selects(node):
                continue
            rewriter.detach_bodies(node)
            rewriter.erase(node)
            context.count("nodes removed")


def _unused_functions(model: ir.Model) -> list[tuple[str, str, str]]:
    if not model.functions:
        return []
    reached: set[tuple[str, str, str]] = set()
    pending = [node.op_identifier() for graph in graphs_of(model) for node in graph]
    while pending:
        identifier = pending.pop()
        if identifier in model.functions and identifier not in reached:
            reached.add(identifier)
            pending.extend(node.op_identifier() for node in model.functions[identifier].all_nodes())
    return [identifier for identifier in model.functions if identifier not in reached]
