"""Analyses of values: shapes and types, what is constant, and what each node costs."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import onnx_ir as ir

from ..ir.bodies import all_graphs, bodies_of, nodes_of
from ..ir.constants import constant_tensor, is_deterministic
from ..ir.macs import Size, node_macs, total
from .analyses import Analyses, Analysis, Changes

Signature = tuple[ir.DataType | None, ir.Shape | None]


class Shapes(Analysis):
    """Element type and shape of every value: what a rewrite found, to be held against what it leaves."""

    def __init__(self, known: dict[ir.Value, Signature]):
        self._known = known

    @classmethod
    def compute(cls, model: ir.Model, analyses: Analyses) -> Shapes:
        """Write down what the graph says now."""
        known: dict[ir.Value, Signature] = {}
        for graph in all_graphs(model):
            values = [*graph.inputs, *graph.initializers.values()]
            for node in graph:
                values.extend(node.outputs)
            known.update((value, (value.dtype, value.shape)) for value in values)
        return cls(known)

    def of(self, value: ir.Value) -> Signature:
        """Type and shape of a value; None for what is not known."""
        return self._known.get(value, (None, None))

    def elements(self, value: ir.Value) -> int | None:
        """Number of elements, None where a dimension is not fixed."""
        shape = self.of(value)[1]
        if shape is None or not shape.is_static():
            return None
        return math.prod(dim for dim in shape.dims if isinstance(dim, int))

    def bytes(self, value: ir.Value) -> int | None:
        """Bytes the value takes in memory, None where a dimension or the type is not known."""
        count, dtype = self.elements(value), self.of(value)[0]
        if count is None or dtype is None or dtype == ir.DataType.STRING:
            return None
        return -(-count * dtype.bitwidth // 8)

    def update(self, changes: Changes) -> bool:
        """Look again at what was touched, and from there on as long as something is different."""
        return self.mend(changes) is not None

    def mend(self, changes: Changes) -> dict[ir.Value, None] | None:
        """As `update`, but return the values that are different now; None where a body is concerned."""
        different = dict.fromkeys(changes.values)
        self._known.update((value, (value.dtype, value.shape)) for value in changes.values)
        pending = dict.fromkeys(changes.nodes)
        pending.update((user, None) for value in changes.values for user in value.consumers())
        while pending:
            node, _ = pending.popitem()
            if node.graph is None:
                for value in node.outputs:
                    self._known.pop(value, None)
                continue
            if bodies_of(node):
                return None
            for value in node.outputs:
                now = (value.dtype, value.shape)
                if self._known.get(value) != now:
                    self._known[value] = now
                    different[value] = None
                    pending.update(dict.fromkeys(value.consumers()))
        return different

    def facts(self) -> Any:
        """Types and shapes of what is still in a graph; an initializer that came or went says nothing."""
        return {
            value: (dtype, shape and tuple(shape))
            for value, (dtype, shape) in self._known.items()
            if value.producer() is not None or value.is_graph_input()
        }


class Constants(Analysis):
    """Which values do not depend on the inputs of the model, stored or computed."""

    def __init__(self, constant: set[ir.Value]):
        self._constant = constant

    @classmethod
    def compute(cls, model: ir.Model, analyses: Analyses) -> Constants:
        """Follow constants through the operators that compute the same every time, in one walk."""
        found = cls(set())
        for graph in all_graphs(model):
            found._constant.update(value for value in graph.initializers.values() if _stored(value))
            for node in graph:
                if found._computes(node):
                    found._constant.update(node.outputs)
        return found

    def is_constant(self, value: ir.Value | None) -> bool:
        """Whether a value is the same in every run; an absent one is."""
        return value is None or value in self._constant or (value.producer() is None and _stored(value))

    def update(self, changes: Changes) -> bool:
        """Ask again at what was touched, and from there on as long as the answer is another one."""
        pending = dict.fromkeys(changes.nodes)
        for value in changes.values:
            (self._constant.add if _stored(value) else self._constant.discard)(value)
            pending.update(dict.fromkeys(value.consumers()))
        while pending:
            node, _ = pending.popitem()
            now = node.graph is not None and self._computes(node)
            for value in node.outputs:
                if (value in self._constant) == now:
                    continue
                (self._constant.add if now else self._constant.discard)(value)
                pending.update(dict.fromkeys(value.consumers()))
        return True

    def facts(self) -> Any:
        """The constant values that some node makes."""
        return {value for value in self._constant if value.producer() is not None}

    def _computes(self, node: ir.Node) -> bool:
        if bodies_of(node) or not node.outputs or not is_deterministic(node):
            return False
        return all(self.is_constant(value) for value in node.inputs)


def _stored(value: ir.Value) -> bool:
    return value.const_value is not None and not value.is_graph_input() and constant_tensor(value) is not None


@dataclass(frozen=True)
class Cost:
    """What one node costs in one run.

    Attributes:
        macs: Multiply-accumulates, a formula where dimensions are symbolic, None where they are not known.
        read: Bytes of its inputs, None where one is not known.
        written: Bytes of its outputs, None where one is not known.
    """

    macs: Size | None
    read: int | None
    written: int | None

    @property
    def intensity(self) -> float | None:
        """Multiply-accumulates per byte moved: low means that memory is the limit. None if not known."""
        if not isinstance(self.macs, int) or self.read is None or self.written is None:
            return None
        return self.macs / max(self.read + self.written, 1)


class Costs(Analysis):
    """Multiply-accumulates and bytes moved, node by node. Bodies count once, for their own nodes."""

    needs = (Shapes,)

    def __init__(self, shapes: Shapes):
        self._shapes = shapes
        self._by_node: dict[ir.Node, Cost] = {}

    @classmethod
    def compute(cls, model: ir.Model, analyses: Analyses) -> Costs:
        """Add up each node by its shapes."""
        costs = cls(Shapes.compute(model, analyses))
        roots = [model.graph, *(function.graph for function in model.functions.values())]
        costs._look_at(node for root in roots for node in nodes_of(root))
        return costs

    def of(self, node: ir.Node) -> Cost:
        """The cost of one node."""
        return self._by_node[node]

    def macs(self) -> Size | None:
        """Multiply-accumulates of all nodes; None where one is not known."""
        found = [cost.macs for cost in self._by_node.values()]
        known = [macs for macs in found if macs is not None]
        return total(known) if len(known) == len(found) else None

    def moved(self) -> int | None:
        """Bytes read and written by all nodes; None where one is not known."""
        parts = [part for cost in self._by_node.values() for part in (cost.read, cost.written)]
        known = [part for part in parts if part is not None]
        return sum(known) if len(known) == len(parts) else None

    def update(self, changes: Changes) -> bool:
        """Count again what was touched and what reads a value whose shape is another one."""
        different = self._shapes.mend(changes)
        if different is None:
            return False
        nodes = dict.fromkeys(changes.nodes)
        for value in different:
            nodes.update(dict.fromkeys(value.consumers()))
        for node in nodes:
            if node.graph is None:
                self._by_node.pop(node, None)
        self._look_at(node for node in nodes if node.graph is not None)
        return True

    def facts(self) -> Any:
        """Cost by node."""
        return {node: (str(cost.macs), cost.read, cost.written) for node, cost in self._by_node.items()}

    def _look_at(self, nodes: Iterable[ir.Node]) -> None:
        for node in nodes:
            macs = 0 if bodies_of(node) else node_macs(node)[0]
            self._by_node[node] = Cost(macs, self._sum(node.inputs), self._sum(node.outputs))

    def _sum(self, values: Iterable[ir.Value | None]) -> int | None:
        sizes = [self._shapes.bytes(value) for value in values if value is not None and value.name]
        known = [size for size in sizes if size is not None]
        return sum(known) if len(known) == len(sizes) else None
