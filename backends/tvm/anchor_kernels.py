"""Which kernel serves an anchor, and how the kernel's view of it relates to ONNX's."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from typing import Any

from .anchors import Window, conv_window, pool_window, transpose_window
from .blockwise import ATTENTION, attention_kernel
from .integer_ops import INTEGER_ANCHORS
from .lazy import Index, broadcast, immediate
from .op import Op
from .spec import External, GroupSpec, Ref, evaluate


@dataclass(frozen=True)
class AnchorKernel:
    """A kernel that fits an anchor.

    Attributes:
        build: (epilogue, target) -> `Kernel`.
        data: external inputs that it reads as they are, in order.
        weights: external constants that it reads packed, in order.
        kernel_shape: the logical shape of the output as the kernel sees it.
        logical: the kernel's logical output index -> ONNX's.
        finish: (accumulated value, parameters) -> function from ONNX's output index to the anchor's value.
        out_shape: stored shape of the output where it is not the kernel's own.
        out_index: the kernel's logical output index -> stored index, in that case.
        value_dtype: element type of the accumulated value.
    """

    build: Callable[[Any, Any], Any]
    data: tuple[int, ...]
    weights: tuple[int, ...]
    kernel_shape: tuple[int, ...]
    logical: Callable[[Index], Index]
    finish: Callable[[Any, Any], Callable[[Index], Any]]
    out_shape: tuple[int, ...] | None = None
    out_index: Callable[[Index], Index] | None = None
    value_dtype: str = "float32"


def anchor_kernel(spec: GroupSpec) -> AnchorKernel | None:
    """The kernel for a group's anchor; None where none covers its types or rank."""
    op = spec.anchor_op
    if op.type in INTEGER_ANCHORS or (op.type == "MaxPool" and op.input(0).dtype in ("int8", "uint8")):
        from .integer_kernels import integer_kernel

        return integer_kernel(spec)
    types = [each for each in (*op.inputs, op.outputs[0]) if each is not None]
    if any(each.dtype != "float32" for each in types) or any(prod(each.shape) == 0 for each in types):
        return None
    return _PLANS[op.type](spec)


def _same(index: Index) -> Index:
    return index


def _external(spec: GroupSpec, position: int) -> tuple[int, External] | None:
    inputs = spec.members[spec.anchor].inputs
    ref = inputs[position] if position < len(inputs) else None
    if ref is None or not ref.is_external:
        return None
    return ref.external, spec.externals[ref.external]


def _spatial(shape: tuple[int, ...]) -> tuple[int, ...]:
    """A shape (N, C, W) or (N, C, H, W) with two spatial axes."""
    return shape if len(shape) == 4 else (shape[0], shape[1], 1, shape[2])


def _logical_of(rank: int) -> Callable[[Index], Index]:
    return _same if rank == 4 else lambda index: (index[0], index[1], index[3])


def _pairs(window: Window) -> Window:
    return window if window.rank == 2 else window.widened()


def _with_bias(spec: GroupSpec) -> Callable[[Any, Any], Callable[[Index], Any]]:
    inputs = spec.members[spec.anchor].inputs
    ref = inputs[2] if len(inputs) > 2 else None

    def finish(value: Any, parameters: Any) -> Callable[[Index], Any]:
        if ref is None:
            return lambda index: value
        (bias,) = evaluate(spec, parameters.bind, parameters.derive, wanted=[ref])
        return lambda index: value + bias.read((index[1],))

    return finish


def _conv(spec: GroupSpec) -> AnchorKernel | None:
    from .kernels import Conv2dSpec, conv2d

    op = spec.anchor_op
    data, weight = _external(spec, 0), _external(spec, 1)
    if (
        data is None
        or weight is None
        or not weight[1].constant
        or op.rank not in (3, 4)
        or not spec.layout.channels_last
    ):
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
    return AnchorKernel(
        lambda epilogue, target: _widened(conv2d(shape, epilogue, target), op),
        (data[0],),
        (weight[0],),
        out,
        _logical_of(op.rank),
        _with_bias(spec),
    )


def _widened(kernel: Any, op: Op) -> Any:
    """A kernel over two spatial axes, its packing taking weights of one axis."""
    from dataclasses import replace

    if op.rank == 4:
        return kernel
    packs = tuple(_pack_widened(pack) for pack in kernel.pack)
    return replace(kernel, pack=packs)


def _pack_widened(pack: Callable[[Any], Any]) -> Callable[[Any], Any]:
    return lambda weights: pack(weights[:, :, None, :])


def _conv_transpose(spec: GroupSpec) -> AnchorKernel | None:
    from .kernels import ConvTransposeSpec
    from .kernels.conv_transpose import conv_transpose

    op = spec.anchor_op
    data, weight = _external(spec, 0), _external(spec, 1)
    if (
        data is None
        or weight is None
        or not weight[1].constant
        or op.rank not in (3, 4)
        or not spec.layout.channels_last
    ):
        return None
    window = _pairs(transpose_window(op))
    batch, channels, height, width = _spatial(op.input(0).shape)
    out = _spatial(op.outputs[0].shape)
    shape = ConvTransposeSpec(
        batch,
        channels,
        height,
        width,
        out[1],
        out[2],
        out[3],
        window.kernel,  # type: ignore[arg-type]
        window.strides,  # type: ignore[arg-type]
        window.dilations,  # type: ignore[arg-type]
        window.pads,  # type: ignore[arg-type]
        op.attr("group", 1),
    )
    return AnchorKernel(
        lambda epilogue, target: _widened(conv_transpose(shape, epilogue, target), op),
        (data[0],),
        (weight[0],),
        out,
        _logical_of(op.rank),
        _with_bias(spec),
    )


def _pool(spec: GroupSpec) -> AnchorKernel | None:
    from .kernels import PoolSpec
    from .kernels.pool import pool

    op = spec.anchor_op
    data = _external(spec, 0)
    if data is None or op.rank not in (3, 4) or not spec.layout.channels_last:
        return None
    window = _pairs(pool_window(op))
    if any(pad < 0 for pad in window.pads):
        return None
    batch, channels, height, width = _spatial(op.input(0).shape)
    out = _spatial(op.outputs[0].shape)
    shape = PoolSpec(
        "max" if op.type == "MaxPool" else "average",
        batch,
        channels,
        height,
        width,
        out[2],
        out[3],
        window.kernel,  # type: ignore[arg-type]
        window.strides,  # type: ignore[arg-type]
        window.dilations,  # type: ignore[arg-type]
        window.pads,  # type: ignore[arg-type]
        bool(op.attr("count_include_pad", 0)),
        op.input(0).dtype,
        op.attr("zero_point", 0),
    )
    return AnchorKernel(
        lambda epilogue, target: pool(shape, epilogue, target),
        (data[0],),
        (),
        out,
        _logical_of(op.rank),
        lambda value, parameters: lambda index: value,
        value_dtype=op.outputs[0].dtype,
    )


def _matmul(spec: GroupSpec) -> AnchorKernel | None:
    from .kernels import MatmulSpec, Operand, matmul

    op = spec.anchor_op
    a, b = _external(spec, 0), _external(spec, 1)
    if a is None or b is None or a[1].layout.channels_last or b[1].layout.channels_last:
        return None
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
        _gemm_tail(spec) if gemm else lambda value, parameters: lambda index: value,
        out_shape,
        logical if squeezed else None,
    )


def _gemm_tail(spec: GroupSpec) -> Callable[[Any, Any], Callable[[Index], Any]]:
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
    "MaxPool": _pool,
    "AveragePool": _pool,
    "MatMul": _matmul,
    "Gemm": _matmul,
    ATTENTION: attention_kernel,
}
