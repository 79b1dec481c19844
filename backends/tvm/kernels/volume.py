"""Convolution over three axes: as one over two where the kernel allows, else plane by plane.

Values are stored (N, D, H, W, C). A kernel of one plane is a convolution of N * D images; one that only
reaches along the depth sees a plane as one long row. Others add up the planes in registers, or take every
kernel plane's channels as channels of their own, which lets Winograd's method work within planes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import numpy as np
from tvm import tirx

from . import emit
from .conv2d import conv2d
from .depthwise import suits_small_groups
from .emit import Statements
from .interface import Conv2dSpec, ConvTransposeSpec, Epilogue, Index, Kernel, nhwc
from .microkernel import Accumulators, Writer
from .prefetch import PanelPrefetch
from .spatial import SpatialConvolution, pack_conv_weights, tap_runs
from .tile import MEMORY_BYTES_PER_CYCLE, TargetNumbers, blocks, choose_tile, lanes_of, tile_cycles
from .volume_sweep import volume_depthwise
from .window import choose_padded, pad_stage, padded_spec, rows_inside, taps_inside
from .winograd import Winograd, WinogradPacking
from .winograd_plan import Plan, choose_winograd

Triple = tuple[int, int, int]


@dataclass(frozen=True)
class DepthWindow:
    """The part of a window that runs over planes."""

    size: int
    """Planes of the input."""
    outputs: int
    kernel: int
    stride: int = 1
    dilation: int = 1
    before: int = 0

    def inside(self, first: Any) -> tuple[Any, Any]:
        """First tap and number of taps in the input of the window whose first plane is `first`."""
        highest = (self.outputs - 1) * self.stride - self.before + (self.kernel - 1) * self.dilation
        if self.before <= 0 and highest < self.size:
            return 0, self.kernel
        return taps_inside(first, self.kernel, self.dilation, 0, self.size)


@dataclass(frozen=True)
class VolumeSpec:
    """What convolutions over three axes, transposed or not, have in common.

    `plane` is the convolution within one plane, its batch counting the planes of all volumes.
    """

    depth: DepthWindow
    plane: Conv2dSpec | ConvTransposeSpec

    @property
    def planes(self) -> int:
        """How many planes of a volume `plane` counts."""
        return self.depth.outputs

    @property
    def batch(self) -> int:
        """Volumes."""
        return self.plane.batch // self.planes

    @property
    def data_shape(self) -> tuple[int, ...]:
        """Shape of the stored input."""
        return (self.batch, self.depth.size, *self.plane.data_shape[1:])

    @property
    def out_shape(self) -> tuple[int, ...]:
        """Shape of the stored output."""
        return (self.batch, self.depth.outputs, *self.plane.out_shape[1:])

    @property
    def flops(self) -> int:
        """Additions and multiplications."""
        return self.plane.flops * self.depth.kernel

    @property
    def is_one_plane(self) -> bool:
        """Whether every output plane is made from the input plane of the same number alone."""
        depth = self.depth
        return depth.kernel == depth.stride == 1 and depth.before == 0 and depth.size == depth.outputs


@dataclass(frozen=True)
class Conv3dSpec(VolumeSpec):
    """A convolution over three axes, weights as ONNX orders them (O, C / groups, KD, KH, KW)."""

    plane: Conv2dSpec
    """Its batch counts all output planes."""

    @classmethod
    def of(
        cls,
        shape: Sequence[int],
        out_shape: Sequence[int],
        kernel: Triple,
        stride: Triple,
        dilation: Triple,
        pads: Sequence[int],
        groups: int,
    ) -> Conv3dSpec:
        """From logical shapes (N, C, D, H, W) and ONNX's attributes, padding resolved."""
        depth = DepthWindow(shape[2], out_shape[2], kernel[0], stride[0], dilation[0], pads[0])
        plane = Conv2dSpec(
            shape[0] * out_shape[2],
            shape[1],
            shape[3],
            shape[4],
            out_shape[1],
            kernel[1:],
            stride[1:],
            dilation[1:],
            (pads[1], pads[2], pads[4], pads[5]),
            groups,
        )
        return cls(depth, plane)

    @property
    def images(self) -> Conv2dSpec:
        """Every input plane as an image."""
        return replace(self.plane, batch=self.batch * self.depth.size)

    @property
    def is_depth_only(self) -> bool:
        """Whether every output is made from inputs at its own row and column."""
        plane, depth = self.plane, self.depth
        reach = (depth.outputs - 1) * depth.stride + (depth.kernel - 1) * depth.dilation + 1
        # Planes that are left over are no rows of an image, unless the stride passes over them.
        covers = reach - depth.before + depth.stride > depth.size
        return covers and plane.kernel == plane.stride == (1, 1) and not any(plane.pads)


@dataclass(frozen=True)
class VolumeView:
    """A way to see a volume's output (N, C, D, H, W) in four axes."""

    spec: Conv3dSpec

    @property
    def is_flat(self) -> bool:
        """Whether planes are rows; otherwise they are images."""
        return self.spec.is_depth_only and not self.spec.is_one_plane

    @property
    def shape(self) -> tuple[int, ...]:
        """Logical shape of the output."""
        n, d, h, w, c = self.spec.out_shape
        return (n, c, d, h * w) if self.is_flat else (n * d, c, h, w)

    def logical(self, index: Index) -> Index:
        """(n, c, h, w) as kernels count -> (n, c, d, h, w)."""
        n, c, h, w = index
        if self.is_flat:
            width = self.spec.plane.out_width
            return (n, c, h, emit.floordiv(w, width), emit.floormod(w, width))
        if self.spec.batch == 1:
            return (0, c, n, h, w)
        return (n_of(n, self.spec.depth.outputs), c, emit.floormod(n, self.spec.depth.outputs), h, w)


def n_of(image: Any, planes: int) -> Any:
    """The volume that a plane belongs to."""
    return emit.floordiv(image, planes)


def conv3d(spec: Conv3dSpec, epilogue: Epilogue | None, target: TargetNumbers) -> Kernel:
    """A convolution over three axes, any group count.

    Buffers: data (N, D, H, W, C), packed weights, extra inputs, output (N, OD, OH, OW, O); the epilogue gets
    indices as `VolumeView` has them.
    """
    kernel = as_volume(_made(spec, epilogue, target), spec.data_shape, spec.out_shape)
    return replace(kernel, flops=spec.flops)


def _made(spec: Conv3dSpec, epilogue: Epilogue | None, target: TargetNumbers) -> Kernel:
    if spec.is_one_plane:
        kernel = conv2d(spec.plane, epilogue, target)
        return repacked(kernel, lambda weights: weights[:, :, 0])
    if spec.is_depth_only:
        kernel = conv2d(along_depth(spec), epilogue, target)
        return repacked(kernel, lambda weights: weights[..., 0])
    if suits_small_groups(spec.plane, target) and spec.plane.in_channels == spec.plane.groups:
        return volume_depthwise(spec, epilogue, target)
    plan = _winograd_plan(spec, target)
    if plan is not None:
        return _VolumeWinograd(spec, plan, epilogue, target).kernel()
    return _direct(spec, epilogue, target)


def as_volume(kernel: Kernel, data: tuple[int, ...], out: tuple[int, ...]) -> Kernel:
    """The kernel with its first parameter and its last, data and output, in shapes of five axes."""
    func = kernel.func
    shapes = {0: data, len(func.params) - 1: out}
    parameters, declarations = [], []
    for position, given in enumerate(func.params):
        buffer = given if isinstance(given, tirx.Buffer) else func.buffer_map[given]
        shape = shapes.get(position)
        if shape is not None and tuple(map(int, buffer.shape)) != shape:
            outer = tirx.decl_buffer(shape, buffer.dtype, name=buffer.name, data=buffer.data)
            declarations.append(tirx.DeclBuffer(buffer, data=outer.data))
            buffer = outer
        parameters.append(buffer)
    name = str(func.attrs["global_symbol"])
    return replace(kernel, func=emit.function(name, parameters, [*declarations, func.body]))


def repacked(kernel: Kernel, view: Callable[[np.ndarray], np.ndarray]) -> Kernel:
    """A kernel over two axes whose packing takes weights over three."""

    def packing(pack: Callable[[np.ndarray], np.ndarray]) -> Callable[[np.ndarray], np.ndarray]:
        return lambda weights: pack(np.ascontiguousarray(view(weights)))

    return replace(kernel, pack=tuple(packing(each) for each in kernel.pack))


def along_depth(spec: Conv3dSpec) -> Conv2dSpec:
    """A convolution that only reaches along the depth as one over (depth, pixels of a plane)."""
    depth, plane = spec.depth, spec.plane
    reach = (depth.outputs - 1) * depth.stride + (depth.kernel - 1) * depth.dilation + 1
    after = max(0, reach - depth.before - depth.size)
    return replace(
        plane,
        batch=spec.batch,
        height=depth.size,
        width=plane.height * plane.width,
        kernel=(depth.kernel, 1),
        stride=(depth.stride, 1),
        dilation=(depth.dilation, 1),
        pads=(depth.before, 0, after, 0),
    )


@dataclass(frozen=True)
class VolumeConvolution(SpatialConvolution):
    """The loops within planes, with one more loop over the planes that a window covers."""

    depth_window: DepthWindow = DepthWindow(1, 1, 1)

    @property
    def weights_shape(self) -> tuple[int, ...]:
        """Shape of the packed weights."""
        first, *rest = super().weights_shape
        return (first, self.depth_window.kernel, *rest)

    def _row(self, n: Any, block: Any, oh: Any, sweep: Any, prefetch: PanelPrefetch | None) -> Any:
        return super()._row(n, block, oh, sweep, None)

    def _tile(self, n: Any, block: Any, oh: Any, ow: Any, requests: Any) -> Any:
        spec, tile, window = self.spec, self.tile, self.depth_window
        group = emit.floordiv(block, self.blocks) if spec.groups > 1 else 0
        in_group = emit.floormod(block, self.blocks) if spec.groups > 1 else block
        accumulators = Accumulators(tile, self.arithmetic)
        top, left = oh * spec.stride[0] - spec.pads[0], ow * spec.stride[1] - spec.pads[1]
        volume, plane = n_of(n, window.outputs), emit.floormod(n, window.outputs)
        front = plane * window.stride - window.before
        low, count = rows_inside(spec, top)
        first_plane, planes = window.inside(front)
        steps = spec.kernel[1] * self.depth

        def kernel_row(kd: Any, kh: Any) -> Any:
            image = volume * window.size + front + kd * window.dilation
            row = image * spec.height + top + kh * spec.dilation[0]
            first_value = (row * spec.width + left) * spec.in_channels + group * self.depth
            kernel_rows = (block * window.kernel + kd) * spec.kernel[0] + kh
            first_weight = kernel_rows * (steps * tile.block) + self.first_weight
            return [
                self._taps(accumulators, first_value, first_weight, *run, None)
                for run in tap_runs(spec, ow, tile.pixels)
            ]

        def kernel_plane(kd: Any) -> Any:
            return emit.loop("kh", count, lambda kh: kernel_row(kd, kh), start=low)

        return [
            *accumulators.clear(),
            emit.loop("kd", planes, kernel_plane, start=first_plane),
            *self.writer.write_tile(
                accumulators,
                lambda pixel, channel: self.place((n, channel, oh, ow + pixel)),
                group * self.per_group + in_group * tile.block,
                in_group == self.blocks - 1 if self.blocks > 1 else True,
                self.per_group - (self.blocks - 1) * tile.block,
            ),
        ]


def pack_volume_weights(weights: np.ndarray, groups: int, block: int) -> np.ndarray:
    """(O, C / groups, KD, KH, KW) -> (groups * blocks, KD, KH, KW, C / groups, block), filled with zeros."""
    out, depth, planes, height, width = weights.shape
    flat = np.ascontiguousarray(weights).reshape(out, depth, planes * height, width)
    packed = pack_conv_weights(flat, groups, block)
    return packed.reshape(packed.shape[0], planes, height, width, depth, block)


def _direct(spec: Conv3dSpec, epilogue: Epilogue | None, target: TargetNumbers) -> Kernel:
    plane, window = spec.plane, spec.depth
    writer = Writer(epilogue, plane.out_shape, nhwc)
    depth, per_group = plane.in_channels // plane.groups, plane.out_channels // plane.groups
    steps = depth * window.kernel * prod(plane.kernel)
    tile = choose_tile(plane.out_width, per_group, steps, target, plane.batch * plane.out_height)
    images = spec.images
    data = source = emit.buffer("data", images.data_shape)
    padding: Statements = []
    if choose_padded(plane, tile):
        source, padding = pad_stage(images, plane.in_channels, data)
        images, plane = padded_spec(images), padded_spec(plane)
    flat_data, declare_data = emit.flat_view(source, prod(images.data_shape))
    shape = (plane.groups * blocks(per_group, tile.block), window.kernel, *plane.kernel, depth, tile.block)
    weights = emit.buffer("weights", shape)
    flat_weights, declare_weights = emit.flat_view(weights, prod(shape))
    loops = VolumeConvolution(plane, tile, flat_data, flat_weights, writer, depth_window=window)
    func = emit.function(
        "conv3d",
        [data, weights, *writer.extras, writer.output],
        [*padding, declare_data, declare_weights, loops.body(target)],
    )

    def pack(array: np.ndarray) -> np.ndarray:
        return pack_volume_weights(array, plane.groups, tile.block)

    return Kernel(func, (pack,), spec.flops, f"conv3d {tile}")


def _winograd_plan(spec: Conv3dSpec, target: TargetNumbers) -> Plan | None:
    """A plan within planes, on the channels of all kernel planes; None where direct is quicker."""
    plane = spec.plane
    if plane.in_channels % lanes_of(target):
        return None
    steps = spec.depth.kernel * plane.in_channels * prod(plane.kernel)
    rows = plane.batch * plane.out_height
    stream = 4 * steps * plane.out_channels / MEMORY_BYTES_PER_CYCLE
    direct = rows * tile_cycles(plane.out_width, plane.out_channels, steps, target, rows) + stream
    return choose_winograd(_stacked(spec), direct, target)


def _stacked(spec: Conv3dSpec) -> Conv2dSpec:
    return replace(spec.plane, in_channels=spec.depth.kernel * spec.plane.in_channels)


class _VolumeWinograd(Winograd):
    """Winograd's method within planes, on images that hold the channels of all planes of a window."""

    def __init__(self, spec: Conv3dSpec, plan: Plan, epilogue: Epilogue | None, target: TargetNumbers):
        super().__init__(_stacked(spec), plan, Writer(epilogue, spec.plane.out_shape, nhwc), target)
        self.volume = spec
        self.data = emit.buffer("data", spec.images.data_shape)
        self.source, self.padding = self._padded()

    @property
    def _before(self) -> int:
        return max(self.volume.depth.before, 0)

    @property
    def _planes(self) -> int:
        depth = self.volume.depth
        reach = (depth.outputs - 1) * depth.stride + (depth.kernel - 1) * depth.dilation + 1
        return self._before + max(depth.size, reach - depth.before)

    def _padded(self) -> tuple[Any, Statements]:
        """The input with planes of zeros in front and behind, where windows reach there."""
        spec, depth = self.volume, self.volume.depth
        if self._planes == depth.size:
            return self.data, []
        n, d, h, w, c = spec.data_shape
        wide = replace(spec.plane, batch=n, height=d, width=h * w, kernel=(depth.kernel, 1))
        wide = replace(wide, pads=(self._before, 0, self._planes - d - self._before, 0))
        view, declaration = _view(self.data, (n, d, h * w, c))
        padded, statements = pad_stage(wide, c, view)
        allocation, *copy = statements
        image, declare_image = _view(padded, (n * self._planes, h, w, c))
        return image, [declaration, allocation, *copy, declare_image]

    def _read(self, n: Any, h: Any, w: Any, channel: Any, lanes: int) -> Any:
        depth, channels = self.volume.depth, self.volume.plane.in_channels
        volume, plane = n_of(n, depth.outputs), emit.floormod(n, depth.outputs)
        first = plane * depth.stride - depth.before + self._before
        kd, own = emit.floordiv(channel, channels), emit.floormod(channel, channels)
        image = volume * self._planes + first + kd * depth.dilation
        return emit.load(self.source, [image, h, w, own], lanes)

    def kernel(self) -> Kernel:
        """The kernel, its weights taken as ONNX orders them."""
        made = super().kernel()
        packing = made.pack[0]
        assert isinstance(packing, WinogradPacking)

        def pack(array: np.ndarray) -> np.ndarray:
            out, channels, planes, *taps = array.shape
            stacked = array.transpose(0, 2, 1, 3, 4).reshape(out, planes * channels, *taps)
            return packing(np.ascontiguousarray(stacked))

        return replace(made, pack=(pack,), note=f"volume {made.note}")

    def _prologue(self) -> Statements:
        return self.padding


def _view(source: Any, shape: tuple[int, ...]) -> tuple[Any, Any]:
    """A buffer in another shape and the statement that declares it."""
    view = tirx.decl_buffer(shape, source.dtype, name=f"{source.name}_view", data=source.data)
    return view, tirx.DeclBuffer(view, data=source.data)
