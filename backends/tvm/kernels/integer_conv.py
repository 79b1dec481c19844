"""Convolution of integers with integer weights: int32 sums that are exact on every target.

The sums are those of the stored numbers; what the zero points add to them is a constant per output channel
once padding holds the data's zero point, and belongs to the bias. Dense weights are stored
[groups * blocks, KH, KW, steps, block, values per step].
"""

from __future__ import annotations

from dataclasses import replace
from math import prod
from typing import Any

import numpy as np

from . import emit
from .arithmetic import Arithmetic, integer_arithmetic
from .conv2d import is_pointwise
from .integer_depthwise import integer_depthwise, suits_integer_depthwise
from .integer_stage import Staged, filled, stage_image
from .interface import Conv2dSpec, Epilogue, Index, Kernel, nhwc
from .microkernel import Writer
from .product import Product
from .spatial import SpatialConvolution, pack_conv_weights
from .tile import TargetNumbers, Tile, blocks, choose_tile
from .window import choose_padded, padded_spec


def integer_conv2d(
    spec: Conv2dSpec,
    types: tuple[str, str],
    zero_point: int,
    epilogue: Epilogue | None,
    target: TargetNumbers,
) -> Kernel:
    """A convolution of any group count; the epilogue gets int32 sums.

    Buffers: data (N, H, W, C), packed weights, extra inputs, output (N, OH, OW, O).

    Args:
        spec: the convolution.
        types: element types of data and weights.
        zero_point: of the data; padding holds it.
        epilogue: what follows.
        target: numbers and features of the target.
    """
    writer = Writer(epilogue, spec.out_shape, nhwc, "int32")
    if suits_integer_depthwise(spec):
        return integer_depthwise(spec, types, zero_point, writer, target)
    arithmetic = integer_arithmetic(*types, target)
    data = emit.buffer("data", spec.data_shape, types[0])
    build = _pointwise if is_pointwise(spec) else _spatial
    return build(spec, types[0], zero_point, arithmetic, data, writer, target)


def pack_integer_weights(weights: np.ndarray, groups: int, block: int, depth: int) -> np.ndarray:
    """(O, C / groups, KH, KW) -> (groups * blocks, KH, KW, steps, block, depth), filled with zeros."""
    missing = -weights.shape[1] % depth
    whole = np.pad(weights, ((0, 0), (0, missing), (0, 0), (0, 0)))
    packed = pack_conv_weights(whole, groups, block)
    count, height, width, channels, _ = packed.shape
    split = packed.reshape(count, height, width, channels // depth, depth, block)
    return np.ascontiguousarray(split.swapaxes(-1, -2))


def _in_steps(spec: Conv2dSpec, arithmetic: Arithmetic, channels: int) -> Conv2dSpec:
    """The convolution with input channels counted in steps."""
    return replace(spec, in_channels=channels // arithmetic.depth)


def _staged(
    spec: Conv2dSpec, dtype: str, zero_point: int, arithmetic: Arithmetic, data: Any, padded: bool
) -> tuple[Staged, Conv2dSpec]:
    """The data as tiles read it, in place where that is possible, and the convolution of it."""
    channels = filled(spec.in_channels, spec.groups, arithmetic.depth)
    if not padded and channels == spec.in_channels and dtype == arithmetic.data:
        flat, declaration = emit.flat_view(data, prod(spec.data_shape))
        return Staged(flat, channels, [declaration]), spec
    pads = spec.pads if padded else (0, 0, 0, 0)
    staged = stage_image(
        data, spec.data_shape, pads, spec.groups, arithmetic.data, arithmetic.depth, zero_point
    )
    return staged, padded_spec(spec) if padded else spec


def _weights(spec: Conv2dSpec, arithmetic: Arithmetic, tile: Tile) -> tuple[Any, Any, Any]:
    """Buffer, flat view and its declaration; `spec` counts channels in steps."""
    depth, per_group = spec.in_channels // spec.groups, spec.out_channels // spec.groups
    count = spec.groups * blocks(per_group, tile.block)
    shape = (count, *spec.kernel, depth, tile.block, arithmetic.depth)
    weights = emit.buffer("weights", shape, arithmetic.weights)
    flat, declaration = emit.flat_view(weights, prod(shape))
    return weights, flat, declaration


def _spatial(
    spec: Conv2dSpec,
    dtype: str,
    zero_point: int,
    arithmetic: Arithmetic,
    data: Any,
    writer: Writer,
    target: TargetNumbers,
) -> Kernel:
    original = spec
    per_group = spec.out_channels // spec.groups
    depth = blocks(spec.in_channels // spec.groups, arithmetic.depth)
    tile = choose_tile(
        spec.out_width, per_group, depth * prod(spec.kernel), target, spec.batch * spec.out_height
    )
    # Where padding is zero its products are left out; otherwise it must be there to be multiplied.
    padded = any(spec.pads) and (zero_point != 0 or choose_padded(spec, tile))
    staged, spec = _staged(spec, dtype, zero_point, arithmetic, data, padded)
    spec = _in_steps(spec, arithmetic, staged.channels)
    weights, flat_weights, declare = _weights(spec, arithmetic, tile)
    loops = SpatialConvolution(spec, tile, staged.flat, flat_weights, writer, arithmetic=arithmetic)
    func = emit.function(
        "integer_conv2d",
        [data, weights, *writer.extras, writer.output],
        [*staged.statements, declare, loops.body(target)],
    )
    return _kernel("conv2d", func, original, arithmetic, tile, staged)


def _pointwise(
    spec: Conv2dSpec,
    dtype: str,
    zero_point: int,
    arithmetic: Arithmetic,
    data: Any,
    writer: Writer,
    target: TargetNumbers,
) -> Kernel:
    """A 1x1 convolution: the product of (pixels, C) by (C, O) in every group."""
    per_group, pixels = spec.out_channels // spec.groups, spec.batch * spec.height * spec.width
    staged, _ = _staged(spec, dtype, zero_point, arithmetic, data, False)
    counted = _in_steps(spec, arithmetic, staged.channels)
    steps, depth = counted.in_channels, counted.in_channels // spec.groups
    tile = choose_tile(pixels, per_group, depth, target)
    count = blocks(per_group, tile.block)
    weights, flat_weights, declare = _weights(counted, arithmetic, tile)

    def index(batch: Index, row: Any, column: Any) -> Index:
        n, h, w = emit.unravel(row, (spec.batch, spec.height, spec.width))
        return (n, batch[0] * per_group + column, h, w)

    product = Product(
        (spec.groups,),
        pixels,
        per_group,
        depth,
        tile,
        lambda batch, row, k: arithmetic.read(staged.flat, row * steps + batch[0] * depth + k),
        lambda batch, block, k, v: arithmetic.columns(
            flat_weights,
            ((batch[0] * count + block) * depth + k) * tile.block + v * tile.lanes,
            tile.lanes,
        ),
        index,
        weights=flat_weights,
        arithmetic=arithmetic,
    )
    func = emit.function(
        "integer_conv2d_1x1",
        [data, weights, *writer.extras, writer.output],
        [*staged.statements, declare, product.body(writer, target)],
    )
    return _kernel("conv2d_1x1", func, spec, arithmetic, tile, staged)


def _kernel(
    name: str, func: Any, spec: Conv2dSpec, arithmetic: Arithmetic, tile: Tile, staged: Staged
) -> Kernel:
    copied = " staged" if len(staged.statements) > 1 else ""
    return Kernel(
        func,
        (lambda weights: pack_integer_weights(weights, spec.groups, tile.block, arithmetic.depth),),
        spec.flops,
        f"int8 {name} {tile} {arithmetic.name}{copied}",
    )
