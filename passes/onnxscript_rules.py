"""Rules written for `onnxscript.rewriter` run in our driver unchanged: indexed, to a fixpoint, with
provenance.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import onnx_ir as ir

from ..ir.errors import PassError
from .rewriter import Rewriter
from .rules import Rule


class OnnxscriptRule(Rule):
    """One `onnxscript.rewriter.RewriteRule` (or pattern rule class) as a rule of ours.

    Names that its rewrite gives to initializers and nodes are made unique, which its own driver does not do.
    """

    def __init__(self, rule: Any):
        self._rule = rule
        # Indexing, counting and reporting look at the instance.
        self.label = str(rule.name or type(rule).__name__)  # type: ignore[misc]
        self.op_types = _root_types(rule)  # type: ignore[misc]

    def match_and_rewrite(self, node: ir.Node, rewriter: Rewriter) -> bool | str:
        """Let the rule match at `node`; insert, replace and erase through `rewriter`."""
        graph = node.graph
        if graph is None:
            return False
        delta = self._rule.try_rewrite(rewriter.model, graph, node)
        if delta is None:
            return False
        if delta.new_initializers and not isinstance(graph, ir.Graph):
            return "a function cannot hold the constants that the rule makes"
        if self._rule.as_function:
            return "rules with as_function=True are not supported"
        rewriter.adopt(node, delta.new_nodes, delta.new_initializers)
        for old, new in zip(delta.match.outputs, delta.new_outputs, strict=True):
            rewriter.replace_uses(old, new)
        if self._rule.remove_nodes:
            for matched in reversed(list(delta.match.nodes)):
                if matched.graph is not None and not _is_used(matched):
                    rewriter.erase(matched)
            for matched in delta.match.nodes:
                if matched.graph is not None and not _is_used(matched):
                    rewriter.erase(matched)
        return True


def from_onnxscript(rules: Any) -> list[Rule]:
    """Wrap a rule, a rule set, or an iterable of them.

    Args:
        rules: `RewriteRule`, `RewriteRuleSet`, or several.

    Raises:
        PassError: Something else.
    """
    if hasattr(rules, "try_rewrite"):
        return [OnnxscriptRule(rules)]
    if isinstance(rules, Iterable):
        return [wrapped for rule in rules for wrapped in from_onnxscript(rule)]
    raise PassError(f"{type(rules).__name__} is not an onnxscript rewrite rule")


def _root_types(rule: Any) -> tuple[str, ...]:
    """Operator types of the nodes at which the rule's own matcher starts; empty where it does not say."""
    pattern = getattr(rule, "_target_pattern", None)
    names = []
    for node in getattr(pattern, "output_nodes", ()):
        identifier = node.op_identifier()
        if identifier is None:
            return ()
        names.append(identifier[1])
    return tuple(dict.fromkeys(names))


def _is_used(node: ir.Node) -> bool:
    return any(output.uses() or output.is_graph_output() for output in node.outputs)
