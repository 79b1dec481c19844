"""Which classes of indices are pruned side by side.

A class usually is one channel of a layer with everything tied to it. Classes that take the same number of
channels from the same producers are alike and form a group; a ratio applies to each group by itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from .analysis import Dependencies
from .tracer import Producer


@dataclass(frozen=True)
class Group:
    """Classes that are alike.

    Attributes:
        producers: Where the channels are made.
        consumers: Nodes that sum over the channels.
        classes: Names of the classes, ascending.
        channels_per_class: For every producer, how many of its channels one class holds.
    """

    producers: tuple[Producer, ...]
    consumers: tuple[ir.Node, ...]
    classes: np.ndarray
    channels_per_class: tuple[int, ...]


def find_groups(found: Dependencies) -> list[Group]:
    """Group all classes that may be removed and that a producer makes, in graph order."""
    producers = list(_distinct(found.tracer.producers))
    counted = _Counts(found)
    held: dict[int, list[tuple[int, int]]] = {}
    for position, producer in enumerate(producers):
        for name, count in counted.at(producer.value, producer.axis):
            held.setdefault(name, []).append((position, count))
    alike: dict[tuple[tuple[int, int], ...], list[int]] = {}
    for name in sorted(held):
        alike.setdefault(tuple(held[name]), []).append(name)
    consumers = _consumers(found, counted)
    groups = []
    for signature in sorted(alike):
        classes = np.array(alike[signature], np.int64)
        readers = dict.fromkeys(node for name in alike[signature] for node in consumers.get(name, ()))
        made = tuple(producers[position] for position, _ in signature)
        groups.append(Group(made, tuple(readers), classes, tuple(count for _, count in signature)))
    return groups


def _distinct(producers: list[Producer]) -> Iterator[Producer]:
    seen: set[tuple[ir.Value, int]] = set()
    for producer in producers:
        if (producer.value, producer.axis) not in seen:
            seen.add((producer.value, producer.axis))
            yield producer


class _Counts:
    """How often every class occurs along an axis, looked up once for all values that share their labels."""

    def __init__(self, found: Dependencies):
        self._found = found
        self._known: dict[int, list[tuple[int, int]]] = {}

    def at(self, value: ir.Value, axis: int) -> list[tuple[int, int]]:
        classes = self._found.classes_of(value, axis)
        known = self._known.get(id(classes))
        if known is None:
            names, counts = np.unique(classes[classes >= 0], return_counts=True)
            known = list(zip(names.tolist(), counts.tolist(), strict=True))
            if not classes.flags.writeable:
                # The analysis keeps it, so its identity is not given to another.
                self._known[id(classes)] = known
        return known


def _consumers(found: Dependencies, counted: _Counts) -> Mapping[int, list[ir.Node]]:
    readers: dict[int, list[ir.Node]] = {}
    for contraction in found.tracer.contractions:
        value = contraction.node.inputs[contraction.operand]
        assert value is not None
        for name, _ in counted.at(value, contraction.axis):
            readers.setdefault(name, []).append(contraction.node)
    return readers
