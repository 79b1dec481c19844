"""Dense and grouped convolution: register tiles of neighbouring pixels by blocks of output channels.

Weights are stored [groups * blocks, KH, KW, C / groups, block]. Rows outside the image are skipped by the
bounds of the loop over kernel rows. Columns outside the image are known when the code is generated: tiles that
touch the left or right border have code of their own, in which the multiply-adds with padding do not exist.
The last tile of a row is moved left to end with the row, so that every tile is full.
"""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any

import numpy as np

from . import emit
from .interface import Conv2dSpec, Epilogue, Index, Kernel
from .microkernel import Accumulators, Writer
from .tile import Chunks, TargetNumbers, Tile, blocks, choose_chunks, choose_tile

_MAX_BORDER_TILES = 4
_SERIAL_FLOPS = 200_000
"""Below this, starting the worker threads costs more than they save."""


def nhwc(index: Index) -> Index:
    """Storage index of a logical (n, c, h, w)."""
    n, c, h, w = index
    return (n, h, w, c)


def pack_conv_weights(weights: np.ndarray, groups: int, block: int) -> np.ndarray:
    """(O, C / groups, KH, KW) -> (groups * blocks, KH, KW, C / groups, block), zeros beyond the last channel."""
    out_channels, in_channels, height, width = weights.shape
    per_group = out_channels // groups
    count = blocks(per_group, block)
    packed = np.zeros((groups, count * block, in_channels, height, width), weights.dtype)
    packed[:, :per_group] = weights.reshape(groups, per_group, in_channels, height, width)
    packed = packed.reshape(groups * count, block, in_channels, height, width)
    return np.ascontiguousarray(packed.transpose(0, 3, 4, 2, 1))


class _Convolution:
    """Emits one convolution whose border tiles are few (padding is not stored)."""

    def __init__(self, spec: Conv2dSpec, tile: Tile, chunks: Chunks, writer: Writer):
        self.spec, self.tile, self.chunks, self.writer = spec, tile, chunks, writer
        self.depth = spec.in_channels // spec.groups
        self.per_group = spec.out_channels // spec.groups
        self.blocks = blocks(self.per_group, tile.block)
        self.weights_shape = (spec.groups * self.blocks, *spec.kernel, self.depth, tile.block)
        self.data = emit.buffer("data", spec.data_shape)
        self.weights = emit.buffer("weights", self.weights_shape)

    def body(self) -> Any:
        spec, chunks = self.spec, self.chunks
        block_count = spec.groups * self.blocks

        def task(t: Any) -> Any:
            n, chunk, block = emit.unravel(t, (spec.batch, chunks.count, block_count))
            block, bound = emit.bind("block", block)
            first_row = chunk * chunks.rows
            rows: Any = chunks.rows
            if spec.out_height % chunks.rows:
                rows = emit.minimum(chunks.rows, spec.out_height - first_row)
            return [*bound, emit.loop("row", rows, lambda row: self._row(n, block, first_row + row))]

        return emit.parallel(
            "task", spec.batch * chunks.count * block_count, task, enabled=spec.flops > _SERIAL_FLOPS
        )

    def _row(self, n: Any, block: Any, oh: Any) -> Any:
        spec, pixels = self.spec, self.tile.pixels
        starts = tile_starts(spec.out_width, pixels)
        parts = []
        inner = [t for t, start in enumerate(starts) if not touches_border(spec, start, pixels)]
        for t, start in enumerate(starts):
            if t not in inner:
                parts.append(self._tile(n, block, oh, start))
            elif t == inner[0]:
                parts.append(
                    emit.loop(
                        "column",
                        len(inner),
                        lambda t: self._tile(n, block, oh, emit.minimum(t * pixels, spec.out_width - pixels)),
                        start=inner[0],
                    )
                )
        return parts

    def _tile(self, n: Any, block: Any, oh: Any, ow: Any) -> Any:
        spec, tile = self.spec, self.tile
        group = emit.floordiv(block, self.blocks) if spec.groups > 1 else 0
        accumulators = Accumulators(tile)
        top = oh * spec.stride[0] - spec.pads[0]
        low, count = tap_range(spec.kernel[0], spec.dilation[0], top, spec.height, clipped_rows(spec))

        def kernel_row(kh: Any) -> Any:
            return self._kernel_row(accumulators, n, block, group * self.depth, kh, top, ow)

        in_group = emit.floormod(block, self.blocks) if spec.groups > 1 else block
        return [
            *accumulators.clear(),
            emit.loop("kh", count, kernel_row, start=low),
            *self.writer.write_tile(
                accumulators,
                lambda pixel, channel: (n, channel, oh, ow + pixel),
                group * self.per_group + in_group * tile.block,
                in_group == self.blocks - 1 if self.blocks > 1 else True,
                self.per_group - (self.blocks - 1) * tile.block,
            ),
        ]

    def _kernel_row(
        self, accumulators: Accumulators, n: Any, block: Any, channel: Any, kh: Any, top: Any, ow: Any
    ) -> Any:
        spec, tile = self.spec, self.tile
        row = top + kh * spec.dilation[0]
        parts = []
        for first, taps, valid in tap_groups(spec, ow, tile.pixels):
            if not valid:
                continue

            def step(kw: Any, c: Any, valid: tuple[int, ...] = valid) -> Any:
                left = ow * spec.stride[1] - spec.pads[1] + kw * spec.dilation[1]
                return accumulators.multiply_add(
                    valid,
                    lambda p: emit.load(self.data, [n, row, left + p * spec.stride[1], channel + c]),
                    lambda v: emit.load(self.weights, [block, kh, kw, c, v * tile.lanes], tile.lanes),
                )

            parts.append(self._reduce(first, taps, step))
        return parts

    def _reduce(self, first: int, taps: int, step: Callable[[Any, Any], Any]) -> Any:
        return emit.loop(
            "kw", taps, lambda kw: emit.loop("c", self.depth, lambda c: step(kw, c)), start=first
        )


def tile_starts(width: int, pixels: int) -> list[int]:
    """First pixel of each tile of a row."""
    return [min(start, width - pixels) for start in range(0, width, pixels)]


def touches_border(spec: Conv2dSpec, start: int, pixels: int) -> bool:
    """Whether a tile reads columns outside the image."""
    left = start * spec.stride[1] - spec.pads[1]
    right = left + (pixels - 1) * spec.stride[1] + (spec.kernel[1] - 1) * spec.dilation[1]
    return left < 0 or right >= spec.width


def clipped_rows(spec: Conv2dSpec) -> bool:
    """Whether some output row reads rows outside the image."""
    bottom = (spec.out_height - 1) * spec.stride[0] - spec.pads[0] + (spec.kernel[0] - 1) * spec.dilation[0]
    return spec.pads[0] > 0 or bottom >= spec.height


def tap_range(taps: int, dilation: int, first: Any, size: int, clipped: bool) -> tuple[Any, Any]:
    """First tap and number of taps of `first + tap * dilation` inside [0, size)."""
    if not clipped:
        return 0, taps
    low = emit.maximum(0, emit.floordiv(dilation - 1 - first, dilation))
    high = emit.minimum(taps, emit.floordiv(size - first + dilation - 1, dilation))
    return low, emit.maximum(high - low, 0)


def tap_groups(spec: Conv2dSpec, ow: Any, pixels: int) -> list[tuple[int, int, tuple[int, ...]]]:
    """Runs of kernel columns that read inside the image for the same pixels: (first, count, pixels).

    A tile whose start is an expression lies inside.
    """
    everything = tuple(range(pixels))
    if not isinstance(ow, int):
        return [(0, spec.kernel[1], everything)]
    runs: list[tuple[int, int, tuple[int, ...]]] = []
    for kw in range(spec.kernel[1]):
        column = ow * spec.stride[1] - spec.pads[1] + kw * spec.dilation[1]
        valid = tuple(p for p in everything if 0 <= column + p * spec.stride[1] < spec.width)
        if runs and runs[-1][2] == valid:
            runs[-1] = (runs[-1][0], runs[-1][1] + 1, valid)
        else:
            runs.append((kw, 1, valid))
    return runs


def conv2d(spec: Conv2dSpec, epilogue: Epilogue | None, target: TargetNumbers) -> Kernel:
    """A convolution of any group count.

    Buffers: data (N, H, W, C), packed weights, extra inputs, output (N, OH, OW, O).
    """
    depth = spec.in_channels // spec.groups
    per_group = spec.out_channels // spec.groups
    tile = choose_tile(spec.out_width, per_group, depth * prod(spec.kernel), target)
    block_count = spec.groups * blocks(per_group, tile.block)
    weight_bytes = 4 * depth * prod(spec.kernel) * block_count * tile.block
    row_bytes = 4 * spec.width * spec.in_channels * spec.stride[0]
    chunks = choose_chunks(spec.out_height, row_bytes, weight_bytes, spec.batch, block_count, target)
    writer = Writer(epilogue, spec.out_shape, nhwc)
    emitted = _Convolution(spec, tile, chunks, writer)
    func = emit.function(
        "conv2d", [emitted.data, emitted.weights, *writer.extras, writer.output], emitted.body()
    )
    return Kernel(
        func,
        (lambda weights: pack_conv_weights(weights, spec.groups, tile.block),),
        spec.flops,
        f"conv2d {tile} rows {chunks.rows}",
    )
