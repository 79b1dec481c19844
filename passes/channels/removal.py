"""Removing classes of indices from a model, and the masked model that says what removal means.

A removed index contributes exactly nothing *to the nodes that sum over it*: the masked model is the original
in which, at every node that sums over an axis, the slices of one operand (the weight where there is one) that
belong to removed indices are zero. What stands between producer and consumer (bias, Sigmoid, a constant
added) does not matter then, whatever it makes of a zero. The pruned model equals the masked one up to the
order of floating-point sums.

Both are described by a `Removal`, plain data by value name and node position, so that it applies to any copy
of the model it was planned for.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from ...ir.clone import clone
from ...ir.constants import constant_array, constant_tensor
from ..rewriter import Rewriter
from .analysis import Dependencies
from .labels import Axis, size_of
from .tracer import Shift


@dataclass(frozen=True)
class Removal:
    """What is removed.

    Attributes:
        slices: By constant name and axis, which indices stay (bool arrays).
        operands: (node position, input position, new integer constant).
        shifts: (node position, input position, what is added to the computed operand).
        attributes: (node position, attribute name, new value or None to remove it).
        shapes: By value name, the new shape.
        masks: (node position, input position, axis, which indices stay): the terms that vanish.
    """

    slices: dict[str, dict[int, np.ndarray]]
    operands: tuple[tuple[int, int, np.ndarray], ...]
    shifts: tuple[tuple[int, int, np.ndarray], ...]
    attributes: tuple[tuple[int, str, Any], ...]
    shapes: dict[str, tuple[int | str | None, ...]]
    masks: tuple[tuple[int, int, int, np.ndarray], ...]

    def __bool__(self) -> bool:
        return bool(self.slices)


class _Keep:
    """Answers which indices stay when some classes are removed."""

    def __init__(self, found: Dependencies, removed: Collection[int]):
        gone = np.zeros(found.tracer.labels.size + 1, bool)
        gone[np.fromiter(removed, np.int64, len(removed))] = True
        # The spare last entry answers for pins, whose labels are negative.
        self._stays = np.append(~gone[found.classes.of], True)
        self._masks: dict[int, np.ndarray] = {}

    def mask(self, axis: Axis, size: int) -> np.ndarray:
        if isinstance(axis, int):
            return np.ones(size, bool)
        # Most values share their label arrays, which live as long as the analysis.
        known = self._masks.get(id(axis))
        if known is None:
            known = self._masks[id(axis)] = self._stays[np.maximum(axis, -1)]
        return known

    def count(self, axis: Axis, size: int) -> int:
        return size if isinstance(axis, int) else int(np.count_nonzero(self.mask(axis, size)))


def emptied_axes(found: Dependencies, removed: Collection[int]) -> list[np.ndarray]:
    """Classes along every axis that would lose all of its indices."""
    keep = _Keep(found, removed)
    seen: set[int] = set()
    empty = []
    for axes in found.tracer.axes.values():
        for axis in axes:
            if isinstance(axis, np.ndarray) and id(axis) not in seen:
                seen.add(id(axis))
                if len(axis) and not keep.mask(axis, 0).any():
                    empty.append(np.unique(found.classes.of[axis]))
    return empty


def plan_removal(found: Dependencies, removed: Collection[int]) -> Removal:
    """Work out everything that changes when the classes `removed` go.

    Args:
        found: Analysis of the model.
        removed: Names of free classes.
    """
    keep = _Keep(found, removed)
    position = {node: index for index, node in enumerate(found.nodes)}
    slices: dict[str, dict[int, np.ndarray]] = {}
    shapes: dict[str, tuple[int | str | None, ...]] = {}
    for value, axes in found.tracer.axes.items():
        dims = list(found.tracer.known_dims(value) or ())
        cut: dict[int, np.ndarray] = {}
        for index, axis in enumerate(axes):
            if isinstance(axis, np.ndarray):
                mask = keep.mask(axis, len(axis))
                if not mask.all():
                    cut[index] = mask
                    dims[index] = int(np.count_nonzero(mask))
        if not cut:
            continue
        if constant_tensor(value) is not None:
            slices[str(value.name)] = cut
        else:
            shapes[str(value.name)] = tuple(dims)
    operands, shifts, attributes = [], [], []
    if slices:
        for resizer in found.tracer.resizers:
            for edit in resizer(keep):
                if isinstance(edit.value, Shift):
                    shifts.append((position[edit.node], int(edit.where), edit.value.amount))
                elif isinstance(edit.where, int):
                    operands.append((position[edit.node], edit.where, np.asarray(edit.value)))
                else:
                    attributes.append((position[edit.node], edit.where, edit.value))
    masks = []
    for contraction in found.tracer.contractions:
        summed = contraction.node.inputs[contraction.operand]
        assert summed is not None
        axis = found.tracer.axis(summed, contraction.axis)
        mask = keep.mask(axis, size_of(axis, 1))
        if not mask.all():
            masks.append((position[contraction.node], contraction.operand, contraction.axis, mask))
    return Removal(slices, tuple(operands), tuple(shifts), tuple(attributes), shapes, tuple(masks))


def apply_removal(model: ir.Model, removal: Removal, rewriter: Rewriter) -> None:
    """Slice all constants, correct sizes held by nodes, and set the new shapes.

    Args:
        model: The model that the removal was planned for, or a copy of it.
        removal: What goes.
        rewriter: The rewriter of `model`.
    """
    nodes = list(model.graph)
    values = {str(value.name): value for node in nodes for value in node.outputs}
    values.update(model.graph.initializers)
    for name, shape in removal.shapes.items():
        rewriter.set_shape(values[name], shape)
    for index, operand, array in removal.operands:
        node = nodes[index]
        old = node.inputs[operand] if operand < len(node.inputs) else None
        if _same(constant_array(old), array):
            continue
        rewriter.set_input(
            node, operand, rewriter.initializer(f"{node.name or node.op_type}.{operand}", array)
        )
        _drop_unused(old, rewriter)
    for index, operand, amount in removal.shifts:
        node = nodes[index]
        added = rewriter.initializer(f"{node.name or node.op_type}.{operand}.added", amount)
        (shifted,) = rewriter.insert_before(node, "Add", [node.inputs[operand], added])
        rewriter.set_shape(shifted, list(amount.shape))
        rewriter.set_input(node, operand, shifted)
    for index, attribute, value in removal.attributes:
        _set_attribute(nodes[index], attribute, value, rewriter)
    for name, axes in removal.slices.items():
        _slice_constant(values[name], axes, rewriter)


def _drop_unused(value: ir.Value | None, rewriter: Rewriter) -> None:
    if value is None or value.uses() or value.is_graph_output() or value.is_graph_input():
        return
    if value.is_initializer():
        rewriter.remove_initializer(value)
    elif value.producer() is not None and value.producer().op_type == "Constant":  # type: ignore[union-attr]
        rewriter.erase(value.producer())  # type: ignore[arg-type]


def _same(old: np.ndarray | None, new: np.ndarray) -> bool:
    return old is not None and old.dtype == new.dtype and np.array_equal(old, new)


def _set_attribute(node: ir.Node, name: str, value: Any, rewriter: Rewriter) -> None:
    old = node.attributes.get(name)
    if (old is None and value is None) or (old is not None and old.value == value):
        return
    rewriter.set_attribute(node, name, value)


def _slice_constant(value: ir.Value, axes: dict[int, np.ndarray], rewriter: Rewriter) -> None:
    array = constant_array(value)
    assert array is not None
    for axis, mask in axes.items():
        array = np.compress(mask, array, axis=axis)
    array = np.ascontiguousarray(array)
    node = value.producer()
    if node is None:
        rewriter.set_initializer(value, array)
        return
    stored = rewriter.initializer(str(value.name), array)
    stored.type = value.type
    rewriter.replace(node, [stored])


def masked_model(original: ir.Model, removal: Removal) -> ir.Model:
    """The model that pruning must equal: `original` with all removed terms zeroed at the nodes that sum them.

    At each such node one operand is multiplied by a constant of zeros and ones along the summed axis. Nothing
    else changes, weights included, so this is independent of how the removal slices.

    Returns:
        A copy; `original` is not changed.
    """
    masked = clone(original)
    rewriter = Rewriter(masked, origin="mask")
    nodes = list(masked.graph)
    for index, operand, axis, mask in removal.masks:
        node = nodes[index]
        value = node.inputs[operand]
        assert value is not None and value.shape is not None and value.dtype is not None
        shape = [1] * len(value.shape)
        shape[axis] = len(mask)
        zeros = ir.tensor(mask.reshape(shape).astype(value.dtype.numpy()))
        constant = rewriter.initializer("mask", zeros)
        (product,) = rewriter.insert_before(node, "Mul", [value, constant])
        rewriter.set_input(node, operand, product)
    return masked
