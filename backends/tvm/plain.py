"""Every anchor and row operator as plain tensor expressions, without a schedule.

GPUs take these through TVM's DLight schedules; on CPUs they serve what no kernel of ours covers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import Any

import numpy as np

from . import approximations as approx
from .anchors import Window, conv_window, pool_window, transpose_window
from .expressions import cast
from .integer_ops import INTEGER_ANCHORS, MATMUL
from .lazy import Index, Lazy, broadcast, immediate, scoped
from .movement import padded
from .op import Op
from .reduce import accumulator_dtype, reduced_axes, reduction_of

Plain = Callable[..., Lazy]


def stage(shape: tuple[int, ...], value: Callable[[Index], Any], name: str, dtype: str) -> Lazy:
    """A tensor of its own."""
    from tvm import te

    tensor = te.compute(shape or (1,), lambda *index: value(index if shape else ()), name=name)
    return Lazy(shape, dtype, lambda index: tensor(*(index if shape else (0,))))


def stored(lazy: Lazy, name: str) -> Lazy:
    """The tensor, computed once."""
    return stage(lazy.shape, lazy.read, name, lazy.dtype)


def reduce_axes(extents: tuple[int, ...]) -> list[Any]:
    """Axes to reduce over."""
    from tvm import te

    return [te.reduce_axis((0, extent), name=f"k{i}") for i, extent in enumerate(extents)]


def convolution(op: Op, x: Lazy, w: Lazy, bias: Lazy | None = None) -> Lazy:
    """Convolution over any number of axes, any group count."""
    from tvm import te

    window = conv_window(op)
    groups, depth = op.attr("group", 1), w.shape[1]
    per_group = w.shape[0] // groups
    wide = padded_image(x, window, op.attr("zero_point", 0))
    dtype = _sum_dtype(op, x)
    taps = reduce_axes((depth, *window.kernel))

    def value(index: Index) -> Any:
        places = [
            at * stride + tap * dilation
            for at, stride, tap, dilation in zip(
                index[2:], window.strides, taps[1:], window.dilations, strict=True
            )
        ]
        channel = index[1] // per_group * depth + taps[0] if groups > 1 else taps[0]
        product = cast(wide.read((index[0], channel, *places)), dtype) * cast(
            w.read((index[1], *taps)), dtype
        )
        return te.sum(product, axis=taps)

    total = stage(op.outputs[0].shape, value, "conv", dtype)
    return biased(total, bias, 1, op.outputs[0].dtype)


def biased(total: Lazy, bias: Lazy | None, axis: int, dtype: str) -> Lazy:
    """Sums with a bias along an axis."""

    def read(index: Index) -> Any:
        value = total.read(index)
        if bias is not None:
            value = value + cast(bias.read((index[axis],)), total.dtype)
        return cast(value, dtype)

    return Lazy(total.shape, dtype, read)


def padded_image(x: Lazy, window: Window, fill: float) -> Lazy:
    """The input of a window with its padding."""
    if not any(window.pads):
        return x
    before = (0, 0, *window.pads[: window.rank])
    after = (0, 0, *window.pads[window.rank :])
    rest = Lazy((), x.dtype, lambda index: immediate(fill, x.dtype))
    return stored(padded(x, before, after, "constant", rest), "pad")


def transposed_convolution(op: Op, x: Lazy, w: Lazy, bias: Lazy | None = None) -> Lazy:
    """Transposed convolution: every output gathers the inputs that reach it."""
    from tvm import te, tirx

    window = transpose_window(op)
    groups, per_group = op.attr("group", 1), w.shape[1]
    depth = x.shape[1] // groups
    dtype = _sum_dtype(op, x)
    taps = reduce_axes((depth, *window.kernel))
    zero, outside = immediate(0, dtype), immediate(op.attr("zero_point", 0), dtype)

    def value(index: Index) -> Any:
        places, meets, inside = reached(window, x.shape[2:], index[2:], taps[1:])
        group = index[1] // per_group
        read = x.read((index[0], group * depth + taps[0], *places))
        weight = w.read((group * depth + taps[0], index[1] % per_group, *taps[1:]))
        if not op.attr("zero_point", 0):
            product = tirx.if_then_else(inside, cast(read, dtype) * cast(weight, dtype), zero)
            return te.sum(product, axis=taps)
        own = tirx.if_then_else(inside, cast(read, dtype), outside)
        return te.sum(tirx.if_then_else(meets, own * cast(weight, dtype), zero), axis=taps)

    return phase_biased(stage(op.outputs[0].shape, value, "conv_transpose", dtype), bias, window, op)


def reached(
    window: Window, sizes: tuple[int, ...], at: Index, taps: Sequence[Any]
) -> tuple[list[Any], Any, Any]:
    """Which input a tap of an output reads, whether it reads any, and whether that lies in the image."""
    from tvm import tirx

    places, meets, inside = [], tirx.const(True, "bool"), tirx.const(True, "bool")
    for axis, size in enumerate(sizes):
        reach = at[axis] + window.before(axis) - taps[axis] * window.dilations[axis]
        place = tirx.floordiv(reach, window.strides[axis])
        exact = tirx.EQ(tirx.floormod(reach, window.strides[axis]), 0)
        within = tirx.all(place >= 0, place < size)
        meets, inside = tirx.all(meets, exact), tirx.all(inside, exact, within)
        places.append(place)
    return places, meets, inside


def phase_biased(total: Lazy, bias: Lazy | None, window: Window, op: Op) -> Lazy:
    """Sums of a transposed convolution with a bias per channel, or per phase of the output and channel."""
    from tvm import tirx

    if bias is None or len(bias.shape) == 1:
        return biased(total, bias, 1, op.outputs[0].dtype)

    def read(index: Index) -> Any:
        phase = [tirx.floormod(at, stride) for at, stride in zip(index[2:], window.strides, strict=True)]
        return total.read(index) + bias.read((*phase, index[1]))

    return Lazy(total.shape, op.outputs[0].dtype, read)


def product_of(op: Op, a: Lazy, b: Lazy, c: Lazy | None = None) -> Lazy:
    """MatMul and Gemm."""
    from tvm import te

    dtype = _sum_dtype(op, a)
    shape = op.outputs[0].shape
    if op.type in ("Gemm", MATMUL):
        flip_a, flip_b = op.attr("transA", 0), op.attr("transB", 0)
        depth = a.shape[0] if flip_a else a.shape[-1]
    else:
        flip_a = flip_b = 0
        depth = a.shape[-1]
    k = te.reduce_axis((0, depth), name="k")
    offsets = (op.attr("zero_point", 0), op.attr("right_zero_point", 0))
    left, right = op.input(0).shape, op.input(1).shape

    def value(index: Index) -> Any:
        row: tuple[Any, ...] = () if len(left) == 1 else (index[len(shape) - (1 if len(right) == 1 else 2)],)
        column: tuple[Any, ...] = () if len(right) == 1 else (index[-1],)
        batch = index[: len(index) - len(row) - len(column)]
        at_a = (k, *row) if flip_a else (*_batch(batch, left), *row, k)
        at_b = (*column, k) if flip_b else (*_batch(batch, right), k, *column)
        one = without_offset(a.read(at_a), offsets[0], dtype)
        other = without_offset(b.read(at_b), offsets[1], dtype)
        return te.sum(one * other, axis=[k])

    total = stage(shape, value, "matmul", dtype)
    alpha, beta = op.attr("alpha", 1.0), op.attr("beta", 1.0)
    wide = broadcast(c, shape) if c is not None else None

    def read(index: Index) -> Any:
        result = total.read(index)
        if alpha != 1.0:
            result = result * immediate(alpha, dtype)
        if wide is not None:
            added = cast(wide.read(index), dtype)
            result = result + (added * immediate(beta, dtype) if beta != 1.0 else added)
        return cast(result, op.outputs[0].dtype)

    return Lazy(shape, op.outputs[0].dtype, read)


def _sum_dtype(op: Op, x: Lazy) -> str:
    return op.outputs[0].dtype if op.type in INTEGER_ANCHORS else accumulator_dtype(x.dtype)


def without_offset(value: Any, zero_point: int, dtype: str) -> Any:
    """A value without its zero point."""
    wide = cast(value, dtype)
    return wide - immediate(zero_point, dtype) if zero_point else wide


def _batch(index: Index, shape: tuple[int, ...]) -> Index:
    """The batch index of an operand whose leading axes broadcast."""
    axes = shape[:-2] if len(shape) > 1 else ()
    own = index[len(index) - len(axes) :]
    return tuple(0 if size == 1 else each for each, size in zip(own, axes, strict=True))


def pooling(op: Op, x: Lazy) -> Lazy:
    """MaxPool and AveragePool; the average divides by the elements inside unless padding counts."""
    from tvm import te, tirx

    window = pool_window(op)
    largest = op.type == "MaxPool"
    dtype = x.dtype if largest else accumulator_dtype(x.dtype)
    taps = reduce_axes(window.kernel)
    lowest = (-np.inf if "float" in dtype else np.iinfo(dtype).min) if largest else 0

    def inside(index: Index) -> tuple[list[Any], Any]:
        places, within = [], tirx.const(True, "bool")
        for axis in range(window.rank):
            place = (
                index[2 + axis] * window.strides[axis]
                + taps[axis] * window.dilations[axis]
                - window.before(axis)
            )
            within = tirx.all(within, place >= 0, place < x.shape[2 + axis])
            places.append(place)
        return places, within

    def value(index: Index) -> Any:
        places, within = inside(index)
        read = tirx.if_then_else(within, cast(x.read((*index[:2], *places)), dtype), immediate(lowest, dtype))
        return te.max(read, axis=taps) if largest else te.sum(read, axis=taps)

    shape = op.outputs[0].shape
    total = stage(shape, value, "pool", dtype)
    if largest:
        return Lazy(shape, dtype, total.read)
    sizes = [_sizes(op, window, axis, x.shape[2 + axis], shape[2 + axis]) for axis in range(window.rank)]

    def read(index: Index) -> Any:
        count = sizes[0](index[2])
        for axis in range(1, window.rank):
            count = count * sizes[axis](index[2 + axis])
        return cast(total.read(index) / cast(count, dtype), op.outputs[0].dtype)

    return Lazy(shape, op.outputs[0].dtype, read)


def _sizes(op: Op, window: Window, axis: int, size: int, out: int) -> Callable[[Any], Any]:
    """How many elements an averaging window holds along one axis, per output position."""
    from tvm import tirx

    first, last = (0, size)
    if op.attr("count_include_pad", 0):
        first, last = -window.pads[axis], size + window.pads[axis + window.rank]
    stride, dilation, taps = window.strides[axis], window.dilations[axis], window.kernel[axis]

    def count(position: Any) -> Any:
        start = position * stride - window.before(axis)
        below = tirx.floordiv(tirx.max(first - start, 0) + dilation - 1, dilation)
        above = tirx.min(tirx.floordiv(tirx.max(last - start, 0) + dilation - 1, dilation), taps)
        return tirx.max(above - below, 1)

    return count


def reduction(op: Op, x: Lazy) -> Lazy:
    """Reduce operators and global pooling."""
    from tvm import te

    how, axes = reduction_of(op), reduced_axes(op)
    dtype = accumulator_dtype(x.dtype)
    taps = reduce_axes(tuple(x.shape[axis] for axis in axes))
    keeps = len(op.outputs[0].shape) == op.rank
    reducer = te.comm_reducer(
        how.combine, lambda kind: immediate(how.start(str(kind)), str(kind)), name="reducer"
    )

    def value(index: Index) -> Any:
        rest = iter(index)
        at: list[Any] = []
        for axis in range(op.rank):
            if axis in axes:
                at.append(taps[axes.index(axis)])
                if keeps:
                    next(rest)
            else:
                at.append(next(rest))
        return reducer(how.term(cast(x.read(tuple(at)), dtype)), axis=taps)

    count = prod(x.shape[axis] for axis in axes)
    shape = op.outputs[0].shape
    if not axes:
        return Lazy(
            shape, x.dtype, lambda index: cast(how.finish(how.term(cast(x.read(index), dtype)), 1), x.dtype)
        )
    total = stage(shape, value, "reduce", dtype)
    return Lazy(shape, x.dtype, lambda index: cast(how.finish(total.read(index), count), x.dtype))


def softmax(op: Op, x: Lazy) -> Lazy:
    """Softmax and LogSoftmax."""
    from tvm import te, tirx

    axis, dtype = op.axis(default=-1), accumulator_dtype(x.dtype)
    kept = tuple(size for each, size in enumerate(x.shape) if each != axis)

    def along(index: Index, tap: Any) -> Index:
        return (*index[:axis], tap, *index[axis:])

    def outer(index: Index) -> Index:
        return (*index[:axis], *index[axis + 1 :])

    k = te.reduce_axis((0, x.shape[axis]), name="k")
    top = stage(
        kept, lambda index: te.max(cast(x.read(along(index, k)), dtype), axis=[k]), "softmax_top", dtype
    )
    power = stage(
        x.shape,
        lambda index: scoped(lambda: approx.exp(cast(x.read(index), dtype) - top.read(outer(index)))),
        "softmax_exp",
        dtype,
    )
    j = te.reduce_axis((0, x.shape[axis]), name="j")
    total = stage(kept, lambda index: te.sum(power.read(along(index, j)), axis=[j]), "softmax_sum", dtype)

    def read(index: Index) -> Any:
        if op.type == "Softmax":
            return cast(power.read(index) / total.read(outer(index)), op.outputs[0].dtype)
        value = cast(x.read(index), dtype) - top.read(outer(index)) - tirx.log(total.read(outer(index)))
        return cast(value, op.outputs[0].dtype)

    return Lazy(x.shape, op.outputs[0].dtype, read)


def normalization(op: Op, x: Lazy, scale: Lazy, bias: Lazy | None = None) -> Lazy:
    """LayerNormalization and RMSNormalization."""
    from tvm import te, tirx

    axes, dtype = reduced_axes(op), accumulator_dtype(x.dtype)
    kept = tuple(size for axis, size in enumerate(x.shape) if axis not in axes)
    first = axes[0]
    count = immediate(prod(x.shape[axis] for axis in axes), dtype)
    centred = op.type == "LayerNormalization"
    outer = len(kept)

    def mean_of(name: str, term: Callable[[Index], Any]) -> Lazy:
        taps = reduce_axes(tuple(x.shape[axis] for axis in axes))
        total = stage(kept, lambda index: te.sum(term((*index[:first], *taps)), axis=taps), name, dtype)
        return Lazy(kept, dtype, lambda index: total.read(index) / count)

    mean = mean_of("mean", lambda index: cast(x.read(index), dtype)) if centred else None

    def distance(index: Index) -> Any:
        value = cast(x.read(index), dtype)
        return value - mean.read(index[:outer]) if mean is not None else value

    square = mean_of("square", lambda index: distance(index) * distance(index))
    gain = broadcast(scale, x.shape)
    shift = broadcast(bias, x.shape) if bias is not None else None
    epsilon = immediate(op.attr("epsilon", 1e-5), dtype)

    def read(index: Index) -> Any:
        value = (
            distance(index) / tirx.sqrt(square.read(index[:outer]) + epsilon) * cast(gain.read(index), dtype)
        )
        return cast(
            value + cast(shift.read(index), dtype) if shift is not None else value, op.outputs[0].dtype
        )

    return Lazy(x.shape, op.outputs[0].dtype, read)


PLAIN: dict[str, Plain] = {
    "Conv": convolution,
    "ConvTranspose": transposed_convolution,
    "MatMul": product_of,
    "Gemm": product_of,
    "MaxPool": pooling,
    "AveragePool": pooling,
    "Softmax": softmax,
    "LogSoftmax": softmax,
    "LayerNormalization": normalization,
    "RMSNormalization": normalization,
}


def plain_anchor(op: Op, args: list[Lazy | None]) -> Lazy:
    """The value of an anchor or row operator."""
    if op.type in INTEGER_ANCHORS:
        from .integer_plain import INTEGER_PLAIN

        return INTEGER_PLAIN[op.type](op, *args)
    return PLAIN.get(op.type, reduction)(op, *args)
