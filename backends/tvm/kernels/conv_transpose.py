"""Transposed convolution as one ordinary convolution per output phase.

With stride s, the outputs whose position is the same modulo s read the same taps at a fixed distance from
their own input pixel: a convolution of stride one over a part of the kernel, flipped, that stores every s-th
output. With many phases the code would grow, and one loop over all taps that asks which of them apply serves
instead.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product
from math import prod
from typing import Any

import numpy as np

from . import emit
from .depthwise_transpose import PhaseSweep, pack_phase
from .interface import Conv2dSpec, ConvTransposeSpec, Epilogue, Index, Kernel, nhwc
from .microkernel import Accumulators, Writer
from .product import SERIAL_FLOPS
from .spatial import SpatialConvolution, pack_conv_weights
from .tile import TargetNumbers, Tile, blocks, choose_tile, lanes_of
from .window import MAX_BORDER_TILES, border_tiles

_MAX_PHASES = 9
_MAX_SWEEPS = 16
_MERGED_SHARE = 0.8
"""Merging the phases of a row must leave at most this share of the multiply-adds, empty lanes included."""


@dataclass(frozen=True)
class Phase:
    """The outputs `first, first + stride, ...` along one axis as a convolution of stride one."""

    first: int
    count: int
    taps: tuple[int, ...]
    """Kernel taps in the order of the inputs they read."""
    step: int
    """Distance between the inputs of neighbouring taps."""
    before: int
    """Padding before the first input; negative where inputs are skipped."""

    def after(self, size: int) -> int:
        """Padding after the last of `size` inputs."""
        return self.count - size - self.before + self.step * (len(self.taps) - 1)


def phases(size: int, kernel: int, stride: int, dilation: int, before: int) -> list[Phase]:
    """The phases of an axis with `size` outputs."""
    found = []
    for first in range(min(stride, size)):
        reads = [(first + before - tap * dilation, tap) for tap in reversed(range(kernel))]
        used = [(place // stride, tap) for place, tap in reads if place % stride == 0]
        step = used[1][0] - used[0][0] if len(used) > 1 else 1
        lead = -used[0][0] if used else 0
        count = len(range(first, size, stride))
        found.append(Phase(first, count, tuple(tap for _, tap in used), step, lead))
    return found


def conv_transpose(spec: ConvTransposeSpec, epilogue: Epilogue | None, target: TargetNumbers) -> Kernel:
    """A transposed convolution of any group count.

    Buffers: data (N, H, W, C), packed weights (one axis), extra inputs, output (N, OH, OW, O).
    """
    writer = Writer(epilogue, spec.out_shape, nhwc)
    merged = _merged(spec, writer, target)
    if merged is not None:
        return merged
    parts = [
        _Part(spec, rows, columns, target)
        for rows, columns in product(
            phases(spec.out_height, spec.kernel[0], spec.stride[0], spec.dilation[0], spec.pads[0]),
            phases(spec.out_width, spec.kernel[1], spec.stride[1], spec.dilation[1], spec.pads[1]),
        )
    ]
    if len(parts) <= _MAX_SWEEPS and all(part.sweep.fits for part in parts):
        return _swept(spec, writer, parts)
    few_borders = all(border_tiles(part.conv, part.tile.pixels) <= MAX_BORDER_TILES for part in parts)
    if len(parts) > _MAX_PHASES or not few_borders:
        return _rolled(spec, writer, target)
    return _assembled(spec, writer, parts, target)


def _assembled(
    spec: ConvTransposeSpec,
    writer: Writer,
    parts: Sequence[_Part] | Sequence[_MergedPart],
    target: TargetNumbers,
) -> Kernel:
    """One function of convolutions that each store a part of the output."""
    length = sum(part.length for part in parts)
    data, weights = emit.buffer("data", spec.data_shape), emit.buffer("weights", (max(length, 1),))
    flat_data, declaration = emit.flat_view(data, prod(spec.data_shape))
    statements, first = [declaration], 0
    for part in parts:
        loops = SpatialConvolution(part.conv, part.tile, flat_data, weights, writer, first, part.place)
        statements.append(loops.body(target))
        first += part.length
    func = emit.function("conv_transpose", [data, weights, *writer.extras, writer.output], statements)

    packing = PhasePacking(tuple(part.pack for part in parts if part.length))
    tiles = ", ".join(dict.fromkeys(str(part.tile) for part in parts))
    return Kernel(func, (packing,), spec.flops, f"conv_transpose {len(parts)} phases {tiles}")


def _swept(spec: ConvTransposeSpec, writer: Writer, parts: Sequence[_Part]) -> Kernel:
    """Depthwise: every phase is a sweep over the channels."""
    data = emit.buffer("data", spec.data_shape)
    weights = emit.buffer("weights", (sum(part.sweep.length for part in parts),))
    statements, first = [], 0
    for part in parts:
        statements.append(part.sweep.body(data, weights, first, writer))
        first += part.sweep.length
    func = emit.function("conv_transpose", [data, weights, *writer.extras, writer.output], statements)
    packing = PhasePacking(tuple(part.pack_sweep for part in parts))
    return Kernel(func, (packing,), spec.flops, f"depthwise transpose {len(parts)} phases")


@dataclass(frozen=True)
class PhasePacking:
    """(C, O / groups, KH, KW) -> the packed weights of all phases, one behind the other."""

    pieces: tuple[Callable[[np.ndarray], np.ndarray], ...]

    def __call__(self, array: np.ndarray) -> np.ndarray:
        """The packed weights."""
        packed = [piece(array).ravel() for piece in self.pieces]
        return np.concatenate(packed) if packed else np.zeros(1, array.dtype)


class _Part:
    """One phase of both axes."""

    def __init__(self, spec: ConvTransposeSpec, rows: Phase, columns: Phase, target: TargetNumbers):
        self._spec, self._rows, self._columns, self._target = spec, rows, columns, target
        self.conv = Conv2dSpec(
            spec.batch,
            spec.in_channels,
            spec.height,
            spec.width,
            spec.out_channels,
            (len(rows.taps), len(columns.taps)),
            dilation=(rows.step, columns.step),
            pads=(rows.before, columns.before, rows.after(spec.height), columns.after(spec.width)),
            groups=spec.groups,
        )
        depth, per_group = spec.in_channels // spec.groups, spec.out_channels // spec.groups
        taps = max(len(rows.taps) * len(columns.taps), 1)
        sweeps = spec.batch * rows.count
        self.tile = choose_tile(columns.count, per_group, depth * taps, target, sweeps)
        channels = spec.groups * blocks(per_group, self.tile.block) * self.tile.block
        self.length = channels * depth * len(rows.taps) * len(columns.taps)

    @property
    def sweep(self) -> PhaseSweep:
        """This phase for the depthwise case."""
        return PhaseSweep(self.conv, self.place, self._target)

    def pack_sweep(self, weights: np.ndarray) -> np.ndarray:
        return pack_phase(weights, self._rows.taps, self._columns.taps)

    def place(self, index: Index) -> Index:
        n, c, h, w = index
        stride = self._spec.stride
        return (n, c, h * stride[0] + self._rows.first, w * stride[1] + self._columns.first)

    def pack(self, weights: np.ndarray) -> np.ndarray:
        taps = as_convolution(weights, self._spec.groups)[:, :, self._rows.taps][..., self._columns.taps]
        return pack_conv_weights(taps, self._spec.groups, self.tile.block)


def _merged(spec: ConvTransposeSpec, writer: Writer, target: TargetNumbers) -> Kernel | None:
    """All phases of a row as channels of one convolution, where few outputs would leave vectors empty."""
    columns = phases(spec.out_width, spec.kernel[1], spec.stride[1], spec.dilation[1], spec.pads[1])
    used = [phase for phase in columns if phase.taps]
    stride = spec.stride[1]
    if spec.groups > 1 or len(columns) == 1 or spec.out_width % stride or not used:
        return None
    lanes, outputs = lanes_of(target), spec.out_channels
    lowest = min(-phase.before for phase in used)
    reach = max(phase.step * (len(phase.taps) - 1) - phase.before for phase in used) - lowest + 1
    apart = sum(len(phase.taps) for phase in used) * blocks(outputs, lanes)
    if reach * blocks(stride * outputs, lanes) > _MERGED_SHARE * apart:
        return None
    rows = phases(spec.out_height, spec.kernel[0], spec.stride[0], spec.dilation[0], spec.pads[0])
    parts = [_MergedPart(spec, phase, columns, lowest, reach, target) for phase in rows]
    few_borders = all(border_tiles(part.conv, part.tile.pixels) <= MAX_BORDER_TILES for part in parts)
    return _assembled(spec, writer, parts, target) if len(parts) <= _MAX_PHASES and few_borders else None


class _MergedPart:
    """One phase of the rows and all phases of the columns: channels are (phase, output)."""

    def __init__(
        self,
        spec: ConvTransposeSpec,
        rows: Phase,
        columns: Sequence[Phase],
        lowest: int,
        reach: int,
        target: TargetNumbers,
    ):
        self._spec, self._rows, self._columns, self._lowest = spec, rows, columns, lowest
        count = spec.out_width // spec.stride[1]
        channels = spec.stride[1] * spec.out_channels
        self.conv = Conv2dSpec(
            spec.batch,
            spec.in_channels,
            spec.height,
            spec.width,
            channels,
            (len(rows.taps), reach),
            dilation=(rows.step, 1),
            pads=(rows.before, -lowest, rows.after(spec.height), count - spec.width + lowest + reach - 1),
        )
        steps = spec.in_channels * max(len(rows.taps) * reach, 1)
        self.tile = choose_tile(count, channels, steps, target, spec.batch * rows.count)
        width = blocks(channels, self.tile.block) * self.tile.block
        self.length = width * spec.in_channels * len(rows.taps) * reach

    def place(self, index: Index) -> Index:
        n, c, h, w = index
        outputs, stride = self._spec.out_channels, self._spec.stride
        column = w * stride[1] + emit.floordiv(c, outputs)
        return (n, emit.floormod(c, outputs), h * stride[0] + self._rows.first, column)

    def pack(self, weights: np.ndarray) -> np.ndarray:
        plain = as_convolution(weights, 1)[:, :, self._rows.taps]
        taps = np.zeros((len(self._columns), *plain.shape[:3], self.conv.kernel[1]), weights.dtype)
        for number, phase in enumerate(self._columns):
            for position, tap in enumerate(phase.taps):
                taps[number, ..., phase.step * position - phase.before - self._lowest] = plain[..., tap]
        return pack_conv_weights(taps.reshape(-1, *taps.shape[2:]), 1, self.tile.block)


def as_convolution(weights: np.ndarray, groups: int) -> np.ndarray:
    """(C, O / groups, KH, KW) -> (O, C / groups, KH, KW), taps in the same order."""
    channels, per_group, height, width = weights.shape
    split = weights.reshape(groups, channels // groups, per_group, height, width)
    return split.transpose(0, 2, 1, 3, 4).reshape(groups * per_group, channels // groups, height, width)


def _rolled(spec: ConvTransposeSpec, writer: Writer, target: TargetNumbers) -> Kernel:
    """One output pixel at a time, over all taps that meet an input pixel."""
    depth, per_group = spec.in_channels // spec.groups, spec.out_channels // spec.groups
    lanes = lanes_of(target)
    tile = Tile(1, min(8, blocks(per_group, lanes)), lanes)
    count = blocks(per_group, tile.block)
    data = emit.buffer("data", spec.data_shape)
    weights = emit.buffer("weights", (spec.groups * count, *spec.kernel, depth, tile.block))

    def pixel(n: Any, oh: Any, block: Any, ow: Any) -> Any:
        group, in_group = emit.floordiv(block, count), emit.floormod(block, count)
        accumulators = Accumulators(tile)

        def tap(kh: Any, kw: Any, row: Any, column: Any) -> Any:
            return emit.loop(
                "c",
                depth,
                lambda c: accumulators.multiply_add(
                    range(1),
                    lambda _: emit.load(data, [n, row, column, group * depth + c]),
                    lambda v: emit.load(weights, [block, kh, kw, c, v * lanes], lanes),
                ),
            )

        def over(axis: int, first: Any, size: int, body: Callable[[Any, Any], Any]) -> Any:
            stride = spec.stride[axis]

            def check(k: Any) -> Any:
                place, bound = emit.bind(f"place{axis}", first - k * spec.dilation[axis])
                meets = emit.all_of(emit.floormod(place, stride) == 0, place >= 0, place < size * stride)
                return [*bound, emit.when(meets, body(k, emit.floordiv(place, stride)))]

            return emit.loop(f"k{axis}", spec.kernel[axis], check)

        return [
            *accumulators.clear(),
            over(
                0,
                oh + spec.pads[0],
                spec.height,
                lambda kh, row: over(
                    1, ow + spec.pads[1], spec.width, lambda kw, column: tap(kh, kw, row, column)
                ),
            ),
            *writer.write_tile(
                accumulators,
                lambda _, channel: (n, channel, oh, ow),
                group * per_group + in_group * tile.block,
                in_group == count - 1 if count > 1 else True,
                per_group - (count - 1) * tile.block,
            ),
        ]

    def task(t: Any) -> Any:
        n, oh, block = emit.unravel(t, (spec.batch, spec.out_height, spec.groups * count))
        return emit.loop("ow", spec.out_width, lambda ow: pixel(n, oh, block, ow))

    loops = emit.parallel(
        "task", spec.batch * spec.out_height * spec.groups * count, task, enabled=spec.flops > SERIAL_FLOPS
    )
    func = emit.function("conv_transpose", [data, weights, *writer.extras, writer.output], loops)

    def pack(array: np.ndarray) -> np.ndarray:
        return pack_conv_weights(as_convolution(array, spec.groups), spec.groups, tile.block)

    return Kernel(func, (pack,), spec.flops, f"conv_transpose {tile} rolled")
