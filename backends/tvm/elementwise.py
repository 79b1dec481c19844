"""Element-wise operators on lazies: broadcasting, casts, and operators with a parameter per channel."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from .expressions import ELEMENTWISE, cast
from .lazy import Index, Lazy, broadcast, floordiv, merge_cuts
from .op import Op, Type

# Read their operand more than once in one expression: it is bound to a variable first.
_READS_ONCE = frozenset(
    {"Add", "Sub", "Mul", "Div", "Cast", "Identity", "Neg", "Where", "Dropout", "Clip", "Relu"}
)


FUSED = "graphwright.fused"
"""Attribute of a QuantizeLinear that ends an integer kernel: it multiplies by the reciprocal of its scale."""
_ROUNDING = {"float32": ("int32", 1.5 * (1 << 23)), "float64": ("int64", 1.5 * (1 << 52))}
"""Integers that hold the bits of a float, and what is added to round it."""
_WIDE = ("int16", "uint16")


def reads_operand_often(op_type: str) -> bool:
    """Whether an operator's expression holds its operand several times."""
    return op_type not in _READS_ONCE


def apply_elementwise(op: Op, args: list[Lazy | None]) -> Lazy:
    """The first output of an element-wise operator.

    Args:
        op: the operator.
        args: one lazy per input, None where it is absent.
    """
    if op.type in _BY_CHANNEL:
        return _BY_CHANNEL[op.type](op, *args)
    shape, dtype = op.outputs[0].shape, op.outputs[0].dtype
    wide = [broadcast(arg, shape) if arg is not None else None for arg in _operands(op, args)]
    build = ELEMENTWISE[op.type]

    def read(index: Index) -> Any:
        values = [arg.read(index) if arg is not None else None for arg in wide]
        return cast(build(op, *values), dtype)

    return Lazy(shape, dtype, read, merge_cuts([arg for arg in wide if arg is not None], len(shape)))


def _operands(op: Op, args: list[Lazy | None]) -> list[Lazy | None]:
    if op.type in {"CastLike", "Dropout"}:
        return args[:1]
    if op.type == "PRelu":
        return [args[0], args[1]]
    return args


def _along(param: Lazy, rank: int, axis: int, block: int = 0) -> Callable[[Index], Any]:
    """Reads a parameter that is one value, one value per position of an axis, or one per block of it."""
    if param.shape in ((), (1,)):
        return lambda index: param.read((0,) * len(param.shape))
    if len(param.shape) == 1:
        return lambda index: param.read((index[axis],))

    def read(index: Index) -> Any:
        at = floordiv(index[axis], block) if block else index[axis]
        return param.read((*index[:axis], at, *index[axis + 1 :]))

    return read


def _quantize(op: Op, x: Lazy | None, scale: Lazy | None, zero_point: Lazy | None = None) -> Lazy:
    from tvm import tirx

    assert x is not None and scale is not None
    dtype = op.outputs[0].dtype
    low, high = _limits(op, dtype)
    axis, block = op.axis(default=1) if op.rank else 0, op.attr("block_size", 0)
    read_scale = _along(scale, op.rank, axis, block)
    read_zero = _along(zero_point, op.rank, axis, block) if zero_point is not None else None
    if zero_point is None or zero_point.shape in ((), (1,)):
        return _quantize_rounded(op, x, zero_point, read_scale)

    def read(index: Index) -> Any:
        value = tirx.nearbyint(cast(x.read(index), "float32") / cast(read_scale(index), "float32"))
        if read_zero is not None:
            value = value + cast(read_zero(index), "float32")
        value = tirx.max(tirx.min(value, tirx.const(high, "float32")), tirx.const(low, "float32"))
        return cast(cast(value, "int32"), dtype)

    return Lazy(x.shape, dtype, read, x.cuts)


def _quantize_rounded(op: Op, x: Lazy, zero_point: Lazy | None, read_scale: Callable[[Index], Any]) -> Lazy:
    """Quantization with one zero point.

    Values are clamped, then rounded by adding a number so large that the last bits of the sum are the nearest
    integer, ties to even. 16-bit numbers behind a kernel are found in float64: the product with the
    reciprocal of a scale is not exact enough in float32.
    """
    from tvm import tirx

    dtype = op.outputs[0].dtype
    fused = bool(op.attr(FUSED, 0)) and op.derive is not None and 1 in op.constant
    number = "float64" if x.dtype == "float64" or (fused and dtype in _WIDE) else "float32"
    bits, rounding = _ROUNDING[number]
    limits = _limits(op, dtype)
    known = op.static.get(2)
    nothing = zero_point is None or (known is not None and not known.any())

    def zero() -> Any:
        assert zero_point is not None
        return cast(zero_point.read((0,) * len(zero_point.shape)), "int32")

    def limit(value: float) -> Any:
        wide = tirx.const(value, number)
        return wide if nothing else wide - cast(zero(), number)

    reciprocal = None
    if fused:
        assert op.derive is not None
        reciprocal = op.derive((1,), lambda scale: (1 / scale.astype(np.float64)).astype(number))
        read_scale = _along(reciprocal, op.rank, op.axis(default=1), op.attr("block_size", 0))

    def read(index: Index) -> Any:
        value, step = cast(x.read(index), number), cast(read_scale(index), number)
        value = value * step if reciprocal is not None else value / step
        value = tirx.max(tirx.min(value, limit(limits[1])), limit(limits[0]))
        # The large number's last 16 bits are zero.
        rounded = cast(tirx.reinterpret(bits, value + tirx.const(rounding, number)), "int32")
        return cast(rounded if nothing else rounded + zero(), dtype)

    return Lazy(x.shape, dtype, read, x.cuts)


def _limits(op: Op, dtype: str) -> tuple[float, float]:
    if dtype not in {"int8", "uint8", "int16", "uint16"}:
        raise op.error(
            f"quantization to {dtype} is not supported by the TVM backend; use int8, uint8 or int16"
        )
    info = np.iinfo(dtype)
    return float(info.min), float(info.max)


def _dequantize(op: Op, x: Lazy | None, scale: Lazy | None, zero_point: Lazy | None = None) -> Lazy:
    assert x is not None and scale is not None
    dtype = op.outputs[0].dtype
    axis, block = op.axis(default=1) if op.rank else 0, op.attr("block_size", 0)
    read_scale = _along(scale, op.rank, axis, block)
    read_zero = _along(zero_point, op.rank, axis, block) if zero_point is not None else None

    def read(index: Index) -> Any:
        if x.dtype == "float64":
            # Sums that int32 does not hold; their scale is float64 as well.
            return cast(x.read(index) * read_scale(index), dtype)
        value = cast(x.read(index), "int32")
        if read_zero is not None:
            value = value - cast(read_zero(index), "int32")
        return cast(value, dtype) * read_scale(index)

    return Lazy(x.shape, dtype, read, x.cuts)


def _batch_norm(op: Op, x: Lazy | None, *params: Lazy | None) -> Lazy:
    """(x - mean) / sqrt(var + eps) * scale + bias, as one multiplication and one addition where constant."""
    from tvm import tirx

    assert x is not None
    if op.attr("training_mode", 0):
        raise op.error(
            "training_mode=1 is not supported by the TVM backend; export the model in evaluation mode"
        )
    epsilon = op.attr("epsilon", 1e-5)
    if {1, 2, 3, 4} <= op.constant and op.derive is not None:

        def factor(scale: np.ndarray, variance: np.ndarray) -> np.ndarray:
            return (scale / np.sqrt(variance.astype(np.float64) + epsilon)).astype(scale.dtype)

        def offset(scale: np.ndarray, bias: np.ndarray, mean: np.ndarray, variance: np.ndarray) -> np.ndarray:
            ratio = scale / np.sqrt(variance.astype(np.float64) + epsilon)
            return (bias - mean * ratio).astype(bias.dtype)

        gain, shift = op.derive((1, 4), factor), op.derive((1, 2, 3, 4), offset)

        def read_constant(index: Index) -> Any:
            return x.read(index) * gain.read((index[1],)) + shift.read((index[1],))

        return Lazy(x.shape, x.dtype, read_constant, x.cuts)
    scale, bias, mean, variance = (param for param in params[:4])

    def read(index: Index) -> Any:
        assert scale is not None and bias is not None and mean is not None and variance is not None
        at = (index[1],)
        deviation = tirx.sqrt(variance.read(at) + tirx.const(epsilon, variance.dtype))
        return (x.read(index) - mean.read(at)) / deviation * scale.read(at) + bias.read(at)

    return Lazy(x.shape, x.dtype, read, x.cuts)


_BY_CHANNEL: dict[str, Callable[..., Lazy]] = {
    "QuantizeLinear": _quantize,
    "DequantizeLinear": _dequantize,
    "BatchNormalization": _batch_norm,
}

ELEMENTWISE_TYPES = frozenset(ELEMENTWISE) | frozenset(_BY_CHANNEL)


def operand_shape(op: Op, position: int, rank: int) -> tuple[int, ...] | None:
    """The shape of an operand as it is broadcast against the output; None where it is not (per-channel ones).

    Used to find runs of axes that all operands lay out alike.
    """
    given: Type | None = op.inputs[position]
    if given is None:
        return (1,) * rank
    if op.type in _BY_CHANNEL and position > 0:
        if len(given.shape) > 1:
            return given.shape if len(given.shape) == rank and not op.attr("block_size", 0) else None
        axis = 1 if op.type == "BatchNormalization" else op.axis(default=1)
        size = given.shape[0] if given.shape else 1
        return tuple(size if each == axis else 1 for each in range(rank))
    return (1,) * (rank - len(given.shape)) + given.shape
