"""Labels through operators that read or write at positions: Gather, GatherND, ScatterND and their kin.

An axis that is indexed by computed positions stays. One that is indexed by constant positions may shrink: the
positions are renumbered, and those that point at removed indices go, which shrinks an axis of the result.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx_ir as ir

from ...ir.constants import constant_array, constant_tensor
from .contractions import part_of
from .labels import Axis, spread
from .tracer import Edit, Keep, Tracer, traces


@traces("Gather")
def _gather(node: ir.Node, tracer: Tracer) -> str | None:
    data, indices = node.inputs[0], node.inputs[1]
    if data is None or indices is None:
        return "an operand is missing"
    rank = len(tracer.dims(data))
    axis = node.attributes.get_int("axis", 0) % rank
    picked = constant_array(indices)
    if picked is not None and tracer.is_labelled(data, axis):
        places = _pick(node, tracer, data, axis, picked)
    else:
        pin = tracer.keep(data, axis, node, "Gather picks indices of this axis")
        places = _positions(indices, tracer, pin)
    _table(node, tracer, data, axis, picked)
    axes = tracer.all_axes(data)
    tracer.set(node.outputs[0], [*axes[:axis], *places, *axes[axis + 1 :]])
    return None


def _table(node: ir.Node, tracer: Tracer, data: ir.Value, axis: int, picked: np.ndarray | None) -> None:
    """An embedding table makes channels."""
    if tracer.is_weight(data) and len(tracer.dims(data)) == 2 and axis == 0 and picked is None:
        tracer.produce(node, data, 1)


def _positions(indices: ir.Value, tracer: Tracer, pin: int) -> list[Axis]:
    """Labels of the axes of positions: removing an index there removes what is read."""
    if constant_tensor(indices) is not None:
        tracer.keep_value(indices, pin)
    return tracer.all_axes(indices)


def _pick(
    node: ir.Node, tracer: Tracer, data: ir.Value, axis: int, picked: np.ndarray, *, vectors: bool = False
) -> list[Axis]:
    """Labels of the axes that constant positions make; with `vectors` the operand has one axis more."""
    labels = spread(tracer.axis(data, axis), 0)
    picked = np.where(picked < 0, picked + len(labels), picked)
    pin = tracer.labels.new_pin(node, "Gather picks indices of this axis")
    grid = labels[picked]
    varying = [q for q in range(grid.ndim) if (grid != np.take(grid, [0], q)).any()]
    places: list[Axis] = [pin] * grid.ndim
    if not varying and grid.ndim == 1 and grid.size > 1:
        varying = [0]
    if not varying:
        tracer.labels.tie(pin, grid.ravel())
        chosen = None
    else:
        chosen = part_of(node, tracer, {q: grid.shape[q] for q in varying})
        rows = np.moveaxis(grid, chosen, 0).reshape(grid.shape[chosen], -1)
        tracer.labels.tie(rows[:, :1], rows)
        places[chosen] = np.ascontiguousarray(rows[:, 0])
    tracer.on_removal(lambda keep: _new_indices(node, keep, labels, picked, chosen, vectors))
    return places


def _new_indices(
    node: ir.Node, keep: Keep, labels: np.ndarray, picked: np.ndarray, shrunk: int | None, vectors: bool
) -> Iterator[Edit]:
    mask = keep.mask(labels, len(labels))
    if mask.all():
        return
    position = np.cumsum(mask) - 1
    if shrunk is not None:
        rows = np.moveaxis(mask[picked], shrunk, 0).reshape(picked.shape[shrunk], -1)
        picked = np.compress(rows[:, 0], picked, axis=shrunk)
    renumbered = np.asarray(position[picked], np.int64)
    yield Edit(node, 1, renumbered[..., None] if vectors else renumbered)


@traces("GatherND")
def _gather_nd(node: ir.Node, tracer: Tracer) -> str | None:
    data, indices = node.inputs[0], node.inputs[1]
    if data is None or indices is None:
        return "an operand is missing"
    depth, batch = tracer.dims(indices)[-1], node.attributes.get_int("batch_dims", 0)
    if not isinstance(depth, int):
        return "how many axes it indexes is not static"
    picked = constant_array(indices)
    if batch == 0 and depth == 1 and picked is not None and tracer.is_labelled(data, 0):
        # A Gather along the first axis, whose positions come in vectors of one.
        places = _pick(node, tracer, data, 0, picked[..., 0], vectors=True)
        tracer.set(node.outputs[0], [*places, *tracer.all_axes(data)[1:]])
        return None
    for axis in range(batch):
        tracer.tie(tracer.axis(data, axis), indices, axis)
    pin = tracer.labels.new_pin(node, "GatherND picks indices of this axis")
    for axis in range(batch, batch + depth):
        tracer.tie(pin, data, axis)
    tracer.tie(pin, indices, -1)
    if batch == 0 and depth == 1:
        _table(node, tracer, data, 0, picked)
    places = _positions(indices, tracer, pin)[:-1]
    tracer.set(node.outputs[0], [*places, *tracer.all_axes(data)[batch + depth :]])
    return None


@traces("ScatterND")
def _scatter_nd(node: ir.Node, tracer: Tracer) -> str | None:
    data, indices, updates = node.inputs[0], node.inputs[1], node.inputs[2]
    if data is None or indices is None or updates is None:
        return "an operand is missing"
    depth, rank = tracer.dims(indices)[-1], len(tracer.dims(indices))
    if not isinstance(depth, int):
        return "how many axes it indexes is not static"
    pin = tracer.labels.new_pin(node, "ScatterND writes to indices of this axis")
    for axis in range(depth):
        tracer.tie(pin, data, axis)
    tracer.keep_value(indices, pin)
    for axis in range(rank - 1):
        tracer.tie(pin, updates, axis)
    axes = tracer.all_axes(data)
    for axis in range(depth, len(axes)):
        tracer.tie(axes[axis], updates, rank - 1 + axis - depth)
    tracer.set(node.outputs[0], axes)
    return None


@traces("GatherElements", "ScatterElements")
def _elements(node: ir.Node, tracer: Tracer) -> str | None:
    data, others = node.inputs[0], [value for value in node.inputs[1:] if value is not None]
    if data is None or not others:
        return "an operand is missing"
    rank, gathers = len(tracer.dims(data)), node.op_type == "GatherElements"
    along = node.attributes.get_int("axis", 0) % rank
    pin = tracer.labels.new_pin(node, f"{node.op_type} indexes this axis")
    for axis in range(rank):
        dims = [tracer.dims(value)[axis] for value in (data, *others)]
        if axis != along and dims[0] is not None and len(set(dims)) == 1:
            for value in others:
                tracer.tie(tracer.axis(data, axis), value, axis)
            continue
        tracer.tie(pin, data, axis)
        if axis != along or not gathers:
            for value in others:
                tracer.tie(pin, value, axis)
    tracer.set(node.outputs[0], tracer.all_axes(others[0] if gathers else data))
    return None


@traces("OneHot")
def _one_hot(node: ir.Node, tracer: Tracer) -> str | None:
    indices, output = node.inputs[0], node.outputs[0]
    if indices is None:
        return "its first input is missing"
    rank = len(tracer.dims(output))
    pin = tracer.labels.new_pin(node, "OneHot makes one index per class")
    axes = tracer.all_axes(indices)
    axes.insert(node.attributes.get_int("axis", -1) % rank, pin)
    tracer.set(output, axes)
    return None


@traces("Compress", "Trilu", "ReverseSequence", "EyeLike")
def _some_axes(node: ir.Node, tracer: Tracer) -> str | None:
    data = node.inputs[0]
    if data is None:
        return "its first input is missing"
    rank = len(tracer.dims(data))
    pin = tracer.labels.new_pin(node, f"{node.op_type} treats the indices of this axis by position")
    if node.op_type == "Compress":
        if "axis" not in node.attributes:
            return "it flattens its input"
        concerned = [node.attributes.get_int("axis", 0) % rank]
    elif node.op_type == "ReverseSequence":
        concerned = [node.attributes.get_int("batch_axis", 1), node.attributes.get_int("time_axis", 0)]
    else:
        concerned = [rank - 2, rank - 1]
    axes = tracer.all_axes(data)
    for axis in concerned:
        tracer.tie(pin, data, axis)
        axes[axis] = pin
    tracer.set(node.outputs[0], axes)
    return None
