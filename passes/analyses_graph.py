"""Analyses of structure: which nodes there are, in which order, and who reads what across bodies."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import onnx_ir as ir

from ..ir.bodies import all_graphs, bodies_of, nodes_of
from .analyses import Analyses, Analysis, Changes
from .neighbours import node_before, node_behind

_GAP = 1 << 24


class OpIndex(Analysis):
    """Nodes by operator, in all graphs, bodies and functions; other domains as `domain::type`."""

    def __init__(self, by_op: dict[str, dict[ir.Node, None]], keys: dict[ir.Node, str]):
        self._by_op = by_op
        self._keys = keys

    @classmethod
    def compute(cls, model: ir.Model, analyses: Analyses) -> OpIndex:
        """Walk every graph once."""
        index = cls({}, {})
        for graph in all_graphs(model):
            for node in graph:
                index._add(node)
        return index

    def nodes(self, *op_types: str) -> list[ir.Node]:
        """Nodes of these operators, as found: in graph order until rewrites add some at the end."""
        return [node for op_type in op_types for node in self._by_op.get(op_type, ())]

    def count(self, op_type: str) -> int:
        """How many nodes of an operator there are."""
        return len(self._by_op.get(op_type, ()))

    def __contains__(self, op_type: str) -> bool:
        return bool(self._by_op.get(op_type))

    def update(self, changes: Changes) -> bool:
        """Take erased nodes out and new ones in."""
        for node in changes.nodes:
            if node.graph is not None:
                self._add(node)
            elif node in self._keys:
                del self._by_op[self._keys.pop(node)][node]
        return True

    def facts(self) -> Any:
        """The nodes of each operator, in any order."""
        return {op_type: set(nodes) for op_type, nodes in self._by_op.items() if nodes}

    def _add(self, node: ir.Node) -> None:
        if node in self._keys:
            return
        key = node.op_type if node.domain in ("", "ai.onnx") else f"{node.domain}::{node.op_type}"
        self._keys[node] = key
        self._by_op.setdefault(key, {})[node] = None


class Order(Analysis):
    """What comes before what, and what can be read where (dominance: ONNX scopes and order)."""

    def __init__(self, labels: dict[ir.Node, int], owners: dict[Any, ir.Node]):
        self._labels = labels
        self._owners = owners

    @classmethod
    def compute(cls, model: ir.Model, analyses: Analyses) -> Order:
        """Number the nodes of each graph, with gaps for those to come."""
        labels: dict[ir.Node, int] = {}
        owners: dict[Any, ir.Node] = {}
        for graph in all_graphs(model):
            for i, node in enumerate(graph, 1):
                labels[node] = i * _GAP
                owners.update((body, node) for body in bodies_of(node))
        return cls(labels, owners)

    def before(self, a: ir.Node, b: ir.Node) -> bool:
        """Whether `a` comes before `b`; both of one graph."""
        return self._labels[a] < self._labels[b]

    def visible(self, value: ir.Value, node: ir.Node) -> bool:
        """Whether `node` may read `value`: it is made earlier in the same graph or in one around it."""
        producer = value.producer()
        home = producer.graph if producer is not None else value.graph
        here: ir.Node | None = node
        while here is not None:
            if here.graph is home:
                return producer is None or self._labels[producer] < self._labels[here]
            here = self._owners.get(here.graph)
        return False

    def update(self, changes: Changes) -> bool:
        """Give new nodes labels between their neighbours'; False where there is no room."""
        for node in changes.nodes:
            if node.graph is None:
                self._labels.pop(node, None)
            elif node not in self._labels and (bodies_of(node) or not self._label(node)):
                return False
        return True

    def facts(self) -> Any:
        """The nodes of each graph in order."""
        graphs: dict[Any, list[ir.Node]] = {}
        for node in self._labels:
            graphs.setdefault(node.graph, []).append(node)
        return {graph: sorted(nodes, key=self._labels.__getitem__) for graph, nodes in graphs.items()}

    def _label(self, node: ir.Node) -> bool:
        """Label `node` and the unlabelled run that it stands in."""
        run = [node]
        before, after = node_before(node), node_behind(node)
        while before is not None and before not in self._labels:
            run.insert(0, before)
            before = node_before(before)
        while after is not None and after not in self._labels:
            run.append(after)
            after = node_behind(after)
        low = self._labels[before] if before is not None else 0
        high = self._labels[after] if after is not None else low + (len(run) + 1) * _GAP
        step = (high - low) // (len(run) + 1)
        if step == 0:
            return False
        self._labels.update((each, low + step * i) for i, each in enumerate(run, 1))
        return True


class Uses(Analysis):
    """Who reads what, where bodies count for the node that owns them.

    `Value.uses()` knows the readers inside bodies, but not which node of the value's own graph they stand in.
    """

    def __init__(self, captured: dict[ir.Node, tuple[ir.Value, ...]], inside: dict[ir.Node, ir.Node]):
        self._captured = captured
        self._inside = inside

    @classmethod
    def compute(cls, model: ir.Model, analyses: Analyses) -> Uses:
        """Walk every body once for each node around it."""
        captured: dict[ir.Node, tuple[ir.Value, ...]] = {}
        inside: dict[ir.Node, ir.Node] = {}
        for graph in all_graphs(model):
            for node in graph:
                bodies = bodies_of(node)
                for body in bodies:
                    inside.update((inner, node) for inner in body)
                if bodies:
                    captured[node] = tuple(_captures(node))
        return cls(captured, inside)

    def reads(self, node: ir.Node) -> tuple[ir.Value, ...]:
        """The inputs of `node` and what its bodies read of the graphs around it, each once."""
        inputs = [value for value in node.inputs if value is not None]
        return tuple(dict.fromkeys([*inputs, *self._captured.get(node, ())]))

    def readers(self, value: ir.Value) -> tuple[ir.Node, ...]:
        """The nodes of the value's own graph that read it, themselves or in a body, each once."""
        producer = value.producer()
        home = producer.graph if producer is not None else value.graph
        found: dict[ir.Node, None] = {}
        for user, _ in value.uses():
            here: ir.Node | None = user
            while here is not None and here.graph is not home:
                here = self._inside.get(here)
            found[here if here is not None else user] = None
        return tuple(found)

    def producers(self, node: ir.Node) -> tuple[ir.Node, ...]:
        """The nodes that make what `node` reads, each once."""
        makers = (value.producer() for value in self.reads(node))
        return tuple(dict.fromkeys(maker for maker in makers if maker is not None))

    def update(self, changes: Changes) -> bool:
        """Nothing to do as long as no body is concerned: plain uses are kept by the graph itself."""
        return not any(
            node in self._inside
            or node in self._captured
            or bodies_of(node)
            or _in_body(node, self._captured)
            for node in changes.nodes
        )

    def facts(self) -> Any:
        """Captured values by node."""
        return {node: frozenset(values) for node, values in self._captured.items()}


def _in_body(node: ir.Node, owners: dict[ir.Node, Any]) -> bool:
    return bool(owners) and any(node.graph is body for owner in owners for body in bodies_of(owner))


def _captures(node: ir.Node) -> Iterator[ir.Value]:
    """Values of outer graphs that the bodies of `node` read or return."""
    own: set[ir.Value] = set()
    for body in bodies_of(node):
        own.update(body.inputs, body.initializers.values())
        for inner in nodes_of(body):
            own.update(inner.outputs)
            for nested in bodies_of(inner):
                own.update(nested.inputs, nested.initializers.values())
    seen: dict[ir.Value, None] = {}
    for body in bodies_of(node):
        for inner in nodes_of(body):
            seen.update((value, None) for value in inner.inputs if value is not None and value not in own)
        seen.update((value, None) for value in body.outputs if value not in own)
    yield from seen
