"""Labels on tensor indices, and the classes of indices that can only go together.

Every index of every axis that could be removed carries a label, an integer >= 0. Operators tie labels; labels
that are tied, directly or through others, form a class: the unit that is removed or kept as a whole. A
negative label is a pin: the index must stay, and the pin says which node wants it and why. A class that is
tied to a pin stays.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import onnx_ir as ir

Axis = int | np.ndarray
"""Labels of one axis: one int64 per index, or a single pin that holds for all of its indices."""


@dataclass(frozen=True)
class Pin:
    """Why indices must stay.

    Attributes:
        node: The node that wants it, or None where the interface of the graph does.
        reason: One clause, without a full stop.
    """

    node: ir.Node | None
    reason: str


@dataclass(frozen=True)
class Classes:
    """Result of resolving all ties.

    Attributes:
        of: Class of every label; a class is named by its smallest label.
        pin: For every class name the index of the pin that keeps it, or -1 where it may be removed.
    """

    of: np.ndarray
    pin: np.ndarray


class Labels:
    """Hands out labels and pins and collects the ties between them.

    Attributes:
        size: Number of labels handed out.
        pins: All pins.
        node: The node that ties are owed to, while it is traced.
    """

    def __init__(self) -> None:
        self.size = 0
        self.pins: list[Pin] = []
        self.node: ir.Node | None = None
        self._edges: list[tuple[np.ndarray, np.ndarray]] = []
        self._edge_nodes: list[ir.Node | None] = []
        self._pinned: list[tuple[np.ndarray, np.ndarray]] = []

    def fresh(self, count: int) -> np.ndarray:
        """Return `count` new labels."""
        self.size += count
        return np.arange(self.size - count, self.size, dtype=np.int64)

    def new_pin(self, node: ir.Node | None, reason: str) -> int:
        """Return a new pin; it can stand wherever labels stand."""
        self.pins.append(Pin(node, reason))
        return -len(self.pins)

    def tie(self, a: Axis, b: Axis) -> None:
        """Let the indices of `a` and `b` go only together.

        They are equally many, or periods of one axis of open size, or one is a single pin.
        """
        if isinstance(a, int) and isinstance(b, int):
            return
        left, right = np.broadcast_arrays(*_over_one_period(np.asarray(a, np.int64), np.asarray(b, np.int64)))
        left, right = left.ravel(), right.ravel()
        free = (left >= 0) & (right >= 0)
        different = free & (left != right)
        if different.any():
            self._edges.append((left[different], right[different]))
            self._edge_nodes.append(self.node)
        for label, pin in ((left, right), (right, left)):
            held = (label >= 0) & (pin < 0)
            if held.any():
                self._pinned.append((label[held], -1 - pin[held]))

    def joined_by(self, labels: np.ndarray, of: np.ndarray) -> ir.Node | None:
        """The node whose tie was the last that it took for `labels`, all of one class, to go together.

        Args:
            labels: Free labels.
            of: Class of every label.

        Returns:
            The node, or None where they are one label from the start.
        """
        labels = np.unique(labels)
        if len(labels) < 2 or not self._edges:
            return None
        left, right, owner = self._flat_edges
        inside = of[left] == of[labels[0]]
        left, right, owner = left[inside], right[inside], owner[inside]
        names, places = np.unique(np.concatenate([left, right, labels]), return_inverse=True)
        left, right, mine = np.split(places, [len(left), 2 * len(left)])
        low, high = 0, len(left)
        while high - low > 1:
            middle = (low + high) // 2
            parts = _components(len(names), [(left[:middle], right[:middle])])[mine]
            low, high = (low, middle) if (parts == parts[0]).all() else (middle, high)
        return self._edge_nodes[int(owner[high - 1])] if high else None

    @cached_property
    def _flat_edges(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Both ends of every tie, and the number of the call that made it; asked for when all are made."""
        sizes = [len(edge[0]) for edge in self._edges]
        left, right = (np.concatenate([edge[end] for edge in self._edges]) for end in (0, 1))
        return left, right, np.repeat(np.arange(len(sizes)), sizes)

    def resolve(self) -> Classes:
        """Return the classes that follow from all ties so far."""
        of = _components(self.size, self._edges)
        never = len(self.pins)
        first = np.full(self.size, never, np.int64)
        for labels, pins in self._pinned:
            np.minimum.at(first, of[labels], pins)
        first[first == never] = -1
        return Classes(of, first)


def _over_one_period(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Labels of one axis of open size over the period that both have."""
    if a.ndim != 1 or b.ndim != 1 or len(a) == len(b) or 1 in (len(a), len(b)):
        return a, b
    both = math.lcm(len(a), len(b))
    return np.tile(a, both // len(a)), np.tile(b, both // len(b))


def size_of(axis: Axis, size: int) -> int:
    """Number of indices of an axis, given that of a pinned one."""
    return size if isinstance(axis, int) else len(axis)


def spread(axis: Axis, size: int) -> np.ndarray:
    """Labels of an axis as an array, also where a single pin stands for all of them."""
    return np.full(size, axis, np.int64) if isinstance(axis, int) else axis


def _components(size: int, edges: list[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
    """Smallest label of the connected component of every label.

    Hooks the larger root of every edge to the smaller one and flattens, until nothing changes: the number of
    rounds grows with the logarithm of the longest chain.
    """
    parent = np.arange(size, dtype=np.int64)
    if not edges:
        return parent
    left = np.concatenate([edge[0] for edge in edges])
    right = np.concatenate([edge[1] for edge in edges])
    while True:
        left, right = parent[left], parent[right]
        apart = left != right
        if not apart.any():
            return parent
        left, right = left[apart], right[apart]
        np.minimum.at(parent, np.maximum(left, right), np.minimum(left, right))
        while True:
            flat = parent[parent]
            if np.array_equal(flat, parent):
                break
            parent = flat
