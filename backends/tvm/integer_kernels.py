"""Which integer kernel serves an integer anchor, and how the kernel's view of it relates to ONNX's."""

from __future__ import annotations

from collections.abc import Callable
from math import prod

from .anchor_views import (
    AnchorKernel,
    as_is,
    conv2d_spec,
    conv_transpose_spec,
    convolved,
    external,
    logical_of,
    multiplied,
    pool_kernel,
    same_index,
    spatial,
    widened,
    with_bias,
    with_phase_bias,
)
from .anchor_volumes import (
    plane_index,
    transposed_planes,
    volume_of,
    volume_operands,
    volume_transpose_spec,
)
from .integer_ops import AVERAGE, CONV, CONV_TRANSPOSE, MATMUL, TABLE, WEIGHT_MATMUL
from .spec import GroupSpec


def integer_kernel(spec: GroupSpec) -> AnchorKernel | None:
    """The kernel for a group's integer anchor; None where none covers its rank."""
    op = spec.anchor_op
    if any(prod(each.shape) == 0 for each in (*op.inputs, op.outputs[0]) if each is not None):
        return None
    return _PLANS[op.type](spec)


def _conv(spec: GroupSpec) -> AnchorKernel | None:
    from .kernels.integer_conv import integer_conv2d

    if spec.anchor_op.rank == 5:
        return _volume_conv(spec)

    op, operands = spec.anchor_op, convolved(spec)
    shape = conv2d_spec(op) if operands else None
    if operands is None or shape is None:
        return None
    types, zero_point = (op.input(0).dtype, op.input(1).dtype), op.attr("zero_point", 0)
    return AnchorKernel(
        lambda epilogue, target: widened(integer_conv2d(shape, types, zero_point, epilogue, target), op),
        operands[:1],
        operands[1:],
        spatial(op.outputs[0].shape),
        logical_of(op.rank),
        with_bias(spec, 1),
        value_dtype="int32",
    )


def _conv_transpose(spec: GroupSpec) -> AnchorKernel | None:
    from .kernels.integer_transpose import integer_conv_transpose

    op = spec.anchor_op
    if op.rank == 5:
        return _volume_conv_transpose(spec)
    operands = convolved(spec)
    if operands is None:
        return None
    shape = conv_transpose_spec(op)
    types, zero_point = (op.input(0).dtype, op.input(1).dtype), op.attr("zero_point", 0)
    return AnchorKernel(
        lambda epilogue, target: widened(
            integer_conv_transpose(shape, types, zero_point, epilogue, target), op
        ),
        operands[:1],
        operands[1:],
        spatial(op.outputs[0].shape),
        logical_of(op.rank),
        with_phase_bias(spec),
        value_dtype="int32",
    )


def _volume_conv(spec: GroupSpec) -> AnchorKernel | None:
    from .kernels.integer_volume import integer_conv3d
    from .kernels.volume import VolumeView

    op, found = spec.anchor_op, volume_of(spec)
    if found is None:
        return None
    shape, operands = found
    types, zero_point, view = (
        (op.input(0).dtype, op.input(1).dtype),
        op.attr("zero_point", 0),
        VolumeView(shape),
    )
    return AnchorKernel(
        lambda epilogue, target: integer_conv3d(shape, types, zero_point, epilogue, target),
        operands[:1],
        operands[1:],
        view.shape,
        view.logical,
        with_bias(spec, 1),
        value_dtype="int32",
    )


def _volume_conv_transpose(spec: GroupSpec) -> AnchorKernel | None:
    from .kernels.integer_transpose import integer_conv_transpose3d

    op, operands = spec.anchor_op, volume_operands(spec)
    if operands is None:
        return None
    shape, planes = volume_transpose_spec(op), op.outputs[0].shape[2]
    types, zero_point = (op.input(0).dtype, op.input(1).dtype), op.attr("zero_point", 0)
    return AnchorKernel(
        lambda epilogue, target: integer_conv_transpose3d(shape, types, zero_point, epilogue, target),
        operands[:1],
        operands[1:],
        transposed_planes(op),
        lambda index: plane_index(index, planes),
        with_phase_bias(spec),
        value_dtype="int32",
    )


def _matmul(spec: GroupSpec) -> AnchorKernel | None:
    from .kernels import MatmulSpec, Operand
    from .kernels.integer_matmul import IntegerOperands, integer_matmul

    op, given = spec.anchor_op, multiplied(spec)
    if given is None:
        return None
    a, b = given
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
        same_index,
        with_bias(spec, -1),
        value_dtype="int32",
    )


def _weight_matmul(spec: GroupSpec) -> AnchorKernel | None:
    from .kernels import MatmulSpec, Operand
    from .kernels.weight_matmul import WeightForm, weight_matmul

    op = spec.anchor_op
    given = [external(spec, position) for position in range(len(op.inputs))]
    if given[0] is None or given[0][1].layout.channels_last or None in given:
        return None
    right = Operand(op.input(1).shape, perm=(1, 0) if op.attr("transB", 0) else None)
    product = MatmulSpec(Operand(op.input(0).shape), right, True)
    levels = bool(op.attr("levels", 0))
    tables = len(op.inputs) - 2 - levels
    zero = op.attr("zero", 0.0)
    form = WeightForm(op.attr("bits"), op.attr("group"), tables > 0, tables > 1, zero, levels)
    return AnchorKernel(
        lambda epilogue, target: weight_matmul(product, form, epilogue, target),
        (given[0][0],),
        tuple(each[0] for each in given[1:] if each is not None),
        product.out_shape,
        same_index,
        as_is,
    )


def _table(spec: GroupSpec) -> AnchorKernel | None:
    """A look-up in place: data and output must lie alike, and nothing may follow."""
    from .kernels.integer_table import integer_table

    op, data, table = spec.anchor_op, external(spec, 0), external(spec, 1)
    if data is None or table is None or data[1].layout != spec.layout or len(spec.members) > 1:
        return None
    stored, types = spec.layout.stored_shape(op.input(0).shape), (op.input(0).dtype, op.outputs[0].dtype)
    return AnchorKernel(
        lambda epilogue, target: integer_table(prod(stored), (stored, stored), types, target),
        (data[0], table[0]),
        (),
        op.outputs[0].shape,
        same_index,
        as_is,
        value_dtype=types[1],
    )


_PLANS: dict[str, Callable[[GroupSpec], AnchorKernel | None]] = {
    CONV: _conv,
    CONV_TRANSPOSE: _conv_transpose,
    MATMUL: _matmul,
    WEIGHT_MATMUL: _weight_matmul,
    AVERAGE: pool_kernel,
    TABLE: _table,
    "MaxPool": pool_kernel,
}
