"""Parts of a tensor along its last axis, and tables whose last axis says everything twice."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from ...ir.constants import constant_array
from ...ir.static import constant_ints, input_of, producer_of, rank_of
from ..elementwise import BINARY, UNARY
from .dimensions import dims_of, same_dims

_LIMIT = 1 << 24
_DEPTH = 16


@dataclass(frozen=True)
class Piece:
    """Elements start, start + step, ... before stop of the last axis of `base`."""

    base: ir.Value
    start: int
    stop: int
    step: int = 1


def piece_of(value: ir.Value | None) -> Piece | None:
    """What part of another value `value` is, all cuts along the last axis undone; None: unknown size."""
    dims = dims_of(value)
    if value is None or not dims or not isinstance(dims[-1], int):
        return None
    cut = _cut(value)
    if cut is None:
        return Piece(value, 0, dims[-1])
    source, start, step = cut
    outer = piece_of(source)
    if outer is None:
        return None
    first = outer.start + start * outer.step
    step *= outer.step
    return Piece(outer.base, first, first + (dims[-1] - 1) * step + 1, step)


def _cut(value: ir.Value) -> tuple[ir.Value, int, int] | None:
    """What a Slice or Split along the last axis takes `value` from, where it starts, and its step."""
    node, rank = value.producer(), rank_of(value)
    if node is None or rank is None or node.domain not in ("", "ai.onnx") or not node.inputs:
        return None
    source = node.inputs[0]
    size = (dims_of(source) or (None,))[-1]
    if source is None or not isinstance(size, int):
        return None
    if node.op_type == "Split":
        if node.attributes.get_int("axis", 0) not in (-1, rank - 1):
            return None
        sizes = [(dims_of(output) or (None,))[-1] for output in node.outputs]
        before = sizes[: node.outputs.index(value)]
        return (source, sum(before), 1) if all(isinstance(each, int) for each in before) else None  # type: ignore[arg-type]
    if node.op_type != "Slice":
        return None
    starts, axes = constant_ints(node.inputs[1]), constant_ints(input_of(node, 3))
    steps = [1] if input_of(node, 4) is None else constant_ints(node.inputs[4])
    if starts is None or steps is None or axes not in ([-1], [rank - 1]) or steps[0] < 1:
        return None
    start = starts[0] + size if starts[0] < 0 else starts[0]
    return source, min(max(start, 0), size), steps[0]


def repeats_itself(value: ir.Value | None, axis: int, paired: bool, depth: int = _DEPTH) -> bool:
    """Whether the last axis of a table holds every number twice.

    Args:
        value: The table.
        axis: Its axis, from the right (-1 for the last).
        paired: True: neighbours are equal (a a b b); False: halves are (a b a b).
        depth: How far to look.
    """
    dims = dims_of(value)
    if value is None or dims is None or depth == 0 or len(dims) < -axis:
        return False
    array = constant_array(value, _LIMIT)
    if array is not None:
        moved = np.moveaxis(array, axis, -1)
        size = moved.shape[-1]
        if size % 2:
            return False
        first, second = (moved[..., 0::2], moved[..., 1::2]) if paired else np.split(moved, 2, axis=-1)
        return bool(np.array_equal(first, second))
    node = value.producer()
    if node is None or node.domain not in ("", "ai.onnx") or not node.inputs:
        return False
    source = node.inputs[0]
    if node.op_type in UNARY:
        return repeats_itself(source, axis, paired, depth - 1)
    if node.op_type in BINARY:
        return all(_flat(each, axis) or repeats_itself(each, axis, paired, depth - 1) for each in node.inputs)
    if node.op_type == "Concat":
        rank = len(dims)
        if node.attributes.get_int("axis", 0) % rank - rank != axis:
            return all(repeats_itself(each, axis, paired, depth - 1) for each in node.inputs)
        return not paired and len(node.inputs) == 2 and source is node.inputs[1]
    if node.op_type == "Transpose":
        perm = node.attributes.get_ints("perm", tuple(reversed(range(len(dims))))) or ()
        return repeats_itself(source, perm[axis] - len(dims), paired, depth - 1)
    if node.op_type in ("Unsqueeze", "Squeeze", "Reshape", "Expand"):
        return _through_view(node, axis, paired, depth)
    if node.op_type == "Slice":
        axes, rank = constant_ints(input_of(node, 3)), len(dims)
        if axes is None or any(each % rank - rank == axis for each in axes):
            return False
        return repeats_itself(source, axis, paired, depth - 1)
    if node.op_type == "Gather":
        inner = rank_of(source)
        if node.attributes.get_int("axis", 0) != 0 or inner is None or inner < -axis + 1:
            return False
        return repeats_itself(source, axis, paired, depth - 1)
    return False


def _flat(value: ir.Value | None, axis: int) -> bool:
    dims = dims_of(value)
    return dims is not None and (len(dims) < -axis or dims[axis] == 1)


def _through_view(node: ir.Node, axis: int, paired: bool, depth: int) -> bool:
    """Views: dimensions up to `axis`, counted from the right, must be the same but for ones."""
    source = node.inputs[0]
    inner, outer = dims_of(source), dims_of(node.outputs[0])
    if inner is None or outer is None:
        return False
    if paired and node.op_type == "Reshape" and axis == -1 and _pairs(source):
        return True
    if same_dims(inner[axis:], outer[axis:]) and len(inner) >= -axis:
        return repeats_itself(source, axis, paired, depth - 1)
    # Ones may come and go to the right of the axis.
    tail = [dim for dim in outer[axis:][1:] if dim != 1]
    for place in range(-len(inner), 0):
        right = [dim for dim in inner[place:][1:] if dim != 1]
        if same_dims(inner[place : place + 1 or None], outer[axis : axis + 1 or None]) and same_dims(
            right, tail
        ):
            return inner[place] != 1 and repeats_itself(source, place, paired, depth - 1)
    return False


def _pairs(value: ir.Value | None) -> bool:
    """Every element twice in a row: [..., n, 1] spread to [..., n, 2], or two copies joined."""
    dims = dims_of(value)
    if value is None or not dims or dims[-1] != 2:
        return False
    wide = producer_of(value, "Expand", "Tile")
    if wide is not None:
        inner = dims_of(wide.inputs[0])
        return inner is not None and same_dims(inner, (*dims[:-1], 1))
    joined = producer_of(value, "Concat")
    if joined is None or joined.attributes.get_int("axis", 0) not in (-1, len(dims) - 1):
        return False
    return len(joined.inputs) == 2 and joined.inputs[0] is joined.inputs[1]
