"""Element-wise operators: one expression per output element.

Each entry of `ELEMENTWISE` takes the operator and one expression per input (None where it is absent), all
for the same element after broadcasting, and gives the expression of the first output with ONNX semantics.
The result is cast to the element type of the output by the caller.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from . import approximations as approx
from .activations import ACTIVATIONS, Expression, constant, let, slope
from .integer_bytes import join, part
from .integer_ops import JOIN, PART
from .narrow_floats import ROUND, round_narrow
from .op import Op


def is_float(dtype: str) -> bool:
    """Whether an element type holds fractions."""
    return "float" in dtype


def cast(x: Any, dtype: str) -> Any:
    """The expression in another element type; a bool is "not zero"."""
    from tvm import tirx

    source = str(x.ty.dtype)
    if source == dtype:
        return x
    if dtype == "bool":
        return tirx.NE(x, tirx.const(0, source))
    return tirx.Cast(dtype, x)


def _tir(name: str) -> Expression:
    """A function of `tirx` of that name, applied to all inputs."""

    def build(op: Op, *values: Any) -> Any:
        from tvm import tirx

        return getattr(tirx, name)(*values)

    return build


def _fold(step: Callable[[Any, Any], Any]) -> Expression:
    def build(op: Op, *values: Any) -> Any:
        total = values[0]
        for value in values[1:]:
            total = step(total, value)
        return total

    return build


def _maximum(a: Any, b: Any) -> Any:
    from tvm import tirx

    return tirx.max(a, b)


def _minimum(a: Any, b: Any) -> Any:
    from tvm import tirx

    return tirx.min(a, b)


def _div(op: Op, a: Any, b: Any) -> Any:
    from tvm import tirx

    return a / b if is_float(op.input(0).dtype) else tirx.truncdiv(a, b)


def _mod(op: Op, a: Any, b: Any) -> Any:
    from tvm import tirx

    if is_float(op.input(0).dtype):
        wide = "float64" if op.input(0).dtype == "float64" else "float32"
        name = "fmod" if wide == "float64" else "fmodf"
        return cast(tirx.call_pure_extern(wide, name, cast(a, wide), cast(b, wide)), op.input(0).dtype)
    return tirx.truncmod(a, b) if op.attr("fmod", 0) else tirx.floormod(a, b)


def _pow(op: Op, base: Any, exponent: Any) -> Any:
    from tvm import tirx

    dtype = op.input(0).dtype
    known = op.static.get(1)
    value = float(known.reshape(-1)[0]) if known is not None and known.size == 1 else None
    if value in (1.0, 2.0, 3.0, 4.0):
        return let(base, lambda b: _product(b, int(value)))
    if not is_float(dtype):
        result = tirx.power(cast(base, "float64"), cast(exponent, "float64"))
        return cast(result, dtype)
    if value == 0.5:
        return tirx.sqrt(base)
    if value == -0.5:
        return constant(base, 1) / tirx.sqrt(base)
    if value == -1.0:
        return constant(base, 1) / base
    return tirx.power(base, cast(exponent, dtype))


def _product(base: Any, times: int) -> Any:
    result = base
    for _ in range(times - 1):
        result = result * base
    return result


def _sign(op: Op, x: Any) -> Any:
    from tvm import tirx

    zero, one = constant(x, 0), constant(x, 1)
    positive = tirx.Select(x > zero, one, zero)
    if op.input(0).dtype.startswith("uint"):
        return positive
    return positive - tirx.Select(x < zero, one, zero)


def _abs(op: Op, x: Any) -> Any:
    from tvm import tirx

    return x if op.input(0).dtype.startswith("uint") else tirx.abs(x)


def _is_inf(op: Op, x: Any) -> Any:
    from tvm import tirx

    infinity = constant(x, float("inf"))
    never = tirx.const(False, "bool")
    positive = tirx.EQ(x, infinity) if op.attr("detect_positive", 1) else never
    negative = tirx.EQ(x, constant(x, float("-inf"))) if op.attr("detect_negative", 1) else never
    return tirx.Or(positive, negative)


def _clip(op: Op, x: Any, low: Any = None, high: Any = None) -> Any:
    from tvm import tirx

    if low is not None:
        x = tirx.max(x, low)
    return x if high is None else tirx.min(x, high)


def _shift(op: Op, x: Any, count: Any) -> Any:
    from tvm import tirx

    return tirx.shift_left(x, count) if op.attr("direction") == "LEFT" else tirx.shift_right(x, count)


def _where(op: Op, condition: Any, a: Any, b: Any) -> Any:
    from tvm import tirx

    return tirx.Select(condition, a, b)


def _cast(op: Op, x: Any, like: Any = None) -> Any:
    # Through a signed type: a negative float to an unsigned integer wraps, as it does in C on every target
    # we know.
    target = op.outputs[0].dtype
    if is_float(str(x.ty.dtype)) and target in {"uint8", "uint16", "int8", "int16"}:
        return cast(cast(x, "int32"), target)
    return cast(x, target)


def _mean(op: Op, *values: Any) -> Any:
    return _fold(lambda a, b: a + b)(op, *values) * constant(values[0], 1.0 / len(values))


def _unary(function: Callable[[Any], Any]) -> Expression:
    return lambda op, x: function(x)


def _binary(function: Callable[[Any, Any], Any]) -> Expression:
    return lambda op, a, b: function(a, b)


def _is_nan(x: Any) -> Any:
    from tvm import tirx

    return tirx.isnan(x if str(x.ty.dtype) == "float64" else cast(x, "float32"))


def _xor(op: Op, a: Any, b: Any) -> Any:
    from tvm import tirx

    # Code for a comparison of two truth values is not valid in TVM 0.27: compare bytes.
    return tirx.NE(tirx.Cast("uint8", a), tirx.Cast("uint8", b))


def _equal(op: Op, a: Any, b: Any) -> Any:
    from tvm import tirx

    return tirx.Not(_xor(op, a, b)) if op.input(0).dtype == "bool" else tirx.EQ(a, b)


ELEMENTWISE: dict[str, Expression] = {
    **ACTIVATIONS,
    "Abs": _abs,
    "Acos": _tir("acos"),
    "Acosh": _unary(approx.acosh),
    "Add": _binary(lambda a, b: a + b),
    "And": _tir("all"),
    "Asin": _tir("asin"),
    "Asinh": _unary(approx.asinh),
    "Atan": _tir("atan"),
    "Atanh": _unary(approx.atanh),
    "BitShift": _shift,
    "BitwiseAnd": _tir("bitwise_and"),
    "BitwiseNot": _tir("bitwise_not"),
    "BitwiseOr": _tir("bitwise_or"),
    "BitwiseXor": _tir("bitwise_xor"),
    "Cast": _cast,
    "CastLike": _cast,
    "Ceil": _tir("ceil"),
    "Clip": _clip,
    "Cos": _tir("cos"),
    "Cosh": _unary(approx.cosh),
    "Div": _div,
    "Dropout": lambda op, x, *rest: x,
    "Equal": _equal,
    "Erf": _unary(approx.erf),
    "Exp": _unary(approx.exp),
    "Floor": _tir("floor"),
    "Greater": _binary(lambda a, b: a > b),
    "GreaterOrEqual": _binary(lambda a, b: a >= b),
    "Identity": _unary(lambda x: x),
    "IsInf": _is_inf,
    "IsNaN": _unary(_is_nan),
    JOIN: join,
    "Less": _binary(lambda a, b: a < b),
    "LessOrEqual": _binary(lambda a, b: a <= b),
    "Log": _tir("log"),
    "Max": _fold(_maximum),
    "Mean": _mean,
    "Min": _fold(_minimum),
    "Mod": _mod,
    "Mul": _binary(lambda a, b: a * b),
    "Neg": _unary(lambda x: constant(x, 0) - x if not is_float(str(x.ty.dtype)) else x * constant(x, -1)),
    "Not": _tir("Not"),
    "Or": _tir("any"),
    PART: part,
    "PRelu": _binary(slope),
    "Pow": _pow,
    "Reciprocal": _unary(lambda x: constant(x, 1) / x),
    "Round": _tir("nearbyint"),
    ROUND: round_narrow,
    "Sigmoid": _unary(approx.sigmoid),
    "Sign": _sign,
    "Sin": _tir("sin"),
    "Sinh": _unary(approx.sinh),
    "Softplus": _unary(approx.softplus),
    "Sqrt": _tir("sqrt"),
    "Sub": _binary(lambda a, b: a - b),
    "Sum": _fold(lambda a, b: a + b),
    "Tan": _tir("tan"),
    "Tanh": _unary(approx.tanh),
    "Where": _where,
    "Xor": _xor,
}

# Worth a pass over memory of their own rather than being computed again by every reader.
EXPENSIVE = frozenset(
    {
        "Acos",
        "Acosh",
        "Asin",
        "Asinh",
        "Atan",
        "Atanh",
        "Cos",
        "Cosh",
        "Elu",
        "Erf",
        "Exp",
        "Gelu",
        "Log",
        "Mish",
    }
    | {
        "Pow",
        "Selu",
        "Celu",
        "Sigmoid",
        "Sin",
        "Sinh",
        "Softplus",
        "Swish",
        "Tan",
        "Tanh",
        "Div",
        "Mod",
        "Sqrt",
    }
)


def is_identity_training(op: Op) -> bool:
    """Whether a Dropout only passes its input on."""
    return not op.has(2) or (2 in op.static and not np.any(op.static[2]))
