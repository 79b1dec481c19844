"""The sweep of pooling, depthwise convolution and small groups: vectors over channels, tiles of pixels.

Accumulators hold `pixels x vectors`. Every input column of a tile is loaded once and combined with all the
pixels whose window covers it. The last block of channels is moved back to end with the channels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from . import emit
from .arithmetic import FLOAT, Arithmetic
from .choices import Option, choose
from .emit import Statements
from .interface import Index
from .microkernel import Accumulators, Writer
from .tile import TargetNumbers, Tile, blocks, lanes_of
from .window import Window, column_inside, over_tiles, rows_inside

SERIAL_OPERATIONS = 50_000
"""Operations below which threads cost more than they save."""


@dataclass(frozen=True)
class Sweep:
    """One channel-wise window operator; the window must have few border tiles."""

    window: Window
    channels: int
    tile: Tile
    source: Any
    """(N, H, W, C) buffer."""
    initial: float
    prepare: Callable[[Any, Any], tuple[Any, Statements]]
    """(kernel row, first channel) -> what the row needs, such as its weights, and the statements it takes."""
    combine: Callable[[Accumulators, int, int, Any, tuple[int, int], Any], Any]
    """(accumulators, pixel, vector, input, (kernel column, input of the group), prepared) -> statement."""
    finish: Callable[[Accumulators, Any, Any], Statements]
    """(accumulators, first output column, output row) -> statements after the last tap."""
    group: tuple[int, int] = (1, 1)
    """Input and output channels of one group; `channels` counts outputs."""
    arithmetic: Arithmetic = FLOAT
    load: Callable[[Any, Any, int], Any] = emit.load
    """(buffer, index, lanes) -> a vector of the type of the accumulators."""

    def body(self, writer: Writer) -> Any:
        """The loops."""
        window = self.window
        rows = window.batch * window.out_height
        work = rows * window.out_width * self.channels * window.kernel[0] * window.kernel[1]

        def row(t: Any) -> Any:
            n, oh = emit.unravel(t, (window.batch, window.out_height))
            return over_tiles(window, self.tile.pixels, lambda ow: self._tile(writer, n, oh, ow))

        return emit.parallel("row", rows, row, enabled=work > SERIAL_OPERATIONS)

    def _tile(self, writer: Writer, n: Any, oh: Any, ow: Any) -> Any:
        tile = self.tile

        def block(b: Any) -> Any:
            start: Any = b * tile.block
            if self.channels % tile.block:
                start = emit.minimum(start, self.channels - tile.block)
            channel, bound = emit.bind("channel", start)
            accumulators = Accumulators(tile, self.arithmetic)
            top = oh * self.window.stride[0] - self.window.pads[0]
            low, rows = rows_inside(self.window, top)

            def kernel_row(kh: Any) -> Any:
                row = top + kh * self.window.dilation[0]
                prepared, statements = self.prepare(kh, channel)
                return [*statements, *self._taps(accumulators, (n, row), ow, channel, prepared)]

            return [
                *bound,
                *accumulators.clear(self.initial),
                emit.loop("kh", rows, kernel_row, start=low),
                *self.finish(accumulators, ow, oh),
                *writer.write_tile(
                    accumulators, lambda pixel, c: (n, c, oh, ow + pixel), channel, False, tile.block
                ),
            ]

        return emit.loop("block", blocks(self.channels, tile.block), block)

    def _taps(
        self, accumulators: Accumulators, row: tuple[Any, Any], ow: Any, channel: Any, prepared: Any
    ) -> Statements:
        window, tile = self.window, self.tile
        covered: dict[int, list[tuple[int, int]]] = {}
        for pixel in range(tile.pixels):
            for kw in range(window.kernel[1]):
                if column_inside(window, ow, pixel, kw):
                    offset = pixel * window.stride[1] + kw * window.dilation[1]
                    covered.setdefault(offset, []).append((pixel, kw))
        left = ow * window.stride[1] - window.pads[1]
        parts: Statements = []
        for offset in sorted(covered):
            for v in range(tile.vectors):
                for member, value, statements in self._inputs(row, left + offset, channel + v * tile.lanes):
                    parts.extend(statements)
                    parts.extend(
                        self.combine(accumulators, p, v, value, (kw, member), prepared)
                        for p, kw in covered[offset]
                    )
        return parts

    def _inputs(self, row: Index, column: Any, channel: Any) -> Iterator[tuple[int, Any, Statements]]:
        """For each input of a group: its number, its value in the lanes of the outputs, statements."""
        inputs, outputs = self.group
        lanes = self.tile.lanes
        width = lanes // outputs * inputs
        first = emit.floordiv(channel, outputs) * inputs if self.group != (1, 1) else channel
        dtype = self.arithmetic.accumulator
        loaded, bound = emit.hold("x", self.load(self.source, [*row, column, first], width), width, dtype)
        if self.group == (1, 1):
            yield 0, loaded, [bound]
            return
        for member in range(inputs):
            places = [lane // outputs * inputs + member for lane in range(lanes)]
            value, spread = emit.hold(f"x{member}", emit.pick(loaded, width, places), lanes)
            yield member, value, [bound, spread] if member == 0 else [spread]


def choose_channel_tile(
    window: Window, channels: int, held: int, target: TargetNumbers, packing: int = 1
) -> Tile:
    """Pixels and vectors per tile; `held` vectors per column of the block stay in registers beside them.

    `packing` is how many elements take the room of a float32.
    """
    lanes = min(lanes_of(target) * packing, channels)
    shape = (window.out_width, channels, window.kernel, window.stride[1], held, lanes)
    ranked = _ranked(*shape, target.vector_registers)
    best, least = min(ranked, key=lambda each: each[1])
    chosen = choose("tile", best.value, lambda: [Option(tile.value, cost / least) for tile, cost in ranked])
    assert isinstance(chosen, tuple)
    return Tile(*chosen)


@lru_cache(maxsize=1024)
def _ranked(
    width: int, channels: int, kernel: tuple[int, int], stride: int, held: int, lanes: int, registers: int
) -> list[tuple[Tile, float]]:
    """Tiles that fit the registers (one pixel by one vector always does), with their estimated cycles."""
    found: list[tuple[Tile, float]] = []
    for vectors in range(1, max(1, min(4, channels // lanes)) + 1):
        for pixels in range(1, min(width, 12) + 1):
            if (pixels + held) * vectors + 1 > registers and found:
                break
            columns = min((pixels - 1) * stride + kernel[1], pixels * kernel[1])
            operations = kernel[1] * pixels * vectors
            loads = (columns + held) * vectors
            row = max(operations, loads, 4 * kernel[1]) / 2 + 2
            tiles = blocks(width, pixels) * blocks(channels, vectors * lanes)
            cost = tiles * (kernel[0] * row + pixels * vectors + 8)
            found.append((Tile(pixels, vectors, lanes), cost))
    return found
