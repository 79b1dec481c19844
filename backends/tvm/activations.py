"""Activation functions: element-wise operators with a shape of their own."""

from __future__ import annotations

from collections.abc import Callable
from math import pi, sqrt
from typing import Any

from . import approximations as approx
from .lazy import bound, immediate
from .op import Op

Expression = Callable[..., Any]
"""(operator, one expression per input) -> the expression of the output."""


def constant(x: Any, value: float) -> Any:
    """A constant of the type of an expression."""
    return immediate(value, str(x.ty.dtype))


def let(value: Any, body: Callable[[Any], Any]) -> Any:
    """`body(v)` for a variable `v` that holds `value`."""
    return body(bound(value))


def _relu(op: Op, x: Any) -> Any:
    from tvm import tirx

    return tirx.max(x, constant(x, 0))


def _leaky_relu(op: Op, x: Any) -> Any:
    return slope(x, constant(x, op.attr("alpha", 0.01)))


def slope(x: Any, factor: Any) -> Any:
    """`x`, times `factor` where it is negative."""
    from tvm import tirx

    return tirx.Select(x < constant(x, 0), x * factor, x)


def _elu(op: Op, x: Any) -> Any:
    from tvm import tirx

    one, zero = constant(x, 1), constant(x, 0)
    negative = constant(x, op.attr("alpha", 1.0)) * (approx.exp(tirx.min(x, zero)) - one)
    return tirx.Select(x < zero, negative, x)


def _selu(op: Op, x: Any) -> Any:
    from tvm import tirx

    alpha, gamma = op.attr("alpha", 1.6732632423543772), op.attr("gamma", 1.0507009873554805)
    zero = constant(x, 0)
    negative = constant(x, alpha) * approx.exp(tirx.min(x, zero)) - constant(x, alpha)
    return constant(x, gamma) * tirx.Select(x > zero, x, negative)


def _celu(op: Op, x: Any) -> Any:
    from tvm import tirx

    alpha, zero = constant(x, op.attr("alpha", 1.0)), constant(x, 0)
    return tirx.max(x, zero) + alpha * (approx.exp(tirx.min(x, zero) / alpha) - constant(x, 1))


def _hard_sigmoid(op: Op, x: Any) -> Any:
    return _unit(x * constant(x, op.attr("alpha", 0.2)) + constant(x, op.attr("beta", 0.5)))


def _hard_swish(op: Op, x: Any) -> Any:
    return x * _unit(x * constant(x, 1.0 / 6.0) + constant(x, 0.5))


def _unit(x: Any) -> Any:
    from tvm import tirx

    return tirx.max(tirx.min(x, constant(x, 1)), constant(x, 0))


def _gelu(op: Op, x: Any) -> Any:
    half, one = constant(x, 0.5), constant(x, 1)
    if op.attr("approximate", "none") == "tanh":
        inner = constant(x, sqrt(2.0 / pi)) * (x + constant(x, 0.044715) * x * x * x)
        return half * x * (one + approx.tanh(inner))
    return half * x * (one + approx.erf(x * constant(x, 1.0 / sqrt(2.0))))


def _mish(op: Op, x: Any) -> Any:
    # tanh(softplus(x)) = n / (n + 2) with n = e^x (e^x + 2): no logarithm.
    from tvm import tirx

    capped = tirx.min(x, constant(x, 20))

    def build(e: Any) -> Any:
        return let(e * (e + constant(x, 2)), lambda n: x * (n / (n + constant(x, 2))))

    return let(approx.exp(capped), build)


def _swish(op: Op, x: Any) -> Any:
    return x * approx.sigmoid(x * constant(x, op.attr("alpha", 1.0)))


def _softsign(op: Op, x: Any) -> Any:
    from tvm import tirx

    return x / (constant(x, 1) + tirx.abs(x))


def _thresholded_relu(op: Op, x: Any) -> Any:
    from tvm import tirx

    return tirx.Select(x > constant(x, op.attr("alpha", 1.0)), x, constant(x, 0))


def _shrink(op: Op, x: Any) -> Any:
    from tvm import tirx

    limit, bias = op.attr("lambd", 0.5), op.attr("bias", 0.0)
    zero = constant(x, 0)
    inner = tirx.Select(x > constant(x, limit), x - constant(x, bias), zero)
    return tirx.Select(x < constant(x, -limit), x + constant(x, bias), inner)


ACTIVATIONS: dict[str, Expression] = {
    "Celu": _celu,
    "Elu": _elu,
    "Gelu": _gelu,
    "HardSigmoid": _hard_sigmoid,
    "HardSwish": _hard_swish,
    "LeakyRelu": _leaky_relu,
    "Mish": _mish,
    "Relu": _relu,
    "Selu": _selu,
    "Shrink": _shrink,
    "Softsign": _softsign,
    "Swish": _swish,
    "ThresholdedRelu": _thresholded_relu,
}
