"""What a rewriter remembers of its own doing: for the driver, shapes, the verifier and reports."""

from __future__ import annotations

from collections.abc import Collection, Iterable

import onnx_ir as ir

from ..ir.bodies import GRAPH_TYPES, graphs_of
from ..ir.incremental import infer_near
from .naming import Names


class Journal:
    """The memory of one rewriter.

    Attributes:
        model: The model being changed.
        changes: Number of mutations so far; 0 means the graph is untouched.
    """

    def __init__(self, model: ir.Model):
        self.model = model
        self.changes = 0
        self._created: list[str] = []
        self._orphans: dict[ir.Value, None] = {}
        self._touched: dict[ir.Node, None] = {}
        self._taken: dict[ir.Node, None] = {}
        self._stale: dict[ir.Node, None] = {}
        self._unsettled: dict[ir.Node, None] = {}
        self._altered: dict[ir.Node | ir.Value, None] = {}
        self._names: Names | None = None
        self._flat: bool | None = None

    def graphs(self) -> list[ir.Graph]:
        """Return the main graph and all bodies in it, outer ones first; no search where there are none."""
        if self._flat:
            return [self.model.graph]
        found = graphs_of(self.model)
        self._flat = len(found) == 1
        return found

    def take_touched(self) -> list[ir.Node]:
        """Return the nodes whose surroundings changed since the last call."""
        touched = list(self._touched)
        self._taken.update(self._touched)
        self._touched.clear()
        return touched

    def take_history(self) -> dict[ir.Node, None]:
        """Return the nodes whose surroundings changed since the last call, whoever took them meanwhile."""
        history, self._taken = self._taken, {}
        history.update(self._touched)
        return history

    def take_stale(self) -> list[ir.Node]:
        """Return the nodes whose output shapes may have changed since the last call."""
        stale = list(self._unsettled | self._stale)
        self._unsettled.clear()
        self._stale.clear()
        return stale

    def settle_shapes(self) -> None:
        """Infer what follows from the last rewrites where their neighbourhood tells; the rest stays stale.

        Raises:
            ShapeError: Shapes contradict each other.
        """
        if self._stale:
            stale = dict(self._stale)
            self._stale.clear()
            self._unsettled.update(dict.fromkeys(infer_near(self.model, stale)))

    @property
    def unsettled(self) -> bool:
        """Whether shapes are left to infer that `settle_shapes` could not tell."""
        return bool(self._unsettled or self._stale)

    @property
    def altered(self) -> Collection[ir.Node | ir.Value]:
        """Nodes and initializers that are new, or read, say or hold something else than before."""
        return self._altered.keys()

    def take_created(self) -> tuple[str, ...]:
        """Return the names of the nodes made since the last call."""
        created = tuple(self._created)
        self._created.clear()
        return created

    def unique_name(self, hint: str) -> str:
        """Return `hint`, or `hint_N` where `hint` is taken; the result is taken afterwards."""
        if self._names is None:
            self._names = Names(self.model)
        return self._names.unique(hint)

    def _may_hold(self, attributes: Iterable[ir.Attr]) -> None:
        """Remember that attributes were added, which may be bodies."""
        if self._flat and any(attribute.type in GRAPH_TYPES for attribute in attributes):
            self._flat = None

    def _touch(self, node: ir.Node | None) -> None:
        if node is not None and node.graph is not None:
            self._touched[node] = None

    def _note(self, node: ir.Node) -> None:
        """Remember that a node is new, or reads or says something else than before."""
        self._touch(node)
        self._stale[node] = None
        self._altered[node] = None

    def _changed(self) -> None:
        self.changes += 1

    def _forget(self, node: ir.Node) -> None:
        """Leave out a node that is gone."""
        self._touched.pop(node, None)
        self._stale.pop(node, None)
        self._unsettled.pop(node, None)
        self._altered.pop(node, None)
