"""Convolution of integers over three axes: one over two of a copy that holds the planes of every window.

    rows:      stacked[n, d, h * KD + kd, w, c]           = data[n, d * stride + kd * dilation - pad, h, w, c]
    channels:  stacked[n, d, h, w, (g * KD + kd) * C + c] = the same

A window over planes and rows is one over KH * KD rows of the first image, so depthwise convolutions stay what
they are. Where rows of a window do not lie together (dilation), planes become channels. The copy has KD times
the bytes of the data and is small beside the products. Padding holds the zero point, as in integer_conv.py.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import numpy as np
from tvm import tirx

from . import emit
from .emit import Statements
from .integer_conv import convolve_integers
from .integer_winograd import choose_integer_winograd
from .interface import Conv2dSpec, Epilogue, Kernel, nhwc
from .microkernel import Writer
from .product import SERIAL_FLOPS
from .tile import TargetNumbers
from .volume import Conv3dSpec, VolumeView, along_depth, as_volume, repacked


def integer_conv3d(
    spec: Conv3dSpec,
    types: tuple[str, str],
    zero_point: int,
    epilogue: Epilogue | None,
    target: TargetNumbers,
) -> Kernel:
    """A convolution over three axes, any group count; the epilogue gets int32 sums.

    Buffers: data (N, D, H, W, C), packed weights, extra inputs, output (N, OD, OH, OW, O); the epilogue gets
    indices as `VolumeView` has them.

    Args:
        spec: the convolution.
        types: element types of data and weights.
        zero_point: of the data; padding holds it.
        epilogue: what follows.
        target: numbers and features of the target.
    """
    flat = VolumeView(spec).is_flat
    shape = along_depth(spec).out_shape if flat else spec.plane.out_shape
    kernel = convolve_volume(spec, types, zero_point, Writer(epilogue, shape, nhwc, "int32"), target)
    return replace(as_volume(kernel, spec.data_shape, spec.out_shape), flops=spec.flops)


def convolve_volume(
    spec: Conv3dSpec, types: tuple[str, str], zero_point: int, writer: Writer, target: TargetNumbers
) -> Kernel:
    """The same with a writer that may store elsewhere, before data and output have five axes.

    Pads may be negative, which skips planes, rows and columns.
    """
    if spec.is_one_plane:
        kernel = convolve_integers(spec.plane, types, zero_point, writer, target)
        kernel = repacked(kernel, lambda weights: weights[:, :, 0])
    elif spec.is_depth_only:
        kernel = convolve_integers(along_depth(spec), types, zero_point, writer, target)
        kernel = repacked(kernel, lambda weights: weights[..., 0])
    else:
        stack = Stack(spec, types[0], zero_point, in_channels=True)
        if choose_integer_winograd(stack.image, types, target) is None:
            stack = Stack(spec, types[0], zero_point)
        kernel = repacked(convolve_integers(stack.image, types, zero_point, writer, target), stack.weights)
        kernel = _behind(stack, kernel)
    return replace(kernel, note=kernel.note.replace("conv2d", "conv3d").replace("depthwise", "depthwise 3d"))


@dataclass(frozen=True)
class Stack:
    """The copy of a volume, and the convolution of it."""

    spec: Conv3dSpec
    dtype: str
    zero_point: int
    in_channels: bool = False
    """Whether planes become channels in any case, for algorithms that want a window of one plane."""

    @property
    def in_rows(self) -> bool:
        """Whether planes become rows; otherwise they become channels."""
        plane = self.spec.plane
        return not self.in_channels and (plane.kernel[0] == 1 or plane.dilation[0] == 1)

    @property
    def image(self) -> Conv2dSpec:
        """The convolution of the copy, which holds its padding."""
        plane, planes = self.spec.plane, self.spec.depth.kernel
        top, left, bottom, right = plane.pads
        padded = replace(
            plane, height=plane.height + top + bottom, width=plane.width + left + right, pads=(0, 0, 0, 0)
        )
        if not self.in_rows:
            return replace(padded, in_channels=planes * plane.in_channels)
        return replace(
            padded,
            height=padded.height * planes,
            kernel=(plane.kernel[0] * planes, plane.kernel[1]),
            stride=(plane.stride[0] * planes, plane.stride[1]),
            dilation=(1, plane.dilation[1]),
        )

    def weights(self, array: np.ndarray) -> np.ndarray:
        """(O, C / groups, KD, KH, KW) as weights of the copy."""
        out, channels, planes, height, width = array.shape
        if self.in_rows:
            return array.transpose(0, 1, 3, 2, 4).reshape(out, channels, height * planes, width)
        return array.transpose(0, 2, 1, 3, 4).reshape(out, planes * channels, height, width)

    def fill(self, source: Any, stacked: Any) -> Any:
        """The statement that fills the copy, both buffers flat."""
        depth, plane = self.spec.depth, self.spec.plane
        top, left, bottom, right = plane.pads
        height, width, channels = plane.height + top + bottom, plane.width + left + right, plane.in_channels
        # Negative pads skip columns.
        begin, end, first = max(left, 0), width - max(right, 0), max(-left, 0)
        per_group, planes = channels // plane.groups, depth.kernel
        blank = tirx.const(self.zero_point, self.dtype)

        def place(t: Any, h: Any, kd: Any, w: Any, c: Any) -> Any:
            if self.in_rows:
                return (((t * height + h) * planes + kd) * width + w) * channels + c
            at = ((t * height + h) * width + w) * (planes * channels)
            if plane.groups == 1:
                return at + kd * channels + c
            return at + (emit.floordiv(c, per_group) * planes + kd) * per_group + emit.floormod(c, per_group)

        def put(t: Any, h: Any, kd: Any, begin: int, count: int, value: Callable[[Any], Any]) -> Any:
            """Elements of `count` pixels from `begin` on; `value` gets their number."""
            if self.in_rows:
                first = place(t, h, kd, begin, 0)
                return emit.loop("i", count * channels, lambda i: emit.store(stacked, value(i), [first + i]))
            return emit.loop(
                "w",
                count,
                lambda w: emit.loop(
                    "c",
                    channels,
                    lambda c: emit.store(stacked, value(w * channels + c), [place(t, h, kd, w + begin, c)]),
                ),
            )

        def line(index: Any) -> Any:
            t, h = emit.unravel(index, (plane.batch, height))
            volume, out = emit.floordiv(t, depth.outputs), emit.floormod(t, depth.outputs)

            def taken(kd: Any) -> Any:
                d = out * depth.stride - depth.before + kd * depth.dilation
                row = (volume * depth.size + d) * plane.height + h - top
                own = (row * plane.width + first) * channels
                inside = emit.all_of(d >= 0, d < depth.size, h >= top, h < top + plane.height)
                return emit.when(
                    inside,
                    [
                        put(t, h, kd, 0, begin, lambda _: blank),
                        put(t, h, kd, begin, end - begin, lambda i: emit.load(source, [own + i])),
                        put(t, h, kd, end, width - end, lambda _: blank),
                    ],
                    put(t, h, kd, 0, width, lambda _: blank),
                )

            return emit.loop("kd", planes, taken)

        work = plane.batch * height * width * channels * planes
        return emit.parallel("stack", plane.batch * height, line, enabled=work > SERIAL_FLOPS)


def _behind(stack: Stack, kernel: Kernel) -> Kernel:
    """The kernel of the copy as one that makes the copy first."""
    func, spec = kernel.func, stack.spec
    parameters = [each if isinstance(each, tirx.Buffer) else func.buffer_map[each] for each in func.params]
    image, *others = parameters
    data = emit.buffer("data", spec.data_shape, stack.dtype)
    source, declare_source = emit.flat_view(data, prod(spec.data_shape))
    stacked, allocation = emit.allocate_whole("stacked", prod(stack.image.data_shape), stack.dtype, "global")
    statements: Statements = [
        declare_source,
        *allocation,
        stack.fill(source, stacked),
        tirx.DeclBuffer(image, data=stacked.data),
        func.body,
    ]
    name = str(func.attrs["global_symbol"])
    return replace(kernel, func=emit.function(name, [data, *others], statements))
