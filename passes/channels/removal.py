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

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir

from ...ir.clone import clone
from ...ir.constants import constant_array, constant_tensor
from ..rewriter import Rewriter
from .analysis import Dependencies
from .labels import Axis, size_of
from .periods import scaled
from .places import addresses, ordered_nodes
from .statistics import NORMALIZATIONS, replace_normalization
from .tracer import Refill, Scale, Shift


@dataclass(frozen=True)
class Removal:
    """What is removed.

    Attributes:
        slices: By constant name and axis, which indices stay (bool arrays).
        operands: (node position, input position, new integer constant).
        shifts: (node position, input position, what is added to the computed operand).
        attributes: (node position, attribute name, new value or None to remove it).
        scales: (node position, factor for its first output).
        refills: (node position, axis, which indices stay): the node goes on seeing the whole axis.
        shapes: By value name, the new shape. (Names as by `places.addresses`, positions as by
            `places.ordered_nodes`.)
        masks: (node position, input position, axis, which indices stay, what the others become): the terms
            that vanish.
        statistics: By position of a normalization, which indices of its normalized axes stay.
        outputs: By name and axis, which indices stay of the graph outputs that get smaller.
        inputs: The same of graph inputs.
        computed: The same of all computed values, by name; of one period where the size is open.
    """

    slices: dict[str, dict[int, np.ndarray]]
    operands: tuple[tuple[int, int, np.ndarray], ...]
    shifts: tuple[tuple[int, int, np.ndarray], ...]
    attributes: tuple[tuple[int, str, Any], ...]
    scales: tuple[tuple[int, float], ...]
    refills: tuple[tuple[int, int, np.ndarray], ...]
    shapes: dict[str, tuple[int | str | None, ...]]
    masks: tuple[tuple[int, int, int, np.ndarray, float], ...]
    statistics: dict[int, dict[int, np.ndarray]]
    outputs: dict[str, dict[int, np.ndarray]] = field(default_factory=dict)
    inputs: dict[str, dict[int, np.ndarray]] = field(default_factory=dict)
    computed: dict[str, dict[int, np.ndarray]] = field(default_factory=dict)

    def feeds(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """What the pruned model is fed, given what the original is fed."""
        return cut_values(feeds, self.inputs)

    def __bool__(self) -> bool:
        return bool(self.slices)


def cut_values(
    values: Mapping[str, np.ndarray], cuts: Mapping[str, Mapping[int, np.ndarray]]
) -> dict[str, np.ndarray]:
    """The values with only those indices that stay, by name and axis."""
    result = dict(values)
    for name, axes in cuts.items():
        for axis, mask in axes.items() if name in result else ():
            # On an axis of open size the mask is that of one period.
            whole = np.resize(mask, result[name].shape[axis])
            result[name] = np.compress(whole, result[name], axis=axis)
    return result


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
    outputs: dict[str, dict[int, np.ndarray]] = {}
    inputs: dict[str, dict[int, np.ndarray]] = {}
    computed: dict[str, dict[int, np.ndarray]] = {}
    given = set(found.model.graph.inputs)
    for value, axes in found.tracer.axes.items():
        dims = list(found.tracer.known_dims(value) or ())
        cut: dict[int, np.ndarray] = {}
        for index, axis in enumerate(axes):
            if isinstance(axis, np.ndarray):
                mask = keep.mask(axis, len(axis))
                if not mask.all():
                    cut[index] = mask
                    kept, dim = int(np.count_nonzero(mask)), dims[index]
                    dims[index] = kept if isinstance(dim, int) else scaled(dim, len(mask), kept)
        if not cut:
            continue
        if constant_tensor(value) is not None:
            slices[found.names[value]] = cut
        else:
            shapes[found.names[value]] = tuple(dims)
            computed[found.names[value]] = cut
            if value.is_graph_output() and value in found.model.graph.outputs:
                outputs[str(value.name)] = cut
            if value in given:
                inputs[str(value.name)] = cut
    edits = [edit for resizer in found.tracer.resizers for edit in resizer(keep)] if slices else []
    return Removal(
        slices=slices,
        operands=tuple(
            (position[edit.node], edit.where, np.asarray(edit.value))
            for edit in edits
            if isinstance(edit.where, int) and not isinstance(edit.value, (Shift, Scale, Refill))
        ),
        shifts=tuple(
            (position[edit.node], int(edit.where), edit.value.amount)
            for edit in edits
            if isinstance(edit.value, Shift)
        ),
        attributes=tuple(
            (position[edit.node], edit.where, edit.value) for edit in edits if isinstance(edit.where, str)
        ),
        scales=tuple(
            (position[edit.node], edit.value.factor) for edit in edits if isinstance(edit.value, Scale)
        ),
        refills=tuple(
            (position[edit.node], edit.value.axis, edit.value.stays)
            for edit in edits
            if isinstance(edit.value, Refill)
        ),
        shapes=shapes,
        masks=tuple(_masks(found, keep, position)),
        statistics=_statistics(found, keep, position),
        outputs=outputs,
        inputs=inputs,
        computed=computed,
    )


def _masks(
    found: Dependencies, keep: _Keep, position: dict[ir.Node, int]
) -> Iterator[tuple[int, int, int, np.ndarray, float]]:
    for contraction in found.tracer.contractions:
        summed = contraction.node.inputs[contraction.operand]
        assert summed is not None
        axis = found.tracer.axis(summed, contraction.axis)
        mask = keep.mask(axis, size_of(axis, 1))
        if not mask.all():
            at = position[contraction.node]
            yield at, contraction.operand, contraction.axis, mask, contraction.fill


def _statistics(
    found: Dependencies, keep: _Keep, position: dict[ir.Node, int]
) -> dict[int, dict[int, np.ndarray]]:
    changed: dict[int, dict[int, np.ndarray]] = {}
    for statistic in found.tracer.statistics:
        data = statistic.node.inputs[0]
        assert data is not None
        axis = found.tracer.axis(data, statistic.axis)
        mask = keep.mask(axis, size_of(axis, 1))
        if not mask.all():
            changed.setdefault(position[statistic.node], {})[statistic.axis] = mask
    return changed


def apply_removal(model: ir.Model, removal: Removal, rewriter: Rewriter) -> None:
    """Slice all constants, correct sizes held by nodes, and set the new shapes.

    Args:
        model: The model that the removal was planned for, or a copy of it.
        removal: What goes.
        rewriter: The rewriter of `model`.
    """
    nodes, values = ordered_nodes(model), addresses(model)
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
    for index, factor in removal.scales:
        _scale_output(nodes[index], factor, rewriter)
    for index, axis, stays in removal.refills:
        _refill(nodes[index], axis, stays, rewriter)
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


def _scale_output(node: ir.Node, factor: float, rewriter: Rewriter) -> None:
    """Put a copy of the node and a product in its place, so that the result keeps its name."""
    output = node.outputs[0]
    assert output.dtype is not None
    attributes = dict(node.attributes.items())
    (raw,) = rewriter.insert_before(node, node.op_type, list(node.inputs), attributes)
    raw.type, raw.shape = output.type, output.shape
    constant = rewriter.initializer(
        f"{node.name or node.op_type}.factor", np.asarray(factor, output.dtype.numpy())
    )
    (scaled,) = rewriter.insert_before(node, "Mul", [raw, constant])
    scaled.type, scaled.shape = output.type, output.shape
    rewriter.replace(node, [scaled])


def _refill(node: ir.Node, axis: int, stays: np.ndarray, rewriter: Rewriter) -> None:
    """Run a copy of the node on the whole axis, zeros where indices are gone; pick those that stay."""
    data, output = node.inputs[0], node.outputs[0]
    assert data is not None and data.shape is not None and output.shape is not None
    name, rank, left = node.name or node.op_type, len(data.shape), int(np.count_nonzero(stays))
    pads = np.zeros(2 * rank, np.int64)
    pads[rank + axis] = 1
    (padded,) = rewriter.insert_before(node, "Pad", [data, rewriter.initializer(f"{name}.pads", pads)])
    padded.type, padded.shape = data.type, _with_dim(data.shape, axis, left + 1)
    # The zero lies behind what stays.
    places = np.where(stays, np.cumsum(stays) - 1, left)
    order = rewriter.initializer(f"{name}.places", places.astype(np.int64))
    (whole,) = rewriter.insert_before(node, "Gather", [padded, order], {"axis": axis})
    whole.type, whole.shape = data.type, _with_dim(data.shape, axis, len(stays))
    attributes = dict(node.attributes.items())
    (raw,) = rewriter.insert_before(node, node.op_type, [whole, *node.inputs[1:]], attributes)
    raw.type, raw.shape = output.type, _with_dim(output.shape, axis, len(stays))
    kept = rewriter.initializer(f"{name}.stay", np.flatnonzero(stays).astype(np.int64))
    (picked,) = rewriter.insert_before(node, "Gather", [raw, kept], {"axis": axis})
    picked.type, picked.shape = output.type, output.shape
    rewriter.replace(node, [picked])


def _with_dim(shape: ir.Shape, axis: int, size: int) -> ir.Shape:
    dims = list(shape)
    dims[axis] = size
    return ir.Shape(dims)


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

    At each such node one operand is multiplied by a constant of zeros and ones along the summed axis (or
    filled with what is neutral for the operator), and normalizations over removed indices are spelled out
    over those that stay. Nothing else changes, weights included, so this is independent of how the removal
    slices.

    Returns:
        A copy; `original` is not changed.
    """
    masked = clone(original)
    rewriter = Rewriter(masked, origin="mask")
    nodes = ordered_nodes(masked)
    for index, operand, axis, mask, fill in removal.masks:
        _mask_operand(nodes[index], operand, axis, mask, fill, rewriter)
    for index, masks in removal.statistics.items():
        if nodes[index].op_type in NORMALIZATIONS:
            replace_normalization(
                nodes[index], masks, nodes[index].attributes.get_int("num_groups", 1), rewriter
            )
        elif nodes[index].op_type == "LogSoftmax":
            _clear_output(nodes[index], masks, rewriter)
    return masked


def _clear_output(node: ir.Node, masks: Mapping[int, np.ndarray], rewriter: Rewriter) -> None:
    """Put zeros in place of the infinite logarithms of removed indices: times zero they are no number."""
    output = node.outputs[0]
    assert output.dtype is not None
    (raw,) = rewriter.insert_before(node, node.op_type, list(node.inputs), dict(node.attributes.items()))
    raw.type, raw.shape = output.type, output.shape
    zero = rewriter.initializer("mask", ir.tensor(np.zeros((), output.dtype.numpy())))
    for axis, mask in masks.items():
        shape = [1] * len(output.shape or ())
        shape[axis] = len(mask)
        stays = rewriter.initializer("mask", mask.reshape(shape))
        (raw,) = rewriter.insert_before(node, "Where", [stays, raw, zero])
        raw.type, raw.shape = output.type, output.shape
    rewriter.replace(node, [raw])


def _mask_operand(
    node: ir.Node, operand: int, axis: int, mask: np.ndarray, fill: float, rewriter: Rewriter
) -> None:
    value = node.inputs[operand]
    assert value is not None and value.shape is not None and value.dtype is not None
    shape = [1] * len(value.shape)
    shape[axis] = len(mask)
    stays = mask.reshape(shape)
    dtype = value.dtype.numpy()
    stored = constant_array(value)
    if stored is not None:
        # A weight of its own for this node: a product less for the reference to run.
        filled = np.where(stays, stored, np.asarray(fill).astype(dtype))
        rewriter.set_input(node, operand, rewriter.initializer("mask", ir.tensor(filled)))
        return
    if fill == 0.0:
        constant = rewriter.initializer("mask", ir.tensor(stays.astype(dtype)))
        (masked,) = rewriter.insert_before(node, "Mul", [value, constant])
    else:
        constant = rewriter.initializer("mask", stays)
        neutral = rewriter.initializer("mask", ir.tensor(np.asarray(fill).astype(dtype)))
        (masked,) = rewriter.insert_before(node, "Where", [constant, value, neutral])
    masked.type, masked.shape = value.type, value.shape
    rewriter.set_input(node, operand, masked)
