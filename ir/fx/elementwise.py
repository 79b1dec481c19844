"""Operators that treat every element alike, and casts."""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Callable
from typing import Any

import onnx_ir as ir
import torch
import torch.nn.functional as F

from .dtypes import bounds, carrier
from .emitter import Emitter, Form, layer_path, refusal, static_sizes


def plain(function: Callable[..., Any]) -> Form:
    """Tensors in, a tensor out."""
    return lambda emitter, node: emitter.call(function, *emitter.tensors(node))


def _arithmetic(function: Callable[..., Any]) -> Form:
    """Two operands of which one may be a number in the code."""

    def form(emitter: Emitter, node: ir.Node) -> Any:
        left, right = node.inputs
        a, b = emitter.operand(left), emitter.operand(right)
        if not hasattr(a, "op") and not hasattr(b, "op"):
            a = emitter.tensor(left)
        return emitter.call(function, a, b)

    return form


def _integers(node: ir.Node) -> bool:
    return node.outputs[0].dtype is not None and not node.outputs[0].dtype.is_floating_point()


def truncated_division(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Division of integers towards zero."""
    return torch.div(a, b, rounding_mode="trunc")


def _div(emitter: Emitter, node: ir.Node) -> Any:
    if _integers(node):
        return emitter.call(truncated_division, *emitter.tensors(node))
    return _arithmetic(operator.truediv)(emitter, node)


def _mod(emitter: Emitter, node: ir.Node) -> Any:
    truncates = node.attributes.get_int("fmod", 0)
    return emitter.call(torch.fmod if truncates else torch.remainder, *emitter.tensors(node))


def power(base: torch.Tensor, exponent: Any) -> torch.Tensor:
    """A power in the type of the base."""
    return torch.pow(base, exponent).to(base.dtype)


def _pow(emitter: Emitter, node: ir.Node) -> Any:
    base, exponent = emitter.tensor(node.inputs[0]), emitter.operand(node.inputs[1])
    same = (
        node.inputs[1] is not None
        and node.inputs[0] is not None
        and node.inputs[0].dtype == node.inputs[1].dtype
    )
    return emitter.call(torch.pow if same else power, base, exponent)


def _several(function: Callable[..., Any]) -> Form:
    """Any number of operands, two at a time."""

    def form(emitter: Emitter, node: ir.Node) -> Any:
        tensors = emitter.tensors(node)
        return functools.reduce(lambda a, b: emitter.call(function, a, b), tensors)

    return form


def _mean(emitter: Emitter, node: ir.Node) -> Any:
    total = _several(operator.add)(emitter, node)
    return emitter.call(operator.truediv, total, len(node.inputs))


def shift(x: torch.Tensor, by: torch.Tensor, left: bool) -> torch.Tensor:
    """Bits moved; what leaves is lost."""
    return torch.bitwise_left_shift(x, by) if left else torch.bitwise_right_shift(x, by)


def _bit_shift(emitter: Emitter, node: ir.Node) -> Any:
    left = node.attributes.get_string("direction") == "LEFT"
    made = emitter.call(shift, *emitter.tensors(node), left)
    kind = node.outputs[0].dtype
    if left and kind is not None and kind.bitwidth > 8:
        mask = (1 << kind.bitwidth) - 1
        return emitter.call(operator.and_, made, mask) if kind.bitwidth < 64 else made
    return made


def _clip(emitter: Emitter, node: ir.Node) -> Any:
    low, high = (emitter.operand(each) for each in [*node.inputs[1:], None, None][:2])
    if low is None and high is None:
        return emitter.tensor(node.inputs[0])
    if hasattr(low, "op") != hasattr(high, "op") and low is not None and high is not None:
        low, high = (emitter.tensor(each) for each in node.inputs[1:3])
    return emitter.call(torch.clamp, emitter.tensor(node.inputs[0]), low, high)


def saturated(x: torch.Tensor, dtype: torch.dtype, low: float, high: float) -> torch.Tensor:
    """A cast to a narrow float that gives its largest number instead of infinity."""
    return torch.clamp(x, low, high).to(dtype)


def wrapped(x: torch.Tensor, bits: int, signed: bool, dtype: torch.dtype) -> torch.Tensor:
    """A cast to an integer of few bits, the higher ones dropped."""
    low = x.to(torch.int64) & ((1 << bits) - 1)
    if signed:
        low = torch.where(low >= 1 << bits - 1, low - (1 << bits), low)
    return low.to(dtype)


def cast(
    emitter: Emitter, node: ir.Node, x: Any, source: ir.DataType | None, kind: ir.DataType | None
) -> Any:
    """A cast between ONNX types."""
    dtype = carrier(kind)
    assert kind is not None
    if source is not None and source == kind:
        return x
    if kind.is_floating_point() and kind.bitwidth == 8:
        if node.attributes.get_int("saturate", 1):
            largest = torch.finfo(dtype).max
            return emitter.call(saturated, x, dtype, -largest, largest)
    elif kind.is_integer() and kind.bitwidth != 8 * dtype.itemsize and kind.bitwidth < 64:
        return emitter.call(wrapped, x, kind.bitwidth, kind.is_signed(), dtype)
    return emitter.call(torch.Tensor.to, x, dtype)


def _cast(emitter: Emitter, node: ir.Node) -> Any:
    kind = ir.DataType(node.attributes.get_int("to"))
    source = node.inputs[0].dtype if node.inputs[0] is not None else None
    return cast(emitter, node, emitter.tensor(node.inputs[0]), source, kind)


def _cast_like(emitter: Emitter, node: ir.Node) -> Any:
    x, like = node.inputs
    return cast(emitter, node, emitter.tensor(x), x.dtype, like.dtype)  # type: ignore[union-attr]


def _where(emitter: Emitter, node: ir.Node) -> Any:
    condition, a, b = node.inputs
    return emitter.call(torch.where, emitter.tensor(condition), emitter.tensor(a), emitter.tensor(b))


def _gelu(emitter: Emitter, node: ir.Node) -> Any:
    form = node.attributes.get_string("approximate", "none")
    return emitter.call(F.gelu, emitter.tensor(node.inputs[0]), approximate=form)


def hard_sigmoid(x: torch.Tensor, alpha: float, beta: float) -> torch.Tensor:
    """max(0, min(1, alpha * x + beta))."""
    return torch.clamp(alpha * x + beta, 0.0, 1.0)


def selu(x: torch.Tensor, alpha: float, gamma: float) -> torch.Tensor:
    """Return gamma * (alpha * exp(x) - alpha) below zero, gamma * x above."""
    return gamma * torch.where(x > 0, x, alpha * torch.expm1(torch.clamp(x, max=0)))


def swish(x: torch.Tensor, alpha: float) -> torch.Tensor:
    """Return x * sigmoid(alpha * x)."""
    return x * torch.sigmoid(alpha * x)


def thresholded_relu(x: torch.Tensor, alpha: float) -> torch.Tensor:
    """Return x above alpha, else 0."""
    return torch.where(x > alpha, x, torch.zeros_like(x))


def shrink(x: torch.Tensor, bias: float, lambd: float) -> torch.Tensor:
    """Return x without bias beyond lambd, else 0."""
    shrunk = torch.where(x < -lambd, x + bias, torch.zeros_like(x))
    return torch.where(x > lambd, x - bias, shrunk).to(x.dtype)


def hardmax(x: torch.Tensor, axis: int) -> torch.Tensor:
    """1 at the first of the largest, else 0."""
    return torch.zeros_like(x).scatter(axis, torch.argmax(x, axis, keepdim=True), 1)


def prelu(x: torch.Tensor, slope: torch.Tensor) -> torch.Tensor:
    """Return slope * x below zero; the slope broadcasts to x."""
    return torch.where(x < 0, slope * x, x)


def is_infinite(x: torch.Tensor, negative: bool, positive: bool) -> torch.Tensor:
    """Where x is infinite, of either sign asked for."""
    none = torch.zeros_like(x, dtype=torch.bool)
    return (torch.isneginf(x) if negative else none) | (torch.isposinf(x) if positive else none)


def _numbers(function: Callable[..., Any], **defaults: float) -> Form:
    """One tensor, and attributes as further arguments."""

    def form(emitter: Emitter, node: ir.Node) -> Any:
        numbers = [node.attributes.get_float(name, default) for name, default in defaults.items()]
        return emitter.call(function, emitter.tensor(node.inputs[0]), *numbers)

    return form


def _along(function: Callable[..., Any], default: int = -1) -> Form:
    """One tensor and an axis."""
    return lambda emitter, node: emitter.call(
        function, emitter.tensor(node.inputs[0]), node.attributes.get_int("axis", default)
    )


def _is_torch_slope(sizes: list[int], rank: int) -> bool:
    """Whether a slope is one number, or one per channel (axis 1 of `rank`), as torch's module has it."""
    return math.prod(sizes) == 1 or (len(sizes) in (rank, rank - 1) and math.prod(sizes) == sizes[1 - rank])


def _prelu(emitter: Emitter, node: ir.Node) -> Any:
    x, slope = node.inputs
    sizes, rank = static_sizes(slope), len(x.shape) if x is not None and x.shape is not None else 0
    if sizes is not None and rank >= 2 and _is_torch_slope(sizes, rank):
        path = layer_path(emitter, node, [slope], ["weight"])
        if path is not None:
            module = torch.nn.PReLU(math.prod(sizes))
            module.weight = torch.nn.Parameter(emitter.weight(slope).reshape(-1))
            return emitter.call_module(emitter.submodule(path, module), emitter.tensor(x))
    return emitter.call(prelu, *emitter.tensors(node))


def _swish(emitter: Emitter, node: ir.Node) -> Any:
    alpha, x = node.attributes.get_float("alpha", 1.0), emitter.tensor(node.inputs[0])
    return emitter.call(F.silu, x) if alpha == 1.0 else emitter.call(swish, x, alpha)


def _hard_sigmoid(emitter: Emitter, node: ir.Node) -> Any:
    numbers = [node.attributes.get_float(*each) for each in (("alpha", 0.2), ("beta", 0.5))]
    x = emitter.tensor(node.inputs[0])
    if abs(numbers[0] - 1 / 6) < 1e-6 and numbers[1] == 0.5:
        return emitter.call(F.hardsigmoid, x)
    return emitter.call(hard_sigmoid, x, *numbers)


def _is_inf(emitter: Emitter, node: ir.Node) -> Any:
    negative, positive = (
        bool(node.attributes.get_int(f"detect_{sign}", 1)) for sign in ("negative", "positive")
    )
    return emitter.call(is_infinite, emitter.tensor(node.inputs[0]), negative, positive)


def _not_bits(emitter: Emitter, node: ir.Node) -> Any:
    kind = node.inputs[0].dtype if node.inputs[0] is not None else None
    made = emitter.call(torch.bitwise_not, emitter.tensor(node.inputs[0]))
    if kind is not None and kind.is_integer() and not kind.is_signed() and kind != ir.DataType.UINT8:
        if kind.bitwidth >= 64:
            raise refusal(node, "torch computes on no unsigned 64-bit integers")
        return emitter.call(operator.and_, made, bounds(kind)[1])
    return made


_UNARY: dict[str, Callable[..., Any]] = {
    "Abs": torch.abs,
    "Acos": torch.acos,
    "Acosh": torch.acosh,
    "Asin": torch.asin,
    "Asinh": torch.asinh,
    "Atan": torch.atan,
    "Atanh": torch.atanh,
    "Ceil": torch.ceil,
    "Cos": torch.cos,
    "Cosh": torch.cosh,
    "Erf": torch.erf,
    "Exp": torch.exp,
    "Floor": torch.floor,
    "IsNaN": torch.isnan,
    "Log": torch.log,
    "Mish": F.mish,
    "Neg": torch.neg,
    "Not": torch.logical_not,
    "Reciprocal": torch.reciprocal,
    "Relu": F.relu,
    "Round": torch.round,
    "Sigmoid": torch.sigmoid,
    "Sign": torch.sign,
    "Sin": torch.sin,
    "Sinh": torch.sinh,
    "Softplus": F.softplus,
    "Softsign": F.softsign,
    "Sqrt": torch.sqrt,
    "Tan": torch.tan,
    "Tanh": torch.tanh,
    "HardSwish": F.hardswish,
    "And": torch.logical_and,
    "Or": torch.logical_or,
    "Xor": torch.logical_xor,
    "BitwiseAnd": torch.bitwise_and,
    "BitwiseOr": torch.bitwise_or,
    "BitwiseXor": torch.bitwise_xor,
}

FORMS: dict[str, Form] = {
    **{name: plain(function) for name, function in _UNARY.items()},
    "Add": _arithmetic(operator.add),
    "Sub": _arithmetic(operator.sub),
    "Mul": _arithmetic(operator.mul),
    "Equal": _arithmetic(operator.eq),
    "Greater": _arithmetic(operator.gt),
    "GreaterOrEqual": _arithmetic(operator.ge),
    "Less": _arithmetic(operator.lt),
    "LessOrEqual": _arithmetic(operator.le),
    "Div": _div,
    "Mod": _mod,
    "Pow": _pow,
    "BitShift": _bit_shift,
    "BitwiseNot": _not_bits,
    "Max": _several(torch.maximum),
    "Min": _several(torch.minimum),
    "Sum": _several(operator.add),
    "Mean": _mean,
    "Clip": _clip,
    "Cast": _cast,
    "CastLike": _cast_like,
    "Where": _where,
    "Gelu": _gelu,
    "Celu": _numbers(F.celu, alpha=1.0),
    "Elu": _numbers(F.elu, alpha=1.0),
    "LeakyRelu": _numbers(F.leaky_relu, alpha=0.01),
    "HardSigmoid": _hard_sigmoid,
    "Selu": _numbers(selu, alpha=1.67326319217681884765625, gamma=1.05070102214813232421875),
    "Swish": _swish,
    "ThresholdedRelu": _numbers(thresholded_relu, alpha=1.0),
    "Shrink": _numbers(shrink, bias=0.0, lambd=0.5),
    "IsInf": _is_inf,
    "PRelu": _prelu,
    "Softmax": _along(F.softmax),
    "LogSoftmax": _along(F.log_softmax),
    "Hardmax": _along(hardmax),
}
