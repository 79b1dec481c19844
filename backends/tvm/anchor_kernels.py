"""Which kernel serves an anchor."""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any

from .anchor_views import (
    AnchorKernel,
    Finish,
    as_is,
    conv2d_spec,
    conv_transpose_spec,
    convolved,
    logical_of,
    multiplied,
    pool_kernel,
    spatial,
    widened,
    with_bias,
)
from .anchor_volumes import volume_conv, volume_conv_transpose, volume_pool
from .blockwise import ATTENTION, attention_kernel
from .integer_ops import INTEGER_ANCHORS, STORED
from .lazy import Index, broadcast, immediate
from .spec import GroupSpec, Ref, evaluate


def anchor_kernel(spec: GroupSpec) -> AnchorKernel | None:
    """The kernel for a group's anchor; None where none covers its types or rank."""
    op = spec.anchor_op
    if op.type in INTEGER_ANCHORS or (op.type == "MaxPool" and op.input(0).dtype in STORED):
        from .integer_kernels import integer_kernel

        return integer_kernel(spec)
    types = [each for each in (*op.inputs, op.outputs[0]) if each is not None]
    if any(each.dtype != "float32" for each in types) or any(prod(each.shape) == 0 for each in types):
        return None
    if op.rank == 5 and op.type in _VOLUME_PLANS:
        return _VOLUME_PLANS[op.type](spec)
    return _PLANS[op.type](spec)


def _conv(spec: GroupSpec) -> AnchorKernel | None:
    from .kernels import conv2d

    op, operands = spec.anchor_op, convolved(spec)
    shape = conv2d_spec(op) if operands else None
    if operands is None or shape is None:
        return None
    return AnchorKernel(
        lambda epilogue, target: widened(conv2d(shape, epilogue, target), op),
        operands[:1],
        operands[1:],
        spatial(op.outputs[0].shape),
        logical_of(op.rank),
        with_bias(spec, 1),
    )


def _conv_transpose(spec: GroupSpec) -> AnchorKernel | None:
    from .kernels.conv_transpose import conv_transpose

    op, operands = spec.anchor_op, convolved(spec)
    if operands is None:
        return None
    shape = conv_transpose_spec(op)
    return AnchorKernel(
        lambda epilogue, target: widened(conv_transpose(shape, epilogue, target), op),
        operands[:1],
        operands[1:],
        spatial(op.outputs[0].shape),
        logical_of(op.rank),
        with_bias(spec, 1),
    )


def _matmul(spec: GroupSpec) -> AnchorKernel | None:
    from .kernels import MatmulSpec, Operand, matmul

    op, operands = spec.anchor_op, multiplied(spec)
    if operands is None:
        return None
    a, b = operands
    shape_a, shape_b = op.input(0).shape, op.input(1).shape
    gemm = op.type == "Gemm"
    left = Operand(
        shape_a,
        perm=(1, 0) if gemm and op.attr("transA", 0) else None,
        view=(1, *shape_a) if len(shape_a) == 1 else None,
    )
    right = Operand(
        shape_b,
        perm=(1, 0) if gemm and op.attr("transB", 0) else None,
        view=(*shape_b, 1) if len(shape_b) == 1 else None,
    )
    constant = b[1].constant and len(right.logical) == 2
    product = MatmulSpec(left, right, constant)
    drop_row, drop_column = len(shape_a) == 1, len(shape_b) == 1

    def logical(index: Index) -> Index:
        row = () if drop_row else (index[-2],)
        column = () if drop_column else (index[-1],)
        return (*index[:-2], *row, *column)

    squeezed = drop_row or drop_column
    out_shape = op.outputs[0].shape if squeezed else None
    if squeezed and not out_shape:
        return None
    return AnchorKernel(
        lambda epilogue, target: matmul(product, epilogue, target),
        (a[0],) if constant else (a[0], b[0]),
        (b[0],) if constant else (),
        product.out_shape,
        logical,
        _gemm_tail(spec) if gemm else as_is,
        out_shape,
        logical if squeezed else None,
    )


def _gemm_tail(spec: GroupSpec) -> Finish:
    op, inputs = spec.anchor_op, spec.members[spec.anchor].inputs
    ref: Ref | None = inputs[2] if len(inputs) > 2 else None
    alpha, beta = op.attr("alpha", 1.0), op.attr("beta", 1.0)

    def finish(value: Any, parameters: Any) -> Callable[[Index], Any]:
        scaled = value * immediate(alpha, "float32") if alpha != 1.0 else value
        if ref is None:
            return lambda index: scaled
        (added,) = evaluate(spec, parameters.bind, parameters.derive, wanted=[ref])
        wide = broadcast(added, op.outputs[0].shape)
        if beta == 1.0:
            return lambda index: scaled + wide.read(index)
        return lambda index: scaled + wide.read(index) * immediate(beta, "float32")

    return finish


_PLANS: dict[str, Callable[[GroupSpec], AnchorKernel | None]] = {
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "MaxPool": pool_kernel,
    "AveragePool": pool_kernel,
    "MatMul": _matmul,
    "Gemm": _matmul,
    ATTENTION: attention_kernel,
}
_VOLUME_PLANS: dict[str, Callable[[GroupSpec], AnchorKernel | None]] = {
    "Conv": volume_conv,
    "ConvTranspose": volume_conv_transpose,
    "MaxPool": volume_pool,
    "AveragePool": volume_pool,
}
