"""Kernels for anchors over three spatial axes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .anchor_views import AnchorKernel, as_is, external, same_index, with_bias
from .anchors import conv_window, pool_window, transpose_window
from .lazy import Index, floordiv, floormod
from .op import Op
from .spec import GroupSpec

if TYPE_CHECKING:
    from .kernels.volume import Conv3dSpec
    from .kernels.volume_transpose import ConvTranspose3dSpec


def volume_of(spec: GroupSpec) -> tuple[Conv3dSpec, tuple[int, int]] | None:
    """A convolution as kernels see it, numbers of its data and weights; None where pads are negative."""
    from .kernels.volume import Conv3dSpec

    op, operands = spec.anchor_op, volume_operands(spec)
    window = conv_window(op)
    if operands is None or any(pad < 0 for pad in window.pads):
        return None
    shape = Conv3dSpec.of(
        op.input(0).shape,
        op.outputs[0].shape,
        window.kernel,  # type: ignore[arg-type]
        window.strides,  # type: ignore[arg-type]
        window.dilations,  # type: ignore[arg-type]
        window.pads,
        op.attr("group", 1),
    )
    return (shape, operands) if shape.plane.out_shape[1:3] == tuple(op.outputs[0].shape[3:]) else None


def volume_conv(spec: GroupSpec) -> AnchorKernel | None:
    """A convolution."""
    from .kernels.volume import VolumeView, conv3d

    found = volume_of(spec)
    if found is None:
        return None
    shape, operands = found
    view = VolumeView(shape)
    return AnchorKernel(
        lambda epilogue, target: conv3d(shape, epilogue, target),
        operands[:1],
        operands[1:],
        view.shape,
        view.logical,
        with_bias(spec, 1),
    )


def volume_conv_transpose(spec: GroupSpec) -> AnchorKernel | None:
    """A transposed convolution; None where its code would grow large."""
    from .kernels.volume_transpose import conv_transpose3d, has_few_phases

    op, operands = spec.anchor_op, volume_operands(spec)
    if operands is None:
        return None
    shape = volume_transpose_spec(op)
    if not has_few_phases(shape):
        return None
    planes = shape.depth.outputs
    return AnchorKernel(
        lambda epilogue, target: conv_transpose3d(shape, epilogue, target),
        operands[:1],
        operands[1:],
        transposed_planes(op),
        lambda index: plane_index(index, planes),
        with_bias(spec, 1),
    )


def transposed_planes(op: Op) -> tuple[int, ...]:
    """The logical shape of an output, its planes as images."""
    batch, channels, planes, height, width = op.outputs[0].shape
    return (batch * planes, channels, height, width)


def volume_transpose_spec(op: Op) -> ConvTranspose3dSpec:
    """A transposed convolution over three axes as kernels see it."""
    from .kernels import ConvTransposeSpec
    from .kernels.volume import DepthWindow
    from .kernels.volume_transpose import ConvTranspose3dSpec

    window = transpose_window(op)
    (batch, channels, depth, height, width), out = op.input(0).shape, op.outputs[0].shape
    planes = DepthWindow(
        depth, out[2], window.kernel[0], window.strides[0], window.dilations[0], window.before(0)
    )
    plane = ConvTransposeSpec(
        batch * depth,
        channels,
        height,
        width,
        out[1],
        out[3],
        out[4],
        window.kernel[1:],  # type: ignore[arg-type]
        window.strides[1:],  # type: ignore[arg-type]
        window.dilations[1:],  # type: ignore[arg-type]
        (window.pads[1], window.pads[2], window.pads[4], window.pads[5]),
        op.attr("group", 1),
    )
    return ConvTranspose3dSpec(planes, plane)


def plane_index(index: Index, planes: int) -> Index:
    """(plane of all volumes, c, h, w) -> (n, c, d, h, w)."""
    n, c, h, w = index
    return (floordiv(n, planes), c, floormod(n, planes), h, w)


def volume_pool(spec: GroupSpec) -> AnchorKernel | None:
    """Pooling of floats."""
    from .kernels.volume_sweep import Pool3dSpec, pool3d

    op, data = spec.anchor_op, external(spec, 0)
    window = pool_window(op)
    if data is None or not spec.layout.channels_last or op.input(0).dtype != "float32":
        return None
    if any(pad < 0 for pad in window.pads):
        return None
    shape = Pool3dSpec(
        "max" if op.type == "MaxPool" else "average",
        op.input(0).shape,  # type: ignore[arg-type]
        op.outputs[0].shape[2:],  # type: ignore[arg-type]
        window.kernel,  # type: ignore[arg-type]
        window.strides,  # type: ignore[arg-type]
        window.dilations,  # type: ignore[arg-type]
        window.pads,
        bool(op.attr("count_include_pad", 0)),
    )
    return AnchorKernel(
        lambda epilogue, target: pool3d(shape, epilogue, target),
        (data[0],),
        (),
        op.outputs[0].shape,
        same_index,
        as_is,
    )


def volume_operands(spec: GroupSpec) -> tuple[int, int] | None:
    """Numbers of data and weights of a convolution that kernels take: constant weights, channels last."""
    data, weight = external(spec, 0), external(spec, 1)
    if data is None or weight is None or not weight[1].constant or not spec.layout.channels_last:
        return None
    return data[0], weight[0]
