"""Labels through operators that move, pick or repeat indices along axes they name."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from ...ir.constants import constant_array, constant_tensor
from .labels import Axis, spread
from .sizes import Size, can_follow, entries, settle, shift, static_entries
from .tracer import Dim, Edit, Keep, Tracer, traces

_BEFORE_ALL = -(2**31)
"""End of a reversed Slice that includes index 0."""


@traces("Transpose")
def _transpose(node: ir.Node, tracer: Tracer) -> str | None:
    data = node.inputs[0]
    if data is None:
        return "its first input is missing"
    axes = tracer.all_axes(data)
    perm = node.attributes.get_ints("perm", tuple(reversed(range(len(axes)))))
    tracer.set(node.outputs[0], [axes[index] for index in perm])
    return None


@traces("Squeeze", "Unsqueeze")
def _squeeze(node: ir.Node, tracer: Tracer) -> str | None:
    data, output = node.inputs[0], node.outputs[0]
    if data is None:
        return "its first input is missing"
    operand = node.inputs[1] if len(node.inputs) > 1 else None
    wide = data if node.op_type == "Squeeze" else output
    dims = tracer.dims(wide)
    if operand is None:
        # Named from now on: a channel axis that shrinks to one must not be squeezed.
        dropped = [index for index, dim in enumerate(dims) if dim == 1]
        tracer.on_removal(lambda keep: _explicit_axes(node, keep, tracer.all_axes(data), dropped))
    else:
        stored = constant_array(operand)
        if stored is None:
            return "its axes are computed"
        dropped = [int(axis) % len(dims) for axis in stored.ravel()]
    axes = tracer.all_axes(data)
    if wide is data:
        tracer.set(output, [axis for index, axis in enumerate(axes) if index not in dropped])
        return None
    rest = iter(axes)
    tracer.set(output, [tracer.unit if index in dropped else next(rest) for index in range(len(dims))])
    return None


def _explicit_axes(node: ir.Node, keep: Keep, axes: list[Axis], dropped: list[int]) -> Iterator[Edit]:
    if any(isinstance(axis, np.ndarray) and not keep.mask(axis, len(axis)).all() for axis in axes):
        yield Edit(node, 1, np.array(dropped, np.int64))


@traces("Concat")
def _concat(node: ir.Node, tracer: Tracer) -> str | None:
    values = [value for value in node.inputs if value is not None]
    rank = len(tracer.dims(node.outputs[0]))
    joined = node.attributes.get_int("axis", 0) % rank
    values_by_kind = sorted(values, key=lambda value: constant_tensor(value) is not None)
    result: list[Axis] = []
    for index in range(rank):
        if index == joined:
            result.append(_join(node, tracer, values, index))
            continue
        lead = tracer.axis(values_by_kind[0], index)
        for value in values_by_kind[1:]:
            tracer.tie(lead, value, index)
        result.append(lead)
    tracer.set(node.outputs[0], result)
    return None


def _join(node: ir.Node, tracer: Tracer, values: list[ir.Value], index: int) -> Axis:
    sizes = [tracer.dims(value)[index] for value in values]
    if all(isinstance(size, int) for size in sizes):
        parts = [tracer.axis(value, index) for value in values]
        if all(isinstance(part, int) for part in parts):
            return tracer.labels.new_pin(node, "Concat joins axes that stay")
        return np.concatenate([spread(part, int(size)) for part, size in zip(parts, sizes, strict=True)])  # type: ignore[arg-type]
    pin = tracer.labels.new_pin(node, "Concat joins axes of which one is symbolic")
    for value in values:
        tracer.tie(pin, value, index)
    return pin


@traces("Split")
def _split(node: ir.Node, tracer: Tracer) -> str | None:
    data = node.inputs[0]
    if data is None:
        return "its first input is missing"
    axes = tracer.all_axes(data)
    split = node.attributes.get_int("axis", 0) % len(axes)
    sizes = [tracer.dims(output)[split] for output in node.outputs]
    whole = axes[split]
    parts: list[Axis] = [whole] * len(sizes)
    if isinstance(whole, np.ndarray):
        if not all(isinstance(size, int) for size in sizes):
            return "its parts are not static"
        static = [int(size) for size in sizes if isinstance(size, int)]
        ends = np.cumsum(static)
        parts = [whole[end - size : end] for end, size in zip(ends, static, strict=True)]
        tracer.on_removal(lambda keep: _new_parts(node, keep, parts, static))
    for output, part in zip(node.outputs, parts, strict=True):
        if output.name != "":
            tracer.set(output, [part if index == split else axis for index, axis in enumerate(axes)])
    return None


def _new_parts(node: ir.Node, keep: Keep, parts: list[Axis], sizes: list[int]) -> Iterator[Edit]:
    counts = [keep.count(part, size) for part, size in zip(parts, sizes, strict=True)]
    if counts != sizes:
        yield Edit(node, "num_outputs", None)
        yield Edit(node, 1, np.array(counts, np.int64))


@traces("Slice")
def _slice(node: ir.Node, tracer: Tracer) -> str | None:
    data = node.inputs[0]
    if data is None:
        return "its first input is missing"
    rank = len(tracer.dims(data))
    operands = [*node.inputs[1:], *[None] * (5 - len(node.inputs))]
    axes, steps = (constant_array(value) for value in operands[2:4])
    starts, ends = (static_entries(value, tracer) for value in operands[:2])
    if any(
        stored is None and given is not None
        for stored, given in zip((axes, steps), operands[2:4], strict=True)
    ):
        return "its axes or steps are computed"
    count = tracer.dims(operands[0])[0] if operands[0] is not None else None
    if axes is None and not isinstance(count, int):
        return "which axes it cuts is not known"
    cut = [int(axis) % rank for axis in axes] if axes is not None else list(range(count))  # type: ignore[arg-type]
    result = tracer.all_axes(data)
    bounds: dict[int, _Bounds] = {}
    for position, axis in enumerate(cut):
        labels, size = result[axis], tracer.dims(data)[axis]
        if not isinstance(labels, np.ndarray) or not isinstance(size, int):
            continue
        if starts is None or ends is None:
            result[axis] = tracer.keep(data, axis, node, "Slice has computed bounds on this axis")
            continue
        step = int(steps[position]) if steps is not None else 1
        start, end, step = slice(int(starts[position]), _bound(int(ends[position]), step), step).indices(size)
        if step == 1:
            bounds[position] = _Bounds(labels, start, max(start, end), 1)
            result[axis] = labels[start : max(start, end)]
        elif step == -1 and start == size - 1 and end == -1:
            bounds[position] = _Bounds(labels, start, end, -1)
            result[axis] = np.ascontiguousarray(labels[::-1])
        elif step > 1 and size % step == 0 and start < step and end > size - step + start:
            # Whole strides go, so that what is left still is every step-th index.
            strides = labels.reshape(-1, step)
            tracer.labels.tie(strides[:, :1], strides)
            result[axis] = np.ascontiguousarray(strides[:, start])
            bounds[position] = _Bounds(labels, start, end, step)
        else:
            result[axis] = tracer.keep(data, axis, node, "Slice strides over this axis")
    if bounds and starts is not None and ends is not None:
        known = starts, ends
        tracer.on_removal(lambda keep: _new_bounds(node, keep, *known, bounds))
    tracer.set(node.outputs[0], result)
    return None


@dataclass(frozen=True)
class _Bounds:
    """Where a Slice cuts a labelled axis."""

    labels: np.ndarray
    start: int
    end: int
    step: int


def _bound(end: int, step: int) -> int | None:
    """The end of a slice in Python's terms, where the one of a reversed axis is None."""
    return None if step < 0 and end < -(2**31) + 2 else end


def _new_bounds(
    node: ir.Node, keep: Keep, starts: np.ndarray, ends: np.ndarray, bounds: dict[int, _Bounds]
) -> Iterator[Edit]:
    starts, ends = starts.copy(), ends.copy()
    changed = False
    for position, cut in bounds.items():
        mask = keep.mask(cut.labels, len(cut.labels))
        if mask.all():
            continue
        changed = True
        if cut.step == 1:
            starts[position], ends[position] = int(mask[: cut.start].sum()), int(mask[: cut.end].sum())
        elif cut.step == -1:
            starts[position], ends[position] = int(mask.sum()) - 1, _BEFORE_ALL
        else:
            starts[position], ends[position] = cut.start, int(mask.sum())
    if changed:
        yield Edit(node, 1, starts)
        yield Edit(node, 2, ends)


@traces("Expand")
def _expand(node: ir.Node, tracer: Tracer) -> str | None:
    data, operand = node.inputs[0], node.inputs[1]
    if data is None:
        return "its first input is missing"
    before, after = tracer.dims(data), tracer.dims(node.outputs[0])
    stored, found = constant_array(operand), entries(operand, tracer)
    offset = len(after) - len(before)
    pin = tracer.labels.new_pin(node, "Expand repeats one index along this axis as often as is computed")
    result: list[Axis] = []
    for index, dim in enumerate(after):
        entry = found[index - len(after)] if found and len(after) - index <= len(found) else None
        if index >= offset and before[index - offset] != 1:
            result.append(tracer.axis(data, index - offset))
        elif isinstance(entry, int) and isinstance(dim, int):
            # Copies of one index: any of them may go.
            result.append(tracer.labels.fresh(dim))
        else:
            result.append(entry.axis if isinstance(entry, Size) else pin)
    tracer.set(node.outputs[0], result)
    if stored is not None:
        shape = stored
        tracer.on_removal(lambda keep: _new_expansion(node, keep, shape, after, result))
    elif found is not None and can_follow(found, result[-len(found) :], after[-len(found) :]):
        followed, count = found, len(found)
        tracer.on_removal(lambda keep: shift(node, keep, followed, after[-count:], result[-count:]))
    elif any(isinstance(axis, np.ndarray) for axis in result):
        return "its shape is computed"
    return None


def _new_expansion(
    node: ir.Node, keep: Keep, stored: np.ndarray, after: Sequence[Dim], result: list[Axis], operand: int = 1
) -> Iterator[Edit]:
    shape, changed = stored.copy(), False
    offset = len(result) - len(shape)
    for index in range(len(shape)):
        axis, size = result[offset + index], after[offset + index]
        if shape[index] > 1 and isinstance(size, int) and keep.count(axis, size) != size:
            shape[index], changed = keep.count(axis, size), True
    if changed:
        yield Edit(node, operand, shape)


@traces("ConstantOfShape")
def _filled(node: ir.Node, tracer: Tracer) -> str | None:
    """All elements are the same: any index of any axis may go."""
    operand, dims = node.inputs[0], tracer.dims(node.outputs[0])
    stored, found = constant_array(operand), entries(operand, tracer)
    pin = tracer.labels.new_pin(node, "how long it is filled is computed")
    axes: list[Axis] = []
    for index, dim in enumerate(dims):
        entry = found[index] if found is not None and index < len(found) else None
        if isinstance(entry, Size):
            axes.append(entry.axis)
        else:
            axes.append(tracer.labels.fresh(dim) if isinstance(entry, int) and isinstance(dim, int) else pin)
    if stored is not None:
        shape = stored
        tracer.on_removal(lambda keep: _new_expansion(node, keep, shape, dims, axes, operand=0))
    elif found is not None and can_follow(found, axes, dims):
        followed = found
        tracer.on_removal(lambda keep: shift(node, keep, followed, dims, axes))
    elif any(isinstance(axis, np.ndarray) for axis in axes):
        return "its shape is computed"
    tracer.set(node.outputs[0], axes)
    return None


@traces("Tile")
def _tile(node: ir.Node, tracer: Tracer) -> str | None:
    data = node.inputs[0]
    repeats = constant_array(node.inputs[1])
    if data is None or repeats is None:
        return "its repeats are computed"
    result = [
        np.tile(axis, int(times)) if isinstance(axis, np.ndarray) else axis
        for axis, times in zip(tracer.all_axes(data), repeats, strict=True)
    ]
    # An axis of size one that is repeated gets a size that stays.
    pin = tracer.labels.new_pin(node, "Tile repeats one index along this axis")
    unit = tracer.unit
    tracer.set(node.outputs[0], [pin if isinstance(axis, int) and axis == unit else axis for axis in result])
    return None


@traces("Shape")
def _shape(node: ir.Node, tracer: Tracer) -> str | None:
    data, output = node.inputs[0], node.outputs[0]
    if data is None:
        return "its first input is missing"
    pin = tracer.labels.new_pin(node, "Shape reads its size")
    tracer.set(output, [pin])
    settle(output, tracer, pin)
    return None


@traces("Size")
def _size(node: ir.Node, tracer: Tracer) -> str | None:
    data = node.inputs[0]
    if data is None:
        return "its first input is missing"
    tracer.keep_value(data, tracer.labels.new_pin(node, "Size reads its size"))
    tracer.set(node.outputs[0], [])
    return None
