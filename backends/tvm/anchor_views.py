"""How a kernel's view of an anchor relates to ONNX's; shared by kernels of floats and of integers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from .anchors import Window, conv_window, pool_window, transpose_window
from .lazy import Index, floormod
from .op import Op
from .spec import External, GroupSpec, Ref, evaluate

if TYPE_CHECKING:
    from .kernels import Conv2dSpec, ConvTransposeSpec

Finish = Callable[[Any, Any], Callable[[Index], Any]]
"""(accumulated value, parameters) -> function from ONNX's output index to the anchor's value."""


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
    finish: Finish
    out_shape: tuple[int, ...] | None = None
    out_index: Callable[[Index], Index] | None = None
    value_dtype: str = "float32"


def same_index(index: Index) -> Index:
    """The view of a kernel that sees an output as ONNX does."""
    return index


def external(spec: GroupSpec, position: int) -> tuple[int, External] | None:
    """Number and description of an input of the anchor; None where it is missing or made in the group."""
    ref = _input(spec, position)
    if ref is None or not ref.is_external:
        return None
    return ref.external, spec.externals[ref.external]


def convolved(spec: GroupSpec) -> tuple[int, int] | None:
    """Numbers of data and weights of a convolution that kernels take: constant weights, channels last."""
    data, weight = external(spec, 0), external(spec, 1)
    if data is None or weight is None or not weight[1].constant:
        return None
    if spec.anchor_op.rank not in (3, 4) or not spec.layout.channels_last:
        return None
    return data[0], weight[0]


def multiplied(spec: GroupSpec) -> tuple[tuple[int, External], tuple[int, External]] | None:
    """Numbers and descriptions of both operands of a product, stored as ONNX orders them."""
    left, right = external(spec, 0), external(spec, 1)
    if left is None or right is None or left[1].layout.channels_last or right[1].layout.channels_last:
        return None
    return left, right


def _input(spec: GroupSpec, position: int) -> Ref | None:
    inputs = spec.members[spec.anchor].inputs
    return inputs[position] if position < len(inputs) else None


def spatial(shape: tuple[int, ...]) -> tuple[int, ...]:
    """A shape (N, C, W) or (N, C, H, W) with two spatial axes."""
    return shape if len(shape) == 4 else (shape[0], shape[1], 1, shape[2])


def logical_of(rank: int) -> Callable[[Index], Index]:
    """(n, c, h, w) -> ONNX's index of a tensor of 3 or 4 axes."""
    return same_index if rank == 4 else lambda index: (index[0], index[1], index[3])


def spatial_window(window: Window) -> Window:
    """A window over one or two axes with two."""
    return window if window.rank == 2 else window.widened()


def conv2d_spec(op: Op) -> Conv2dSpec | None:
    """A convolution over one or two axes as kernels see it; None where its pads are negative."""
    from .kernels import Conv2dSpec

    window = spatial_window(conv_window(op))
    if any(pad < 0 for pad in window.pads):
        return None
    batch, channels, height, width = spatial(op.input(0).shape)
    out = spatial(op.outputs[0].shape)
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
    return shape if (shape.out_height, shape.out_width) == out[2:] else None


def conv_transpose_spec(op: Op) -> ConvTransposeSpec:
    """A transposed convolution over one or two axes as kernels see it."""
    from .kernels import ConvTransposeSpec

    window = spatial_window(transpose_window(op))
    batch, channels, height, width = spatial(op.input(0).shape)
    out = spatial(op.outputs[0].shape)
    return ConvTransposeSpec(
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


def widened(kernel: Any, op: Op) -> Any:
    """A kernel over two spatial axes, its packing taking weights of one axis where `op` has one."""
    if op.rank == 4:
        return kernel
    return replace(kernel, pack=tuple(_pack_widened(pack) for pack in kernel.pack))


def _pack_widened(pack: Callable[[Any], Any]) -> Callable[[Any], Any]:
    return lambda weights: pack(weights[:, :, None, :])


def as_is(value: Any, parameters: Any) -> Callable[[Index], Any]:
    """`finish` of an anchor whose value is what was accumulated."""
    return lambda index: value


def with_bias(spec: GroupSpec, axis: int) -> Finish:
    """`finish` that adds input 2 of the anchor, if there is one, along an axis of the output."""
    ref = _input(spec, 2)
    if ref is None:
        return as_is

    def finish(value: Any, parameters: Any) -> Callable[[Index], Any]:
        (bias,) = evaluate(spec, parameters.bind, parameters.derive, wanted=[ref])
        return lambda index: value + bias.read((index[axis],))

    return finish


def with_phase_bias(spec: GroupSpec) -> Finish:
    """`finish` that adds input 2 of a transposed convolution: per channel, or per phase and channel."""
    ref, op = _input(spec, 2), spec.anchor_op
    if ref is None or len(op.input(2).shape) == 1:
        return with_bias(spec, 1)
    strides = op.input(2).shape[:-1]

    def finish(value: Any, parameters: Any) -> Callable[[Index], Any]:
        (bias,) = evaluate(spec, parameters.bind, parameters.derive, wanted=[ref])

        def read(index: Index) -> Any:
            phase = [floormod(place, stride) for place, stride in zip(index[2:], strides, strict=True)]
            return value + bias.read((*phase, index[1]))

        return read

    return finish


def pool_kernel(spec: GroupSpec) -> AnchorKernel | None:
    """The kernel of a pooling operator, of floats or of integers."""
    from .kernels import PoolSpec
    from .kernels.pool import pool

    op = spec.anchor_op
    data = external(spec, 0)
    if data is None or op.rank not in (3, 4) or not spec.layout.channels_last:
        return None
    window = spatial_window(pool_window(op))
    if any(pad < 0 for pad in window.pads):
        return None
    batch, channels, height, width = spatial(op.input(0).shape)
    out = spatial(op.outputs[0].shape)
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
        logical_of(op.rank),
        as_is,
        value_dtype=op.outputs[0].dtype,
    )
