"""The greedy worklist driver: rules to a fixpoint, indexed by op type.

Every node is visited once; after a rewrite only the nodes around it are visited again. The order is that of
the graph and of the rules, so a run is deterministic.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import onnx_ir as ir

from ..ir.bodies import GRAPH_TYPES, bodies_of
from ..ir.errors import GraphwrightError, PassCrash, ShapeError
from .base import Firing, PassContext
from .functions.definitions import DOMAIN
from .rules import NoMatch, Rule

if TYPE_CHECKING:
    from .rewriter import Rewriter

# A rule set that terminates needs a few rewrites per node; this is far beyond any of them.
_REWRITES_PER_NODE = 8


def drive(model: ir.Model, rules: Sequence[Rule], context: PassContext) -> bool:
    """Apply `rules` everywhere in `model` until none fires: in subgraphs too, and in functions but our own.

    Returns:
        Whether anything changed.

    Raises:
        PassCrash: A rule raised, or the rules do not come to an end; the message names the rule and the node.
    """
    rewriter = context.rewriter(model)
    by_op, everywhere = _index(rules)
    nodes = _starts(model, by_op, bool(everywhere))
    worklist = dict.fromkeys(reversed(nodes))
    budget = _REWRITES_PER_NODE * _size(model) + 1000
    refusals: dict[ir.Node, dict[str, None]] = {}
    active, limit, explain = context.active, context.rewrite_limit, context.explain
    picky = active is not None and not (active.only is None and active.skip is None)
    local_shapes = active is not None and active.lossless
    fired = 0
    while worklist:
        node, _ = worklist.popitem()
        if node.graph is None:
            continue
        if picky and active is not None and not active.selects(node):
            continue
        if refusals:
            refusals.pop(node, None)
        for rule in by_op.get(_key(node)) or everywhere:
            if limit is not None and len(context.firings) >= limit:
                return fired > 0
            name, op_type = node.name or "", node.op_type
            outcome = _attempt(rule, node, rewriter)
            if explain is not None and explain == name:
                context.attempts.append((rule.label, _said(outcome)))
            if outcome is False or isinstance(outcome, NoMatch):
                continue
            if isinstance(outcome, str):
                refusals.setdefault(node, {})[outcome] = None
                continue
            if not outcome:
                continue
            refusals.pop(node, None)
            fired += 1
            context.count(rule.label)
            context.firings.append(Firing(rule.label, name, op_type, rewriter.take_created()))
            if fired > budget:
                raise PassCrash(_endless(rule, node, context.firings, fired, _size(model)))
            if local_shapes:
                _update_shapes(rewriter, rule, name, op_type)
            for touched in reversed([node, *rewriter.take_touched()]):
                if touched.graph is not None and (everywhere or _key(touched) in by_op):
                    worklist.pop(touched, None)
                    worklist[touched] = None
            break
    rewriter.drop_orphans()
    for node, reasons in refusals.items():
        if node.graph is not None:
            context.leave(node, "; ".join(reasons))
    return fired > 0


def _starts(model: ir.Model, by_op: dict[str, list[Rule]], everywhere: bool) -> list[ir.Node]:
    """Nodes at which a rule may start: the main graph, its bodies, then functions and theirs."""
    graphs = [model.graph]
    # The bodies of our own functions are what a fusion put there.
    graphs += [function.graph for function in model.functions.values() if function.domain != DOMAIN]
    found = []
    for graph in graphs:
        for node in graph:
            if everywhere or _key(node) in by_op:
                found.append(node)
            for attribute in node.attributes.data.values():
                if attribute.type in GRAPH_TYPES:
                    graphs.extend(bodies_of(node))
                    break
    return found


def _size(model: ir.Model) -> int:
    return len(model.graph) + sum(len(function) for function in model.functions.values())


def _update_shapes(rewriter: Rewriter, rule: Rule, name: str, op_type: str) -> None:
    """Bring the shapes around a rewrite up to date, so that the next one sees them."""
    try:
        rewriter.settle_shapes()
    except ShapeError as error:
        raise ShapeError(f"after rule '{rule.label}' at node '{name}' ({op_type}): {error}") from error


def _endless(rule: Rule, node: ir.Node, firings: list[Firing], fired: int, size: int) -> str:
    """Name the rule and node, and those that take turns with it."""
    recent = dict.fromkeys(f"'{f.rule}' at '{f.node}'" for f in reversed(firings[-64:]))
    others = list(recent)[1:4]
    return (
        f"rule '{rule.label}' keeps firing at node '{firings[-1].node}' ({firings[-1].op_type}): "
        f"no fixpoint after {fired} rewrites of {size} nodes"
        + (f"; it takes turns with {', '.join(others)}" if others else "")
    )


def _key(node: ir.Node) -> str:
    """How `Rule.op_types` names the operator of a node."""
    domain = node.domain
    return node.op_type if domain == "" or domain == "ai.onnx" else f"{domain}::{node.op_type}"


def _said(outcome: bool | str) -> str:
    if isinstance(outcome, str):
        return str(outcome)
    return "fired" if outcome else "not meant for this node"


def _attempt(rule: Rule, node: ir.Node, rewriter: Rewriter) -> bool | str:
    rewriter.rule = rule.label
    # The name is read first: a rule that fails may have changed the node.
    name, op_type = node.name, node.op_type
    try:
        return rule.match_and_rewrite(node, rewriter)
    except PassCrash:
        raise
    except GraphwrightError as error:
        raise PassCrash(f"rule '{rule.label}' at node '{name}' ({op_type}): {error}") from error
    except Exception as error:
        raise PassCrash(
            f"rule '{rule.label}' at node '{name}' ({op_type}) raised {type(error).__name__}: {error}"
        ) from error
    finally:
        rewriter.rule = ""


def _index(rules: Sequence[Rule]) -> tuple[dict[str, list[Rule]], list[Rule]]:
    """Return the rules to try by op type, and those to try at nodes no other rule names."""
    ordered = sorted(rules, key=lambda rule: -rule.benefit)
    everywhere = [rule for rule in ordered if not rule.op_types]
    names = dict.fromkeys(name for rule in ordered for name in rule.op_types)
    by_op = {name: [r for r in ordered if not r.op_types or name in r.op_types] for name in names}
    return by_op, everywhere
