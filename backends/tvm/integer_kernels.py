"""Which integer kernel serves an integer anchor, and how the kernel's view of it relates to ONNX's."""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any

from .anchor_kernels import AnchorKernel, _external, _logical_of, _pairs, _pool, _spatial, _widened
from .anchors import conv_window
from .integer_ops import AVERAGE, CONV, MATMUL, WEIGHT_MATMUL
from .lazy import Index
from .spec import GroupSpec, evaluate


def integer_kernel(spec: GroupSpec) -> AnchorKernel | None:
    """The kernel for a group's integer anchor; None where none covers its rank."""
    op = spec.anchor_op
    if any(prod(each.shape) == 0 for each in (*op.inputs, op.outputs[0]) if each is not None):
        return None
    return _PLANS[op.type](spec)


def _with_bias(spec: GroupSpec, axis: int) -> Callable[[Any, Any], Callable[[Index], Any]]:
    """Adds the int32 bias, input 2 of an integer anchor, along an axis of its output."""
    inputs = spec.members[spec.anchor].inputs
    ref = inputs[2] if len(inputs) > 2 else None

    def finish(value: Any, parameters: Any) -> Callable[[Index], Any]:
        if ref is None:
            return lambda index: value
        (bias,) = evaluate(spec, parameters.bind, parameters.derive, wanted=[ref])
        return lambda index: value + bias.read((index[axis],))

    return finish


def _conv(spec: GroupSpec) -> AnchorKernel | None:
    from .kernels import Conv2dSpec
    from .kernels.integer_conv import integer_conv2d

    op = spec.anchor_op
    data, weight = _external(spec, 0), _external(spec, 1)
    if data is None or weight is None or op.rank not in (3, 4) or not spec.layout.channels_last:
        return None
    window = _pairs(conv_window(op))
    if any(pad < 0 for pad in window.pads):
        return None
    batch, channels, height, width = _spatial(op.input(0).shape)
    out = _spatial(op.outputs[0].shape)
    shape = Conv2dSpec(
        batch,
        channels,
        height,
        width,
        out[1],
        window.kernel,  # type: ignore[arg-type]
        window.strides,  # type: ignore[arg-type]
        window.dilations,  # type: ignore[arg-type]
        window.pads,  # type: ignore[arg-type]
        op.attr("group", 1),
    )
    if (shape.out_height, shape.out_width) != out[2:]:
        return None
    types = (op.input(0).dtype, op.input(1).dtype)
    return AnchorKernel(
        lambda epilogue, target: _widened(
            integer_conv2d(shape, types, op.attr("zero_point", 0), epilogue, target), op
        ),
        (data[0],),
        (weight[0],),
        out,
        _logical_of(op.rank),
        _with_bias(spec, 1),
        value_dtype="int32",
    )


def _matmul(spec: GroupSpec) -> AnchorKernel | None:
    from .kernels import MatmulSpec, Operand
    from .kernels.integer_matmul import IntegerOperands, integer_matmul

    op = spec.anchor_op
    a, b = _external(spec, 0), _external(spec, 1)
    if a is None or b is None or a[1].layout.channels_last or b[1].layout.channels_last:
        return None
    shape_a, shape_b = op.input(0).shape, op.input(1).shape
    right = Operand(shape_b, perm=(1, 0) if op.attr("transB", 0) else None)
    constant = b[1].constant and len(shape_b) == 2
    product = MatmulSpec(Operand(shape_a), right, constant)
    operands = IntegerOperands(
        (op.input(0).dtype, op.input(1).dtype),
        (op.attr("zero_point", 0), op.attr("right_zero_point", 0)),
    )
    return AnchorKernel(
        lambda epilogue, target: integer_matmul(product, operands, epilogue, target),
        (a[0],) if constant else (a[0], b[0]),
        (b[0],) if constant else (),
        product.out_shape,
        lambda index: index,
        _with_bias(spec, -1),
        value_dtype="int32",
    )


def _weight_matmul(spec: GroupSpec) -> AnchorKernel | None:
    from .kernels import MatmulSpec, Operand
    from .kernels.weight_matmul import WeightForm, weight_matmul

    op = spec.anchor_op
    given = [_external(spec, position) for position in range(len(op.inputs))]
    if given[0] is None or given[0][1].layout.channels_last or None in given:
        return None
    right = Operand(op.input(1).shape, perm=(1, 0) if op.attr("transB", 0) else None)
    product = MatmulSpec(Operand(op.input(0).shape), right, True)
    form = WeightForm(op.attr("bits"), op.attr("group"), op.has(2), op.has(3))
    return AnchorKernel(
        lambda epilogue, target: weight_matmul(product, form, epilogue, target),
        (given[0][0],),
        tuple(each[0] for each in given[1:] if each is not None),
        product.out_shape,
        lambda index: index,
        lambda value, parameters: lambda index: value,
    )


_PLANS: dict[str, Callable[[GroupSpec], AnchorKernel | None]] = {
    CONV: _conv,
    MATMUL: _matmul,
    WEIGHT_MATMUL: _weight_matmul,
    AVERAGE: _pool,
    "MaxPool": _pool,
}
