"""Dense and grouped convolution as register tiles of neighbouring pixels by blocks of output channels.

Rows outside the image are skipped by the bounds of the loop over kernel rows. Columns outside the image are
known when the code is generated: tiles that touch the left or right border have code of their own, in which
the multiply-adds with padding do not exist. The last tile of a row is moved left to end with the row, so that
every tile is full.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from . import emit
from .arithmetic import FLOAT, Arithmetic
from .emit import Statements
from .interface import Conv2dSpec, Index
from .microkernel import Accumulators, Writer
from .prefetch import PanelPrefetch, Requests, reduction
from .product import SERIAL_FLOPS
from .tile import TargetNumbers, Tile, blocks, choose_chunks
from .window import choose_order, column_inside, over_tiles, rows_inside


def pack_conv_weights(weights: np.ndarray, groups: int, block: int) -> np.ndarray:
    """(O, C / groups, KH, KW) -> (groups * blocks, KH, KW, C / groups, block), filled with zeros."""
    out_channels, in_channels, height, width = weights.shape
    per_group = out_channels // groups
    count = blocks(per_group, block)
    packed = np.zeros((groups, count * block, in_channels, height, width), weights.dtype)
    packed[:, :per_group] = weights.reshape(groups, per_group, in_channels, height, width)
    packed = packed.reshape(groups * count, block, in_channels, height, width)
    return np.ascontiguousarray(packed.transpose(0, 3, 4, 2, 1))


@dataclass(frozen=True)
class SpatialConvolution:
    """The loops of one convolution with few border tiles, over flat data and flat packed weights."""

    spec: Conv2dSpec
    tile: Tile
    data: Any
    """(N, H, W, C) seen as one axis."""
    weights: Any
    """Packed weights seen as one axis."""
    writer: Writer
    first_weight: int = 0
    """Where this convolution's weights begin."""
    place: Callable[[Index], Index] = lambda index: index
    """Logical index of this convolution's output -> logical index of the kernel's output."""
    arithmetic: Arithmetic = FLOAT
    """Where it takes several values per step, `spec` counts channels in steps."""

    @property
    def depth(self) -> int:
        """Input channels of one group."""
        return self.spec.in_channels // self.spec.groups

    @property
    def per_group(self) -> int:
        """Output channels of one group."""
        return self.spec.out_channels // self.spec.groups

    @property
    def blocks(self) -> int:
        """Blocks of output channels in one group."""
        return blocks(self.per_group, self.tile.block)

    @property
    def weights_shape(self) -> tuple[int, ...]:
        """Shape of the packed weights."""
        return (self.spec.groups * self.blocks, *self.spec.kernel, self.depth, self.tile.block)

    def body(self, target: TargetNumbers) -> Any:
        """The loops."""
        spec = self.spec
        block_count = spec.groups * self.blocks
        chunks = choose_chunks(
            spec.out_height,
            4 * spec.width * spec.in_channels * spec.stride[0],
            4 * prod(self.weights_shape),
            spec.batch,
            block_count,
            target,
            4 * spec.batch * max(prod(spec.data_shape[1:]), prod(spec.out_shape[1:])),
        )

        steps = prod(spec.kernel) * self.depth
        panel = steps * self.tile.block
        prefetch = PanelPrefetch.plan(
            steps, panel, self.tile, block_count, chunks.rows, target, self.arithmetic
        )

        order = choose_order()

        def task(t: Any) -> Any:
            n, chunk, block = order(t, (spec.batch,), chunks.count, block_count)
            block, bound = emit.bind("block", block)
            first_row = chunk * chunks.rows
            rows: Any = chunks.rows
            if spec.out_height % chunks.rows:
                rows = emit.minimum(chunks.rows, spec.out_height - first_row)
            return [
                *bound,
                emit.loop("row", rows, lambda row: self._row(n, block, first_row + row, row, prefetch)),
            ]

        return emit.parallel(
            "task", spec.batch * chunks.count * block_count, task, enabled=spec.flops > SERIAL_FLOPS
        )

    def _row(self, n: Any, block: Any, oh: Any, sweep: Any, prefetch: PanelPrefetch | None) -> Any:
        def requests(step: Any) -> Statements:
            assert prefetch is not None
            panel = block * prefetch.stride + self.first_weight
            return prefetch.requests(self.weights, panel, sweep, step)

        def tile(ow: Any) -> Any:
            # The first tile asks for the share of the whole row.
            asks = prefetch is not None and isinstance(ow, int) and ow == 0
            return self._tile(n, block, oh, ow, requests if asks else None)

        return over_tiles(self.spec, self.tile.pixels, tile)

    def _tile(self, n: Any, block: Any, oh: Any, ow: Any, requests: Requests | None) -> Any:
        spec, tile = self.spec, self.tile
        group = emit.floordiv(block, self.blocks) if spec.groups > 1 else 0
        in_group = emit.floormod(block, self.blocks) if spec.groups > 1 else block
        accumulators = Accumulators(tile, self.arithmetic)
        top = oh * spec.stride[0] - spec.pads[0]
        low, count = rows_inside(spec, top)

        def kernel_row(kh: Any) -> Any:
            row = n * spec.height + top + kh * spec.dilation[0]
            left = ow * spec.stride[1] - spec.pads[1]
            first_value = (row * spec.width + left) * spec.in_channels + group * self.depth
            steps = spec.kernel[1] * self.depth
            first_weight = (block * spec.kernel[0] + kh) * (steps * tile.block) + self.first_weight
            ask = requests and (lambda step: requests(kh * steps + step))
            return [
                self._taps(accumulators, first_value, first_weight, *run, ask)
                for run in tap_runs(spec, ow, tile.pixels)
            ]

        return [
            *accumulators.clear(),
            emit.loop("kh", count, kernel_row, start=low),
            *self.writer.write_tile(
                accumulators,
                lambda pixel, channel: self.place((n, channel, oh, ow + pixel)),
                group * self.per_group + in_group * tile.block,
                in_group == self.blocks - 1 if self.blocks > 1 else True,
                self.per_group - (self.blocks - 1) * tile.block,
            ),
        ]

    def _taps(
        self,
        accumulators: Accumulators,
        data: Any,
        weights: Any,
        first: int,
        taps: int,
        valid: range,
        requests: Requests | None,
    ) -> Any:
        """Multiply-adds of a run of kernel columns, given where the kernel row's data and weights begin."""
        spec, tile = self.spec, self.tile
        pixel_step = spec.stride[1] * spec.in_channels
        tap_step = spec.dilation[1] * spec.in_channels

        def step(value: Any, weight: Any) -> Any:
            return accumulators.multiply_add(
                valid,
                lambda p: self.arithmetic.read(self.data, data + value + p * pixel_step),
                lambda v: self.arithmetic.columns(
                    self.weights, weights + weight * tile.block + v * tile.lanes, tile.lanes
                ),
            )

        if not valid:
            return []
        if tap_step == self.depth:
            start = first * self.depth
            return reduction("tap", start, taps * self.depth, lambda t: step(t, t), requests)
        return emit.loop(
            "kw",
            taps,
            lambda kw: emit.loop("c", self.depth, lambda c: step(kw * tap_step + c, kw * self.depth + c)),
            start=first,
        )


def tap_runs(spec: Conv2dSpec, ow: Any, pixels: int) -> list[tuple[int, int, range]]:
    """Runs of kernel columns that read inside the image for the same pixels: (first, count, pixels)."""
    runs: list[tuple[int, int, range]] = []
    for kw in range(spec.kernel[1]):
        inside = [p for p in range(pixels) if column_inside(spec, ow, p, kw)]
        valid = range(inside[0], inside[-1] + 1) if inside else range(0)
        if runs and runs[-1][2] == valid:
            runs[-1] = (runs[-1][0], runs[-1][1] + 1, valid)
        else:
            runs.append((kw, 1, valid))
    return runs
