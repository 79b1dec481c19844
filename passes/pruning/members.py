"""Where the channels of a group show: the weights that make them, scale them and read them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import onnx_ir as ir

from ...ir.constants import constant_array, constant_tensor, evaluate_values
from ...ir.errors import ModelError
from ..channels import Dependencies, Group

Role = Literal["producer", "scale", "consumer"]

_SCALED = {
    "BatchNormalization": 1,
    "InstanceNormalization": 1,
    "GroupNormalization": 1,
    "LayerNormalization": 1,
    "RMSNormalization": 1,
}
"""Input that holds the learned scale of a normalization."""


@dataclass(frozen=True)
class Member:
    """One axis of one operand of one node at which channels of a group show.

    Attributes:
        role: What the node does with the channels.
        node: The node.
        value: The operand: a weight, or an activation where a consumer multiplies two of them.
        axis: The axis of `value` that holds the channels.
        source: For consumers, the activation (value, axis) that meets `value`; None otherwise.
    """

    role: Role
    node: ir.Node
    value: ir.Value
    axis: int
    source: tuple[ir.Value, int] | None = None


class Members:
    """The members of every group of one analysis."""

    def __init__(self, found: Dependencies, groups: Sequence[Group]):
        self._found = found
        self._group_of = np.full(found.tracer.labels.size + 1, -1, np.int64)
        for index, group in enumerate(groups):
            self._group_of[group.classes] = index
        self._producers = [[Member("producer", p.node, p.value, p.axis) for p in g.producers] for g in groups]
        self._scales: list[list[Member]] = [[] for _ in groups]
        self._consumers: list[list[Member]] = [[] for _ in groups]
        for member in self._find_scales():
            self._add(member, self._scales)
        for member in self._find_consumers():
            self._add(member, self._consumers)

    def of(self, index: int, role: Role) -> list[Member]:
        """Members of group number `index` in one role, in graph order."""
        lists = {"producer": self._producers, "scale": self._scales, "consumer": self._consumers}
        return lists[role][index]

    def _add(self, member: Member, to: list[list[Member]]) -> None:
        classes = self._found.classes_of(member.value, member.axis)
        for index in np.unique(self._group_of[classes]).tolist():
            if index >= 0:
                to[index].append(member)

    def _find_scales(self) -> Iterator[Member]:
        for node in self._found.nodes:
            operand = _SCALED.get(node.op_type) if node.domain in ("", "ai.onnx") else None
            value = node.inputs[operand] if operand is not None and len(node.inputs) > operand else None
            dims = self._found.tracer.known_dims(value) if value is not None else None
            if value is not None and dims and constant_tensor(value) is not None:
                yield Member("scale", node, value, len(dims) - 1)

    def _find_consumers(self) -> Iterator[Member]:
        for contraction in self._found.tracer.contractions:
            value = contraction.node.inputs[contraction.operand]
            if value is not None:
                source = self._source(contraction.node, value, contraction.axis)
                yield Member("consumer", contraction.node, value, contraction.axis, source)

    def _source(self, node: ir.Node, value: ir.Value, axis: int) -> tuple[ir.Value, int] | None:
        """The activation that meets a summed operand: the first computed input that holds its classes."""
        classes = self._found.classes_of(value, axis)
        classes = np.unique(classes[classes >= 0])
        others = [each for each in node.inputs if each is not None and each is not value]
        for other in (*others, value):
            if constant_tensor(other) is not None or other.graph is not self._found.model.graph:
                # What happens in a body is not seen when a model is run for its activations.
                continue
            dims = self._found.tracer.known_dims(other) or ()
            for index in reversed([index for index, dim in enumerate(dims) if isinstance(dim, int)]):
                if np.isin(self._found.classes_of(other, index), classes).any():
                    return other, index
        return None


def positions(found: Dependencies, group: Group, value: ir.Value, axis: int) -> np.ndarray:
    """For every index of an axis the position of its class in `group.classes`; -1 where it has none there."""
    classes = found.classes_of(value, axis)
    place = np.searchsorted(group.classes, classes)
    place[place == len(group.classes)] = 0
    return np.where(group.classes[place] == classes, place, -1)


def rows_of(value: ir.Value, axis: int) -> np.ndarray | None:
    """A weight as float64 [indices of `axis`, everything else]; None where it depends on the inputs."""
    weights = constant_array(value)
    if weights is None:
        maker = value.producer()
        if maker is not None and maker.op_type == "ConstantOfShape":
            shape = constant_array(maker.inputs[0])
            return None if shape is None else np.ones((int(shape[axis]), 1))
        try:
            (weights,) = evaluate_values(None, [value])
        except ModelError:
            return None
    rows = np.moveaxis(weights, axis, 0).reshape(weights.shape[axis], -1)
    return rows.astype(np.float64)
