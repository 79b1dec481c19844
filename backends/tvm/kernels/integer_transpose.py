"""Transposed convolution of integers: exact int32 sums by few ordinary convolutions of one padded copy.

Which taps an output reads depends on its phase, so what the data's zero point adds is a constant per channel
and phase.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from tvm import tirx

from . import emit
from .arithmetic import integer_arithmetic
from .depthwise_transpose import PlacedWriter
from .emit import Statements
from .integer_conv import convolve_integers
from .integer_depthwise import suits_integer_depthwise
from .integer_stage import filled, stage_image
from .integer_volume import convolve_volume
from .interface import Conv2dSpec, ConvTransposeSpec, Epilogue, Index, Kernel, nhwc
from .microkernel import Writer
from .tile import TargetNumbers, lanes_of
from .tile_registers import has_tiles
from .transpose_parts import Axis, Part, choose_parts, split_axis
from .volume import Conv3dSpec, DepthWindow, VolumeView, as_volume
from .volume_transpose import ConvTranspose3dSpec
from .window import padding_of


def integer_conv_transpose(
    spec: ConvTransposeSpec,
    types: tuple[str, str],
    zero_point: int,
    epilogue: Epilogue | None,
    target: TargetNumbers,
) -> Kernel:
    """A transposed convolution of any group count; the epilogue gets int32 sums.

    Buffers: data (N, H, W, C), packed weights of each part, extra inputs, output (N, OH, OW, O).

    Args:
        spec: the transposed convolution.
        types: element types of data and weights.
        zero_point: of the data; what lies outside of the image holds it.
        epilogue: what follows.
        target: numbers and features of the target.
    """
    writer = Writer(epilogue, spec.out_shape, nhwc, "int32")
    parts = parts_of(spec, target)
    windows = [_window(spec, part) for part in parts]
    data = emit.buffer("data", spec.data_shape, types[0])
    source, read, windows, statements = _staged(data, windows, types, zero_point, target)
    kernels = []
    for part, window in zip(parts, windows, strict=True):
        placed: Any = PlacedWriter(writer, _placed(part))
        kernel = convolve_integers(window, (read, types[1]), zero_point, placed, target)
        kernels.append(_repacked(kernel, part))
    kernel = joined(data, source, kernels, statements, writer, "conv_transpose")
    return replace(kernel, flops=spec.flops)


def parts_of(spec: ConvTransposeSpec, target: TargetNumbers) -> list[Part]:
    """The convolutions that it becomes."""
    return choose_parts(_plane_axes(spec), spec.stride, _channels(spec), lanes_of(target))


def _plane_axes(spec: ConvTransposeSpec) -> list[list[Axis]]:
    """The parts of rows and columns."""
    sizes = (spec.out_height, spec.out_width)
    return [
        split_axis(size, *each)
        for size, *each in zip(sizes, spec.kernel, spec.stride, spec.dilation, spec.pads[:2], strict=True)
    ]


def _channels(spec: ConvTransposeSpec) -> tuple[int, int, int]:
    """Groups, input and output channels of one."""
    return spec.groups, spec.in_channels // spec.groups, spec.out_channels // spec.groups


def _window(spec: ConvTransposeSpec, part: Part) -> Conv2dSpec:
    rows, columns = part.axes
    return Conv2dSpec(
        spec.batch,
        spec.in_channels,
        spec.height,
        spec.width,
        part.channels,
        (rows.reach, columns.reach),
        dilation=(rows.step, columns.step),
        pads=(rows.before, columns.before, rows.after(spec.height), columns.after(spec.width)),
        groups=spec.groups,
    )


def _placed(part: Part) -> Callable[[Index], Index]:
    def place(index: Index) -> Index:
        n, c, h, w = index
        channel, at = part.place(c, (h, w))
        return (n, channel, *at)

    return place


def _staged(
    data: Any,
    windows: Sequence[Conv2dSpec],
    types: tuple[str, str],
    zero_point: int,
    target: TargetNumbers,
) -> tuple[Any, str, list[Conv2dSpec], Statements]:
    """One copy for several parts, as they read it: its buffer, its element type, what they are of it.

    A single part copies what it needs on its own.
    """
    first, dtype, depth = windows[0], types[0], 1
    if not has_tiles(target) and not suits_integer_depthwise(first):
        arithmetic = integer_arithmetic(*types, target)
        dtype, depth = arithmetic.data, arithmetic.depth
    pads = tuple(max(each.pads[side] for each in windows) for side in range(4))
    pads = padding_of(pads)  # type: ignore[arg-type]
    channels = filled(first.in_channels, first.groups, depth)
    copies = any(pads) or dtype != types[0] or channels != first.in_channels
    if len(windows) == 1 or not copies:
        return data, types[0], list(windows), []
    staged = stage_image(data, first.data_shape, pads, first.groups, dtype, depth, zero_point)
    top, left, bottom, right = pads
    seen = [
        replace(
            each,
            in_channels=channels,
            height=each.height + top + bottom,
            width=each.width + left + right,
            pads=tuple(own - pad for own, pad in zip(each.pads, pads, strict=True)),  # type: ignore[arg-type]
        )
        for each in windows
    ]
    return staged.flat, dtype, seen, staged.statements


def _repacked(kernel: Kernel, part: Part) -> Kernel:
    """The kernel of a part, its packing taking the weights of the transposed convolution."""
    (pack,) = kernel.pack
    return replace(kernel, pack=(lambda weights: pack(part.weights(weights)),))


def joined(
    data: Any, source: Any, kernels: Sequence[Kernel], statements: Statements, writer: Writer, name: str
) -> Kernel:
    """One function of convolutions of `source` that each store a part of the output."""
    weights, bodies = [], []
    for number, kernel in enumerate(kernels):
        func = kernel.func
        image, packed, *_ = (
            each if isinstance(each, tirx.Buffer) else func.buffer_map[each] for each in func.params
        )
        own = tirx.decl_buffer(packed.shape, packed.dtype, name=f"weights{number}")
        bodies.append([tirx.DeclBuffer(image, data=source.data), tirx.DeclBuffer(packed, data=own.data)])
        bodies[-1].append(func.body)
        weights.append(own)
    func = emit.function(
        f"integer_{name}", [data, *weights, *writer.extras, writer.output], [*statements, *bodies]
    )
    packs = tuple(kernel.pack[0] for kernel in kernels)
    words = dict.fromkeys(word for kernel in kernels for word in [_tile_note(kernel.note)])
    note = f"int8 {name} {len(kernels)} parts {', '.join(words)}"
    return Kernel(func, packs, sum(kernel.flops for kernel in kernels), note)


def _tile_note(note: str) -> str:
    """A part's tile and instruction, without what every note begins with."""
    return " ".join(word for word in note.split() if word != "int8" and not word.startswith("conv"))


def integer_conv_transpose3d(
    spec: ConvTranspose3dSpec,
    types: tuple[str, str],
    zero_point: int,
    epilogue: Epilogue | None,
    target: TargetNumbers,
) -> Kernel:
    """The same over three axes.

    Buffers: data (N, D, H, W, C), packed weights of each part, extra inputs, output (N, OD, OH, OW, O); the
    epilogue gets indices of output planes as images.
    """
    plane, depth = spec.plane, spec.depth
    writer = Writer(epilogue, (spec.batch * depth.outputs, *plane.out_shape[1:]), nhwc, "int32")
    planes = split_axis(depth.outputs, depth.kernel, depth.stride, depth.dilation, depth.before)
    axes = [planes, *_plane_axes(plane)]
    parts = choose_parts(axes, (depth.stride, *plane.stride), _channels(plane), lanes_of(target))
    data = emit.buffer("data", spec.data_shape, types[0])
    kernels = []
    for part in parts:
        window = _volume(spec, part)
        placed: Any = PlacedWriter(writer, _placed_planes(part, window, depth.outputs))
        kernels.append(_repacked(convolve_volume(window, types, zero_point, placed, target), part))
    kernel = joined(data, data, kernels, [], writer, "conv_transpose3d")
    return replace(as_volume(kernel, spec.data_shape, spec.out_shape), flops=spec.flops)


def _volume(spec: ConvTranspose3dSpec, part: Part) -> Conv3dSpec:
    planes, rows, columns = part.axes
    plane = replace(spec.plane, batch=spec.batch * planes.count)
    window = _window(plane, replace(part, axes=(rows, columns)))
    window = replace(window, out_channels=part.channels)
    depth = DepthWindow(spec.depth.size, planes.count, planes.reach, 1, planes.step, planes.before)
    return Conv3dSpec(depth, window)


def _placed_planes(part: Part, window: Conv3dSpec, planes: int) -> Callable[[Index], Index]:
    logical = VolumeView(window).logical

    def place(index: Index) -> Index:
        n, c, *at = logical(index)
        channel, (d, h, w) = part.place(c, at)
        return (n * planes + d, channel, h, w)

    return place
