"""The analytic tile chooser: register tiles and cache chunks from a target's numbers and a shape.

A register tile holds `pixels x vectors` accumulators. Each step of the reduction loads one vector of weights
per column and one value per row, so a tile is good if it has enough accumulators to hide the latency of a
fused multiply-add, few loads per multiply-add, no spills, and little work outside the output.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

from .choices import Option, choose, choose_size

_FMA_CHAINS = 10
"""Independent multiply-adds in flight that keep two pipes of latency four busy."""
_LOAD_CYCLES = 0.05
"""What a load costs beyond the multiply-adds it is hidden behind."""
_L1_BYTES_PER_CYCLE = 128.0
_L2_BYTES_PER_CYCLE = 24.0
L3_BYTES_PER_CYCLE = 6.0
MEMORY_BYTES_PER_CYCLE = 3.0
_SHORTEST_SLICE = 384
"""Reduction steps that make up for storing and loading the sums of a tile."""
_MOST_SLICES = 16
"""Slices that are tried."""
_WORST_TILE = 2.0
"""Tiles that are estimated to take longer than this many times the best are not worth trying."""
_STREAMED_ROWS = range(5, 9)
_STREAMED_FLOATS = 32
_TILE_OVERHEAD_CYCLES = 12.0
"""Loop control and write-back that do not shrink with the tile."""


class TargetNumbers(Protocol):
    """The part of a target description that tiles depend on."""

    @property
    def vector_bits(self) -> int:
        """Bits of a vector register."""

    @property
    def vector_registers(self) -> int:
        """Vector registers."""

    @property
    def cores(self) -> int:
        """Cores that work at the same time."""

    @property
    def l1_bytes(self) -> int:
        """First-level data cache of a core."""

    @property
    def l2_bytes(self) -> int:
        """Second-level cache of a core."""


@dataclass(frozen=True)
class Tile:
    """One register tile: `pixels` rows by `vectors` vectors of `lanes` channels."""

    pixels: int
    vectors: int
    lanes: int

    @property
    def block(self) -> int:
        """Output channels per tile."""
        return self.vectors * self.lanes

    @property
    def value(self) -> tuple[int, int, int]:
        """The tile as plain data."""
        return (self.pixels, self.vectors, self.lanes)

    def __str__(self) -> str:
        return f"{self.pixels}x{self.vectors}x{self.lanes}"


def lanes_of(target: TargetNumbers) -> int:
    """float32 lanes of one vector register."""
    return max(target.vector_bits // 32, 4)


def blocks(size: int, block: int) -> int:
    """Blocks needed to cover `size`."""
    return -(-size // block)


def choose_tile(
    width: int,
    channels: int,
    depth: int,
    target: TargetNumbers,
    sweeps: int = 1,
    name: str = "tile",
    preferred: Tile | None = None,
    spare: int = 0,
) -> Tile:
    """The register tile for rows of `width` pixels, `channels` outputs and reductions of `depth` steps.

    `sweeps` is the number of rows that read the same weights, `name` that of the parameter, `preferred` what
    is taken instead of the estimated best, `spare` counts registers that a step needs besides.
    """
    best = preferred or _chosen(width, channels, depth, target, sweeps, spare)[0]
    chosen = choose(name, best.value, lambda: tile_options(width, channels, depth, target, sweeps, spare))
    assert isinstance(chosen, tuple)
    return Tile(*chosen)


def streaming_tile(rows: int, channels: int, depth: int, target: TargetNumbers) -> Tile | None:
    """One tile for all of several rows, whose weights come from memory and are used once; None otherwise.

    One step uses two cache lines of weights, so that what is requested ahead arrives as evenly as it is used.
    Measured with 8 rows: a sixth to a third more bytes per second than with narrower rows and wider columns;
    with fewer rows nothing is gained, since the hardware's prefetchers keep up.
    """
    lanes = lanes_of(target)
    vectors = max(1, min(_STREAMED_FLOATS // lanes, blocks(channels, lanes)))
    fits = rows * vectors + min(rows, vectors) + 1 <= target.vector_registers
    if rows not in _STREAMED_ROWS or not fits or 4 * channels * depth <= target.l2_bytes:
        return None
    return Tile(rows, vectors, lanes)


def analytic_tile(width: int, channels: int, depth: int, target: TargetNumbers, sweeps: int = 1) -> Tile:
    """What `choose_tile` takes where nobody asks for another tile."""
    return _chosen(width, channels, depth, target, sweeps)[0]


def tile_options(
    width: int, channels: int, depth: int, target: TargetNumbers, sweeps: int = 1, spare: int = 0
) -> list[Option]:
    """Tiles worth trying, by estimated time; narrower vectors too, for channels that fill them better."""
    widest = lanes_of(target)
    best = _chosen(width, channels, depth, target, sweeps, spare)[1]
    found = []
    for lanes in {widest, max(widest // 2, 4)}:
        ranked = _ranked(
            width,
            channels,
            depth,
            min(sweeps, 2),
            lanes,
            target.vector_registers - spare,
            target.l1_bytes,
            target.l2_bytes,
        )
        found += [Option(tile.value, cost / best) for tile, cost in ranked if cost <= _WORST_TILE * best]
    return sorted(found, key=lambda option: option.cost)


def tile_cycles(width: int, channels: int, depth: int, target: TargetNumbers, sweeps: int = 2) -> float:
    """Estimated cycles that the tile of `choose_tile` takes for one row."""
    return _chosen(width, channels, depth, target, sweeps)[1]


def _chosen(
    width: int, channels: int, depth: int, target: TargetNumbers, sweeps: int, spare: int = 0
) -> tuple[Tile, float]:
    return _choose(
        width,
        channels,
        depth,
        min(sweeps, 2),
        lanes_of(target),
        target.vector_registers - spare,
        target.l1_bytes,
        target.l2_bytes,
    )


@lru_cache(maxsize=4096)
def _choose(
    width: int, channels: int, depth: int, sweeps: int, lanes: int, registers: int, l1: int, l2: int
) -> tuple[Tile, float]:
    return min(
        _ranked(width, channels, depth, sweeps, lanes, registers, l1, l2), key=lambda ranked: ranked[1]
    )


def _ranked(
    width: int, channels: int, depth: int, sweeps: int, lanes: int, registers: int, l1: int, l2: int
) -> list[tuple[Tile, float]]:
    """Every tile that fits the registers, with the cycles it is estimated to take for one row."""
    needed = blocks(channels, lanes)
    found = []
    for vectors in range(1, min(needed, 8) + 1):
        budget = registers - vectors - 1
        panel = depth * vectors * lanes * 4
        for pixels in range(1, min(width, budget // vectors) + 1):
            row_tiles = blocks(width, pixels)
            tile = Tile(pixels, vectors, lanes)
            cycles = _cycles(tile, depth, _bandwidth(panel, row_tiles * sweeps > 1, l1, l2))
            found.append((tile, row_tiles * blocks(needed, vectors) * cycles))
    return found


def _cycles(tile: Tile, depth: int, bandwidth: float) -> float:
    """Estimated cycles of one tile whose weights arrive at so many bytes per cycle."""
    loads = tile.pixels + tile.vectors
    step = max(tile.pixels * tile.vectors, loads, _FMA_CHAINS) / 2 + loads * _LOAD_CYCLES
    return depth * max(step, 4 * tile.block / bandwidth) + tile.pixels * tile.vectors + _TILE_OVERHEAD_CYCLES


def _bandwidth(panel: int, is_read_again: bool, l1: int, l2: int) -> float:
    """Bytes per cycle at which a panel of weights arrives."""
    if not is_read_again:
        return MEMORY_BYTES_PER_CYCLE
    if panel <= l1 // 2:
        return _L1_BYTES_PER_CYCLE
    return _L2_BYTES_PER_CYCLE if panel <= l2 // 2 else L3_BYTES_PER_CYCLE


@dataclass(frozen=True)
class Chunks:
    """Division of the output rows into `count` chunks of up to `rows` rows, each swept by blocks."""

    rows: int
    count: int


def choose_chunks(
    rows: int,
    row_bytes: int,
    weight_bytes: int,
    outer: int,
    column_blocks: int,
    target: TargetNumbers,
    swept_bytes: int | None = None,
) -> Chunks:
    """Rows per chunk, so that what is read again stays in the second-level cache and all cores have work.

    Within a chunk every block of output channels sweeps all rows: the weights are read once per chunk and the
    rows once per block. `outer` counts independent repetitions (the batch). `swept_bytes` is the larger of
    input and output where the weights are constants: those come from beyond the second-level cache, where
    other layers have driven them; if input and output fit it, all rows are swept at once while the next block
    of weights is on its way.
    """
    half = max(target.l2_bytes // 2, 1)
    if swept_bytes is not None and swept_bytes <= half:
        size = rows
    elif weight_bytes <= half:
        size = max(1, min(rows, (target.l1_bytes // 2) // max(row_bytes, 1)))
    else:
        size = max(1, min(rows, half // max(row_bytes, 1)))
    while size > 1 and _imbalance(outer * blocks(rows, size) * column_blocks, target.cores) > 1.1:
        size -= max(1, size // 8)
    even = choose_size("rows", blocks(rows, blocks(rows, size)), rows)
    return Chunks(even, blocks(rows, even))


@dataclass(frozen=True)
class Slices:
    """Division of a reduction into `count` slices of up to `steps` steps, `tiles` row tiles at a time."""

    steps: int
    count: int
    tiles: int


def choose_slices(m: int, depth: int, weight_bytes: int, tile: Tile, target: TargetNumbers) -> Slices | None:
    """Slices of a product whose operands both exceed the cache; None where whole reductions are better.

    A slice of the rows stays in the second-level cache while all the weights of the slice pass by, so that
    weights come from memory once; the sums wait in memory between slices.
    """
    half = target.l2_bytes // 2
    count = 1
    if weight_bytes > half and 4 * m * depth > half:
        # The other half of that half is for the weights that pass by and for those on their way.
        count = blocks(depth, max(half // (8 * m), _SHORTEST_SLICE))
        # Weights are requested ahead where all slices are as long.
        count = next((fewer for fewer in range(count, 1, -1) if depth % (8 * fewer) == 0), count)
    count = choose_size("slices", count, max(count, min(depth // _SHORTEST_SLICE, _MOST_SLICES), 1))
    if count == 1:
        return None
    steps = blocks(blocks(depth, count), 8) * 8
    tiles = blocks(m, tile.pixels)
    chunks = choose_size("chunks", min(tiles, max(1, round(4 * steps * m / half))), min(tiles, 16))
    return Slices(steps, blocks(depth, steps), blocks(tiles, chunks))


def _imbalance(tasks: int, cores: int) -> float:
    return blocks(tasks, cores) * cores / tasks
