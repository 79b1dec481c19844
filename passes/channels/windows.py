"""Labels through operators with a spatial neighbourhood: pooling, padding, resizing."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx_ir as ir

from ...ir.constants import constant_array
from .labels import Axis, spread
from .sizes import can_follow, entries, labelled_sizes, shift
from .tracer import Edit, Keep, Tracer, traces


@traces("MaxPool", "AveragePool", "LpPool")
def _pool(node: ir.Node, tracer: Tracer) -> str | None:
    data = node.inputs[0]
    if data is None:
        return "its first input is missing"
    if any(output.name != "" and (output.uses() or output.is_graph_output()) for output in node.outputs[1:]):
        return "its indices count through all channels"
    pin = tracer.labels.new_pin(node, f"{node.op_type} slides over this axis")
    rank = len(tracer.dims(data))
    result = tracer.all_axes(data)
    for axis in range(2, rank):
        if _sums_over_channels(node, tracer, data, axis):
            result[axis] = tracer.look_along(node, axis)
        else:
            tracer.tie(pin, data, axis)
            result[axis] = pin
    for output in node.outputs:
        if output.name != "":
            tracer.set(output, result)
    return None


def _sums_over_channels(node: ir.Node, tracer: Tracer, data: ir.Value, axis: int) -> bool:
    """Whether the window of a pooling slides over channels that a layer makes and gives as many, as in LRN.

    Zeros change nothing in a mean of fixed size; they would in a maximum.
    """
    labels, size = tracer.axis(data, axis), tracer.dims(data)[axis]
    strides = node.attributes.get_ints("strides", (1,) * (len(tracer.dims(data)) - 2))
    return (
        node.op_type in ("AveragePool", "LpPool")
        and isinstance(labels, np.ndarray)
        and tracer.is_made(labels)
        and isinstance(size, int)
        and size == tracer.dims(node.outputs[0])[axis]
        and strides[axis - 2] == 1
    )


@traces("Pad")
def _pad(node: ir.Node, tracer: Tracer) -> str | None:
    data = node.inputs[0]
    pads = constant_array(node.inputs[1]) if len(node.inputs) > 1 else None
    if data is None or pads is None:
        return "its paddings are computed"
    rank = len(tracer.dims(data))
    axes = list(range(rank))
    if len(node.inputs) > 3 and node.inputs[3] is not None:
        stored = constant_array(node.inputs[3])
        if stored is None:
            return "its axes are computed"
        axes = [int(axis) % rank for axis in stored]
    constant = node.attributes.get_string("mode", "constant") == "constant"
    pin = tracer.labels.new_pin(node, "Pad fills this axis")
    result = tracer.all_axes(data)
    for position, axis in enumerate(axes):
        before, after = int(pads[position]), int(pads[len(axes) + position])
        if before == after == 0:
            continue
        size = tracer.dims(data)[axis]
        if (
            not constant
            or before < 0
            or after < 0
            or not isinstance(size, int)
            or isinstance(result[axis], int)
        ):
            tracer.tie(pin, data, axis)
            result[axis] = pin
        else:
            result[axis] = np.concatenate(
                [spread(pin, before), spread(result[axis], size), spread(pin, after)]
            )
    tracer.set(node.outputs[0], result)
    return None


@traces("GridSample")
def _grid_sample(node: ir.Node, tracer: Tracer) -> str | None:
    data, grid = node.inputs[0], node.inputs[1]
    if data is None or grid is None:
        return "an operand is missing"
    pin = tracer.labels.new_pin(node, "GridSample reads this axis at computed positions")
    rank = len(tracer.dims(data))
    for axis in range(2, rank):
        tracer.tie(pin, data, axis)
    for axis in range(1, rank):
        tracer.tie(pin, grid, axis)
    tracer.tie(tracer.axis(data, 0), grid, 0)
    tracer.set(node.outputs[0], [*tracer.all_axes(data)[:2], *[pin] * (rank - 2)])
    return None


@traces("RoiAlign", "MaxRoiPool")
def _regions(node: ir.Node, tracer: Tracer) -> str | None:
    data = node.inputs[0]
    if data is None:
        return "its first input is missing"
    pin = tracer.labels.new_pin(node, f"{node.op_type} reads regions of this axis")
    for axis in (0, 2, 3):
        tracer.tie(pin, data, axis)
    for value in node.inputs[1:]:
        if value is not None:
            tracer.keep_value(value, pin)
    tracer.set(node.outputs[0], [pin, tracer.axis(data, 1), pin, pin])
    return None


@traces("Resize")
def _resize(node: ir.Node, tracer: Tracer) -> str | None:
    data, output = node.inputs[0], node.outputs[0]
    if data is None:
        return "its first input is missing"
    if node.attributes.get_string("coordinate_transformation_mode", "half_pixel") == "tf_crop_and_resize":
        return "it crops by a region of interest"
    if node.attributes.get_string("keep_aspect_ratio_policy", "stretch") != "stretch":
        return "its sizes keep an aspect ratio"
    rank = len(tracer.dims(data))
    axes = [axis % rank for axis in node.attributes.get_ints("axes", tuple(range(rank)))]
    scales = constant_array(node.inputs[2]) if len(node.inputs) > 2 and node.inputs[2] is not None else None
    sizes = node.inputs[3] if len(node.inputs) > 3 else None
    pin = tracer.labels.new_pin(node, "Resize changes this axis")
    result = tracer.all_axes(data)
    for position, axis in enumerate(axes):
        same = tracer.dims(data)[axis] == tracer.dims(output)[axis] is not None
        scaled = sizes is None and (scales is None or scales.size == 0 or float(scales[position]) != 1.0)
        if not same or scaled:
            tracer.tie(pin, data, axis)
            result[axis] = pin
    stored, found = constant_array(sizes), entries(sizes, tracer)
    if stored is not None:
        known = stored
        tracer.on_removal(lambda keep: _new_sizes(node, keep, known, axes, result))
    elif found is not None:
        resized = [result[axis] for axis in axes]
        dims = [tracer.dims(output)[axis] for axis in axes]
        if can_follow(found, resized, dims):
            followed = found
            tracer.on_removal(lambda keep: shift(node, keep, followed, dims, resized))
            sizes = None
    if sizes is not None and stored is None:
        # A computed size cannot be corrected.
        for size in labelled_sizes(found):
            tracer.labels.tie(pin, size.axis)
        for axis in axes:
            if isinstance(result[axis], np.ndarray):
                tracer.tie(pin, data, axis)
                result[axis] = pin
    tracer.set(output, result)
    return None


def _new_sizes(
    node: ir.Node, keep: Keep, stored: np.ndarray, axes: list[int], result: list[Axis]
) -> Iterator[Edit]:
    sizes = stored.copy()
    for position, axis in enumerate(axes):
        if isinstance(result[axis], np.ndarray):
            sizes[position] = keep.count(result[axis], len(spread(result[axis], 0)))
    if not np.array_equal(sizes, stored):
        yield Edit(node, 3, sizes)
