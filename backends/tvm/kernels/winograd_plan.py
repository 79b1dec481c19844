"""How minimal filtering is divided: into chunks of tiles that a cache holds, and register tiles."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod

from .choices import Option, choose
from .interface import Conv2dSpec
from .minimal_filtering import F2, F4, TAPS, MinimalFilter
from .tile import (
    L3_BYTES_PER_CYCLE,
    MEMORY_BYTES_PER_CYCLE,
    TargetNumbers,
    Tile,
    analytic_tile,
    blocks,
    lanes_of,
    tile_cycles,
    tile_options,
)

_DIRECT = "direct"
LEAST_CHANNELS = 16
"""With fewer input channels the transforms cost more than the products save."""
_STAGE_CYCLES = {2: (40.0, 30.0), 4: (130.0, 110.0)}
"""Cycles that the transforms of one tile take per vector of input and of output channels."""
_STAGES = 3
_START_CYCLES = 20_000.0
"""What it takes to start and join the worker threads once."""


@dataclass(frozen=True)
class Plan:
    """How a convolution is divided: `chunks` of `tiles` tiles each, multiplied by register tiles."""

    filter: MinimalFilter
    tile: Tile
    tiles: int
    chunks: int
    cycles: float

    def __str__(self) -> str:
        return f"F({self.filter.outputs},3) {self.tile}"


def choose_winograd(spec: Conv2dSpec, direct_cycles: float, target: TargetNumbers) -> Plan | None:
    """The quickest division; None where direct convolution is estimated to be quicker, or only it applies."""
    if spec.kernel != (TAPS, TAPS) or spec.stride != (1, 1) or spec.dilation != (1, 1) or spec.groups != 1:
        return None
    if min(spec.in_channels, spec.out_channels) < LEAST_CHANNELS:
        return None
    fitting = [each for each in (F2, F4) if min(spec.out_height, spec.out_width) >= each.outputs]
    divided = {f"F({each.outputs},3)": divisions(spec, each, target) for each in fitting}
    cycles = {_DIRECT: direct_cycles} | {
        name: min(plan.cycles for plan in plans) for name, plans in divided.items()
    }
    quickest = min(cycles, key=cycles.__getitem__)
    least = cycles[quickest]
    algorithm = choose(
        "algorithm", quickest, lambda: [Option(name, taken / least) for name, taken in cycles.items()]
    )
    return None if algorithm == _DIRECT else _chosen_plan(spec, divided[str(algorithm)], target)


def divisions(spec: Conv2dSpec, used: MinimalFilter, target: TargetNumbers) -> list[Plan]:
    """Ways to divide a convolution into chunks."""
    count = prod(tile_grid(spec, used))
    divisions = sorted({blocks(count, tiles) for tiles in _halvings(count)})
    return [_divided(spec, used, chunks, target) for chunks in divisions]


def _chosen_plan(spec: Conv2dSpec, plans: list[Plan], target: TargetNumbers) -> Plan:
    """One of the divisions, and a tile for it."""
    best = min(plans, key=lambda plan: plan.cycles)
    chunks = choose("chunks", best.chunks, lambda: [Option(p.chunks, p.cycles / best.cycles) for p in plans])
    plan = best if chunks == best.chunks else next(plan for plan in plans if plan.chunks == chunks)
    shape = (plan.tiles, spec.out_channels, spec.in_channels)
    tile = choose("tile", plan.tile.value, lambda: tile_options(*shape, target, 2))
    if tile == plan.tile.value:
        return plan
    assert isinstance(tile, tuple)
    return _divided(spec, plan.filter, plan.chunks, target, Tile(*tile))


def _halvings(count: int) -> Iterator[int]:
    """About `count` divided by the powers of the root of two."""
    size = float(count)
    while size >= 1:
        yield int(size)
        size /= 1.41


def _divided(
    spec: Conv2dSpec, used: MinimalFilter, chunks: int, target: TargetNumbers, tile: Tile | None = None
) -> Plan:
    """A division into about `chunks`, with the cycles one core is estimated to take."""
    lanes, channels, outputs = lanes_of(target), spec.in_channels, spec.out_channels
    count = prod(tile_grid(spec, used))
    tile = tile or analytic_tile(blocks(count, chunks), outputs, channels, target, 2)
    tiles = min(count, blocks(blocks(count, chunks), tile.pixels) * tile.pixels)
    chunks = blocks(count, tiles)
    products = used.products * chunks * tile_cycles(tiles, outputs, channels, target)
    forward, backward = _STAGE_CYCLES[used.outputs]
    transforms = chunks * tiles * (forward * blocks(channels, lanes) + backward * blocks(outputs, lanes))
    half = target.l2_bytes // 2
    weight_bytes = 4 * used.products * channels * outputs
    tile_bytes = 4 * used.products * (channels + outputs)
    # Other layers have driven the weights out of the caches since the last run; they come while products are
    # formed.
    stream = max(weight_bytes / MEMORY_BYTES_PER_CYCLE - products, 0.0)
    if weight_bytes > half:
        stream += weight_bytes * (chunks - 1) / L3_BYTES_PER_CYCLE
    if tiles * tile_bytes > half:
        # Written and read again, each by a stage of its own.
        stream += 2 * count * tile_bytes / L3_BYTES_PER_CYCLE
    busy = products + transforms
    if chunks < target.cores:
        starts = chunks * _STAGES * _START_CYCLES if target.cores > 1 else 0.0
    else:
        starts = 0.0
        busy *= blocks(chunks, target.cores) * target.cores / chunks
    return Plan(used, tile, tiles, chunks, busy + stream + starts)


def tile_grid(spec: Conv2dSpec, used: MinimalFilter) -> tuple[int, int, int]:
    """Images, and rows and columns of tiles of each."""
    return (spec.batch, blocks(spec.out_height, used.outputs), blocks(spec.out_width, used.outputs))
