"""Which classes of indices are pruned side by side, and how important each of them is.

A class usually is one channel of a layer with everything tied to it. Classes that take the same number of
channels from the same producers are alike and form a group; a ratio applies to each group by itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import onnx_ir as ir

from ...ir.constants import constant_array, evaluate_values
from ...ir.errors import ModelError
from .analysis import Dependencies
from .tracer import Producer

Importance = Literal["l1", "l2", "random"]


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


def importance(found: Dependencies, group: Group, criterion: Importance, seed: int = 0) -> np.ndarray | None:
    """Importance of every class of a group: larger is kept longer.

    Per producer the norm of every filter, divided by the mean norm of that producer, averaged over the
    channels of a class; then summed over the producers of the group.

    Returns:
        float64, one per class, or None where the weights of all producers depend on the inputs.
    """
    if criterion == "random":
        first = int(group.classes[0])
        return np.random.default_rng([seed, first]).random(len(group.classes))
    scores = np.zeros(len(group.classes))
    known = False
    for producer in group.producers:
        norms = _norms(producer, criterion)
        if norms is None:
            continue
        known = True
        norms = norms / max(float(norms.mean()), np.finfo(np.float64).tiny)
        classes = found.classes_of(producer.value, producer.axis)
        position = np.searchsorted(group.classes, classes)
        position[position == len(group.classes)] = 0
        mine = group.classes[position] == classes
        total = np.bincount(position[mine], norms[mine], len(group.classes))
        scores += total / np.maximum(np.bincount(position[mine], minlength=len(group.classes)), 1)
    return scores if known else None


def _norms(producer: Producer, criterion: Importance) -> np.ndarray | None:
    """Norm of every filter of a producer, or None where its weights depend on the inputs."""
    weights = constant_array(producer.value)
    if weights is None:
        maker = producer.value.producer()
        if maker is not None and maker.op_type == "ConstantOfShape":
            shape = constant_array(maker.inputs[0])
            return None if shape is None else np.ones(int(shape[producer.axis]))
        try:
            (weights,) = evaluate_values(None, [producer.value])
        except ModelError:
            return None
    rows = np.moveaxis(weights, producer.axis, 0).reshape(weights.shape[producer.axis], -1)
    return _NORMS[criterion](rows)


def _l1(rows: np.ndarray) -> np.ndarray:
    return np.abs(rows).sum(axis=1, dtype=np.float64)


def _l2(rows: np.ndarray) -> np.ndarray:
    return np.sqrt(np.square(rows, dtype=np.float64).sum(axis=1))


_NORMS: dict[str, Callable[[np.ndarray], np.ndarray]] = {"l1": _l1, "l2": _l2}
