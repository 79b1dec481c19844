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
from .depthwise import depthwise
from .interface import Conv2dSpec, Epilogue, Index, Kernel, nhwc
from .microkernel import Accumulators, Writer
from .product import SERIAL_FLOPS, Product
from .tile import Chunks, TargetNumbers, Tile, blocks, choose_chunks, choose_tile
from .window import (
    MAX_BORDER_TILES,
    border_tiles,
    column_inside,
    over_tiles,
    pad_stage,
    padded_spec,
    rows_inside,
)


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

    def __init__(self, spec: Conv2dSpec, tile: Tile, chunks: Chunks, writer: Writer, data: Any):
        self.spec, self.tile, self.chunks, self.writer = spec, tile, chunks, writer
        self.depth = spec.in_channels // spec.groups
        self.per_group = spec.out_channels // spec.groups
        self.blocks = blocks(self.per_group, tile.block)
        self.weights_shape = (spec.groups * self.blocks, *spec.kernel, self.depth, tile.block)
        self.data = data
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
            "task", spec.batch * chunks.count * block_count, task, enabled=spec.flops > SERIAL_FLOPS
        )

    def _row(self, n: Any, block: Any, oh: Any) -> Any:
        return over_tiles(self.spec, self.tile.pixels, lambda ow: self._tile(n, block, oh, ow))

    def _tile(self, n: Any, block: Any, oh: Any, ow: Any) -> Any:
        spec, tile = self.spec, self.tile
        group = emit.floordiv(block, self.blocks) if spec.groups > 1 else 0
        accumulators = Accumulators(tile)
        top = oh * spec.stride[0] - spec.pads[0]
        low, count = rows_inside(spec, top)

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


def tap_groups(spec: Conv2dSpec, ow: Any, pixels: int) -> list[tuple[int, int, tuple[int, ...]]]:
    """Runs of kernel columns that read inside the image for the same pixels: (first, count, pixels)."""
    runs: list[tuple[int, int, tuple[int, ...]]] = []
    for kw in range(spec.kernel[1]):
        valid = tuple(p for p in range(pixels) if column_inside(spec, ow, p, kw))
        if runs and runs[-1][2] == valid:
            runs[-1] = (runs[-1][0], runs[-1][1] + 1, valid)
        else:
            runs.append((kw, 1, valid))
    return runs


def conv2d(spec: Conv2dSpec, epilogue: Epilogue | None, target: TargetNumbers) -> Kernel:
    """A convolution of any group count.

    Buffers: data (N, H, W, C), packed weights, extra inputs, output (N, OH, OW, O).
    """
    if spec.is_depthwise and spec.out_channels == spec.in_channels:
        return depthwise(spec, epilogue, target)
    writer = Writer(epilogue, spec.out_shape, nhwc)
    if is_pointwise(spec):
        return _pointwise(spec, writer, target)
    depth = spec.in_channels // spec.groups
    per_group = spec.out_channels // spec.groups
    tile = choose_tile(spec.out_width, per_group, depth * prod(spec.kernel), target)
    data = source = emit.buffer("data", spec.data_shape)
    padding: emit.Statements = []
    if border_tiles(spec, tile.pixels) > MAX_BORDER_TILES:
        source, padding = pad_stage(spec, spec.in_channels, data)
        spec = padded_spec(spec)
    block_count = spec.groups * blocks(per_group, tile.block)
    weight_bytes = 4 * depth * prod(spec.kernel) * block_count * tile.block
    row_bytes = 4 * spec.width * spec.in_channels * spec.stride[0]
    chunks = choose_chunks(spec.out_height, row_bytes, weight_bytes, spec.batch, block_count, target)
    emitted = _Convolution(spec, tile, chunks, writer, source)
    func = emit.function(
        "conv2d", [data, emitted.weights, *writer.extras, writer.output], [*padding, emitted.body()]
    )
    return Kernel(func, (_packer(spec, tile),), spec.flops, f"conv2d {tile} rows {chunks.rows}")


def is_pointwise(spec: Conv2dSpec) -> bool:
    """Whether every output pixel depends on the input pixel of the same position alone."""
    return spec.kernel == (1, 1) and spec.stride == (1, 1) and not any(spec.pads)


def _packer(spec: Conv2dSpec, tile: Tile) -> Callable[[np.ndarray], np.ndarray]:
    return lambda weights: pack_conv_weights(weights, spec.groups, tile.block)


def _pointwise(spec: Conv2dSpec, writer: Writer, target: TargetNumbers) -> Kernel:
    """A 1x1 convolution: the product of (pixels, C) by (C, O) in every group."""
    depth, per_group = spec.in_channels // spec.groups, spec.out_channels // spec.groups
    pixels = spec.batch * spec.height * spec.width
    tile = choose_tile(pixels, per_group, depth, target)
    count = blocks(per_group, tile.block)
    data = emit.buffer("data", spec.data_shape)
    weights = emit.buffer("weights", (spec.groups * count, 1, 1, depth, tile.block))
    view, declaration = emit.flat_view(data, prod(spec.data_shape))

    def index(batch: Index, row: Any, column: Any) -> Index:
        n, h, w = emit.unravel(row, (spec.batch, spec.height, spec.width))
        return (n, batch[0] * per_group + column, h, w)

    product = Product(
        (spec.groups,),
        pixels,
        per_group,
        depth,
        tile,
        lambda batch, row, k: emit.load(view, [row * spec.in_channels + batch[0] * depth + k]),
        lambda batch, block, k, v: emit.load(
            weights, [batch[0] * count + block, 0, 0, k, v * tile.lanes], tile.lanes
        ),
        index,
    )
    func = emit.function(
        "conv2d_1x1",
        [data, weights, *writer.extras, writer.output],
        [declaration, product.body(writer, target)],
    )
    return Kernel(func, (_packer(spec, tile),), spec.flops, f"conv2d_1x1 {tile}")
