"""Labels through operators that move, pick or repeat indices along axes they name."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import onnx_ir as ir

from ...ir.constants import constant_array, constant_tensor
from .labels import Axis, spread
from .sizes import Size, can_follow, entries, feeds_only_shapes, shift
from .tracer import Dim, Edit, Keep, Tracer, traces


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
    given = [constant_array(value) if value is not None else None for value in node.inputs[1:]]
    given += [None] * (4 - len(given))
    present = [value is not None for value in node.inputs[1:]] + [False] * (5 - len(node.inputs))
    if any(stored is None and there for stored, there in zip(given, present, strict=True)):
        return "its bounds are computed"
    starts, ends = given[0], given[1]
    assert starts is not None and ends is not None
    axes = [int(axis) % rank for axis in given[2]] if given[2] is not None else list(range(len(starts)))
    steps = [int(step) for step in given[3]] if given[3] is not None else [1] * len(axes)
    result = tracer.all_axes(data)
    bounds: dict[int, tuple[Axis, int, int]] = {}
    for position, axis in enumerate(axes):
        labels, size = result[axis], tracer.dims(data)[axis]
        if not isinstance(labels, np.ndarray) or not isinstance(size, int):
            continue
        start, end, step = slice(int(starts[position]), int(ends[position]), steps[position]).indices(size)
        if step == 1:
            bounds[position] = (labels, start, max(start, end))
            result[axis] = labels[start : max(start, end)]
        else:
            result[axis] = tracer.keep(data, axis, node, "Slice strides over this axis")
    if bounds:
        tracer.on_removal(lambda keep: _new_bounds(node, keep, starts, ends, bounds))
    tracer.set(node.outputs[0], result)
    return None


def _new_bounds(
    node: ir.Node,
    keep: Keep,
    starts: np.ndarray,
    ends: np.ndarray,
    bounds: dict[int, tuple[Axis, int, int]],
) -> Iterator[Edit]:
    starts, ends = starts.copy(), ends.copy()
    changed = False
    for position, (labels, start, end) in bounds.items():
        mask = keep.mask(labels, 0)
        if mask.all():
            continue
        changed = True
        starts[position], ends[position] = int(mask[:start].sum()), int(mask[:end].sum())
    if changed:
        yield Edit(node, 1, starts)
        yield Edit(node, 2, ends)


@traces("Gather")
def _gather(node: ir.Node, tracer: Tracer) -> str | None:
    data, indices = node.inputs[0], node.inputs[1]
    if data is None or indices is None:
        return "an operand is missing"
    rank = len(tracer.dims(data))
    axis = node.attributes.get_int("axis", 0) % rank
    picked = constant_array(indices)
    pin = tracer.labels.new_pin(node, "Gather picks indices of this axis")
    places: list[Axis] = [pin] * len(tracer.dims(indices))
    if picked is not None and tracer.is_labelled(data, axis):
        labels = spread(tracer.axis(data, axis), 0)
        picked = np.where(picked < 0, picked + len(labels), picked)
        if picked.ndim == 1:
            places = [labels[picked]]
        else:
            tracer.labels.tie(pin, labels[picked])
        chosen = picked
        tracer.on_removal(lambda keep: _new_indices(node, keep, labels, chosen))
    else:
        tracer.tie(pin, data, axis)
        tracer.keep_value(indices, pin)
    table = constant_tensor(data)
    if table is not None and rank == 2 and axis == 0 and picked is None:
        tracer.produce(node, data, 1)
    axes: list[Axis] = [pin if index == axis else tracer.axis(data, index) for index in range(rank)]
    tracer.set(node.outputs[0], [*axes[:axis], *places, *axes[axis + 1 :]])
    return None


def _new_indices(node: ir.Node, keep: Keep, labels: np.ndarray, picked: np.ndarray) -> Iterator[Edit]:
    mask = keep.mask(labels, len(labels))
    if mask.all():
        return
    position = np.cumsum(mask) - 1
    kept = picked[mask[picked]] if picked.ndim == 1 else picked
    yield Edit(node, 1, np.asarray(position[kept], np.int64))


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
    stored = constant_array(node.inputs[0])
    if stored is None:
        return "its shape is computed"
    dims = tracer.dims(node.outputs[0])
    # All elements are the same: any index of any axis may go.
    axes: list[Axis] = [tracer.labels.fresh(int(dim)) for dim in stored]
    tracer.on_removal(lambda keep: _new_expansion(node, keep, stored, dims, axes, operand=0))
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


@traces("Shape", "Size")
def _shape(node: ir.Node, tracer: Tracer) -> str | None:
    data, output = node.inputs[0], node.outputs[0]
    if data is None:
        return "its first input is missing"
    pin = tracer.labels.new_pin(node, f"{node.op_type} reads its size")
    read = (
        ()
        if node.op_type == "Shape" and feeds_only_shapes(output)
        else _axes_read(node, len(tracer.dims(data)))
    )
    for index in read:
        tracer.tie(pin, data, index)
    tracer.set(output, [pin] * len(tracer.dims(output)))
    return None


def _axes_read(node: ir.Node, rank: int) -> list[int]:
    """Axes whose size the consumers of a Shape look at."""
    if node.op_type == "Size":
        return list(range(rank))
    axes = list(range(rank))[slice(node.attributes.get_int("start", 0), node.attributes.get_int("end", rank))]
    output = node.outputs[0]
    if output.is_graph_output():
        return axes
    read: set[int] = set()
    for consumer, _ in output.uses():
        picked = _picked(consumer, len(axes))
        if picked is None:
            return axes
        read.update(axes[index] for index in picked)
    return sorted(read)


def _picked(consumer: ir.Node, count: int) -> list[int] | None:
    """Positions of a shape vector that a Gather or Slice picks, or None where that is not known."""
    if consumer.op_type == "Gather" and constant_array(consumer.inputs[1]) is not None:
        return [int(index) % count for index in np.ravel(constant_array(consumer.inputs[1]))]  # type: ignore[arg-type]
    if consumer.op_type != "Slice" or len(consumer.inputs) > 4:
        return None
    start, end = constant_array(consumer.inputs[1]), constant_array(consumer.inputs[2])
    if start is None or end is None or start.size != 1 or end.size != 1:
        return None
    return list(range(count))[slice(int(start.ravel()[0]), int(end.ravel()[0]))]
