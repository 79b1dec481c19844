"""Operators that hand a positive factor per channel on from their input to their result."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import onnx_ir as ir

from ....ir.constants import constant_array, constant_tensor
from ....ir.static import constant_ints, input_of, rank_of, static_shape
from .places import Place, reshaped, transposed

Constant = tuple[int, Place, int]
"""An added constant that must be divided too: operand, its channels after broadcasting, its rank then."""
Passed = tuple[dict[ir.Value, Place], Constant | None]

_HOMOGENEOUS = ("Relu", "LeakyRelu", "PRelu", "Identity", "Abs", "Dropout")
_POOLS = ("MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool")
_REDUCTIONS = ("ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin")
_RESHAPES = ("Reshape", "Flatten", "Squeeze", "Unsqueeze")


def pass_through(node: ir.Node, operands: Sequence[int], scaled: Mapping[ir.Value, Place]) -> Passed | str:
    """Where the channels lie behind a node that reads scaled values, or why it stops them.

    Args:
        node: The node.
        operands: Indices of its scaled inputs.
        scaled: Scaled values and where their channels lie.
    """
    rule = _RULES.get(node.op_type)
    if rule is None:
        return f"{node.op_type} '{node.name}' does not scale with its input"
    found = rule(node, operands, [scaled[node.inputs[index]] for index in operands])  # type: ignore[index]
    return found if found is not None else f"{node.op_type} '{node.name}' mixes its channels or adds to them"


_Rule = Callable[[ir.Node, Sequence[int], Sequence[Place]], Passed | None]


def _single(node: ir.Node, place: Place | None) -> Passed | None:
    return None if place is None else ({node.outputs[0]: place}, None)


def _same(node: ir.Node, operands: Sequence[int], places: Sequence[Place]) -> Passed | None:
    return _single(node, places[0]) if list(operands) == [0] else None


def _clip(node: ir.Node, operands: Sequence[int], places: Sequence[Place]) -> Passed | None:
    """Only max(x, 0) and min(x, 0) are homogeneous."""
    bounds = [constant_array(input_of(node, index)) for index in (1, 2)]
    given = [input_of(node, index) is not None for index in (1, 2)]
    for bound, there, infinite in zip(bounds, given, (-np.inf, np.inf), strict=True):
        if there and (bound is None or bound.size != 1 or float(bound.reshape(())) not in (0.0, infinite)):
            return None
    return _same(node, operands, places)


def _pool(node: ir.Node, operands: Sequence[int], places: Sequence[Place]) -> Passed | None:
    return _single(node, places[0]) if all(axis <= 1 for axis in places[0].axes) else None


def _pad(node: ir.Node, operands: Sequence[int], places: Sequence[Place]) -> Passed | None:
    if node.attributes.get_string("mode", "constant") == "constant":
        filler = input_of(node, 2)
        number = constant_array(filler)
        if filler is not None and (number is None or number.any()):
            return None
    return _kept(node, operands, places)


def _kept(node: ir.Node, operands: Sequence[int], places: Sequence[Place]) -> Passed | None:
    """Operators that work along other axes only, which the sizes of all channel axes then show."""
    before, after = node.inputs[0], node.outputs[0]
    if list(operands) != [0] or before is None or before.shape is None or after.shape is None:
        return None
    if len(before.shape) != len(after.shape):
        return None
    kept = all(after.shape[axis] == size for axis, size in zip(places[0].axes, places[0].sizes, strict=True))
    return _single(node, places[0] if kept else None)


def _slice(node: ir.Node, operands: Sequence[int], places: Sequence[Place]) -> Passed | None:
    rank = rank_of(node.inputs[0])
    axes = constant_ints(input_of(node, 3))
    if rank is None or axes is None or any(axis % rank in places[0].axes for axis in axes):
        return None
    return _kept(node, operands, places)


def _split(node: ir.Node, operands: Sequence[int], places: Sequence[Place]) -> Passed | None:
    rank = rank_of(node.inputs[0])
    if rank is None or node.attributes.get_int("axis", 0) % rank in places[0].axes:
        return None
    return {value: places[0] for value in node.outputs if value.name}, None


def _resize(node: ir.Node, operands: Sequence[int], places: Sequence[Place]) -> Passed | None:
    if node.attributes.get_string("coordinate_transformation_mode", "") == "tf_crop_and_resize":
        return None
    return _kept(node, operands, places)


def _transpose(node: ir.Node, operands: Sequence[int], places: Sequence[Place]) -> Passed | None:
    rank = rank_of(node.inputs[0])
    if rank is None:
        return None
    default = list(range(rank))[::-1]
    return _single(node, transposed(places[0], list(node.attributes.get_ints("perm", default))))


def _reshape(node: ir.Node, operands: Sequence[int], places: Sequence[Place]) -> Passed | None:
    source = node.inputs[0]
    if list(operands) != [0] or source is None:
        return None
    return _single(node, reshaped(places[0], source.shape, node.outputs[0].shape))


def _reduce(node: ir.Node, operands: Sequence[int], places: Sequence[Place]) -> Passed | None:
    rank = rank_of(node.inputs[0])
    axes = constant_ints(input_of(node, 1))
    if rank is None or not axes or list(operands) != [0]:
        return None
    gone = {axis % rank for axis in axes}
    if gone & set(places[0].axes):
        return None
    if node.attributes.get_int("keepdims", 1):
        return _single(node, places[0])
    moved = tuple(axis - sum(other < axis for other in gone) for axis in places[0].axes)
    return _single(node, Place(moved, places[0].sizes))


def _broadcast(node: ir.Node, index: int, place: Place) -> Place | None:
    """The channels of operand `index` in the result of a broadcasting operator."""
    value, result = node.inputs[index], node.outputs[0]
    if value is None or value.shape is None or result.shape is None:
        return None
    shift = len(result.shape) - len(value.shape)
    return Place(tuple(axis + shift for axis in place.axes), place.sizes)


def _product(node: ir.Node, operands: Sequence[int], places: Sequence[Place]) -> Passed | None:
    """Linear in each of its factors, as long as only one of them is scaled."""
    if len(operands) != 1 or (node.op_type == "Div" and operands[0] != 0):
        return None
    return _single(node, _broadcast(node, operands[0], places[0]))


def _sum(node: ir.Node, operands: Sequence[int], places: Sequence[Place]) -> Passed | None:
    """A constant is divided too; two results of the same channels stay their sum."""
    spread = [_broadcast(node, index, place) for index, place in zip(operands, places, strict=True)]
    if len(operands) == len(node.inputs):
        return _single(node, spread[0] if all(place == spread[0] for place in spread) else None)
    if len(operands) != 1 or len(node.inputs) != 2 or spread[0] is None:
        return None
    other = 1 - operands[0]
    value, rank = node.inputs[other], rank_of(node.outputs[0])
    dims = static_shape(value)
    if value is None or constant_tensor(value) is None or dims is None or rank is None or len(dims) > rank:
        return None
    # The constant grows only as far as the channels reach.
    reach = max(rank - min(spread[0].axes), len(dims))
    axes = tuple(axis - (rank - reach) for axis in spread[0].axes)
    return {node.outputs[0]: spread[0]}, (other, Place(axes, spread[0].sizes), reach)


def _matmul(node: ir.Node, operands: Sequence[int], places: Sequence[Place]) -> Passed | None:
    """A product of two computed values keeps the channels that it does not sum over."""
    if len(operands) != 1:
        return None
    value, result = node.inputs[operands[0]], node.outputs[0]
    rank, after = rank_of(value), rank_of(result)
    other = rank_of(node.inputs[1 - operands[0]])
    if rank is None or after is None or other is None or min(rank, other) < 2:
        return None
    summed = rank - 1 if operands[0] == 0 else rank - 2
    if summed in places[0].axes or result.shape is None:
        return None
    place = Place(tuple(axis + after - rank for axis in places[0].axes), places[0].sizes)
    kept = all(result.shape[axis] == size for axis, size in zip(place.axes, place.sizes, strict=True))
    return _single(node, place if kept else None)


def _concat(node: ir.Node, operands: Sequence[int], places: Sequence[Place]) -> Passed | None:
    rank = rank_of(node.outputs[0])
    if rank is None or node.attributes.get_int("axis", 0) % rank in places[0].axes:
        return None
    every = len(operands) == len(node.inputs) and all(place == places[0] for place in places)
    return _single(node, places[0] if every else None)


_RULES: dict[str, _Rule] = {
    **dict.fromkeys(_HOMOGENEOUS, _same),
    **dict.fromkeys(_POOLS, _pool),
    **dict.fromkeys(_REDUCTIONS, _reduce),
    **dict.fromkeys(_RESHAPES, _reshape),
    **dict.fromkeys(("Mul", "Div"), _product),
    **dict.fromkeys(("Add", "Sub"), _sum),
    "Clip": _clip,
    "Pad": _pad,
    "Slice": _slice,
    "Split": _split,
    "Resize": _resize,
    "Transpose": _transpose,
    "MatMul": _matmul,
    "Concat": _concat,
}
