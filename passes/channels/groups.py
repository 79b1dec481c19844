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
    held: dict[int, list[tuple[int, int]]] = {}
    for position, producer in enumerate(producers):
        names, counts = _classes_at(found, producer.value, producer.axis)
        for name, count in zip(names.tolist(), counts.tolist(), strict=True):
            held.setdefault(name, []).append((position, count))
    alike: dict[tuple[tuple[int, int], ...], list[int]] = {}
    for name in sorted(held):
        alike.setdefault(tuple(held[name]), []).append(name)
    consumers = _consumers(found)
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


def _classes_at(found: Dependencies, value: ir.Value, axis: int) -> tuple[np.ndarray, np.ndarray]:
    classes = found.classes_of(value, axis)
    return np.unique(classes[classes >= 0], return_counts=True)


def _consumers(found: Dependencies) -> Mapping[int, list[ir.Node]]:
    readers: dict[int, list[ir.Node]] = {}
    for contraction in found.tracer.contractions:
        value = contraction.node.inputs[contraction.operand]
        assert value is not None
        for name in _classes_at(found, value, contraction.axis)[0].tolist():
            readers.setdefault(name, []).append(contraction.node)
    return readers
