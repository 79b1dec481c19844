"""Labels through reductions, normalizations and other operators that look along an axis."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx_ir as ir

from ...ir.constants import constant_array
from .contractions import by_group, tie_broadcast
from .labels import Axis, size_of
from .tracer import Edit, Keep, Scale, Tracer, traces

# What a removed entry becomes, so that it changes nothing. A mean is a sum over a fixed number of entries.
_NEUTRAL = {
    "ReduceSum": 0.0,
    "ReduceSumSquare": 0.0,
    "ReduceL1": 0.0,
    "ReduceL2": 0.0,
    "ReduceLogSum": 0.0,
    "ReduceMean": 0.0,
    "ReduceMax": -np.inf,
    "ReduceMin": np.inf,
    "ReduceLogSumExp": -np.inf,
    "ReduceProd": 1.0,
}


@traces(*_NEUTRAL)
def _reduce(node: ir.Node, tracer: Tracer) -> str | None:
    data = node.inputs[0]
    if data is None:
        return "its first input is missing"
    rank = len(tracer.dims(data))
    axes: list[int] = []
    operand = node.inputs[1] if len(node.inputs) > 1 else None
    if operand is not None:
        stored = constant_array(operand)
        if stored is None:
            return "its axes are computed"
        axes = [int(axis) % rank for axis in stored.ravel()]
    if not axes:
        axes = [] if node.attributes.get_int("noop_with_empty_axes", 0) else list(range(rank))
    summed = [axis for axis in axes if tracer.is_labelled(data, axis)]
    is_float = data.dtype is not None and data.dtype.is_floating_point()
    for axis in summed:
        if is_float or (_NEUTRAL[node.op_type] == 0.0 and node.op_type != "ReduceMean"):
            tracer.contract(node, 0, axis, _NEUTRAL[node.op_type])
        else:
            tracer.keep(data, axis, node, f"{node.op_type} of integers has no neutral element")
    if node.op_type == "ReduceMean" and summed:
        labelled = [tracer.axis(data, axis) for axis in summed]
        tracer.on_removal(lambda keep: _same_divisor(node, keep, labelled))
    kept = node.attributes.get_int("keepdims", 1) != 0
    result: list[Axis] = []
    for axis in range(rank):
        if axis not in axes:
            result.append(tracer.axis(data, axis))
        elif kept:
            result.append(tracer.unit)
    tracer.set(node.outputs[0], result)
    return None


def _same_divisor(node: ir.Node, keep: Keep, axes: list[Axis]) -> Iterator[Edit]:
    """A mean divides by the size it had: the function of what stays must not change with it."""
    factor = 1.0
    for axis in axes:
        size = size_of(axis, 1)
        factor *= keep.count(axis, size) / size
    if factor != 1.0:
        yield Edit(node, 0, Scale(factor))


@traces("ArgMax", "ArgMin")
def _arg(node: ir.Node, tracer: Tracer) -> str | None:
    data = node.inputs[0]
    if data is None:
        return "its first input is missing"
    axis = node.attributes.get_int("axis", 0) % len(tracer.dims(data))
    pin = tracer.keep(data, axis, node, f"{node.op_type} returns positions on this axis")
    result = tracer.all_axes(data)
    if node.attributes.get_int("keepdims", 1):
        result[axis] = pin
    else:
        del result[axis]
    tracer.set(node.outputs[0], result)
    return None


@traces("Hardmax", "TopK")
def _along(node: ir.Node, tracer: Tracer) -> str | None:
    data = node.inputs[0]
    if data is None:
        return "its first input is missing"
    axis = node.attributes.get_int("axis", -1) % len(tracer.dims(data))
    pin = tracer.keep(data, axis, node, f"{node.op_type} picks positions along this axis")
    for output in node.outputs:
        if output.name != "":
            result = tracer.all_axes(data)
            result[axis] = pin
            tracer.set(output, result)
    return None


@traces("Softmax", "LogSoftmax")
def _softmax(node: ir.Node, tracer: Tracer) -> str | None:
    data = node.inputs[0]
    if data is None:
        return "its first input is missing"
    axis = node.attributes.get_int("axis", -1) % len(tracer.dims(data))
    if tracer.statistic(node, axis, f"{node.op_type} normalizes along this axis"):
        tracer.contract(node, 0, axis, -np.inf)
    tracer.set(node.outputs[0], tracer.all_axes(data))
    return None


@traces("CumSum", "LpNormalization")
def _accumulate(node: ir.Node, tracer: Tracer) -> str | None:
    data = node.inputs[0]
    if data is None:
        return "its first input is missing"
    axis = node.attributes.get_int("axis", -1)
    if node.op_type == "CumSum":
        stored = constant_array(node.inputs[1])
        if stored is None:
            return "its axis is computed"
        axis = int(stored.ravel()[0])
    # A zero adds nothing to the sums that stay.
    tracer.contract(node, 0, axis)
    tracer.set(node.outputs[0], tracer.all_axes(data))
    return None


@traces("LayerNormalization", "RMSNormalization")
def _normalize_tail(node: ir.Node, tracer: Tracer) -> str | None:
    data = node.inputs[0]
    if data is None:
        return "its first input is missing"
    rank = len(tracer.dims(data))
    first = node.attributes.get_int("axis", -1) % rank
    for axis in range(first, rank):
        tracer.statistic(node, axis, f"{node.op_type} takes statistics over this axis")
    axes = tracer.all_axes(data)
    for parameter in node.inputs[1:]:
        if parameter is not None:
            tie_broadcast(tracer, axes, parameter)
    tracer.set(node.outputs[0], axes)
    # The further outputs, mean and inverse deviation, have the normalized axes at size one.
    for output in node.outputs[1:]:
        if output.name != "":
            tracer.set(output, [*axes[:first], *[tracer.unit] * (rank - first)])
    return None


@traces("BatchNormalization", "InstanceNormalization")
def _normalize_channels(node: ir.Node, tracer: Tracer) -> str | None:
    data = node.inputs[0]
    if data is None or len(tracer.dims(data)) < 2:
        return "its input has no channel axis"
    channels = tracer.axis(data, 1)
    for parameter in node.inputs[1:]:
        if parameter is not None:
            tracer.tie(channels, parameter, 0)
    # Statistics run over the other axes.
    reason = f"{node.op_type} takes statistics over this axis"
    if node.op_type == "InstanceNormalization":
        for axis in range(2, len(tracer.dims(data))):
            tracer.statistic(node, axis, reason)
    elif node.attributes.get_int("training_mode", 0):
        pin = tracer.labels.new_pin(node, reason)
        for axis in range(len(tracer.dims(data))):
            if axis != 1:
                tracer.tie(pin, data, axis)
    tracer.set(node.outputs[0], tracer.all_axes(data))
    for running in node.outputs[1:]:
        if running.name != "":
            tracer.set(running, [channels])
    return None


@traces("GroupNormalization")
def _normalize_groups(node: ir.Node, tracer: Tracer) -> str | None:
    """Whole groups go exactly; on request the same positions within every group go statistically."""
    data = node.inputs[0]
    groups = node.attributes.get_int("num_groups", 1)
    if data is None:
        return "its first input is missing"
    for axis in range(2, len(tracer.dims(data))):
        tracer.keep(data, axis, node, "GroupNormalization takes statistics over this axis")
    channels = tracer.axis(data, 1)
    for parameter in node.inputs[1:]:
        if parameter is not None:
            tracer.tie(channels, parameter, 0)
    if isinstance(channels, np.ndarray):
        grid = channels.reshape(groups, -1)
        within = tracer.allow_statistical and (groups == 1 or not by_group(node, tracer, groups, 1))
        if within:
            tracer.labels.tie(grid[:1], grid)
            tracer.statistic(node, 1, "GroupNormalization takes statistics over its groups")
        else:
            tracer.labels.tie(grid[:, :1], grid)
            if groups == 1:
                tracer.keep(data, 1, node, "GroupNormalization takes statistics over all channels")
            per_group = grid.shape[1]
            tracer.on_removal(lambda keep: _group_count(node, keep, channels, groups * per_group, per_group))
    tracer.set(node.outputs[0], tracer.all_axes(data))
    return None


def _group_count(node: ir.Node, keep: Keep, axis: Axis, channels: int, per_group: int) -> Iterator[Edit]:
    yield Edit(node, "num_groups", keep.count(axis, channels) // per_group)


@traces("LRN", "MeanVarianceNormalization")
def _normalize_neighbours(node: ir.Node, tracer: Tracer) -> str | None:
    data = node.inputs[0]
    if data is None:
        return "its first input is missing"
    if node.op_type == "LRN":
        tracer.look_along(node, 1)
        tracer.set(node.outputs[0], tracer.all_axes(data))
        return None
    rank = len(tracer.dims(data))
    for axis in node.attributes.get_ints("axes", (0, 2, 3)):
        tracer.keep(data, axis % rank, node, f"{node.op_type} looks along this axis")
    tracer.set(node.outputs[0], tracer.all_axes(data))
    return None


@traces("DFT")
def _transform(node: ir.Node, tracer: Tracer) -> str | None:
    """Every frequency hears every entry; a removed entry is a zero, a removed frequency is dropped."""
    data = node.inputs[0]
    if data is None:
        return "its first input is missing"
    before, after = tracer.dims(data), tracer.dims(node.outputs[0])
    stored = constant_array(node.inputs[2]) if len(node.inputs) > 2 and node.inputs[2] is not None else None
    if stored is None and len(node.inputs) > 2 and node.inputs[2] is not None:
        return "its axis is computed"
    axis = (-2 if stored is None else int(stored.ravel()[0])) % len(before)
    pin = tracer.keep(data, len(before) - 1, node, "DFT pairs real and imaginary parts on this axis")
    axes = [*tracer.all_axes(data)[:-1], pin]
    if before[axis] == after[axis]:
        axes[axis] = tracer.look_along(node, axis)
    else:
        axes[axis] = tracer.keep(data, axis, node, "DFT changes the length of this axis")
    tracer.set(node.outputs[0], axes)
    return None


@traces("GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool")
def _global_pool(node: ir.Node, tracer: Tracer) -> str | None:
    data = node.inputs[0]
    if data is None:
        return "its first input is missing"
    pin = tracer.labels.new_pin(node, f"{node.op_type} pools over this axis")
    for axis in range(2, len(tracer.dims(data))):
        tracer.tie(pin, data, axis)
    tracer.set(node.outputs[0], tracer.all_axes(data))
    return None
