"""Labels through reductions, normalizations and other operators that look along an axis."""

from __future__ import annotations

import onnx_ir as ir

from ...ir.constants import constant_array
from .labels import Axis
from .tracer import Tracer, traces

# A removed index adds exactly nothing once it is zeroed.
_SUMS = ("ReduceSum", "ReduceSumSquare", "ReduceL1", "ReduceL2")
_OTHERS = ("ReduceMean", "ReduceMax", "ReduceMin", "ReduceProd", "ReduceLogSum", "ReduceLogSumExp")


@traces(*_SUMS, *_OTHERS)
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
    for axis in axes:
        if node.op_type in _SUMS:
            tracer.contract(node, 0, axis)
        elif tracer.is_labelled(data, axis):
            tracer.keep(data, axis, node, f"{node.op_type} over this axis depends on every index")
    kept = node.attributes.get_int("keepdims", 1) != 0
    result: list[Axis] = []
    for axis in range(rank):
        if axis not in axes:
            result.append(tracer.axis(data, axis))
        elif kept:
            result.append(tracer.unit)
    tracer.set(node.outputs[0], result)
    return None


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


@traces("Softmax", "LogSoftmax", "Hardmax", "CumSum", "TopK", "LpNormalization")
def _along(node: ir.Node, tracer: Tracer) -> str | None:
    data = node.inputs[0]
    if data is None:
        return "its first input is missing"
    axis = node.attributes.get_int("axis", -1)
    if node.op_type == "CumSum":
        stored = constant_array(node.inputs[1])
        if stored is None:
            return "its axis is computed"
        axis = int(stored.ravel()[0])
    axis %= len(tracer.dims(data))
    pin = tracer.keep(data, axis, node, f"{node.op_type} runs along this axis")
    for output in node.outputs:
        if output.name != "":
            result = tracer.all_axes(data)
            result[axis] = pin
            tracer.set(output, result)
    return None


@traces("LayerNormalization", "RMSNormalization")
def _normalize_tail(node: ir.Node, tracer: Tracer) -> str | None:
    data = node.inputs[0]
    if data is None:
        return "its first input is missing"
    rank = len(tracer.dims(data))
    first = node.attributes.get_int("axis", -1) % rank
    pin = tracer.labels.new_pin(node, f"{node.op_type} takes statistics over this axis")
    for axis in range(first, rank):
        tracer.tie(pin, data, axis)
    for parameter in node.inputs[1:]:
        if parameter is not None:
            tracer.keep_value(parameter, pin)
    # The further outputs, mean and inverse deviation, have the normalized axes at size one.
    for output in node.outputs:
        if output.name != "":
            tracer.set(output, tracer.all_axes(data))
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
    # Statistics run over the other axes, so those must stay.
    pin = tracer.labels.new_pin(node, f"{node.op_type} takes statistics over this axis")
    training = bool(node.attributes.get_int("training_mode", 0))
    if training or node.op_type == "InstanceNormalization":
        for axis in range(0 if node.op_type == "BatchNormalization" else 2, len(tracer.dims(data))):
            if axis != 1:
                tracer.tie(pin, data, axis)
    tracer.set(node.outputs[0], tracer.all_axes(data))
    for running in node.outputs[1:]:
        if running.name != "":
            tracer.set(running, [channels])
    return None


@traces("GroupNormalization", "LRN")
def _normalize_groups(node: ir.Node, tracer: Tracer) -> str | None:
    data = node.inputs[0]
    if data is None:
        return "its first input is missing"
    reason = f"{node.op_type} takes statistics over several channels"
    pin = tracer.labels.new_pin(node, reason)
    tracer.keep_value(data, pin)
    for parameter in node.inputs[1:]:
        if parameter is not None:
            tracer.keep_value(parameter, pin)
    tracer.set(node.outputs[0], tracer.all_axes(data))
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
