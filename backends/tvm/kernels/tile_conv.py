"""Convolution on tile registers, of integers or of split float32.

Three ways, by estimated time: 1x1 windows are a product of all pixels; wide images are read where they lie,
or in a padded copy, a register holding neighbouring pixels of a row; windows of narrow images are first
gathered into rows of a matrix, so that registers are full.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import numpy as np

from . import emit
from .choices import Option, choose
from .emit import Statements
from .integer_stage import gather_windows, stage_image
from .interface import Conv2dSpec, Index, Kernel
from .microkernel import Writer
from .tile import TargetNumbers
from .tile_left import Rows, Strided
from .tile_matmul import tiles_pay
from .tile_panels import Reduction, pack_panels, panel_shape
from .tile_plan import Tiling, flat_rows, image_rows, plan_tiling, split_cycles
from .tile_product import TileProduct
from .tile_registers import BYTES, Format, has_tiles, integer_format
from .tile_split import Planes, allocate_planes, split_image
from .window import gathered_spec, is_pointwise, padded_spec, padding_of

_COPIED_PER_CYCLE = 16.0
"""Bytes of a padded copy or of gathered windows."""
_RUN_CYCLES = 4.0
"""What one run of gathered bytes costs beyond that."""
_ROWS, _GATHER, _PIXELS = "rows", "gather", "pixels"


@dataclass(frozen=True)
class Way:
    """One way to see a convolution as products, with what it costs to prepare the data."""

    name: str
    spec: Conv2dSpec
    """Of the data that are read, which hold their padding."""
    reduction: Reduction
    tiling: Tiling

    @property
    def is_joined(self) -> bool:
        """Whether the columns of a window lie together with their channels."""
        return self.name != _ROWS or len(self.reduction.outer) == 1


def tile_conv2d(
    spec: Conv2dSpec, types: tuple[str, str], zero_point: int, writer: Writer, target: TargetNumbers
) -> Kernel | None:
    """A convolution; None where tile registers are missing or do not pay.

    Buffers: data (N, H, W, C), packed weights, extra inputs, output (N, OH, OW, O).

    Args:
        spec: the convolution.
        types: element types of data and weights.
        zero_point: of the data; padding holds it.
        writer: what follows.
        target: numbers and features of the target.
    """
    if not has_tiles(target) or not set(types) <= {"int8", "uint8"}:
        return None
    form = integer_format(*types)
    way = choose_way(spec, form)
    if way is None:
        return None
    pixels, depth = spec.batch * spec.out_height * spec.out_width, spec.in_channels // spec.groups
    columns = spec.out_channels // spec.groups
    if not tiles_pay(way.tiling, pixels, columns, depth * prod(spec.kernel), types, target, spec.groups):
        return None
    data = emit.buffer("data", spec.data_shape, form.left)
    flat, statements = _integer_data(data, spec, way, zero_point)
    return way_kernel(spec, way, data, Planes(flat, 0, statements), writer, target)


def split_conv2d(spec: Conv2dSpec, way: Way, writer: Writer, target: TargetNumbers) -> Kernel:
    """A convolution of float32, split into bfloat16 ahead of the product.

    Buffers: data (N, H, W, C), packed weights, extra inputs, output (N, OH, OW, O).
    """
    data = emit.buffer("data", spec.data_shape)
    source, declaration = emit.flat_view(data, prod(spec.data_shape))
    parts = way.tiling.registers.format.parts
    if way.name == _PIXELS:
        place = None
        if spec.stride != (1, 1):
            height, width = spec.stride

            def place(pixel: Any) -> Any:
                n, h, w = emit.unravel(pixel, (spec.batch, spec.out_height, spec.out_width))
                return ((n * spec.height + h * height) * spec.width + w * width) * spec.in_channels

        matrix = Rows(source, spec.batch * spec.out_height * spec.out_width, spec.in_channels, place)
        return way_kernel(spec, way, data, Planes(source, 0, [declaration]), writer, target, matrix)
    planes = split_image(source, spec, parts, BYTES if way.name == _ROWS else 0)
    statements = [declaration, *planes.statements]
    if way.name == _GATHER:
        run, outer = _runs(way.spec)
        size = way.spec.batch * way.spec.out_height * way.spec.out_width * way.reduction.run * spec.groups
        flat, plane, allocation = allocate_planes("gathered", size, parts, BYTES)
        gathers = [
            gather_windows(planes.flat, way.spec, run, outer, flat, part * planes.plane, part * plane)
            for part in range(parts)
        ]
        planes = Planes(flat, plane, [*statements, *allocation, *gathers])
    else:
        planes = Planes(planes.flat, planes.plane, statements)
    return way_kernel(spec, way, data, planes, writer, target)


def choose_way(spec: Conv2dSpec, form: Format) -> Way | None:
    """How to see a convolution as products, by estimated time or by a record; None where no way does."""
    if is_pointwise(spec):
        return _way(_PIXELS, spec, form)
    if form.parts > 1 and spec.kernel == (1, 1) and not any(spec.pads):
        return _way(_PIXELS, gathered_spec(spec), form)
    ways = {name: way for name in (_ROWS, _GATHER) if (way := _way(name, spec, form))}
    if not ways:
        return None
    best = min(ways, key=lambda name: ways[name].tiling.cycles)
    least = ways[best].tiling.cycles
    chosen = choose(
        "way", best, lambda: [Option(name, way.tiling.cycles / least) for name, way in ways.items()]
    )
    assert isinstance(chosen, str)
    return ways[chosen]


def _way(name: str, spec: Conv2dSpec, form: Format) -> Way | None:
    pads, spec = any(padding_of(spec.pads)), padded_spec(spec)
    own, columns = spec.in_channels // spec.groups, spec.out_channels // spec.groups
    pixels = spec.batch * spec.out_height * spec.out_width
    is_split = form.parts > 1
    cycles = prod(spec.data_shape) / _COPIED_PER_CYCLE if pads and not is_split else 0.0
    if name == _ROWS:
        run, outer = _runs(spec)
        # Beyond a window of float32 there may be NaN, which zero weights do not silence: only where a single
        # step would become two it reads one number more.
        slack = run < form.most and run % form.word > 0 if is_split else pads
        reduction = Reduction.of(form, run, outer, slack)
        rows = image_rows(spec.out_width, spec.batch * spec.out_height)
    else:
        reduction = Reduction.of(form, prod(spec.kernel) * own, slack=(name == _PIXELS) == is_split)
        rows = flat_rows(pixels)
    if reduction is None:
        return None
    if name == _GATHER:
        run, outer = _runs(spec)
        runs = prod(count for count, _ in outer) * spec.groups * form.parts
        cycles += pixels * runs * (run * form.size / _COPIED_PER_CYCLE + _RUN_CYCLES)
    tiling = plan_tiling(rows, columns, spec.groups, reduction, form)
    own_cycles = tiling.cycles
    if is_split:
        own_cycles = split_cycles(tiling, prod(spec.kernel) * own * spec.out_channels, prod(spec.data_shape))
    return Way(name, spec, reduction, replace(tiling, cycles=own_cycles + cycles))


def _runs(spec: Conv2dSpec) -> tuple[int, tuple[tuple[int, int], ...]]:
    """Neighbouring elements of a window, and the loops around them; the data hold their padding."""
    own, line = spec.in_channels // spec.groups, spec.width * spec.in_channels
    height, width = spec.kernel
    rows = (height, spec.dilation[0] * line)
    if spec.groups == 1 and (spec.dilation[1] == 1 or width == 1):
        return width * own, (rows,)
    return own, (rows, (width, spec.dilation[1] * spec.in_channels))


def _integer_data(data: Any, spec: Conv2dSpec, way: Way, zero_point: int) -> tuple[Any, Statements]:
    """What registers read as one axis, and the statements that make it."""
    slack = BYTES if way.name != _PIXELS else 0
    pads = padding_of(spec.pads)
    if any(pads):
        staged = stage_image(data, spec.data_shape, pads, 1, data.dtype, 1, zero_point, slack)
        flat, statements = staged.flat, staged.statements
    else:
        flat, declaration = emit.flat_view(data, prod(spec.data_shape))
        statements = [declaration]
    if way.name != _GATHER:
        return flat, statements
    run, outer = _runs(way.spec)
    size = way.spec.batch * way.spec.out_height * way.spec.out_width * way.reduction.run * spec.groups
    gathered, allocation = emit.allocate_whole("gathered", size + BYTES, data.dtype, "global")
    return gathered, [*statements, *allocation, gather_windows(flat, way.spec, run, outer, gathered)]


def way_kernel(
    spec: Conv2dSpec,
    way: Way,
    data: Any,
    planes: Planes,
    writer: Writer,
    target: TargetNumbers,
    matrix: Rows | None = None,
) -> Kernel:
    """The function: registers read `planes`, which their statements make of `data`, or `matrix` split."""
    tiling, reduction, seen = way.tiling, way.reduction, way.spec
    registers, groups = tiling.registers, spec.groups
    shape = panel_shape(groups, tiling.panels, reduction, registers)
    weights = emit.buffer("weights", shape, registers.format.right)
    flat_weights, declare = emit.flat_view(weights, prod(shape))
    row, stride, pixel = (_image_rows if way.name == _ROWS else _flat_rows)(way)
    per_group = spec.out_channels // groups
    own = reduction.run if way.name != _ROWS else spec.in_channels // groups

    def index(batch: Index, tile: Any, number: Any, column: Any) -> Index:
        n, h, w = pixel(tile, number)
        return (n, batch[0] * per_group + column, h, w)

    product = TileProduct(
        tiling,
        reduction,
        (groups,),
        per_group,
        Strided(planes.flat, lambda batch, tile: row(tile) + batch[0] * own, stride, planes.plane),
        flat_weights,
        index,
    )
    if matrix is None:
        loops = product.body(writer, target, registers.row_count * stride, spec.flops)
    else:
        loops = product.split_body(matrix, writer, target, spec.flops)
    is_split = registers.format.parts > 1
    name = "conv2d_1x1" if way.name == _PIXELS else "conv2d"
    func = emit.function(
        name if is_split else f"integer_{name}",
        [data, weights, *writer.extras, writer.output],
        [*planes.statements, declare, loops],
    )
    staged = any(padding_of(spec.pads)) and not is_split
    copied = " gathered" if way.name == _GATHER else " staged" if staged else ""
    return Kernel(
        func,
        (lambda array: pack_window_panels(array, seen, reduction, tiling),),
        spec.flops,
        f"{'' if is_split else 'int8 '}{name} {tiling}{copied}",
    )


_Pixel = Callable[[Any, Any], tuple[Any, ...]]


def _image_rows(way: Way) -> tuple[Callable[[Any], Any], int, _Pixel]:
    """Where a register's first row begins, elements between rows, and the pixel of a row of it."""
    spec, rows = way.spec, way.tiling.registers.rows
    count = way.tiling.tiles // (spec.batch * spec.out_height)
    stride = spec.stride[1] * spec.in_channels
    top, left = -spec.pads[0], -spec.pads[1]

    def place(tile: Any) -> tuple[Any, Any, Any]:
        n, h, part = emit.unravel(tile, (spec.batch, spec.out_height, count))
        return n, h, emit.minimum(part * rows, spec.out_width - rows)

    def row(tile: Any) -> Any:
        n, h, w = place(tile)
        first = (n * spec.height + h * spec.stride[0] + top) * spec.width + left
        return first * spec.in_channels + w * stride

    def pixel(tile: Any, number: Any) -> tuple[Any, ...]:
        n, h, w = place(tile)
        return n, h, w + number

    return row, stride, pixel


def _flat_rows(way: Way) -> tuple[Callable[[Any], Any], int, _Pixel]:
    """The same where every pixel has a row of a matrix."""
    spec, rows = way.spec, way.tiling.registers.rows
    shape = (spec.batch, spec.out_height, spec.out_width)
    stride = way.reduction.run * spec.groups

    def first(tile: Any) -> Any:
        return emit.minimum(tile * rows, prod(shape) - rows)

    return (
        lambda tile: first(tile) * stride,
        stride,
        lambda tile, number: emit.unravel(first(tile) + number, shape),
    )


def pack_window_panels(
    weights: np.ndarray, spec: Conv2dSpec, reduction: Reduction, tiling: Tiling
) -> np.ndarray:
    """(O, C / groups, KH, KW) as panels, the reduction in the order rows, columns, channels."""
    per_group = spec.out_channels // spec.groups
    split = weights.reshape(spec.groups, per_group, *weights.shape[1:])
    ordered = split.transpose(0, 3, 4, 2, 1)
    return pack_panels(
        ordered.reshape(spec.groups, reduction.runs, reduction.run, per_group), reduction, tiling.registers
    )
