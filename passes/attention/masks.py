"""What is added to attention scores, and what is known of it.

ONNX Runtime takes an entry at or below the lowest number of the type for -infinity, and a row of nothing else
gives zeros; in the spelled-out form a row of the lowest number gives equal weights, and one of -infinity NaN.
So finite entries are kept above the lowest number, and -infinity is allowed where no row can be full of it or
where the graph itself turns NaN into zero.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from ...ir.constants import constant_array
from ..rewriter import Rewriter
from .causal import keeps_lower_triangle
from .dimensions import Dim, dims_of, reshaped, same_dims, shape_vector
from .operands import scalar_of

_LIMIT = 1 << 22
_DEPTH = 16
# Times so large a number, what is not known may be infinite.
_OVERFLOWS = 1e30


class Bias:
    """Base of what is added to scores of some shape."""


@dataclass(frozen=True)
class Added(Bias):
    """A value as it is."""

    value: ir.Value
    negative: bool = False


@dataclass(frozen=True)
class Filled(Bias):
    """`fill` where the scores are not kept, else what is inside (0 for None)."""

    condition: ir.Value
    keeps: bool
    fill: float
    inside: Bias | None = None


@dataclass(frozen=True)
class Total(Bias):
    """Two of them added."""

    first: Bias
    second: Bias


@dataclass(frozen=True)
class Times(Bias):
    """One of them times a number."""

    inside: Bias
    factor: float


@dataclass(frozen=True)
class Viewed(Bias):
    """One of them over scores whose leading dimensions `old` are those `new` of another view."""

    inside: Bias
    old: tuple[Dim, ...]
    new: tuple[Dim, ...]


def constant_of(bias: Bias) -> np.ndarray | None:
    """The bias as an array (float64), where it depends on constants only; views give None."""
    if isinstance(bias, Added):
        array = constant_array(bias.value, _LIMIT)
        return None if array is None else array.astype(np.float64) * (-1.0 if bias.negative else 1.0)
    if isinstance(bias, Filled):
        condition = constant_array(bias.condition, _LIMIT)
        inside = constant_of(bias.inside) if bias.inside is not None else np.zeros((), np.float64)
        if condition is None or inside is None:
            return None
        keep = condition.astype(bool) if bias.keeps else ~condition.astype(bool)
        return np.where(keep, inside, bias.fill)
    if isinstance(bias, Total):
        first, second = constant_of(bias.first), constant_of(bias.second)
        return None if first is None or second is None else first + second
    if isinstance(bias, Times):
        inside = constant_of(bias.inside)
        return None if inside is None else inside * bias.factor
    return None


def is_causal(bias: Bias, hides: float = 0.0) -> bool:
    """Whether the bias is 0 up to the query's own place and at most `hides` behind, for any sizes."""
    if isinstance(bias, Viewed):
        return False
    array = constant_of(bias)
    if array is not None:
        square = array.reshape(array.shape[-2:]) if array.ndim >= 2 and array.size == _area(array) else None
        if square is None or min(square.shape) < 2:
            return False
        allowed = np.tril(np.ones(square.shape, bool))
        return bool((square[allowed] == 0).all() and (square[~allowed] <= hides).all())
    if isinstance(bias, Filled):
        return (
            bias.inside is None
            and bias.fill <= hides
            and bool(keeps_lower_triangle(bias.condition, bias.keeps))
        )
    if isinstance(bias, Added) and not bias.negative:
        return _causal_value(bias.value, hides)
    return False


def _area(array: np.ndarray) -> int:
    return array.shape[-2] * array.shape[-1]


def _causal_value(value: ir.Value, hides: float) -> bool:
    """Where(condition, ., .) of 0 and a masking number, behind views that only add leading ones."""
    node = value.producer()
    for _ in range(_DEPTH):
        if node is None or node.op_type not in ("Unsqueeze", "Cast", "Identity", "Reshape", "Expand"):
            break
        dims, inner = dims_of(node.outputs[0]), dims_of(node.inputs[0])
        if dims is None or inner is None or len(inner) < 2 or not same_dims(dims[-2:], inner[-2:]):
            return False
        assert node.inputs[0] is not None
        node = node.inputs[0].producer()
    if node is None or node.op_type != "Where" or node.inputs[0] is None:
        return False
    yes, no = scalar_of(node.inputs[1]), scalar_of(node.inputs[2])
    if yes == 0 and no is not None and no <= hides:
        return keeps_lower_triangle(node.inputs[0], True)
    if no == 0 and yes is not None and yes <= hides:
        return keeps_lower_triangle(node.inputs[0], False)
    return False


def lowest_of(bias: Bias, floor: float = -np.inf) -> float | None:
    """A number the bias is never below, -inf where it can be -infinity by construction; None: not known.

    Finite fills below `floor` are taken for `floor`.
    """
    if isinstance(bias, Added):
        low, high = bounds(bias.value)
        return low if not bias.negative else (None if high is None else -high)
    if isinstance(bias, Filled):
        if bias.fill == -np.inf:
            return -np.inf
        inside = 0.0 if bias.inside is None else lowest_of(bias.inside, floor)
        return None if inside is None else min(max(bias.fill, floor), inside)
    if isinstance(bias, Total):
        first, second = lowest_of(bias.first, floor), lowest_of(bias.second, floor)
        if -np.inf in (first, second):
            return -np.inf
        return None if first is None or second is None else first + second
    if isinstance(bias, Times):
        inside = lowest_of(bias.inside, floor)
        return None if inside is None or bias.factor < 0 else inside * bias.factor
    assert isinstance(bias, Viewed)
    return lowest_of(bias.inside, floor)


Bounds = tuple[float | None, float | None]


def bounds(value: ir.Value, depth: int = _DEPTH) -> Bounds:
    """Smallest and largest number a value can hold, as far as its making shows; None: not known."""
    array = constant_array(value, _LIMIT)
    if array is not None and array.size:
        numbers = array.astype(np.float64)
        return (None, None) if np.isnan(numbers).any() else (float(numbers.min()), float(numbers.max()))
    if value.dtype == ir.DataType.BOOL:
        return 0.0, 1.0
    node = value.producer()
    if value.dtype is not None and value.dtype.is_integer():
        return -(2.0**63), 2.0**64
    if node is None or depth == 0 or node.domain not in ("", "ai.onnx"):
        return None, None
    rule = _BOUNDS.get(node.op_type)
    operands = [bounds(each, depth - 1) for each in node.inputs if each is not None] if rule else []
    return rule(operands) if rule is not None and operands else (None, None)


def _sum(parts: list[Bounds]) -> Bounds:
    (a, b), (c, d) = parts
    low = None if a is None or c is None else a + c
    return -np.inf if -np.inf in (a, c) else low, None if b is None or d is None else b + d


def _difference(parts: list[Bounds]) -> Bounds:
    (a, b), (c, d) = parts
    return _sum([(a, b), (None if d is None else -d, None if c is None else -c)])


def _product(parts: list[Bounds]) -> Bounds:
    ends = [end for pair in parts for end in pair]
    huge = any(low is not None and low == high and abs(low) >= _OVERFLOWS for low, high in parts)
    if huge and None in ends:
        # (1 - mask) * lowest number: any mask but one of zeros and ones may overflow to -infinity.
        return -np.inf, None
    if any(end is None or not np.isfinite(end) for end in ends):
        return None, None
    (a, b), (c, d) = parts
    products = [x * y for x in (a, b) for y in (c, d)]  # type: ignore[operator]
    return min(products), max(products)


def _union(parts: list[Bounds]) -> Bounds:
    lows, highs = [low for low, _ in parts], [high for _, high in parts]
    low = -np.inf if -np.inf in lows else None if None in lows else min(lows)  # type: ignore[type-var]
    return low, None if None in highs else max(highs)  # type: ignore[type-var]


def _largest(parts: list[Bounds]) -> Bounds:
    known = [low for low, _ in parts if low is not None]
    highs = [high for _, high in parts]
    return max(known, default=None), None if None in highs else max(highs)  # type: ignore[type-var]


_VIEWS = ("Cast", "Expand", "Gather", "Identity", "Reshape", "Slice", "Squeeze", "Tile", "Transpose")
_VIEWS_OR_ZERO = ("Unsqueeze", "Flatten", "Trilu")
_BOUNDS: dict[str, Callable[[list[Bounds]], Bounds]] = {
    **dict.fromkeys(_VIEWS, lambda parts: parts[0]),
    **dict.fromkeys(_VIEWS_OR_ZERO, lambda parts: _union([parts[0], (0.0, 0.0)])),
    "Add": _sum,
    "Concat": _union,
    "Max": _largest,
    "Mul": _product,
    "Neg": lambda parts: _difference([(0.0, 0.0), parts[0]]),
    "Sub": _difference,
    "Where": lambda parts: _union(parts[1:]),
}


def lowest_finite(bias: Bias) -> float | None:
    """A number that no finite entry of the bias is below; None: not known."""
    if isinstance(bias, Added):
        return None if bias.negative else _finite_low(bias.value)
    if isinstance(bias, Filled):
        # Finite fills are raised where they are emitted.
        return 0.0 if bias.inside is None else lowest_finite(bias.inside)
    if isinstance(bias, Total):
        first, second = lowest_finite(bias.first), lowest_finite(bias.second)
        return None if first is None or second is None else min(first, 0.0) + min(second, 0.0)
    if isinstance(bias, Times):
        inside = lowest_finite(bias.inside)
        return None if inside is None or bias.factor < 0 else inside * bias.factor
    assert isinstance(bias, Viewed)
    return lowest_finite(bias.inside)


def _finite_low(value: ir.Value, depth: int = _DEPTH) -> float | None:
    array = constant_array(value, _LIMIT)
    if array is not None:
        numbers = array.astype(np.float64)
        return float(numbers[np.isfinite(numbers)].min(initial=0.0))
    node = value.producer()
    if node is None or depth == 0 or node.domain not in ("", "ai.onnx"):
        return None
    if node.op_type in (*_VIEWS, *_VIEWS_OR_ZERO, "Where"):
        operands = node.inputs[1:] if node.op_type == "Where" else node.inputs[:1]
        found = [None if each is None else _finite_low(each, depth - 1) for each in operands]
        lows = [each for each in found if each is not None]
        return min([0.0, *lows]) if len(lows) == len(found) else None
    low = bounds(value, depth)[0]
    return low if low is not None and np.isfinite(low) else None


def rows_can_be_empty(bias: Bias) -> bool:
    """Whether a row may hold nothing but -infinity, as far as is known."""
    array = constant_of(bias)
    if array is not None and array.ndim:
        return bool((array == -np.inf).all(axis=-1).any())
    return not is_causal(bias)


def emit_bias(bias: Bias, dtype: ir.DataType, rewriter: Rewriter, anchor: ir.Node) -> ir.Value:
    """The bias as nodes in front of `anchor`, in type `dtype`."""
    kind = dtype.numpy()
    if isinstance(bias, Added):
        value = bias.value
        if value.dtype != dtype:
            (value,) = rewriter.insert_before(anchor, "Cast", [value], {"to": int(dtype)})
        if bias.negative:
            (value,) = rewriter.insert_before(anchor, "Neg", [value])
        return value
    if isinstance(bias, Filled):
        inside = (
            emit_bias(bias.inside, dtype, rewriter, anchor)
            if bias.inside is not None
            else rewriter.initializer(f"{anchor.name}/kept", np.zeros((), kind))
        )
        low = lowest_number(dtype)
        number = bias.fill if bias.fill == -np.inf else max(bias.fill, low)
        fill = rewriter.initializer(f"{anchor.name}/masked", np.asarray(number, kind))
        choices = [inside, fill] if bias.keeps else [fill, inside]
        return rewriter.insert_before(anchor, "Where", [bias.condition, *choices])[0]
    if isinstance(bias, Total):
        parts = [emit_bias(each, dtype, rewriter, anchor) for each in (bias.first, bias.second)]
        return rewriter.insert_before(anchor, "Add", parts)[0]
    if isinstance(bias, Times):
        inside = emit_bias(bias.inside, dtype, rewriter, anchor)
        factor = rewriter.initializer(f"{anchor.name}/factor", np.asarray(bias.factor, kind))
        return rewriter.insert_before(anchor, "Mul", [inside, factor])[0]
    assert isinstance(bias, Viewed)
    return _emit_view(bias, emit_bias(bias.inside, dtype, rewriter, anchor), rewriter, anchor)


def _emit_view(bias: Viewed, value: ir.Value, rewriter: Rewriter, anchor: ir.Node) -> ir.Value:
    """Spread over the old leading dimensions, seen as the new ones; all are static, see `viewable`."""
    inside = bias_dims(bias.inside)
    assert inside is not None
    old = [int(str(dim)) for dim in bias.old]
    if not same_dims(inside[:-2], old):
        wide = shape_vector(rewriter, anchor, [*old, 1, 1])
        (value,) = rewriter.insert_before(anchor, "Expand", [value, wide])
    tail = [1, 1, *(int(str(dim)) for dim in inside)][-2:]
    return reshaped(rewriter, anchor, value, [*(int(str(dim)) for dim in bias.new), *tail])


def viewable(bias: Viewed) -> bool:
    """Whether the view can be written: all of its dimensions are known numbers."""
    inside = bias_dims(bias.inside)
    if inside is None or not all(isinstance(dim, int) for dim in (*bias.old, *bias.new, *inside)):
        return False
    return len(inside) <= len(bias.old) + 2


def bias_dims(bias: Bias) -> tuple[Dim, ...] | None:
    """The dimensions of the bias, None where the rank is not known."""
    if isinstance(bias, Added):
        return dims_of(bias.value)
    if isinstance(bias, Filled):
        inside = () if bias.inside is None else bias_dims(bias.inside)
        return _broadcast(dims_of(bias.condition), inside)
    if isinstance(bias, Total):
        return _broadcast(bias_dims(bias.first), bias_dims(bias.second))
    if isinstance(bias, Times):
        return bias_dims(bias.inside)
    assert isinstance(bias, Viewed)
    inside = bias_dims(bias.inside)
    return None if inside is None else (*bias.new, *(1, 1, *inside)[-2:])


def _broadcast(a: tuple[Dim, ...] | None, b: tuple[Dim, ...] | None) -> tuple[Dim, ...] | None:
    if a is None or b is None:
        return None
    rank = max(len(a), len(b))
    pairs = zip((1,) * (rank - len(a)) + a, (1,) * (rank - len(b)) + b, strict=True)
    return tuple(_wider(x, y) for x, y in pairs)


def _wider(x: Dim, y: Dim) -> Dim:
    if isinstance(x, int):
        return y if x == 1 else x
    if isinstance(y, int):
        return x if y == 1 else y
    return x if same_dims((x,), (y,)) else ir.SymbolicDim(None)


def lowest_number(dtype: ir.DataType) -> float:
    """The lowest number that ONNX Runtime does not take for -infinity."""
    kind = dtype.numpy()
    return float(np.nextafter(np.finfo(kind).min, kind.type(0)))
