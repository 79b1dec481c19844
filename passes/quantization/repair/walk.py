"""Runs a model over some batches piece by piece, while its layers are being repaired.

Every node runs once per batch: what later nodes still read is kept, the rest forgotten. Nodes that are
changed before the walk reaches them run as they are then.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import onnx_ir as ir

from ....ir.bodies import bodies_of, nodes_of
from ....ir.errors import PassError
from ....ir.reference import Reference
from ...slicing import slice_model
from ..calibration import Calibration, Feeds

_LARGE = 1 << 20


def some_batches(calibration: Calibration, model: ir.Model, samples: int) -> list[Feeds]:
    """The first batches that hold at least `samples` samples, or all there are.

    Raises:
        PassError: The data does not suit the model.
    """
    found: list[Feeds] = []
    seen = 0
    for feeds in calibration.batches(model):
        found.append(feeds)
        seen += max((len(array) for array in feeds.values() if array.ndim), default=1)
        if seen >= samples:
            break
    return found


class Walk:
    """Values of one model over some batches, in graph order.

    Args:
        model: Read live; nodes that the walk has not reached may change.
        batches: The feeds.
    """

    def __init__(self, model: ir.Model, batches: Sequence[Feeds]):
        self._model = model
        self._known: list[dict[str, np.ndarray]] = [dict(feeds) for feeds in batches]
        self._done: set[str] = set()
        self._owner = {
            inner: node for node in model.graph for body in bodies_of(node) for inner in nodes_of(body)
        }

    def values(self, names: Sequence[str]) -> list[list[np.ndarray]]:
        """What the values are, by batch and in the order of `names`. Nodes up to them count as done.

        Args:
            names: Values of the main graph that were not passed yet.

        Raises:
            PassError: A value on the way has no known shape, or was passed.
            ModelError: The reference cannot run a node.
        """
        self._advance(names)
        return [[known[name] for name in names] for known in self._known]

    def peek(self, name: str) -> Iterator[np.ndarray]:
        """One value in each batch, computed from what is known, without going on."""
        piece = self._piece([name])
        if piece is None:
            yield from (known[name] for known in self._known)
            return
        reference, inputs, _ = piece
        for known in self._known:
            yield reference.run_values({each: known[each] for each in inputs}, [name])[name]

    def _forget(self, names: Sequence[str]) -> None:
        """Drop what no node ahead reads, except `names`."""
        kept = set(names)
        for value in self._values():
            if any(user.name not in self._done for user in self._readers(value)):
                kept.add(str(value.name))
        for known in self._known:
            for name in [name for name in known if name not in kept]:
                del known[name]

    def _advance(self, names: Sequence[str]) -> None:
        piece = self._piece(names)
        if piece is None:
            return
        reference, inputs, nodes = piece
        inside = {str(node.name) for node in nodes}
        wanted = list(names)
        constant = _constant_nodes(self._model.graph)
        for node in nodes:
            if node in constant:
                continue
            for value in node.outputs:
                outside = any(user.name not in inside for user in self._readers(value))
                if value.name and outside and value.name not in wanted:
                    wanted.append(str(value.name))
        wanted = [name for name in wanted if name not in self._known[0]]
        for known in self._known:
            known.update(reference.run_values({each: known[each] for each in inputs}, wanted))
        self._done.update(str(node.name) for node in nodes if node not in constant)
        self._forget(names)

    def _piece(self, names: Sequence[str]) -> tuple[Reference, list[str], list[ir.Node]] | None:
        """What computes some values from the known ones; None where they are all known."""
        nodes = self._needed(names)
        if not nodes:
            return None
        piece = slice_model(self._model, {str(node.name) for node in nodes})
        if piece is None:
            raise PassError(f"cannot run up to '{names[0]}' by itself: a value on the way has no known shape")
        inputs = [str(value.name) for value in piece.graph.inputs]
        missing = [name for name in inputs if name not in self._known[0]]
        if missing:
            raise PassError(f"cannot run up to '{names[0]}': '{missing[0]}' is gone already")
        # Threads of small pieces would mostly wait for each other.
        size = sum(self._known[0][name].nbytes for name in inputs)
        return Reference(piece, threads=1 if size < _LARGE else None), inputs, nodes

    def _needed(self, names: Sequence[str]) -> list[ir.Node]:
        made = {str(value.name): value for value in self._values()}
        known = self._known[0]
        needed: dict[ir.Node, None] = {}
        pending = [made[name] for name in names if name in made and name not in known]
        while pending:
            value = pending.pop()
            node = value.producer()
            if node is None or node in needed or value.name in known or node.graph is not self._model.graph:
                continue
            needed[node] = None
            pending.extend(each for each in _operands(node) if each is not None)
        return list(needed)

    def _readers(self, value: ir.Value) -> Iterator[ir.Node]:
        """Nodes of the main graph that read a value, themselves or in a body."""
        return (self._owner.get(user, user) for user, _ in value.uses())

    def _values(self) -> Iterator[ir.Value]:
        yield from self._model.graph.inputs
        for node in self._model.graph:
            yield from node.outputs


def _operands(node: ir.Node) -> Iterator[ir.Value | None]:
    yield from node.inputs
    for body in bodies_of(node):
        for inner in nodes_of(body):
            yield from inner.inputs
        yield from body.outputs


def _constant_nodes(graph: ir.Graph) -> set[ir.Node]:
    """Nodes that restore stored weights: cheap to run again, large to keep."""
    found: set[ir.Node] = set()
    for node in graph:
        stored = (v is None or v.is_initializer() or v.producer() in found for v in node.inputs)
        if not bodies_of(node) and all(stored):
            found.add(node)
    return found
