"""Convolution of integers with integer weights: int32 sums that are exact on every target.

The sums are those of the stored numbers; what the zero points add to them is a constant per output channel
once padding holds the data's zero point, and belongs to the bias. Dense weights are stored
[groups * blocks, KH, KW, steps, block, values per step].
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from math import prod
from typing import Any

import numpy as np

from . import emit
from .arithmetic import Arithmetic, integer_arithmetic
from .conv2d import pixel_index
from .emit import Statements
from .integer_depthwise import integer_depthwise, suits_integer_depthwise
from .integer_stage import Staged, filled, stage_image
from .integer_winograd import IntegerWinograd, choose_integer_winograd
from .interface import Conv2dSpec, Epilogue, Kernel, nhwc
from .microkernel import Writer
from .product import Product
from .spatial import SpatialConvolution, pack_conv_weights
from .tile import TargetNumbers, Tile, blocks, choose_tile
from .tile_conv import tile_conv2d
from .window import choose_padded, is_pointwise, padded_spec, padding_of


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
    return convolve_integers(spec, types, zero_point, Writer(epilogue, spec.out_shape, nhwc, "int32"), target)


def convolve_integers(
    spec: Conv2dSpec, types: tuple[str, str], zero_point: int, writer: Writer, target: TargetNumbers
) -> Kernel:
    """The same with a writer that may store elsewhere; pads may be negative, which skips rows and columns."""
    if suits_integer_depthwise(spec):
        return integer_depthwise(spec, types, zero_point, writer, target)
    tiled = tile_conv2d(spec, types, zero_point, writer, target)
    if tiled is not None:
        return tiled
    fewer = choose_integer_winograd(spec, types, target)
    if fewer is not None:
        return IntegerWinograd(spec, types, zero_point, fewer, writer, target).kernel()
    arithmetic = integer_arithmetic(*types, target)
    plan = _Plan(spec, types[0], zero_point, arithmetic, writer, target)
    return _pointwise(plan) if is_pointwise(spec) else _spatial(plan)


@dataclass(frozen=True)
class _Plan:
    """What is convolved, how its products are formed, and where they go."""

    spec: Conv2dSpec
    dtype: str
    zero_point: int
    arithmetic: Arithmetic
    writer: Writer
    target: TargetNumbers

    @cached_property
    def data(self) -> Any:
        """The buffer of the data."""
        return emit.buffer("data", self.spec.data_shape, self.dtype)

    def staged(self, padded: bool) -> tuple[Staged, Conv2dSpec]:
        """The data as tiles read it, in place where that is possible, and the convolution of it in steps."""
        spec, arithmetic = self.spec, self.arithmetic
        channels = filled(spec.in_channels, spec.groups, arithmetic.depth)
        if not padded and channels == spec.in_channels and self.dtype == arithmetic.data:
            flat, declaration = emit.flat_view(self.data, prod(spec.data_shape))
            staged = Staged(flat, channels, [declaration])
        else:
            staged = stage_image(
                self.data,
                spec.data_shape,
                padding_of(spec.pads) if padded else (0, 0, 0, 0),
                spec.groups,
                arithmetic.data,
                arithmetic.depth,
                self.zero_point,
            )
        spec = padded_spec(spec) if padded else spec
        return staged, replace(spec, in_channels=staged.channels // arithmetic.depth)

    def kernel(self, name: str, staged: Staged, tile: Tile, weights: Any, body: Statements) -> Kernel:
        """The kernel around the loops."""
        func = emit.function(
            f"integer_{name}", [self.data, weights, *self.writer.extras, self.writer.output], body
        )
        copied = " staged" if len(staged.statements) > 1 else ""
        groups, depth = self.spec.groups, self.arithmetic.depth
        return Kernel(
            func,
            (lambda weights: pack_integer_weights(weights, groups, tile.block, depth),),
            self.spec.flops,
            f"int8 {name} {tile} {self.arithmetic.name}{copied}",
        )


def pack_integer_weights(weights: np.ndarray, groups: int, block: int, depth: int) -> np.ndarray:
    """(O, C / groups, KH, KW) -> (groups * blocks, KH, KW, steps, block, depth), filled with zeros."""
    missing = -weights.shape[1] % depth
    whole = np.pad(weights, ((0, 0), (0, missing), (0, 0), (0, 0)))
    packed = pack_conv_weights(whole, groups, block)
    count, height, width, channels, _ = packed.shape
    split = packed.reshape(count, height, width, channels // depth, depth, block)
    return np.ascontiguousarray(split.swapaxes(-1, -2))


def _weights(spec: Conv2dSpec, arithmetic: Arithmetic, tile: Tile) -> tuple[Any, Any, Any]:
    """Buffer, flat view and its declaration; `spec` counts channels in steps."""
    depth, per_group = spec.in_channels // spec.groups, spec.out_channels // spec.groups
    count = spec.groups * blocks(per_group, tile.block)
    shape = (count, *spec.kernel, depth, tile.block, arithmetic.depth)
    weights = emit.buffer("weights", shape, arithmetic.weights)
    flat, declaration = emit.flat_view(weights, prod(shape))
    return weights, flat, declaration


def _spatial(plan: _Plan) -> Kernel:
    spec, arithmetic, target = plan.spec, plan.arithmetic, plan.target
    per_group = spec.out_channels // spec.groups
    depth = blocks(spec.in_channels // spec.groups, arithmetic.depth)
    tile = choose_tile(
        spec.out_width,
        per_group,
        depth * prod(spec.kernel),
        target,
        spec.batch * spec.out_height,
        spare=arithmetic.spare,
    )
    # Where padding is zero its products are left out; otherwise it must be there to be multiplied.
    padded = any(padding_of(spec.pads)) and (plan.zero_point != 0 or choose_padded(spec, tile))
    staged, spec = plan.staged(padded)
    weights, flat_weights, declare = _weights(spec, arithmetic, tile)
    loops = SpatialConvolution(spec, tile, staged.flat, flat_weights, plan.writer, arithmetic=arithmetic)
    return plan.kernel("conv2d", staged, tile, weights, [*staged.statements, declare, loops.body(target)])


def _pointwise(plan: _Plan) -> Kernel:
    """A 1x1 convolution: the product of (pixels, C) by (C, O) in every group."""
    spec, arithmetic, target = plan.spec, plan.arithmetic, plan.target
    per_group, pixels = spec.out_channels // spec.groups, spec.batch * spec.height * spec.width
    staged, counted = plan.staged(False)
    steps, depth = counted.in_channels, counted.in_channels // spec.groups
    tile = choose_tile(pixels, per_group, depth, target, spare=arithmetic.spare)
    count = blocks(per_group, tile.block)
    weights, flat_weights, declare = _weights(counted, arithmetic, tile)
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
        pixel_index(spec),
        weights=flat_weights,
        arithmetic=arithmetic,
    )
    body = [*staged.statements, declare, product.body(plan.writer, target)]
    return plan.kernel("conv2d_1x1", staged, tile, weights, body)
