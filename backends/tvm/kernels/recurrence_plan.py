"""How a recurrent layer is divided: register tiles, and work for the threads.

Every step reads all recurrent weights once for each tile of sequences, so a tile holds as many sequences as
registers allow. With one sequence the weights stream out of a cache, and enough independent sums hide the
latency of multiply-adds.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from .arithmetic import Arithmetic, integer_arithmetic
from .choices import Option, choose
from .product import SERIAL_FLOPS
from .recurrence_fixed import PARTS, WORD, is_bounded
from .recurrence_spec import RecurrenceSpec
from .tile import L3_BYTES_PER_CYCLE, TargetNumbers, blocks, lanes_of

_FMA_CHAINS = 10
_L2_BYTES_PER_CYCLE = 48.0
_MOST_SUMS = 24
"""Accumulators per tile where registers abound: more only lengthens the code."""
_BARRIER_CYCLES = 3000
"""What it costs that threads wait for each other once per step."""
_MOST_DOTTED = 32768
"""Units whose integer products int32 holds the sum of."""
_CELL_CYCLES = 90
"""What the activations of one vector of units cost, about."""


@dataclass(frozen=True)
class Block:
    """A register tile: `rows` sequences by `vectors` vectors of `lanes` units, for each of some gates."""

    rows: int
    vectors: int
    lanes: int

    @property
    def units(self) -> int:
        """Hidden units per tile."""
        return self.vectors * self.lanes

    def count(self, hidden: int) -> int:
        """Tiles that cover the hidden units; the last one overlaps the one before it."""
        return blocks(hidden, self.units)

    def __str__(self) -> str:
        return f"{self.rows}x{self.vectors}x{self.lanes}"


def way_of(spec: RecurrenceSpec, target: TargetNumbers) -> str:
    """How weights are multiplied: as "float", "decoded" to floats, or "dotted" as integers."""
    form = spec.weights
    if form is None:
        return "float"
    whole = form.zero == 0 if form.bits == 8 else float(2 * form.zero).is_integer()
    per_step = WORD * 8 // form.bits
    aligned = spec.groups == 1 or form.group % per_step == 0
    plain = whole and aligned and not form.has_levels
    fits = lanes_of(target) <= spec.hidden <= _MOST_DOTTED and is_bounded(spec)
    return "dotted" if plain and fits and dots_of(target) is not None else "decoded"


def dots_of(target: TargetNumbers) -> Arithmetic | None:
    """The instruction that adds four products of bytes, if there is one."""
    known = (integer_arithmetic(data, "int8", target) for data in ("uint8", "int8"))
    return next((each for each in known if each.depth == WORD), None)


def choose_block(
    spec: RecurrenceSpec, gates: int, target: TargetNumbers, name: str, rows: int | None = None
) -> Block:
    """The tile for the products of some gates, by estimated time; `rows` where they are decided already."""
    ranked, lanes = _ranked(spec, gates, target, rows), min(lanes_of(target), spec.hidden)
    if not ranked:
        return Block(rows or 1, 1, lanes)
    best = min(ranked, key=lambda each: each[1])
    value = (best[0].rows, best[0].vectors, lanes)
    options = [Option((b.rows, b.vectors, lanes), cost / best[1]) for b, cost in ranked]
    chosen = choose(name, value, lambda: [each for each in options if each.cost < 2])
    assert isinstance(chosen, tuple)
    return Block(*chosen)


def step_cycles(spec: RecurrenceSpec, target: TargetNumbers) -> float:
    """Estimated cycles of one step of one direction on one core, all gates at once, by the best tile."""
    return min((cost for _, cost in _ranked(spec, spec.gates, target, None)), default=0.0)


def _ranked(
    spec: RecurrenceSpec, gates: int, target: TargetNumbers, rows: int | None
) -> list[tuple[Block, float]]:
    """Tiles that registers allow, with their estimated time."""
    lanes, way = min(lanes_of(target), spec.hidden), way_of(spec, target)
    ranked = []
    for vectors in range(1, max(spec.hidden // lanes, 1) + 1):
        columns = gates * vectors
        for count in range(1, spec.batch + 1) if rows is None else [rows]:
            sums = count * columns
            if _registers(spec, way, count, columns) > target.vector_registers:
                break
            if sums * (PARTS if way == "dotted" else 1) > _MOST_SUMS:
                break
            block = Block(count, vectors, lanes)
            ranked.append((block, _step_cycles(spec, block, gates, target)))
    return ranked


def _registers(spec: RecurrenceSpec, way: str, rows: int, columns: int) -> int:
    """Vector registers that a tile takes."""
    if way == "dotted" and spec.weights is not None:
        # Bytes of several codes stay at hand for all of them, beside a mask and what is taken off.
        unpacking = 0 if spec.weights.bits == 8 else columns + 2
        return PARTS * rows * columns + PARTS * rows + 1 + unpacking
    return rows * columns + min(rows, columns) + (1 if way == "float" else 2)


def _step_cycles(spec: RecurrenceSpec, block: Block, gates: int, target: TargetNumbers) -> float:
    """Estimated cycles of one step of one direction on one core."""
    columns = gates * block.vectors
    size = 4 if spec.weights is None else spec.weights.bits / 8
    fits = size * gates * spec.hidden * spec.hidden <= target.l2_bytes * 3 // 4
    stream = columns * block.lanes * size / (_L2_BYTES_PER_CYCLE if fits else L3_BYTES_PER_CYCLE)
    one = _multiply_cycles(spec, block.rows, columns, target)
    # Only the first tile of sequences finds the weights far away if a block fits the nearest cache.
    is_near = size * columns * block.lanes * spec.hidden <= target.l1_bytes * 3 // 4
    tiles = blocks(spec.batch, block.rows)
    product = spec.hidden * (max(one, stream) + (tiles - 1) * (one if is_near else max(one, stream)))
    cells = tiles * block.rows * block.vectors * _CELL_CYCLES
    return block.count(spec.hidden) * (product + cells)


def _multiply_cycles(spec: RecurrenceSpec, rows: int, columns: int, target: TargetNumbers) -> float:
    """Estimated cycles of one unit read by a tile, weights at hand."""
    way, sums = way_of(spec, target), rows * columns
    loads = (rows + columns) / 2
    if way == "float" or spec.weights is None:
        return max(sums, loads, _FMA_CHAINS) / 2
    if way == "decoded":
        return max(sums + 2 * columns, loads, _FMA_CHAINS) / 2
    unpacking = 0 if spec.weights.bits == 8 else 3
    return max(PARTS * sums + unpacking * columns, loads, _FMA_CHAINS) / 2 / WORD


def choose_split(spec: RecurrenceSpec, block: Block, target: TargetNumbers) -> str:
    """How threads share the work: "none", "sequences" (each its own) or "units" (together, step by step)."""
    if spec.flops <= SERIAL_FLOPS or target.cores == 1:
        return "none"
    step = _step_cycles(spec, block, spec.gates, target)
    tiles = blocks(spec.batch, block.rows)
    tasks = spec.directions * tiles
    apart = blocks(tasks, target.cores) / tiles * step
    pieces = spec.directions * block.count(spec.hidden)
    phases = 2 if spec.cell == "GRU" and not spec.reset_after else 1
    together = blocks(pieces, target.cores) / block.count(spec.hidden) * step + phases * _BARRIER_CYCLES
    costs = {"none": spec.directions * step, "sequences": apart, "units": together}
    best = min(costs, key=lambda each: costs[each])
    if tasks == 1 and best == "sequences":
        best = "none"
    chosen = choose("split", best, lambda: [Option(each, cost / costs[best]) for each, cost in costs.items()])
    assert isinstance(chosen, str)
    return chosen


def units_of(block: Block, hidden: int) -> np.ndarray:
    """(tiles, units) -> number of the hidden unit; the last tile is moved up to end with the units."""
    first = np.minimum(np.arange(block.count(hidden)) * block.units, hidden - block.units)
    return first[:, None] + np.arange(block.units)


def packer(spec: RecurrenceSpec, gates: tuple[int, ...], block: Block) -> Callable[[np.ndarray], np.ndarray]:
    """Recurrent weights (D, G H, H) -> (D, tiles, H, gates * units).

    For files that hold codes in this order its `pieces` give tiles and the moved last tile of each direction
    apart, as (tiles, H, gates, units).
    """
    hidden, count = spec.hidden, block.count(spec.hidden)

    def tiles_of(weights: np.ndarray, directions: slice, tiles: slice) -> np.ndarray:
        split = weights.reshape(spec.directions, spec.gates, hidden, hidden)[directions][:, list(gates)]
        chosen = split[:, :, units_of(block, hidden)[tiles]]  # direction, gate, tile, unit, k
        return np.ascontiguousarray(chosen.transpose(0, 2, 4, 1, 3))

    def pack(weights: np.ndarray) -> np.ndarray:
        shape = (spec.directions, count, hidden, len(gates) * block.units)
        return tiles_of(weights, slice(None), slice(None)).reshape(shape)

    def piece(direction: int, first: int, last: int) -> Callable[[np.ndarray], np.ndarray]:
        return lambda weights: tiles_of(weights, slice(direction, direction + 1), slice(first, last))[0]

    whole = count if hidden % block.units == 0 else count - 1
    ends = [(0, whole), *([(whole, count)] if whole < count else [])]
    pack.pieces = tuple(  # type: ignore[attr-defined]
        piece(direction, *end) for direction in range(spec.directions) for end in ends if end[0] < end[1]
    )
    return pack
