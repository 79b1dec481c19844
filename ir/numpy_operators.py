"""Operators that numpy computes bit for bit as the reference does, on tensors too small for a session.

Exporters compute shapes node by node, in chains of Shape, Gather, Concat and integer arithmetic. A session of
ONNX Runtime costs milliseconds; these take microseconds. What is not here, or has an unusual type, is left to
the reference: only data movement, exact integer arithmetic, and floating-point operations that IEEE 754
rounds in one way are computed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

Arrays = Sequence[np.ndarray | None]
Operator = Callable[[ir.Node, Arrays], np.ndarray | None]

MOST_ELEMENTS = 1 << 16
"""Larger operands and results are left to the reference."""

_EXACT = frozenset(map(np.dtype, (np.float32, np.float64, np.int64, np.int32)))
_INTEGERS = frozenset(map(np.dtype, (np.int64, np.int32)))


def evaluate(node: ir.Node, inputs: Arrays) -> np.ndarray | None:
    """The only output of `node` on these inputs, None where the reference has to say."""
    if node.domain or len(node.outputs) != 1:
        return None
    views = node.op_type in _VIEWS
    if not views and any(a is not None and a.size > MOST_ELEMENTS for a in inputs):
        return None
    operator = _OPERATORS.get(node.op_type)
    if operator is None or any(a.ref_attr_name is not None for a in node.attributes.data.values()):
        return None
    try:
        result = operator(node, inputs)
        # Functions of numpy give a number where the result has no axes.
        result = result if result is None else np.asarray(result)
    except (ValueError, IndexError, TypeError, OverflowError):
        # Wrong operands: the reference has the better message.
        return None
    return result if result is None or views or result.size <= MOST_ELEMENTS else None


def _first(node: ir.Node, inputs: Arrays) -> np.ndarray | None:
    return inputs[0]


def _shape(node: ir.Node, inputs: Arrays) -> np.ndarray | None:
    if inputs[0] is None:
        return None
    dims = inputs[0].shape
    return np.array(
        dims[node.attributes.get_int("start", 0) : node.attributes.get_int("end", None)], np.int64
    )


def _gather(node: ir.Node, inputs: Arrays) -> np.ndarray | None:
    data, indices = inputs
    if data is None or indices is None:
        return None
    return np.take(data, indices, axis=node.attributes.get_int("axis", 0))


def _gather_nd(node: ir.Node, inputs: Arrays) -> np.ndarray | None:
    data, indices = inputs
    if data is None or indices is None or not indices.ndim or node.attributes.get_int("batch_dims", 0) != 0:
        return None
    depth = indices.shape[-1]
    if not 0 < depth <= data.ndim:
        return None
    if indices.size // depth * math.prod(data.shape[depth:]) > MOST_ELEMENTS:
        return None
    return np.asarray(data[tuple(indices[..., axis] for axis in range(depth))])


def _concat(node: ir.Node, inputs: Arrays) -> np.ndarray | None:
    parts = [part for part in inputs if part is not None]
    if len(parts) < len(inputs) or len({part.dtype for part in parts}) != 1:
        return None
    return np.concatenate(parts, axis=node.attributes.get_int("axis", 0))


def _axes(inputs: Arrays) -> tuple[int, ...] | None:
    return None if len(inputs) < 2 or inputs[1] is None else tuple(inputs[1].reshape(-1).tolist())


def _unsqueeze(node: ir.Node, inputs: Arrays) -> np.ndarray | None:
    axes = _axes(inputs)
    return None if inputs[0] is None or axes is None else np.expand_dims(inputs[0], axes)


def _squeeze(node: ir.Node, inputs: Arrays) -> np.ndarray | None:
    return None if inputs[0] is None else np.squeeze(inputs[0], _axes(inputs))


def _reshape(node: ir.Node, inputs: Arrays) -> np.ndarray | None:
    data, target = inputs
    if data is None or target is None:
        return None
    dims = target.tolist()
    if node.attributes.get_int("allowzero", 0) == 0:
        dims = [data.shape[i] if dim == 0 else dim for i, dim in enumerate(dims)]
    return data.reshape(dims)


def _transpose(node: ir.Node, inputs: Arrays) -> np.ndarray | None:
    return None if inputs[0] is None else np.transpose(inputs[0], node.attributes.get_ints("perm", None))


def _slice(node: ir.Node, inputs: Arrays) -> np.ndarray | None:
    data, *bounds = inputs
    if data is None or len(bounds) < 2 or bounds[0] is None or bounds[1] is None:
        return None
    starts, ends = bounds[0].tolist(), bounds[1].tolist()
    axes = bounds[2].tolist() if len(bounds) > 2 and bounds[2] is not None else list(range(len(starts)))
    steps = bounds[3].tolist() if len(bounds) > 3 and bounds[3] is not None else [1] * len(starts)
    parts = [slice(None)] * data.ndim
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        if step <= 0:
            # Bounds beyond the ends mean something else in Python.
            return None
        parts[axis] = slice(start, end, step)
    return data[tuple(parts)]


def _cast(node: ir.Node, inputs: Arrays) -> np.ndarray | None:
    target = _CASTS.get(node.attributes.get_int("to", 0))
    data = inputs[0]
    if target is None or data is None or data.dtype not in (*_INTEGERS, np.dtype(np.bool_), target):
        return None
    return data.astype(target)


def _where(node: ir.Node, inputs: Arrays) -> np.ndarray | None:
    condition, yes, no = inputs
    if condition is None or yes is None or no is None or yes.dtype != no.dtype:
        return None
    return np.where(condition, yes, no)


def _expand(node: ir.Node, inputs: Arrays) -> np.ndarray | None:
    data, shape = inputs
    if data is None or shape is None:
        return None
    return np.array(np.broadcast_to(data, np.broadcast_shapes(data.shape, tuple(shape.tolist()))))


def _range(node: ir.Node, inputs: Arrays) -> np.ndarray | None:
    bounds = [bound for bound in inputs if bound is not None and bound.dtype in _INTEGERS]
    if len(bounds) < 3:
        return None
    start, limit, step = (int(bound.reshape(-1)[0]) for bound in bounds)
    if step == 0 or (limit - start) / step > MOST_ELEMENTS:
        return None
    return np.arange(start, limit, step, dtype=bounds[0].dtype)


def _filled(node: ir.Node, inputs: Arrays) -> np.ndarray | None:
    filler = node.attributes.get("value")
    if inputs[0] is None or np.prod(inputs[0], dtype=np.float64) > MOST_ELEMENTS:
        return None
    value = np.zeros(1, np.float32) if filler is None else filler.value.numpy().reshape(-1)
    return np.full(tuple(inputs[0].tolist()), value[0], value.dtype)


def _tile(node: ir.Node, inputs: Arrays) -> np.ndarray | None:
    data, repeats = inputs
    if data is None or repeats is None or data.size * float(np.prod(repeats)) > MOST_ELEMENTS:
        return None
    return np.tile(data, repeats.tolist())


def _not(node: ir.Node, inputs: Arrays) -> np.ndarray | None:
    return None if inputs[0] is None else np.logical_not(inputs[0])


def _product(node: ir.Node, inputs: Arrays) -> np.ndarray | None:
    data, axes = inputs[0], _axes(inputs)
    if data is None or data.dtype not in _INTEGERS:
        return None
    if not axes and node.attributes.get_int("noop_with_empty_axes", 0) != 0:
        return None
    keep = node.attributes.get_int("keepdims", 1) != 0
    return np.asarray(np.prod(data, axis=axes or None, keepdims=keep, dtype=data.dtype))


def _binary(function: Callable[[Any, Any], Any], types: frozenset[np.dtype]) -> Operator:
    def operator(node: ir.Node, inputs: Arrays) -> np.ndarray | None:
        a, b = inputs
        if a is None or b is None or a.dtype != b.dtype or a.dtype not in types:
            return None
        with np.errstate(all="ignore"):
            return np.asarray(function(a, b))

    return operator


def _divide(node: ir.Node, inputs: Arrays) -> np.ndarray | None:
    """Integers are divided towards zero."""
    a, b = inputs
    if a is None or b is None or a.dtype != b.dtype or a.dtype not in _EXACT:
        return None
    if a.dtype not in _INTEGERS:
        with np.errstate(all="ignore"):
            return np.asarray(a / b)
    if not b.all():
        return None
    quotient = np.abs(a) // np.abs(b)
    return np.asarray(np.where((a < 0) != (b < 0), -quotient, quotient).astype(a.dtype))


def _modulo(node: ir.Node, inputs: Arrays) -> np.ndarray | None:
    """The sign is that of the divisor, or with `fmod` that of the dividend."""
    a, b = inputs
    if a is None or b is None or a.dtype != b.dtype or a.dtype not in _INTEGERS or not b.all():
        return None
    function = np.fmod if node.attributes.get_int("fmod", 0) else np.mod
    return np.asarray(function(a, b))


def _negative(node: ir.Node, inputs: Arrays) -> np.ndarray | None:
    return None if inputs[0] is None or inputs[0].dtype not in _EXACT else np.negative(inputs[0])


_BOOLEANS = frozenset({np.dtype(np.bool_)})
_CASTS: dict[int, np.dtype[Any]] = {
    int(ir.DataType.INT64): np.dtype(np.int64),
    int(ir.DataType.INT32): np.dtype(np.int32),
    int(ir.DataType.FLOAT): np.dtype(np.float32),
    int(ir.DataType.BOOL): np.dtype(np.bool_),
}

# These look at the same memory in another way, whatever its size.
_VIEWS = frozenset({"Identity", "Transpose", "Unsqueeze", "Squeeze", "Reshape"})

_OPERATORS: dict[str, Operator] = {
    "Identity": _first,
    "Shape": _shape,
    "Gather": _gather,
    "GatherND": _gather_nd,
    "Concat": _concat,
    "Unsqueeze": _unsqueeze,
    "Squeeze": _squeeze,
    "Reshape": _reshape,
    "Transpose": _transpose,
    "Slice": _slice,
    "Cast": _cast,
    "Where": _where,
    "Expand": _expand,
    "Range": _range,
    "ConstantOfShape": _filled,
    "Tile": _tile,
    "Not": _not,
    "ReduceProd": _product,
    "Neg": _negative,
    "Add": _binary(np.add, _EXACT),
    "Sub": _binary(np.subtract, _EXACT),
    "Mul": _binary(np.multiply, _EXACT),
    "Div": _divide,
    "Mod": _modulo,
    "Max": _binary(np.maximum, _INTEGERS),
    "Min": _binary(np.minimum, _INTEGERS),
    "Equal": _binary(np.equal, _EXACT | _BOOLEANS),
    "Less": _binary(np.less, _EXACT),
    "Greater": _binary(np.greater, _EXACT),
    "LessOrEqual": _binary(np.less_equal, _EXACT),
    "GreaterOrEqual": _binary(np.greater_equal, _EXACT),
    "And": _binary(np.logical_and, _BOOLEANS),
    "Or": _binary(np.logical_or, _BOOLEANS),
}
