"""Convolution of any group count: which kernel serves which shape.

Dense weights are stored [groups * blocks, KH, KW, C / groups, block].
"""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any

import numpy as np

from . import emit
from .choices import choose_flag
from .depthwise import depthwise, suits_small_groups
from .interface import Conv2dSpec, Epilogue, Index, Kernel, nhwc
from .microkernel import Writer
from .product import Product
from .spatial import SpatialConvolution, pack_conv_weights
from .tile import (
    L3_BYTES_PER_CYCLE,
    MEMORY_BYTES_PER_CYCLE,
    TargetNumbers,
    Tile,
    blocks,
    choose_tile,
    tile_cycles,
)
from .tile_conv import choose_way, split_conv2d
from .tile_matmul import split_pays
from .tile_registers import float_format
from .window import choose_padded, gather_stage, gathered_spec, is_pointwise, pad_stage, padded_spec
from .winograd import winograd
from .winograd_plan import choose_winograd


def conv2d(spec: Conv2dSpec, epilogue: Epilogue | None, target: TargetNumbers) -> Kernel:
    """A convolution of any group count.

    Buffers: data (N, H, W, C), packed weights, extra inputs, output (N, OH, OW, O).
    """
    if suits_small_groups(spec, target):
        return depthwise(spec, epilogue, target)
    writer = Writer(epilogue, spec.out_shape, nhwc)
    plan = choose_winograd(spec, _direct_cycles(spec, target), target)
    form = float_format(target)
    way = choose_way(spec, form) if form is not None else None
    if way is not None:
        pixels = spec.batch * spec.out_height * spec.out_width
        other = _direct_cycles(spec, target) if plan is None else plan.cycles
        if split_pays(way.tiling.cycles, pixels, other):
            return split_conv2d(spec, way, writer, target)
    if is_pointwise(spec) or _is_gathered(spec, target):
        return _pointwise(spec, writer, target)
    if plan is not None:
        return winograd(spec, epilogue, plan, target)
    return _spatial(spec, writer, target)


def _spatial(spec: Conv2dSpec, writer: Writer, target: TargetNumbers) -> Kernel:
    depth, per_group = spec.in_channels // spec.groups, spec.out_channels // spec.groups
    sweeps = spec.batch * spec.out_height
    tile = choose_tile(spec.out_width, per_group, depth * prod(spec.kernel), target, sweeps)
    data = source = emit.buffer("data", spec.data_shape)
    padding: emit.Statements = []
    if choose_padded(spec, tile):
        source, padding = pad_stage(spec, spec.in_channels, data)
        spec = padded_spec(spec)
    flat_data, declare_data = emit.flat_view(source, prod(spec.data_shape))
    shape = (spec.groups * blocks(per_group, tile.block), *spec.kernel, depth, tile.block)
    weights = emit.buffer("weights", shape)
    flat_weights, declare_weights = emit.flat_view(weights, prod(shape))
    loops = SpatialConvolution(spec, tile, flat_data, flat_weights, writer).body(target)
    func = emit.function(
        "conv2d",
        [data, weights, *writer.extras, writer.output],
        [*padding, declare_data, declare_weights, loops],
    )
    return Kernel(func, (_packer(spec, tile),), spec.flops, f"conv2d {tile}")


def _direct_cycles(spec: Conv2dSpec, target: TargetNumbers) -> float:
    """Estimated cycles that one core takes without tricks."""
    depth, per_group = spec.in_channels // spec.groups, spec.out_channels // spec.groups
    steps = depth * prod(spec.kernel)
    rows = spec.batch * spec.out_height
    stream = 4 * steps * spec.out_channels / MEMORY_BYTES_PER_CYCLE
    return max(rows * spec.groups * tile_cycles(spec.out_width, per_group, steps, target, rows), stream)


def _is_gathered(spec: Conv2dSpec, target: TargetNumbers) -> bool:
    """Whether a strided 1x1 convolution copies the pixels that it reads, whose rows then share tiles."""
    if spec.kernel != (1, 1) or any(spec.pads):
        return False
    depth, per_group = spec.in_channels // spec.groups, spec.out_channels // spec.groups
    pixels = spec.batch * spec.out_height * spec.out_width
    together = spec.groups * tile_cycles(pixels, per_group, depth, target)
    together += 8 * pixels * spec.in_channels / L3_BYTES_PER_CYCLE
    return choose_flag("gathered", together < _direct_cycles(spec, target))


def pixel_index(spec: Conv2dSpec) -> Callable[[Index, Any, Any], Index]:
    """(group, pixel, channel of the group) of a 1x1 convolution's product -> logical output index."""
    per_group = spec.out_channels // spec.groups

    def index(batch: Index, row: Any, column: Any) -> Index:
        n, h, w = emit.unravel(row, (spec.batch, spec.height, spec.width))
        return (n, batch[0] * per_group + column, h, w)

    return index


def _packer(spec: Conv2dSpec, tile: Tile) -> Callable[[np.ndarray], np.ndarray]:
    return lambda weights: pack_conv_weights(weights, spec.groups, tile.block)


def _pointwise(spec: Conv2dSpec, writer: Writer, target: TargetNumbers) -> Kernel:
    """A 1x1 convolution: the product of (pixels, C) by (C, O) in every group."""
    data = source = emit.buffer("data", spec.data_shape)
    gathering: emit.Statements = []
    if spec.stride != (1, 1):
        source, gathering = gather_stage(spec, data)
        spec = gathered_spec(spec)
    depth, per_group = spec.in_channels // spec.groups, spec.out_channels // spec.groups
    pixels = spec.batch * spec.height * spec.width
    tile = choose_tile(pixels, per_group, depth, target)
    count = blocks(per_group, tile.block)
    weights = emit.buffer("weights", (spec.groups * count, 1, 1, depth, tile.block))
    view, declaration = emit.flat_view(source, prod(spec.data_shape))
    flat_weights, declare_weights = emit.flat_view(weights, spec.groups * count * depth * tile.block)

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
        pixel_index(spec),
        weights=flat_weights,
    )
    func = emit.function(
        "conv2d_1x1",
        [data, weights, *writer.extras, writer.output],
        [*gathering, declaration, declare_weights, product.body(writer, target)],
    )
    copied = " gathered" if gathering else ""
    return Kernel(func, (_packer(spec, tile),), spec.flops, f"conv2d_1x1 {tile}{copied}")
