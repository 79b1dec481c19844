"""Labels through operators that regroup indices: Reshape, Flatten, DepthToSpace, SpaceToDepth.

A reshape maps runs of input axes to runs of output axes of the same volume. Within a run the labels of an
input axis are laid out over the grid of input indices and read off over the grid of output indices:

- they vary along one output axis only: that axis carries them, each as often as it occurs;
- they vary along several (an axis was split): one of those carries them, and labels that meet along the
others
  are tied. Which one is a choice (heads or head dimensions; groups of a channel shuffle or positions in
  them).

Where sizes are open the grid is that of one period of the labels (`periods`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from ...ir.constants import constant_array
from .contractions import part_of
from .labels import Axis
from .periods import one_period
from .sizes import Size, can_follow, entries, labelled_sizes, shift
from .tracer import Dim, Edit, Keep, Tracer, traces


@dataclass(frozen=True)
class Run:
    """Input axes and output axes that hold the same indices in the same order."""

    inputs: tuple[int, ...]
    outputs: tuple[int, ...]


@traces("Reshape")
def _reshape(node: ir.Node, tracer: Tracer) -> str | None:
    data, operand = node.inputs[0], node.inputs[1]
    if data is None:
        return "its first input is missing"
    before, after = tracer.dims(data), tracer.dims(node.outputs[0])
    stored = constant_array(operand)
    found = entries(operand, tracer)
    result = regroup(node, tracer, data, after)
    tracer.set(node.outputs[0], result)
    template = _template(node, before, after) if stored is None else stored
    if template is not None:
        constant = template
        read = labelled_sizes(found)
        tracer.on_removal(lambda keep: _new_shape(node, keep, constant, after, result, read))
        return None
    for index in tracer.periodic(node.outputs[0]):
        tracer.keep(node.outputs[0], index, node, "a computed shape depends on its size")
    if found is not None and can_follow(found, result, after):
        followed = found
        tracer.on_removal(lambda keep: shift(node, keep, followed, after, result))
        return None
    concerned = labelled_sizes(found)
    pin = tracer.labels.new_pin(node, "a computed shape depends on its size")
    for size in concerned:
        tracer.labels.tie(pin, size.axis)
    if concerned or any(isinstance(axis, np.ndarray) for axis in tracer.all_axes(data)):
        return "its computed shape cannot be stated with the new sizes"
    return None


def _template(node: ir.Node, before: Sequence[Dim], after: Sequence[Dim]) -> np.ndarray | None:
    """A constant shape operand that says what a computed one says, or None if there is none."""
    copies = not node.attributes.get_int("allowzero", 0)
    shape: list[int] = []
    for index, dim in enumerate(after):
        if isinstance(dim, int):
            shape.append(dim)
        elif copies and dim is not None and index < len(before) and before[index] == dim:
            shape.append(0)
        else:
            shape.append(-1)
    if shape.count(-1) > 1 or (0 in shape and 0 in after):
        return None
    return np.array(shape, np.int64)


def _new_shape(
    node: ir.Node,
    keep: Keep,
    template: np.ndarray,
    after: Sequence[Dim],
    result: list[Axis],
    read: Sequence[Size],
) -> Iterator[Edit]:
    shape = template.copy()
    changed = any(isinstance(size.dim, int) and keep.count(size.axis, size.dim) != size.dim for size in read)
    for index, axis in enumerate(result):
        size = after[index]
        if isinstance(axis, int) or keep.count(axis, 0) == len(axis):
            continue
        changed = True
        if shape[index] > 0 and isinstance(size, int):
            shape[index] = keep.count(axis, size)
    if changed:
        yield Edit(node, 1, shape)


@traces("Flatten")
def _flatten(node: ir.Node, tracer: Tracer) -> str | None:
    data = node.inputs[0]
    if data is None:
        return "its first input is missing"
    tracer.set(node.outputs[0], regroup(node, tracer, data, tracer.dims(node.outputs[0])))
    return None


def regroup(node: ir.Node, tracer: Tracer, data: ir.Value, after: Sequence[Dim]) -> list[Axis]:
    """Labels of the output axes of a reshape of `data` to the dimensions `after`."""
    before, axes = tracer.dims(data), tracer.all_axes(data)
    result: list[Axis] = [tracer.unit] * len(after)
    for run in match_runs(before, after):
        labelled = [index for index in run.inputs if isinstance(axes[index], np.ndarray)]
        sizes = [before[index] for index in run.inputs], [after[index] for index in run.outputs]
        static = all(isinstance(size, int) for part in sizes for size in part)
        if len(run.inputs) == 1 and len(run.outputs) == 1:
            result[run.outputs[0]] = axes[run.inputs[0]]
            continue
        why = "splits or joins axes here, and another of them may shrink" if static else "regroups open sizes"
        pin = tracer.labels.new_pin(node, f"{node.op_type} {why}")
        for index in run.outputs:
            result[index] = pin
        # Where two meet on one output axis the first carries on: rather channels than copies of a constant.
        for index in sorted(labelled, key=lambda i: not tracer.is_made(axes[i])):  # type: ignore[arg-type]
            _carry(node, tracer, axes[index], run, index, (before, after), result, pin)
    return result


def _carry(
    node: ir.Node,
    tracer: Tracer,
    axis: Axis,
    run: Run,
    index: int,
    dims: tuple[Sequence[Dim], Sequence[Dim]],
    result: list[Axis],
    pin: int,
) -> None:
    """Hand the labels of one input axis of a run to one of its output axes."""
    before, after = dims
    inside, sizes = [before[i] for i in run.inputs if i > index], [after[i] for i in run.outputs]
    if all(isinstance(before[i], int) for i in run.inputs) and all(isinstance(size, int) for size in sizes):
        outer, _ = _volume(before, [i for i in run.inputs if i < index])
        inner, _ = _volume(before, [i for i in run.inputs if i > index])
        grid = np.tile(np.repeat(axis, inner), outer).reshape(sizes)  # type: ignore[arg-type]
    else:
        period = one_period(axis, inside, sizes)  # type: ignore[arg-type]
        if period is None:
            tracer.labels.tie(pin, axis)
            return
        grid = period
    flat = grid.ravel()
    varying = [q for q in range(grid.ndim) if (grid != np.take(grid, [0], q)).any()]
    if not varying:
        tracer.labels.tie(pin, flat)
        return
    chosen = part_of(node, tracer, {q: grid.shape[q] for q in varying})
    rows = np.moveaxis(grid, chosen, 0).reshape(grid.shape[chosen], -1)
    if isinstance(result[run.outputs[chosen]], np.ndarray):
        # Two input axes meet on one output axis; only one of them can shrink.
        tracer.labels.tie(pin, flat)
        return
    if len(varying) > 1:
        tracer.labels.tie(rows[:, :1], rows)
    result[run.outputs[chosen]] = np.ascontiguousarray(rows[:, 0])


def match_runs(before: Sequence[Dim], after: Sequence[Dim]) -> list[Run]:
    """Split a reshape into its shortest runs of equal volume; axes of size one belong to none.

    Symbols are equal by name. Runs are closed from the left, then from the right; what remains between is
    one.
    """
    left = [i for i, dim in enumerate(before) if dim != 1]
    right = [i for i, dim in enumerate(after) if dim != 1]
    runs, used = _close(before, after, left, right)
    left, right = left[used[0] :], right[used[1] :]
    tail, used = _close(before, after, left[::-1], right[::-1])
    left, right = left[: len(left) - used[0]], right[: len(right) - used[1]]
    if left or right:
        runs.append(Run(tuple(left), tuple(right)))
    return runs + [Run(run.inputs[::-1], run.outputs[::-1]) for run in reversed(tail)]


def _close(
    before: Sequence[Dim], after: Sequence[Dim], left: list[int], right: list[int]
) -> tuple[list[Run], tuple[int, int]]:
    runs: list[Run] = []
    start, i, j = (0, 0), 0, 0
    while i < len(left) and j < len(right):
        # Grow the side that is behind; where symbols hide that, the input side first.
        i, j = i + 1, j + 1
        volumes = _volume(before, left[start[0] : i]), _volume(after, right[start[1] : j])
        while volumes[0] != volumes[1]:
            grow_right = volumes[1][0] < volumes[0][0] and j < len(right)
            if not grow_right and i >= len(left):
                return runs, start
            if grow_right:
                j += 1
            else:
                i += 1
            volumes = _volume(before, left[start[0] : i]), _volume(after, right[start[1] : j])
        runs.append(Run(tuple(left[start[0] : i]), tuple(right[start[1] : j])))
        start = (i, j)
    return runs, start


def _volume(dims: Sequence[Dim], indices: Sequence[int]) -> tuple[int, object]:
    static, symbols = 1, Counter[object]()
    for index in indices:
        dim = dims[index]
        if isinstance(dim, int):
            static *= dim
        else:
            # An unknown size equals nothing, not even itself elsewhere.
            symbols[dim if dim is not None else object()] += 1
    return static, symbols


@traces("DepthToSpace", "SpaceToDepth")
def _blocks(node: ir.Node, tracer: Tracer) -> str | None:
    data = node.inputs[0]
    if data is None:
        return "its first input is missing"
    block = node.attributes.get_int("blocksize", 1) ** 2
    channels = tracer.dims(data)[1]
    if not isinstance(channels, int):
        return "its channel count is not static"
    pin = tracer.labels.new_pin(node, f"{node.op_type} moves blocks of this axis into channels or back")
    for index in (2, 3):
        tracer.tie(pin, data, index)
    labels = tracer.axis(data, 1)
    made: Axis = labels
    if isinstance(labels, np.ndarray) and node.op_type == "SpaceToDepth":
        made = np.tile(labels, block)
    elif isinstance(labels, np.ndarray):
        depth_first = node.attributes.get_string("mode", "DCR") == "DCR"
        grid = labels.reshape((block, -1)).T if depth_first else labels.reshape((-1, block))
        tracer.labels.tie(grid[:, :1], grid)
        made = np.ascontiguousarray(grid[:, 0])
    tracer.set(node.outputs[0], [tracer.axis(data, 0), made, pin, pin])
    return None
