"""Geometry of sliding windows: which taps of which output pixels lie inside the image.

Rows outside are skipped by loop bounds; columns outside are known while code is generated, because the tiles
that touch a border start at constants. With too many border tiles the operator reads a padded copy.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Protocol

from . import emit
from .choices import Option, choose, choose_flag
from .emit import Statements
from .interface import Conv2dSpec, Index
from .tile import Tile

_SHARE_ROWS, _SHARE_WEIGHTS = "rows", "weights"
MAX_BORDER_TILES = 4
"""Border tiles that get code of their own; with more of them the input is padded first."""


class Window(Protocol):
    """What convolution and pooling specs have in common."""

    @property
    def batch(self) -> int:
        """Images."""

    @property
    def height(self) -> int:
        """Rows of the input."""

    @property
    def width(self) -> int:
        """Columns of the input."""

    @property
    def out_height(self) -> int:
        """Rows of the output."""

    @property
    def out_width(self) -> int:
        """Columns of the output."""

    @property
    def kernel(self) -> tuple[int, int]:
        """Taps."""

    @property
    def stride(self) -> tuple[int, int]:
        """Steps between windows."""

    @property
    def dilation(self) -> tuple[int, int]:
        """Steps between taps."""

    @property
    def pads(self) -> tuple[int, int, int, int]:
        """Top, left, bottom, right."""


def tile_starts(width: int, pixels: int) -> list[int]:
    """First pixel of each tile of a row; the last one is moved left to end with the row."""
    return [min(start, width - pixels) for start in range(0, width, pixels)]


def touches_border(window: Window, start: int, pixels: int) -> bool:
    """Whether a tile reads columns outside the image."""
    left = start * window.stride[1] - window.pads[1]
    right = left + (pixels - 1) * window.stride[1] + (window.kernel[1] - 1) * window.dilation[1]
    return left < 0 or right >= window.width


def border_tiles(window: Window, pixels: int) -> int:
    """Tiles of a row that read columns outside the image."""
    return sum(touches_border(window, start, pixels) for start in tile_starts(window.out_width, pixels))


def choose_padded(window: Window, tile: Tile) -> bool:
    """Whether the operator reads a padded copy; always where too many tiles touch the border."""
    found = border_tiles(window, tile.pixels)
    if found > MAX_BORDER_TILES or not any(window.pads):
        return found > MAX_BORDER_TILES
    return choose_flag("padded", False)


def choose_order() -> Callable[[Any, Index, int, int], Index]:
    """How the number of a task is read: (number, batch, chunks of rows, blocks) -> (batch..., chunk, block).

    Neighbouring tasks either share their rows of the input or, the other way, their weights.
    """
    if choose("order", _SHARE_ROWS, lambda: [Option(_SHARE_WEIGHTS)]) == _SHARE_ROWS:
        return lambda t, batch, chunks, count: emit.unravel(t, (*batch, chunks, count))

    def swapped(t: Any, batch: Index, chunks: int, count: int) -> Index:
        *outer, block, chunk = emit.unravel(t, (*batch, count, chunks))
        return (*outer, chunk, block)

    return swapped


def over_tiles(window: Window, pixels: int, tile: Callable[[Any], Any]) -> Statements:
    """`tile(first pixel)` for every tile of a row: constants at the borders, a loop between them."""
    starts = tile_starts(window.out_width, pixels)
    inner = [t for t, start in enumerate(starts) if not touches_border(window, start, pixels)]
    if not inner:
        return [tile(start) for start in starts]
    last = window.out_width - pixels
    is_moved = starts[inner[-1]] != inner[-1] * pixels

    def inner_tile(t: Any) -> Any:
        return tile(emit.minimum(t * pixels, last) if is_moved else t * pixels)

    return [
        *(tile(start) for start in starts[: inner[0]]),
        emit.loop("column", len(inner), inner_tile, start=inner[0]),
        *(tile(start) for start in starts[inner[-1] + 1 :]),
    ]


def taps_inside(first: Any, taps: int, dilation: int, low: int, high: int) -> tuple[Any, Any]:
    """First tap and number of taps whose position `first + tap * dilation` lies in [low, high)."""
    begin = emit.maximum(0, emit.floordiv(low - first + dilation - 1, dilation))
    end = emit.minimum(taps, emit.floordiv(high - first + dilation - 1, dilation))
    return begin, emit.maximum(end - begin, 0)


def rows_inside(window: Window, top: Any, padded: bool = False) -> tuple[Any, Any]:
    """First tap and number of taps inside the image of the window whose first row is `top`.

    With `padded`, inside the image and its padding.
    """
    low, high = (-window.pads[0], window.height + window.pads[2]) if padded else (0, window.height)
    return _range(window, 0, top, window.out_height, low, high)


def columns_inside(window: Window, left: Any, padded: bool = False) -> tuple[Any, Any]:
    """The same for columns."""
    low, high = (-window.pads[1], window.width + window.pads[3]) if padded else (0, window.width)
    return _range(window, 1, left, window.out_width, low, high)


def _range(window: Window, axis: int, first: Any, outputs: int, low: int, high: int) -> tuple[Any, Any]:
    taps, dilation = window.kernel[axis], window.dilation[axis]
    lowest = -window.pads[axis]
    highest = (outputs - 1) * window.stride[axis] + lowest + (taps - 1) * dilation
    if lowest >= low and highest < high:
        return 0, taps
    return taps_inside(first, taps, dilation, low, high)


def column_inside(window: Window, ow: Any, pixel: int, tap: int) -> bool:
    """Whether a tap of a pixel reads inside the image; a tile that starts at an expression lies inside."""
    if not isinstance(ow, int):
        return True
    return 0 <= (ow + pixel) * window.stride[1] - window.pads[1] + tap * window.dilation[1] < window.width


def pad_stage(window: Window, channels: int, source: Any) -> tuple[Any, Statements]:
    """A zero-padded copy of (N, H, W, C) in scratch memory, and the statements that make it."""
    top, left, bottom, right = window.pads
    height, width = window.height + top + bottom, window.width + left + right
    padded, allocation = emit.allocate("padded", (window.batch, height, width, channels), scope="global")

    def row(t: Any) -> Any:
        n, h = emit.unravel(t, (window.batch, height))

        def fill(first: int, count: int) -> Any:
            return emit.loop(
                "w",
                count,
                lambda w: emit.loop(
                    "c", channels, lambda c: emit.store(padded, emit.constant(0), [n, h, w, c])
                ),
                start=first,
            )

        def copy(w: Any) -> Any:
            return emit.loop(
                "c",
                channels,
                lambda c: emit.store(padded, emit.load(source, [n, h - top, w, c]), [n, h, w + left, c]),
            )

        inside = emit.all_of(h >= top, h < top + window.height)
        body = [fill(0, left), emit.loop("w", window.width, copy), fill(left + window.width, right)]
        return emit.when(inside, body, fill(0, width))

    return padded, [allocation, emit.parallel("pad", window.batch * height, row)]


def gather_stage(spec: Conv2dSpec, source: Any) -> tuple[Any, Statements]:
    """A copy of the pixels that a strided 1x1 convolution reads, and the statements that make it."""
    shape = (spec.batch, spec.out_height, spec.out_width, spec.in_channels)
    gathered, allocation = emit.allocate("gathered", shape, scope="global")

    def row(t: Any) -> Any:
        n, h = emit.unravel(t, shape[:2])

        def pixel(w: Any) -> Any:
            def copy(c: Any) -> Any:
                value = emit.load(source, [n, h * spec.stride[0], w * spec.stride[1], c])
                return emit.store(gathered, value, [n, h, w, c])

            return emit.loop("c", spec.in_channels, copy)

        return emit.loop("w", spec.out_width, pixel)

    return gathered, [allocation, emit.parallel("gather", spec.batch * spec.out_height, row)]


def gathered_spec(spec: Conv2dSpec) -> Conv2dSpec:
    """The same 1x1 convolution of the pixels that it reads."""
    return replace(spec, height=spec.out_height, width=spec.out_width, stride=(1, 1))


def is_pointwise(spec: Conv2dSpec) -> bool:
    """Whether every output pixel depends on the input pixel of the same position alone."""
    return spec.kernel == (1, 1) and spec.stride == (1, 1) and not any(spec.pads)


def padding_of(pads: tuple[int, int, int, int]) -> tuple[int, int, int, int]:
    """What of pads is padding: negative ones skip rows and columns instead."""
    top, left, bottom, right = (max(pad, 0) for pad in pads)
    return (top, left, bottom, right)


def padded_spec(spec: Conv2dSpec) -> Conv2dSpec:
    """The same convolution of an input that already holds the padding."""
    top, left, bottom, right = padding_of(spec.pads)
    skipped = tuple(min(pad, 0) for pad in spec.pads)
    return replace(
        spec,
        height=spec.height + top + bottom,
        width=spec.width + left + right,
        pads=skipped,  # type: ignore[arg-type]
    )
