"""Copies of integer data in the form that integer tiles read: padded, widened, channels filled up.

Padding holds the zero point, so that it counts as zero once the zero point's share is taken off the sums.
Channels that fill a step hold anything: their weights are zero.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

from tvm import tirx
from tvm.tirx import ForKind

from . import emit
from .emit import Statements
from .interface import Conv2dSpec
from .product import SERIAL_FLOPS
from .tile import blocks


@dataclass(frozen=True)
class Staged:
    """Data as tiles read it: the flat view, its channels per pixel, and the statements that make it."""

    flat: Any
    channels: int
    statements: Statements


def filled(channels: int, groups: int, depth: int) -> int:
    """Channels per pixel once every group is filled up to whole steps."""
    return groups * blocks(channels // groups, depth) * depth


def stage_image(
    source: Any,
    shape: tuple[int, int, int, int],
    pads: tuple[int, int, int, int],
    groups: int,
    dtype: str,
    depth: int,
    zero_point: int,
    slack: int = 0,
) -> Staged:
    """A copy of (N, H, W, C) as (N, H + pads, W + pads, groups * filled channels).

    Args:
        source: the buffer.
        shape: its shape.
        pads: top, left, bottom, right.
        groups: groups of channels; each begins at a whole step.
        dtype: element type of the copy.
        depth: channels per step.
        zero_point: what padding holds.
        slack: elements behind the copy that may be read, whatever they hold.
    """
    batch, rows, columns, channels = shape
    top, left, bottom, right = pads
    per_group, wide = channels // groups, filled(channels, groups, depth) // groups
    height, width = rows + top + bottom, columns + left + right
    size = batch * height * width * groups * wide
    staged, allocation = emit.allocate_whole("staged", size + slack, dtype, "global")
    fill = tirx.const(zero_point, dtype)
    flat, declaration = emit.flat_view(source, prod(shape))

    def place(n: Any, h: Any, w: Any, c: Any) -> Any:
        return ((n * height + h) * width + w) * (groups * wide) + c

    def run(at: Any, count: int, value: Any) -> Any:
        """`count` elements from `at` on, in vectors."""
        return emit.loop("i", count, lambda i: emit.store(staged, value(i), [at + i]), ForKind.SERIAL)

    def row(t: Any) -> Any:
        n, h = emit.unravel(t, (batch, height))

        def blank(first: int, count: int) -> Statements:
            if not count:
                return []
            return [run(place(n, h, first, 0), count * groups * wide, lambda _: fill)]

        def pixel(w: Any) -> Statements:
            def group(g: Any) -> Any:
                return emit.loop(
                    "c",
                    per_group,
                    lambda c: emit.store(
                        staged,
                        _cast(emit.load(source, [n, h - top, w, g * per_group + c]), dtype),
                        [place(n, h, w + left, g * wide + c)],
                    ),
                )

            def rest(g: Any) -> Any:
                return run(place(n, h, w + left, g * wide + per_group), wide - per_group, lambda _: fill)

            return [emit.loop("g", groups, group), emit.loop("g", groups, rest)]

        def image() -> Any:
            if wide > per_group:
                return emit.loop("w", columns, pixel)
            begin, own = place(n, h, left, 0), (n * rows + h - top) * (columns * channels)
            return run(begin, columns * channels, lambda i: _cast(emit.load(flat, [own + i]), dtype))

        body = [*blank(0, left), image(), *blank(left + columns, right)]
        if not top and not bottom:
            return body
        inside = emit.all_of(h >= top, h < top + rows)
        return emit.when(inside, body, blank(0, width))

    work = batch * height * width * channels
    return Staged(
        staged,
        groups * wide,
        [declaration, *allocation, emit.parallel("stage", batch * height, row, enabled=work > SERIAL_FLOPS)],
    )


def gather_windows(
    source: Any,
    spec: Conv2dSpec,
    run: int,
    outer: Sequence[tuple[int, int]],
    gathered: Any,
    begin: int = 0,
    to: int = 0,
) -> Any:
    """Every window of (N, H, W, C) as a row: groups, then rows of the window, then columns and channels.

    Args:
        source: the data as one axis.
        spec: the convolution; the data hold its padding, negative pads skip what they hold.
        run: neighbouring elements of a window.
        outer: (iterations, elements between them) of the loops around runs.
        gathered: the flat buffer that is filled.
        begin: where the data begin in `source`.
        to: where the rows begin in `gathered`.
    """
    counts = [spec.groups, *(count for count, _ in outer)]
    strides = [spec.in_channels // spec.groups, *(stride for _, stride in outer)]
    length, pixels = prod(counts) * run, (spec.batch, spec.out_height, spec.out_width)

    def line(t: Any) -> Any:
        n, h = emit.unravel(t, pixels[:2])
        row = (n * spec.height + h * spec.stride[0] - spec.pads[0]) * spec.width - spec.pads[1]
        first = begin + row * spec.in_channels

        def pixel(w: Any) -> Any:
            own = to + (t * spec.out_width + w) * length

            def piece(index: tuple[Any, ...]) -> Any:
                if len(index) < len(counts):
                    return emit.loop("tap", counts[len(index)], lambda i: piece((*index, i)))
                place = own + emit.ravel(index, counts) * run
                at = first + w * (spec.stride[1] * spec.in_channels)
                for number, stride in zip(index, strides, strict=True):
                    at = at + number * stride
                return emit.loop(
                    "i", run, lambda i: emit.store(gathered, emit.load(source, [at + i]), [place + i])
                )

            return piece(())

        return emit.loop("w", spec.out_width, pixel)

    enabled = prod(pixels) * length > SERIAL_FLOPS
    return emit.parallel("gather", prod(pixels[:2]), line, enabled)


def stage_rows(source: Any, shape: Sequence[int], dtype: str, depth: int, zero_point: int = 0) -> Staged:
    """A copy of rows (..., K) with K filled up to whole steps, the zero point taken off.

    Args:
        source: the flat buffer.
        shape: its shape; the last axis is the reduction.
        dtype: element type of the copy.
        depth: values per step.
        zero_point: subtracted from every value.
    """
    rows, k = prod(shape[:-1]), shape[-1]
    wide = blocks(k, depth) * depth
    staged, allocation = emit.allocate("rows", (rows * wide,), dtype, "global")

    def value(at: Any) -> Any:
        loaded = _cast(emit.load(source, [at]), dtype)
        return loaded - tirx.const(zero_point, dtype) if zero_point else loaded

    def row(r: Any) -> Statements:
        return [
            emit.loop("k", k, lambda i: emit.store(staged, value(r * k + i), [r * wide + i])),
            emit.loop(
                "k",
                wide - k,
                lambda i: emit.store(staged, tirx.const(0, dtype), [r * wide + i]),
                start=k,
            ),
        ]

    return Staged(
        staged, wide, [allocation, emit.parallel("stage", rows, row, enabled=rows * k > SERIAL_FLOPS)]
    )


def batch_strides(shape: tuple[int, ...], rank: int, inner: int) -> list[int]:
    """Steps between neighbours along each axis of a batch of `rank` axes; 0 where it is repeated."""
    steps = [0] * (rank - len(shape))
    for axis, size in enumerate(shape):
        steps.append(0 if size == 1 else prod(shape[axis + 1 :]) * inner)
    return steps


def _cast(value: Any, dtype: str) -> Any:
    return value if str(value.ty.dtype) == dtype else tirx.Cast(dtype, value)
