"""Whether a condition over [..., query, key] is the causal one, for any sizes."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from ...ir.constants import constant_array
from ...ir.static import constant_ints, producer_of, rank_of
from .dimensions import dims_of, same_dims

_LIMIT = 1 << 24
_DEPTH = 12


def keeps_lower_triangle(condition: ir.Value, truth: bool, depth: int = _DEPTH) -> bool:
    """Whether `condition` is `truth` exactly where key index <= query index, both counted from 0.

    Seen through: constants, comparisons of two Range over rows and columns, Trilu of ones, Not, casts,
    a cut of the first rows and columns of a stored triangle, and views that add leading ones.
    """
    array = constant_array(condition, _LIMIT)
    if array is not None:
        if array.ndim < 2 or array.size != array.shape[-2] * array.shape[-1] or min(array.shape[-2:]) < 2:
            return False
        square = array.reshape(array.shape[-2:]) != 0
        return bool(np.array_equal(square == truth, np.tril(np.ones(square.shape, bool))))
    node = condition.producer()
    if node is None or depth == 0 or node.domain not in ("", "ai.onnx") or not node.inputs:
        return False
    source = node.inputs[0]
    if source is None:
        return False
    if node.op_type == "Not":
        return keeps_lower_triangle(source, not truth, depth - 1)
    if node.op_type in ("Greater", "Less", "GreaterOrEqual", "LessOrEqual"):
        return _compares(node, truth)
    if node.op_type == "Trilu":
        return truth and _lower_ones(node)
    if node.op_type == "Slice":
        return _from_the_start(node) and keeps_lower_triangle(source, truth, depth - 1)
    if node.op_type in ("Cast", "Identity"):
        return keeps_lower_triangle(source, truth, depth - 1)
    if node.op_type in ("Unsqueeze", "Reshape", "Expand"):
        inner, outer = dims_of(source), dims_of(node.outputs[0])
        same_end = inner is not None and outer is not None and len(inner) > 1
        return (
            same_end
            and same_dims(inner[-2:], outer[-2:])  # type: ignore[index]
            and keeps_lower_triangle(source, truth, depth - 1)
        )
    return False


def _compares(node: ir.Node, truth: bool) -> bool:
    """Whether it is row >= column (True where kept), or column > row (False where kept), in either order."""
    axes = [_counted_axis(value) for value in node.inputs]
    relation = node.op_type
    if axes == [-1, -2]:
        relation = {"Greater": "Less", "Less": "Greater"}.get(relation) or {
            "GreaterOrEqual": "LessOrEqual",
            "LessOrEqual": "GreaterOrEqual",
        }[relation]
    elif axes != [-2, -1]:
        return False
    return relation == ("GreaterOrEqual" if truth else "Less")


def _counted_axis(value: ir.Value | None, depth: int = _DEPTH) -> int | None:
    """The axis (from the right) along which a value counts 0, 1, 2, ...; all other dimensions are one."""
    if value is None:
        return None
    array = constant_array(value, _LIMIT)
    if array is not None:
        long = [axis for axis, dim in enumerate(array.shape) if dim != 1]
        if len(long) != 1 or not np.array_equal(array.reshape(-1), np.arange(array.size)):
            return None
        return long[0] - array.ndim
    node, dims = value.producer(), dims_of(value)
    if node is None or dims is None or depth == 0:
        return None
    if node.op_type == "Range":
        start, step = (constant_array(node.inputs[i], 1) for i in (0, 2))
        return -1 if start is not None and step is not None and start == 0 and step == 1 else None
    if node.op_type in ("Unsqueeze", "Reshape", "Cast", "Identity"):
        # A view of one long axis: only its place can change; symbols tell which dimension is long.
        if _counted_axis(node.inputs[0], depth - 1) is None:
            return None
        long = [axis for axis, dim in enumerate(dims) if dim != 1]
        return long[0] - len(dims) if len(long) == 1 else None
    return None


def _lower_ones(node: ir.Node) -> bool:
    """Trilu(ones, upper=0), diagonal 0."""
    if node.attributes.get_int("upper", 1):
        return False
    if len(node.inputs) > 1 and node.inputs[1] is not None:
        shift = constant_array(node.inputs[1], 1)
        if shift is None or shift.reshape(-1).tolist() != [0]:
            return False
    maker = producer_of(node.inputs[0], "Expand", "ConstantOfShape")
    if maker is None:
        return False
    if maker.op_type == "Expand":
        number = constant_array(maker.inputs[0], 1)
    else:
        fill = maker.attributes.get("value")
        number = fill.as_tensor().numpy() if fill is not None else None
    return number is not None and number.size == 1 and bool(number.reshape(-1)[0] == 1)


def _from_the_start(node: ir.Node) -> bool:
    """A Slice that keeps leading rows and columns, and of other axes anything."""
    rank = rank_of(node.inputs[0])
    starts = constant_ints(node.inputs[1])
    axes = constant_ints(node.inputs[3]) if len(node.inputs) > 3 and node.inputs[3] is not None else None
    steps = constant_ints(node.inputs[4]) if len(node.inputs) > 4 and node.inputs[4] is not None else None
    if rank is None or starts is None:
        return False
    if axes is None:
        axes = list(range(len(starts)))
    steps = [1] * len(starts) if steps is None else steps
    return all(
        axis % rank < rank - 2 or (start == 0 and step == 1)
        for start, axis, step in zip(starts, axes, steps, strict=True)
    )
