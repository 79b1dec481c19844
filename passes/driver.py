"""The greedy worklist driver: rules to a fixpoint, indexed by op type.

Every node is visited once; after a rewrite only the nodes around it are visited again. The order is that of
the graph and of the rules, so a run is deterministic.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import onnx_ir as ir

from ..ir.bodies import graphs_in
from ..ir.errors import GraphwrightError, PassCrash, ShapeError
from ..ir.sweep import nodes_in
from .base import Firing, PassContext
from .functions.definitions import DOMAIN
from .rules import NoMatch, Rule
from .watchdog import RuleStuck, place_of

if TYPE_CHECKING:
    from .rewriter import Rewriter

# A rule set that terminates needs a few rewrites per node; this is far beyond any of them.
_REWRITES_PER_NODE = 8
# How far up from its root a rule may look; those that look farther find the rest in the sweep of a new run.
_SIGHT = 2


class Fixpoint:
    """What a set of rules found out about a model in which none of them fires any more.

    Handed to the next drive of the same rules, which then starts at the nodes around what was touched since.

    Attributes:
        reached: Whether there was a drive yet that came to its end.
        refusals: Candidates that must not be rewritten, with reasons.
        since: Nodes touched since then.
    """

    def __init__(self) -> None:
        self.reached = False
        self.refusals: dict[ir.Node, dict[str, None]] = {}
        self.since: dict[ir.Node, None] = {}


def drive(
    model: ir.Model, rules: Sequence[Rule], context: PassContext, fixpoint: Fixpoint | None = None
) -> bool:
    """Apply `rules` everywhere in `model` until none fires: in subgraphs too, and in functions but our own.

    Args:
        model: Changed in place.
        rules: In the order in which those of equal benefit are tried.
        context: Where rewrites and refusals are reported.
        fixpoint: What the last drive of these rules left, and this one will; None to look at every node.

    Returns:
        Whether anything changed.

    Raises:
        PassCrash: A rule raised, or the rules do not come to an end; the message names the rule and the node.
    """
    rewriter = context.rewriter(model)
    index = _Index(rules)
    if fixpoint is not None and fixpoint.reached:
        nodes = [node for node in _around(fixpoint.since) if index.starts_at(node)]
    else:
        nodes = _starts(model, rewriter, index)
    refusals = fixpoint.refusals if fixpoint is not None else {}
    fired = _exhaust(nodes, index, model, rewriter, refusals, context) if nodes else 0
    rewriter.drop_orphans()
    for node, reasons in refusals.items():
        if node.graph is not None:
            context.leave(node, "; ".join(reasons))
    if fixpoint is not None:
        fixpoint.reached = True
        fixpoint.since.clear()
    return fired > 0


def _exhaust(
    nodes: list[ir.Node],
    index: _Index,
    model: ir.Model,
    rewriter: Rewriter,
    refusals: dict[ir.Node, dict[str, None]],
    context: PassContext,
) -> int:
    """Apply rules at `nodes` and around every rewrite until none fires; returns how many rewrites it were."""
    worklist = dict.fromkeys(reversed(nodes))
    budget = _REWRITES_PER_NODE * _size(model) + 1000
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
        if limit is not None and len(context.firings) >= limit:
            break
        # Read first: a rule that fires may change the node.
        name, op_type = node.name or "", node.op_type
        told = explain is not None and explain == name
        for rule in index.all_at(node) if told else index.promising_at(node):
            rewriter.rule = rule.label
            try:
                outcome = rule.match_and_rewrite(node, rewriter)
            except PassCrash:
                rewriter.rule = ""
                raise
            except (Exception, SystemExit, RuleStuck) as error:
                rewriter.rule = ""
                raise _crash(error, rule, name, op_type) from error
            if told:
                context.attempts.append((rule.label, _said(outcome)))
            if outcome is False or isinstance(outcome, NoMatch):
                continue
            if isinstance(outcome, str):
                refusals.setdefault(node, {})[outcome] = None
                continue
            if not outcome:
                continue
            rewriter.rule = ""
            refusals.pop(node, None)
            fired += 1
            context.count(rule.label)
            context.firings.append(Firing(rule.label, name, op_type, rewriter.take_created()))
            if fired > budget:
                raise PassCrash(_endless(rule, context.firings, fired, _size(model)))
            if local_shapes:
                _update_shapes(rewriter, rule, name, op_type)
            for touched in reversed([node, *rewriter.take_touched()]):
                if touched.graph is not None and index.starts_at(touched):
                    worklist.pop(touched, None)
                    worklist[touched] = None
            break
    rewriter.rule = ""
    return fired


def _around(touched: Iterable[ir.Node]) -> list[ir.Node]:
    """The nodes at which a rule may see something of `touched`: those, what they read, and what follows."""
    found = {node: None for node in touched if node.graph is not None}
    made = [node.predecessors() for node in found]
    reached = list(found)
    for _ in range(_SIGHT):
        reached = [
            user
            for node in reached
            for output in node.outputs
            for user in output.consumers()
            if user not in found
        ]
        found.update(dict.fromkeys(reached))
    found.update((node, None) for nodes in made for node in nodes)
    return list(found)


def _starts(model: ir.Model, rewriter: Rewriter, index: _Index) -> list[ir.Node]:
    """Nodes at which a rule may start: the main graph, its bodies, then functions and theirs."""
    graphs = rewriter.graphs()
    # The bodies of our own functions are what a fusion put there.
    for function in model.functions.values():
        if function.domain != DOMAIN:
            graphs += graphs_in(function.graph)
    return [node for graph in graphs for node in nodes_in(graph) if index.starts_at(node)]


def _size(model: ir.Model) -> int:
    return len(model.graph) + sum(len(function) for function in model.functions.values())


def _update_shapes(rewriter: Rewriter, rule: Rule, name: str, op_type: str) -> None:
    """Bring the shapes around a rewrite up to date, so that the next one sees them."""
    try:
        rewriter.settle_shapes()
    except ShapeError as error:
        raise ShapeError(f"after rule '{rule.label}' at node '{name}' ({op_type}): {error}") from error


def _endless(rule: Rule, firings: list[Firing], fired: int, size: int) -> str:
    """Name the rule and node, and those that take turns with it."""
    maker = {made: f for f in firings for made in f.created if made != f.node}

    def where(last: Firing) -> str:
        source, steps = last, 0
        while source.node in maker and steps < fired:
            source, steps = maker[source.node], steps + 1
        return f"'{source.node}' ({source.op_type})" + (" and at what came of it" if steps else "")

    recent = dict.fromkeys(f"'{f.rule}' at {where(f)}" for f in reversed(firings[-64:]))
    others = list(recent)[1:4]
    return (
        f"rule '{rule.label}' keeps firing at node {where(firings[-1])}: "
        f"no fixpoint after {fired} rewrites of {size} nodes"
        + (f"; it takes turns with {', '.join(others)}" if others else "")
    )


def _key(node: ir.Node) -> str:
    """How `Rule.op_types` names the operator of a node."""
    domain = node._domain
    return node._op_type if domain == "" or domain == "ai.onnx" else f"{domain}::{node._op_type}"


def _said(outcome: bool | str) -> str:
    if isinstance(outcome, str):
        return str(outcome)
    return "fired" if outcome else "not meant for this node"


def _crash(error: BaseException, rule: Rule, name: str, op_type: str) -> PassCrash:
    what = f"rule '{rule.label}' at node '{name}' ({op_type})"
    if isinstance(error, GraphwrightError):
        return PassCrash(f"{what}: {error}")
    if isinstance(error, RuleStuck):
        return PassCrash(f"{what} {error}{place_of(error)} (option rule_timeout)")
    return PassCrash(f"{what} raised {type(error).__name__}: {error}")


class _Index:
    """Rules by the operator of a node and by those that make its inputs."""

    def __init__(self, rules: Sequence[Rule]):
        ordered = sorted(rules, key=lambda rule: -rule.benefit)
        self._everywhere = [rule for rule in ordered if not rule.op_types]
        names = dict.fromkeys(name for rule in ordered for name in rule.op_types)
        self._by_op = {name: [r for r in ordered if not r.op_types or name in r.op_types] for name in names}
        self._choosy = {name for name, found in self._by_op.items() if any(rule.reads for rule in found)}
        self._promising: dict[tuple[str, ...], list[Rule]] = {}

    def starts_at(self, node: ir.Node) -> bool:
        """Whether a rule may start at a node."""
        return bool(self._everywhere) or _key(node) in self._by_op

    def all_at(self, node: ir.Node) -> list[Rule]:
        """The rules that may start at a node."""
        return self._by_op.get(_key(node)) or self._everywhere

    def promising_at(self, node: ir.Node) -> list[Rule]:
        """Those whose inputs are made by what they look for."""
        key = _key(node)
        if key not in self._choosy:
            return self._by_op.get(key) or self._everywhere
        made = [key]
        for value in node._inputs:
            if value is not None:
                maker = value._producer
                if maker is not None:
                    made.append(_key(maker))
                elif value.is_initializer():
                    made.append("Constant")
        found = self._promising.get(tuple(made))
        if found is None:
            makers = set(made[1:])
            found = [r for r in self._by_op[key] if not r.reads or not makers.isdisjoint(r.reads)]
            self._promising[tuple(made)] = found
        return found
