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
    """
    batch, rows, columns, channels = shape
    top, left, bottom, right = pads
    per_group, wide = channels // groups, filled(channels, groups, depth) // groups
    height, width = rows + top + bottom, columns + left + right
    staged, allocation = emit.allocate("staged", (batch * height * width * groups * wide,), dtype, "global")
    fill = tirx.const(zero_point, dtype)

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

            parts: Statements = [emit.loop("g", groups, group)]
            if wide > per_group:
                parts.append(
                    emit.loop(
                        "g",
                        groups,
                        lambda g: run(
                            place(n, h, w + left, g * wide + per_group), wide - per_group, lambda _: fill
                        ),
                    )
                )
            return parts

        body = [*blank(0, left), *_pixels(columns, pixel), *blank(left + columns, right)]
        if not top and not bottom:
            return body
        inside = emit.all_of(h >= top, h < top + rows)
        return emit.when(inside, body, blank(0, width))

    def _pixels(count: int, pixel: Any) -> Statements:
        return [emit.loop("w", count, pixel)]

    work = batch * height * width * channels
    return Staged(
        staged,
        groups * wide,
        [allocation, emit.parallel("stage", batch * height, row, enabled=work > SERIAL_FLOPS)],
    )


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


def _cast(value: Any, dtype: str) -> Any:
    return value if str(value.ty.dtype) == dtype else tirx.Cast(dtype, value)
