"""The greedy worklist driver: rules to a fixpoint, indexed by op type.

Every node is visited once; after a rewrite only the nodes around it are visited again. The order is that of
the graph and of the rules, so a run is deterministic.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import onnx_ir as ir

from ..ir.bodies import graphs_of
from ..ir.errors import GraphwrightError, PassCrash
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
    nodes = [node for graph in graphs_of(model) for node in graph]
    for function in model.functions.values():
        # The bodies of our own functions are what a fusion put there.
        if function.domain != DOMAIN:
            nodes.extend(function.all_nodes())
    worklist = dict.fromkeys(reversed([n for n in nodes if everywhere or _key(n) in by_op]))
    budget = _REWRITES_PER_NODE * len(nodes) + 1000
    refusals: dict[ir.Node, dict[str, None]] = {}
    fired = 0
    while worklist:
        node, _ = worklist.popitem()
        if node.graph is None:
            continue
        candidates = by_op.get(_key(node), ())
        refusals.pop(node, None)
        for rule in candidates or everywhere:
            if node.graph is None or (context.active is not None and not context.active.selects(node)):
                break
            if context.rewrite_limit is not None and len(context.firings) >= context.rewrite_limit:
                return fired > 0
            name, op_type = node.name or "", node.op_type
            outcome = _attempt(rule, node, rewriter)
            if context.explain == name:
                context.attempts.append((rule.label, _said(outcome)))
            if isinstance(outcome, NoMatch):
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
                raise PassCrash(
                    f"rule '{rule.label}' keeps firing at node '{node.name}' ({node.op_type}): "
                    f"no fixpoint after {fired} rewrites of {len(nodes)} nodes"
                )
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


def _key(node: ir.Node) -> str:
    """How `Rule.op_types` names the operator of a node."""
    domain = node.domain
    return node.op_type if domain == "" or domain == "ai.onnx" else f"{domain}::{node.op_type}"


def _said(outcome: bool | str) -> str:
    if isinstance(outcome, str):
        return str(outcome)
    return "fired" if outcome else "not meant for this node"


def _attempt(rule: Rule, node: ir.Node, rewriter: Rewriter) -> bool | str:
    where = f"rule '{rule.label}' at node '{node.name}' ({node.op_type})"
    rewriter.rule = rule.label
    try:
        return rule.match_and_rewrite(node, rewriter)
    except PassCrash:
        raise
    except GraphwrightError as error:
        raise PassCrash(f"{where}: {error}") from error
    except Exception as error:
        raise PassCrash(f"{where} raised {type(error).__name__}: {error}") from error
    finally:
        rewriter.rule = ""


def _index(rules: Sequence[Rule]) -> tuple[dict[str, list[Rule]], list[Rule]]:
    """Return the rules to try by op type, and those to try at nodes no other rule names."""
    ordered = sorted(rules, key=lambda rule: -rule.benefit)
    everywhere = [rule for rule in ordered if not rule.op_types]
    names = dict.fromkeys(name for rule in ordered for name in rule.op_types)
    by_op = {name: [r for r in ordered if not r.op_types or name in r.op_types] for name in names}
    return by_op, everywhere
