"""Transposed convolution over three axes: one ordinary convolution per output phase, as over two axes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product
from math import prod

import numpy as np

from . import emit
from .conv_transpose import Phase, PhasePacking, phases
from .emit import Statements
from .interface import Conv2dSpec, ConvTransposeSpec, Epilogue, Index, Kernel, nhwc
from .microkernel import Writer
from .tile import TargetNumbers, blocks, choose_tile
from .volume import DepthWindow, VolumeConvolution, VolumeSpec, as_volume, pack_volume_weights
from .window import MAX_BORDER_TILES, border_tiles, pad_stage

_MOST_PHASES = 18


@dataclass(frozen=True)
class ConvTranspose3dSpec(VolumeSpec):
    """A transposed convolution over three axes: `depth.size` input planes become `depth.outputs`."""

    plane: ConvTransposeSpec
    """Its batch counts all input planes."""

    @property
    def planes(self) -> int:
        """Of the input."""
        return self.depth.size


def has_few_phases(spec: ConvTranspose3dSpec) -> bool:
    """Whether the code of `conv_transpose3d` stays small."""
    outputs = (spec.depth.outputs, spec.plane.out_height, spec.plane.out_width)
    strides = (spec.depth.stride, *spec.plane.stride)
    return prod(map(min, strides, outputs)) <= _MOST_PHASES


def conv_transpose3d(spec: ConvTranspose3dSpec, epilogue: Epilogue | None, target: TargetNumbers) -> Kernel:
    """A transposed convolution over three axes, with few phases.

    Buffers: data (N, D, H, W, C), packed weights (one axis), extra inputs, output (N, OD, OH, OW, O); the
    epilogue gets indices of output planes as images.
    """
    plane, depth = spec.plane, spec.depth
    writer = Writer(epilogue, (spec.batch * depth.outputs, *plane.out_shape[1:]), nhwc)
    parts = [
        _Part(spec, phase, target)
        for phase in product(
            phases(depth.outputs, depth.kernel, depth.stride, depth.dilation, depth.before),
            phases(plane.out_height, plane.kernel[0], plane.stride[0], plane.dilation[0], plane.pads[0]),
            phases(plane.out_width, plane.kernel[1], plane.stride[1], plane.dilation[1], plane.pads[1]),
        )
    ]
    data = source = emit.buffer("data", plane.data_shape)
    statements: Statements = []
    if any(border_tiles(part.conv, part.tile.pixels) > MAX_BORDER_TILES for part in parts):
        top, left, bottom, right = (max(0, *(part.conv.pads[k] for part in parts)) for k in range(4))
        pads = (top, left, bottom, right)
        source, statements = pad_stage(
            replace(parts[0].conv, batch=plane.batch, pads=pads), plane.in_channels, data
        )
        for part in parts:
            part.read_padded(pads)
    weights = emit.buffer("weights", (max(sum(part.length for part in parts), 1),))
    flat_data, declaration = emit.flat_view(source, prod(map(int, source.shape)))
    statements, first = [*statements, declaration], 0
    for part in parts:
        loops = VolumeConvolution(
            part.conv, part.tile, flat_data, weights, writer, first, part.place, depth_window=part.depth
        )
        statements.append(loops.body(target))
        first += part.length
    func = emit.function("conv_transpose3d", [data, weights, *writer.extras, writer.output], statements)
    packing = PhasePacking(tuple(part.pack for part in parts if part.length))
    tiles = ", ".join(dict.fromkeys(str(part.tile) for part in parts))
    kernel = Kernel(func, (packing,), spec.flops, f"conv_transpose3d {len(parts)} phases {tiles}")
    return as_volume(kernel, spec.data_shape, spec.out_shape)


class _Part:
    """One phase of all three axes."""

    def __init__(self, spec: ConvTranspose3dSpec, phase: tuple[Phase, ...], target: TargetNumbers):
        plane = spec.plane
        self._spec, self._phase = spec, phase
        planes, rows, columns = phase
        self.depth = DepthWindow(
            spec.depth.size, planes.count, len(planes.taps), 1, planes.step, planes.before
        )
        self.conv = Conv2dSpec(
            spec.batch * planes.count,
            plane.in_channels,
            plane.height,
            plane.width,
            plane.out_channels,
            (len(rows.taps), len(columns.taps)),
            dilation=(rows.step, columns.step),
            pads=(rows.before, columns.before, rows.after(plane.height), columns.after(plane.width)),
            groups=plane.groups,
        )
        depth, per_group = plane.in_channels // plane.groups, plane.out_channels // plane.groups
        taps = prod(len(each.taps) for each in phase)
        sweeps = self.conv.batch * rows.count
        self.tile = choose_tile(columns.count, per_group, depth * max(taps, 1), target, sweeps)
        self.length = plane.groups * blocks(per_group, self.tile.block) * self.tile.block * depth * taps

    def read_padded(self, pads: Sequence[int]) -> None:
        """Read from planes that hold `pads` already; what is too much of them is skipped."""
        top, left, bottom, right = pads
        own = self.conv.pads
        self.conv = replace(
            self.conv,
            height=self.conv.height + top + bottom,
            width=self.conv.width + left + right,
            pads=(own[0] - top, own[1] - left, own[2] - bottom, own[3] - right),
        )

    def place(self, index: Index) -> Index:
        n, c, h, w = index
        planes, rows, columns = self._phase
        depth, stride = self._spec.depth, self._spec.plane.stride
        volume, plane = emit.floordiv(n, planes.count), emit.floormod(n, planes.count)
        image = volume * depth.outputs + plane * depth.stride + planes.first
        return (image, c, h * stride[0] + rows.first, w * stride[1] + columns.first)

    def pack(self, weights: np.ndarray) -> np.ndarray:
        planes, rows, columns = self._phase
        groups = self._spec.plane.groups
        channels, per_group, *taps = weights.shape
        split = weights.reshape(groups, channels // groups, per_group, *taps)
        plain = split.swapaxes(1, 2).reshape(groups * per_group, channels // groups, *taps)
        taken = plain[:, :, planes.taps][:, :, :, rows.taps][..., columns.taps]
        return pack_volume_weights(taken, groups, self.tile.block)
