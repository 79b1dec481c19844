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
    What that driver does around rules is done here: visitors at the border of each graph, constants made
    known where patterns look for them, and, for `as_function`, a model function of what was matched.
    """

    def __init__(self, rule: Any):
        self._rule = rule
        self._graph: Any = None
        # Indexing, counting and reporting look at the instance.
        self.label = str(rule.name or type(rule).__name__)  # type: ignore[misc]
        self.op_types = _root_types(rule)  # type: ignore[misc]

    def match_and_rewrite(self, node: ir.Node, rewriter: Rewriter) -> bool | str:
        """Let the rule match at `node`; insert, replace and erase through `rewriter`."""
        graph = node.graph
        if graph is None:
            return False
        self._enter(graph)
        delta = self._rule.try_rewrite(rewriter.model, graph, node)
        if delta is None:
            return False
        if delta.new_initializers and not isinstance(graph, ir.Graph):
            return "a function cannot hold the constants that the rule makes"
        _propagate(delta.new_nodes)
        if self._rule.as_function:
            _add_function(delta, graph, rewriter)
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

    def _enter(self, graph: Any) -> None:
        """Do at the border between two graphs what the rule's own driver does there."""
        if graph is self._graph:
            return
        before, self._graph = self._graph, graph
        if before is not None and self._rule.graph_post_visitor:
            self._rule.graph_post_visitor()
        _propagate(graph)
        if self._rule.graph_pre_visitor:
            self._rule.graph_pre_visitor()


def _propagate(nodes: Any) -> None:
    """Let values that Constant nodes make know it, as patterns ask the values."""
    from onnxscript.optimizer import basic_constant_propagation

    basic_constant_propagation(nodes)


def _add_function(delta: Any, graph: Any, rewriter: Rewriter) -> None:
    """Make a model function of what was matched, to be called by the one new node.

    Raises:
        PassError: There is more than one new node.
    """
    from onnxscript.rewriter._rewrite_rule import _copy_for_function, _get_new_overload

    if len(delta.new_nodes) != 1:
        raise PassError("a rule with as_function=True must make exactly one node")
    (call,) = delta.new_nodes
    call.overload = _get_new_overload(rewriter.model, call.domain, call.op_type)
    matched = set(delta.match.nodes)
    nodes = [node for node in graph if node in matched]
    inputs, copies, outputs = _copy_for_function(call.inputs, nodes, delta.match.outputs)
    # Calls name what they pass, and parameters must have names of their own.
    for i, value in enumerate(inputs):
        value.name = value.name or f"unused_{i}"
    domains = {node.domain for node in copies}
    imports = {domain: n for domain, n in rewriter.model.opset_imports.items() if domain in domains}
    body = ir.Graph(inputs, outputs, nodes=copies, opset_imports=imports)
    rewriter.add_function(ir.Function(call.domain, call.op_type, call.overload, graph=body, attributes=()))


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
        # `op_identifier()` knows it too, but not in the commuted copies of a rule.
        domain, op_type = (getattr(part, "value", None) for part in (node.domain, node.op))
        if domain is None or op_type is None:
            return ()
        domain, op_type = domain(), op_type()
        names.append(f"{domain}::{op_type}" if domain not in ("", "ai.onnx") else op_type)
    return tuple(dict.fromkeys(names))


def _is_used(node: ir.Node) -> bool:
    return any(output.uses() or output.is_graph_output() for output in node.outputs)
