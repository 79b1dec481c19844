"""Labels through operators that sum over an axis: Conv, ConvTranspose, Gemm, MatMul, Einsum.

The summed axis of both operands carries the same labels; removing an index removes one term of the sum,
which is exactly nothing once the slice of one operand (the weight where there is one) is zeroed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import onnx_ir as ir

from ...ir.constants import constant_tensor
from .elementwise import broadcast
from .labels import Axis, spread
from .tracer import INNER, OUTER, Edit, Keep, Tracer, traces

_COORDINATES = 4
"""A table of so many columns holds positions in space and time, which are no channels."""


@traces("Conv")
def _conv(node: ir.Node, tracer: Tracer) -> str | None:
    data, weight = node.inputs[0], node.inputs[1]
    if data is None or weight is None:
        return "an operand is missing"
    sizes = (tracer.dims(data)[1], *tracer.dims(weight)[:2])
    group = node.attributes.get_int("group", 1)
    channels, filters, per_group = sizes
    if not (isinstance(channels, int) and isinstance(filters, int) and isinstance(per_group, int)):
        return "its channel counts are not static"
    spatial = _pin_window(node, tracer, data, weight)
    source = tracer.axis(data, 1)
    if group == 1:
        tracer.tie(source, weight, 1)
        tracer.contract(node, 1, 1)
    elif per_group == 1:
        tracer.tie(_repeat(source, group, filters // group), weight, 0)
        tracer.on_removal(lambda keep: _group_count(node, keep, source, channels, 1))
    else:
        _tie_groups(node, tracer, source, weight, group)
    made = tracer.produce(node, weight, 0)
    _finish_conv(node, tracer, data, made, spatial)
    return None


@traces("ConvTranspose")
def _conv_transpose(node: ir.Node, tracer: Tracer) -> str | None:
    data, weight = node.inputs[0], node.inputs[1]
    if data is None or weight is None:
        return "an operand is missing"
    group = node.attributes.get_int("group", 1)
    channels, per_group = tracer.dims(data)[1], tracer.dims(weight)[1]
    if not (isinstance(channels, int) and isinstance(per_group, int)):
        return "its channel counts are not static"
    spatial = _pin_window(node, tracer, data, weight)
    source = tracer.axis(data, 1)
    tracer.tie(source, weight, 0)
    if group == 1:
        tracer.contract(node, 1, 0)
        made = tracer.produce(node, weight, 1)
    else:
        made = _transposed_groups(node, tracer, source, weight, group)
    _finish_conv(node, tracer, data, made, spatial)
    return None


def _pin_window(node: ir.Node, tracer: Tracer, data: ir.Value, weight: ir.Value) -> list[Axis]:
    """Labels of the spatial axes of the result.

    They are pinned unless the window is a single point, or slides over channels and gives as many (ECA).
    """
    pin = tracer.labels.new_pin(node, f"{node.op_type} slides over this axis")
    rank = len(tracer.dims(data))
    strides = node.attributes.get_ints("strides", (1,) * (rank - 2))
    pads = node.attributes.get_ints("pads", (0,) * 2 * (rank - 2))
    spatial: list[Axis] = []
    for index in range(2, rank):
        place = index - 2
        padded = pads[place] or pads[place + rank - 2]
        if node.op_type == "Conv" and tracer.dims(weight)[index] == strides[place] == 1 and not padded:
            spatial.append(tracer.axis(data, index))
            continue
        if node.op_type == "Conv" and strides[place] == 1 and _runs_over_channels(node, tracer, data, index):
            tracer.keep(weight, index, node, "Conv slides with all of its window")
            spatial.append(tracer.look_along(node, index))
            continue
        tracer.tie(pin, data, index)
        tracer.tie(pin, weight, index)
        spatial.append(pin)
    return spatial


def _runs_over_channels(node: ir.Node, tracer: Tracer, data: ir.Value, index: int) -> bool:
    """Whether a spatial axis holds channels that a layer makes, and the result has as many."""
    labels = tracer.axis(data, index)
    same = tracer.dims(data)[index] == tracer.dims(node.outputs[0])[index]
    return same and isinstance(labels, np.ndarray) and tracer.is_made(labels)


def _finish_conv(node: ir.Node, tracer: Tracer, data: ir.Value, made: Axis, spatial: list[Axis]) -> None:
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    if bias is not None:
        tracer.tie(made, bias, 0)
    tracer.set(node.outputs[0], [tracer.axis(data, 0), made, *spatial])


def _tie_groups(node: ir.Node, tracer: Tracer, source: Axis, weight: ir.Value, group: int) -> None:
    """Tie a grouped convolution so that its groups stay equally large.

    Either whole groups are removed, or the same positions within every group: whichever gives more classes.
    """
    filters, per_group = tracer.dims(weight)[:2]
    assert isinstance(filters, int) and isinstance(per_group, int)
    inputs = spread(source, group * per_group).reshape(group, per_group)
    outputs = spread(tracer.axis(weight, 0), filters).reshape(group, filters // group)
    if by_group(node, tracer, group, per_group):
        tracer.labels.tie(inputs[:, :1], inputs)
        tracer.labels.tie(inputs[:, :1], outputs)
        tracer.keep(weight, 1, node, "only whole groups of a grouped convolution are removed")
        tracer.on_removal(lambda keep: _group_count(node, keep, source, group * per_group, per_group))
        return
    tracer.labels.tie(inputs[:1], inputs)
    tracer.labels.tie(outputs[:1], outputs)
    tracer.tie(inputs[0], weight, 1)
    tracer.contract(node, 1, 1)


def _transposed_groups(node: ir.Node, tracer: Tracer, source: Axis, weight: ir.Value, group: int) -> Axis:
    """Tie a grouped transposed convolution, as `_tie_groups` does; returns the labels of what it makes."""
    channels, per_group = tracer.dims(weight)[:2]
    assert isinstance(channels, int) and isinstance(per_group, int)
    inputs = spread(source, channels).reshape(group, channels // group)
    if per_group == 1 or by_group(node, tracer, group, per_group):
        tracer.labels.tie(inputs[:, :1], inputs)
        tracer.keep(weight, 1, node, "only whole groups of a grouped convolution are removed")
        tracer.produce(node, weight, 0)
        held = channels // group
        tracer.on_removal(lambda keep: _group_count(node, keep, source, channels, held))
        return _repeat(np.ascontiguousarray(inputs[:, 0]), group, per_group)
    tracer.labels.tie(inputs[:1], inputs)
    tracer.contract(node, 1, 0)
    made = tracer.produce(node, weight, 1)
    return made if isinstance(made, int) else np.tile(made, group)


def by_group(node: ir.Node, tracer: Tracer, groups: int, per_group: int) -> bool:
    """Whether whole groups (heads) carry the labels rather than positions within them; remembers the choice.

    The larger number goes first unless the other one is to be tried.
    """
    preference = tracer.prefer.get(node, 0)
    if preference in (OUTER, INNER):
        chosen = preference == OUTER
    else:
        chosen = (groups > per_group) ^ (preference % 2 == 1)
    tracer.splits[node] = groups if chosen else per_group
    return chosen


def part_of(node: ir.Node, tracer: Tracer, sizes: dict[int, int]) -> int:
    """Which of several axes of these sizes carries the labels: the largest unless others are to be tried.

    Among equals the outer one comes first. The preferences OUTER and INNER go by position instead.
    """
    if len(sizes) == 1:
        return next(iter(sizes))
    preference = tracer.prefer.get(node, 0)
    if preference in (OUTER, INNER):
        chosen = min(sizes) if preference == OUTER else max(sizes)
    else:
        chosen = sorted(sizes, key=lambda axis: (-sizes[axis], axis))[preference % len(sizes)]
    tracer.splits[node] = sizes[chosen]
    return chosen


def _group_count(node: ir.Node, keep: Keep, source: Axis, channels: int, per_group: int) -> Iterator[Edit]:
    yield Edit(node, "group", keep.count(source, channels) // per_group)


def _repeat(axis: Axis, size: int, times: int) -> Axis:
    return axis if isinstance(axis, int) or times == 1 else np.repeat(spread(axis, size), times)


@traces("Gemm")
def _gemm(node: ir.Node, tracer: Tracer) -> str | None:
    left, right = node.inputs[0], node.inputs[1]
    if left is None or right is None:
        return "an operand is missing"
    rows, summed_left = (1, 0) if node.attributes.get_int("transA", 0) else (0, 1)
    summed_right, columns = (1, 0) if node.attributes.get_int("transB", 0) else (0, 1)
    result = _product(node, tracer, (rows, summed_left), (summed_right, columns))
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    if bias is not None:
        tie_broadcast(tracer, result, bias)
    tracer.set(node.outputs[0], result)
    return None


@traces("MatMul")
def _matmul(node: ir.Node, tracer: Tracer) -> str | None:
    left, right = node.inputs[0], node.inputs[1]
    if left is None or right is None:
        return "an operand is missing"
    ranks = len(tracer.dims(left)), len(tracer.dims(right))
    if min(ranks) == 0:
        return "an operand has no axes"
    rows = ranks[0] - 2 if ranks[0] > 1 else None
    columns = ranks[1] - 1 if ranks[1] > 1 else None
    matrix = _product(node, tracer, (rows, ranks[0] - 1), (max(ranks[1] - 2, 0), columns))
    rank = len(tracer.dims(node.outputs[0]))
    batched = [value for value, r in zip((left, right), ranks, strict=True) if r > 2]
    batch = broadcast(batched, tracer, rank - len(matrix) + 2, skip=2) if batched else []
    tracer.set(node.outputs[0], [*batch, *matrix])
    return None


def _product(
    node: ir.Node, tracer: Tracer, left_axes: tuple[int | None, int], right_axes: tuple[int, int | None]
) -> list[Axis]:
    """Tie the summed axes of a matrix product; returns the labels of its rows and columns."""
    left, right = node.inputs[0], node.inputs[1]
    assert left is not None and right is not None
    rows, summed_left = left_axes
    summed_right, columns = right_axes
    if constant_tensor(left) is None:
        tracer.tie(tracer.axis(left, summed_left), right, summed_right)
    else:
        tracer.tie(tracer.axis(right, summed_right), left, summed_left)
    if tracer.is_weight(right) or not tracer.is_weight(left):
        tracer.contract(node, 1, summed_right)
    else:
        tracer.contract(node, 0, summed_left)
    if tracer.is_weight(left) and tracer.is_weight(right):
        _produce_table(node, tracer, left, summed_left)
    result: list[Axis] = []
    if rows is not None:
        result.append(_made_by(node, tracer, left, rows))
    if columns is not None:
        result.append(_made_by(node, tracer, right, columns))
    return result


def _made_by(node: ir.Node, tracer: Tracer, operand: ir.Value, axis: int) -> Axis:
    """Labels of the rows or columns of an operand, which makes channels if it is a stored one."""
    if tracer.is_weight(operand):
        return tracer.produce(node, operand, axis)
    labels, store = tracer.axis(operand, axis), _store_of(operand, tracer)
    if store is not None and isinstance(labels, np.ndarray):
        for index in range(len(tracer.dims(store))):
            if tracer.is_labelled(store, index) and tracer.axis(store, index) is labels:
                tracer.produce(node, store, index)
    return labels


def _store_of(value: ir.Value | None, tracer: Tracer) -> ir.Value | None:
    """The stack of matrices that a matrix was picked from (experts), or None."""
    while value is not None:
        maker = value.producer()
        if maker is None or maker.domain not in ("", "ai.onnx"):
            return None
        if maker.op_type in ("Gather", "GatherND"):
            store = maker.inputs[0]
            picks = store is not None and tracer.is_weight(store) and len(tracer.dims(store)) > 2
            return store if picks else None
        if maker.op_type not in ("Transpose", "Reshape", "Squeeze", "Unsqueeze", "Identity", "Cast"):
            return None
        value = maker.inputs[0]
    return None


def _produce_table(node: ir.Node, tracer: Tracer, table: ir.Value, axis: int) -> None:
    """What a stored table holds for each position (relative embeddings, learned queries) are channels."""
    size = tracer.dims(table)[axis]
    if isinstance(size, int) and size > _COORDINATES:
        tracer.produce(node, table, axis)


def tie_broadcast(tracer: Tracer, result: Sequence[Axis], value: ir.Value) -> None:
    """Tie the axes of `value` to the last ones of `result`, leaving out those of size one."""
    dims = tracer.dims(value)
    for index, dim in enumerate(dims):
        if dim != 1:
            tracer.tie(result[len(result) - len(dims) + index], value, index)


@traces("Einsum")
def _einsum(node: ir.Node, tracer: Tracer) -> str | None:
    equation = node.attributes.get_string("equation", "").replace(" ", "")
    if "." in equation or "->" not in equation:
        return "its equation has an ellipsis or no explicit output"
    left, output = equation.split("->")
    terms = left.split(",")
    values = [value for value in node.inputs if value is not None]
    if len(terms) != len(values) or any(len(set(term)) != len(term) for term in (*terms, output)):
        return "its equation repeats a letter within an operand"
    where: dict[str, list[tuple[int, int]]] = {}
    for operand, (term, value) in enumerate(zip(terms, values, strict=True)):
        for index, letter in enumerate(term):
            if tracer.dims(value)[index] != 1:
                where.setdefault(letter, []).append((operand, index))
    for letter, places in where.items():
        # Activations first, so that weights adopt their labels and are what gets zeroed.
        places.sort(key=lambda place: tracer.is_weight(values[place[0]]))
        first = tracer.axis(values[places[0][0]], places[0][1])
        for operand, index in places[1:]:
            tracer.tie(first, values[operand], index)
        if letter not in output:
            tracer.contract(node, *places[-1])
        elif len(places) == 1 and tracer.is_weight(values[places[0][0]]):
            tracer.produce(node, values[places[0][0]], places[0][1])
    axes = [where.get(letter, [(-1, 0)])[0] for letter in output]
    tracer.set(
        node.outputs[0], [tracer.unit if op < 0 else tracer.axis(values[op], index) for op, index in axes]
    )
    return None
