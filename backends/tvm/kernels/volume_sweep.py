"""Depthwise convolution and pooling over three axes: vectors over channels, planes in one more loop."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import inf, prod
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from tvm import tirx

from . import emit
from .channelwise import SERIAL_OPERATIONS, Sweep, choose_channel_tile
from .emit import Statements
from .interface import Epilogue, Index, Kernel, nhwc
from .microkernel import Accumulators, Writer
from .tile import TargetNumbers, Tile, blocks, lanes_of
from .window import choose_padded, pad_stage, padded_spec, rows_inside, taps_inside

if TYPE_CHECKING:
    from .volume import Conv3dSpec, DepthWindow


@dataclass(frozen=True)
class VolumeSweep(Sweep):
    """A sweep within planes whose windows cover several planes; `prepare` gets plane times rows plus row."""

    depth_window: DepthWindow | None = None

    def _tile(self, writer: Writer, n: Any, oh: Any, ow: Any) -> Any:
        tile, window, depth = self.tile, self.window, self.depth_window
        assert depth is not None
        volume, plane = emit.floordiv(n, depth.outputs), emit.floormod(n, depth.outputs)
        front = plane * depth.stride - depth.before
        first_plane, planes = depth.inside(front)

        def block(b: Any) -> Any:
            start: Any = b * tile.block
            if self.channels % tile.block:
                start = emit.minimum(start, self.channels - tile.block)
            channel, bound = emit.bind("channel", start)
            accumulators = Accumulators(tile, self.arithmetic)
            top = oh * window.stride[0] - window.pads[0]
            low, rows = rows_inside(window, top)

            def kernel_row(kd: Any, kh: Any) -> Any:
                image = volume * depth.size + front + kd * depth.dilation
                prepared, statements = self.prepare(kd * window.kernel[0] + kh, channel)
                row = top + kh * window.dilation[0]
                return [*statements, *self._taps(accumulators, (image, row), ow, channel, prepared)]

            def kernel_plane(kd: Any) -> Any:
                return emit.loop("kh", rows, lambda kh: kernel_row(kd, kh), start=low)

            return [
                *bound,
                *accumulators.clear(self.initial),
                emit.loop("kd", planes, kernel_plane, start=first_plane),
                *writer.write_tile(
                    accumulators, lambda pixel, c: (n, c, oh, ow + pixel), channel, False, tile.block
                ),
            ]

        return emit.loop("block", blocks(self.channels, tile.block), block)


def volume_depthwise(spec: Conv3dSpec, epilogue: Epilogue | None, target: TargetNumbers) -> Kernel:
    """A depthwise convolution over three axes, any number of outputs per channel.

    Buffers: data (N * D, H, W, C), packed weights, extra inputs, output (N * OD, OH, OW, O).
    """
    plane, images = spec.plane, spec.images
    channels, taps = plane.out_channels, plane.kernel[1]
    group = (1, channels // plane.groups)
    writer = Writer(epilogue, plane.out_shape, nhwc)
    data = source = emit.buffer("data", images.data_shape)
    rows = spec.depth.kernel * plane.kernel[0]
    weights = emit.buffer("weights", (rows, taps, channels))
    tile = choose_channel_tile(plane, channels, taps, target)
    padding: Statements = []
    if choose_padded(plane, tile):
        source, padding = pad_stage(images, plane.in_channels, data)
        plane = padded_spec(plane)

    def prepare(row: Any, channel: Any) -> tuple[Callable[..., Any], Statements]:
        held, statements = {}, []
        for kw in range(taps):
            for vector in range(tile.vectors):
                place = [row, kw, channel + vector * tile.lanes]
                held[kw, 0, vector], bound = emit.hold(
                    f"w{kw}_{vector}", emit.load(weights, place, tile.lanes), tile.lanes
                )
                statements.append(bound)
        return lambda *place: held[place], statements

    def combine(
        accumulators: Accumulators, pixel: int, vector: int, value: Any, tap: tuple[int, int], weight: Any
    ) -> Any:
        return accumulators.update(pixel, vector, value * weight(*tap, vector))

    sweep = VolumeSweep(
        plane, channels, tile, source, 0.0, prepare, combine, lambda *_: [], group, depth_window=spec.depth
    )
    func = emit.function(
        "depthwise3d", [data, weights, *writer.extras, writer.output], [*padding, sweep.body(writer)]
    )

    def pack(array: np.ndarray) -> np.ndarray:
        """(O, 1, KD, KH, KW) -> (KD * KH, KW, O)."""
        return np.ascontiguousarray(array[:, 0].transpose(1, 2, 3, 0).reshape(rows, taps, channels))

    return Kernel(func, (pack,), spec.flops, f"depthwise3d {tile}")


@dataclass(frozen=True)
class Pool3dSpec:
    """Pooling over three axes, data stored (N, D, H, W, C); `pads` as (before..., after...)."""

    mode: Literal["max", "average"]
    shape: tuple[int, int, int, int, int]
    """Logical shape (N, C, D, H, W) of the input."""
    out_size: tuple[int, int, int]
    kernel: tuple[int, int, int]
    stride: tuple[int, int, int]
    dilation: tuple[int, int, int]
    pads: tuple[int, ...]
    count_include_pad: bool = False

    @property
    def out_shape(self) -> tuple[int, ...]:
        """Shape of the stored output."""
        return (self.shape[0], *self.out_size, self.shape[1])

    @property
    def flops(self) -> int:
        """Additions and multiplications, or comparisons."""
        return prod(self.out_shape) * prod(self.kernel)

    def inside(self, axis: int, first: Any, padded: bool) -> tuple[Any, Any]:
        """First tap and number of taps within the image, or the image and its padding."""
        size = self.shape[2 + axis]
        low, high = (-self.pads[axis], size + self.pads[3 + axis]) if padded else (0, size)
        taps, dilation = self.kernel[axis], self.dilation[axis]
        lowest = -self.pads[axis]
        highest = (self.out_size[axis] - 1) * self.stride[axis] + lowest + (taps - 1) * dilation
        if lowest >= low and highest < high:
            return 0, taps
        return taps_inside(first, taps, dilation, low, high)


def pool3d(spec: Pool3dSpec, epilogue: Epilogue | None, target: TargetNumbers) -> Kernel:
    """Pooling over three axes, one output pixel at a time.

    Buffers: data (N, D, H, W, C), extra inputs, output (N, OD, OH, OW, C). The epilogue gets (n, c, d, h, w).
    """
    batch, channels, *size = spec.shape
    lanes = min(lanes_of(target), channels)
    tile = Tile(1, max(1, min(4, channels // lanes)), lanes)
    writer = Writer(epilogue, spec.out_shape, lambda index: (index[0], *index[2:], index[1]))
    data = emit.buffer("data", (batch, *size, channels))
    combine: dict[str, Any] = {"combine": tirx.max} if spec.mode == "max" else {}

    def pixel(n: Any, out: Index, channel: Any) -> Statements:
        accumulators = Accumulators(tile)
        first = [at * spec.stride[axis] - spec.pads[axis] for axis, at in enumerate(out)]
        spans = [spec.inside(axis, place, False) for axis, place in enumerate(first)]

        def tap(taps: Index) -> Statements:
            places = [first[axis] + k * spec.dilation[axis] for axis, k in enumerate(taps)]
            return [
                accumulators.update(
                    0,
                    v,
                    emit.load(data, [n, *places, channel + v * tile.lanes], tile.lanes),
                    **combine,
                )
                for v in range(tile.vectors)
            ]

        def over(axis: int, taps: Index) -> Any:
            if axis == 3:
                return tap(taps)
            start, count = spans[axis]
            return emit.loop(f"k{axis}", count, lambda k: over(axis + 1, (*taps, k)), start=start)

        return [
            *accumulators.clear(-inf if spec.mode == "max" else 0.0),
            over(0, ()),
            *(_averaged(spec, accumulators, first) if spec.mode == "average" else []),
            *writer.write_tile(accumulators, lambda _, c: (n, c, *out), channel, False, tile.block),
        ]

    def row(t: Any) -> Any:
        n, od, oh = emit.unravel(t, (batch, *spec.out_size[:2]))

        def block(b: Any, ow: Any) -> Any:
            start: Any = b * tile.block
            if channels % tile.block:
                start = emit.minimum(start, channels - tile.block)
            channel, bound = emit.bind("channel", start)
            return [*bound, *pixel(n, (od, oh, ow), channel)]

        return emit.loop(
            "ow",
            spec.out_size[2],
            lambda ow: emit.loop("block", blocks(channels, tile.block), lambda b: block(b, ow)),
        )

    rows = batch * spec.out_size[0] * spec.out_size[1]
    body = emit.parallel("row", rows, row, enabled=spec.flops > SERIAL_OPERATIONS)
    func = emit.function(f"{spec.mode}_pool3d", [data, *writer.extras, writer.output], [body])
    return Kernel(func, (), spec.flops, f"{spec.mode}_pool3d {tile}")


def _averaged(spec: Pool3dSpec, accumulators: Accumulators, first: list[Any]) -> Statements:
    count: Any = 1
    for axis, place in enumerate(first):
        count = count * spec.inside(axis, place, spec.count_include_pad)[1]
    if isinstance(count, int):
        inverse: Any = tirx.const(1.0 / max(count, 1), "float32")
    else:
        inverse = tirx.const(1.0, "float32") / emit.maximum(count, 1).astype("float32")
    name, bound = emit.hold("inverse", inverse)
    lanes = accumulators.tile.lanes
    return [
        bound,
        *(
            accumulators.update(0, v, emit.splat(name, lanes), lambda total, scale: total * scale)
            for v in range(accumulators.tile.vectors)
        ),
    ]
