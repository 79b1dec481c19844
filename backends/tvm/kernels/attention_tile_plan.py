"""How attention is divided for tile registers, and whether they pay."""

from __future__ import annotations

from dataclasses import dataclass

from .attention_spec import AttentionSpec
from .attention_tile_pack import STEP
from .choices import choose_flag, choose_size
from .tile import L3_BYTES_PER_CYCLE, TargetNumbers, blocks, tile_cycles
from .tile_registers import LANES, ROWS, Format, float_format

_KEYS = 512
"""Keys of a chunk, about: with their values they stay in the second-level cache."""
_PACKED = 0.23
"""Cycles per part of a number that is split and packed, measured."""
_TURNED = 0.3
"""Cycles per number that vectors need of keys that they turn."""
_PRODUCT = 1.6
"""Cycles of a product per row of a register, what its operands take on the way included, measured."""
_FEWEST = 13
"""Rows below which one product waits for another: 52 cycles for four registers of sums."""
_TASK, _BLOCK = 800, 200
"""Cycles of a task and of a block of queries beside what grows with them, about."""
_ITERATIONS = 8
"""Iterations of the parallel loop per core: each configures registers and allocates memory."""
_UNEVEN = 1.1


@dataclass(frozen=True)
class TilePlan:
    """Rows and keys of attention in registers, blocks, chunks and tasks.

    Attributes:
        own: rows of a register.
        down: registers below each other in a product.
        tiles: registers of rows of a block of queries.
        blocks: blocks of one head's queries.
        items: blocks of all heads that share keys.
        columns: keys that any query sees.
        chunk: keys that are packed at a time, whole steps.
        parts: tasks per head of keys; each packs for itself.
        tasks: of everything.
        run: tasks per iteration of the parallel loop.
        format: what is multiplied.
    """

    own: int
    down: int
    tiles: int
    blocks: int
    items: int
    columns: int
    chunk: int
    parts: int
    tasks: int
    run: int
    format: Format

    @property
    def queries(self) -> int:
        """Rows of a block."""
        return self.own * self.tiles

    @property
    def chunks(self) -> int:
        """Chunks of keys."""
        return blocks(self.columns, self.chunk)

    @property
    def kept(self) -> int:
        """Blocks of a task, at most."""
        return blocks(self.items, self.parts)

    def cycles(self, spec: AttentionSpec) -> float:
        """Estimated cycles of one core for everything but the softmax."""
        keys, size = blocks(self.columns, STEP), blocks(spec.size, STEP)
        panels = blocks(spec.value_size, LANES)
        packed = keys * STEP * (size * STEP + panels * LANES) * self.format.parts * _PACKED
        each = max(self.own, _FEWEST if self.down == 1 else 0) * len(self.format.pairs) * _PRODUCT
        products = self.tiles * keys * (2 * size + panels) * each * (0.5 if spec.causal else 1.0)
        return self.tasks * (packed + _TASK + self.items / self.parts * (products + _BLOCK))


def plan_tiles(spec: AttentionSpec, target: TargetNumbers) -> TilePlan | None:
    """The division of an attention; None where tile registers are missing or do not pay."""
    columns = min(spec.columns, spec.rows + spec.offset) if spec.causal else spec.columns
    form = float_format(target)
    if form is None or spec.rows < 2 or columns < 1:
        return None
    steps = blocks(columns, STEP)
    even = blocks(steps, blocks(steps, _KEYS // STEP))
    plan = _divided(spec, columns, form, target, 1, even)
    if not choose_flag("tiles", plan.cycles(spec) < _vector_cycles(spec, target)):
        return None
    sweeps = choose_size("query_tiles", 1, min(plan.blocks, 8))
    return _divided(spec, columns, form, target, sweeps, choose_size("key_blocks", even, steps))


def _divided(
    spec: AttentionSpec, columns: int, form: Format, target: TargetNumbers, sweeps: int, steps: int
) -> TilePlan:
    """The division with `sweeps` products below each other per block and chunks of `steps`."""
    down = 1 if spec.rows <= ROWS else 2
    tiles = down * sweeps
    count = blocks(blocks(spec.rows, ROWS * down), sweeps)
    own = blocks(spec.rows, count * tiles)
    items = spec.heads // spec.kv_heads * count
    heads = spec.batch * spec.kv_heads
    parts = _parts(heads, items, target.cores)
    tasks = heads * parts
    run = max(1, tasks // (_ITERATIONS * target.cores))
    return TilePlan(own, down, tiles, count, items, columns, steps * STEP, parts, tasks, run, form)


def _vector_cycles(spec: AttentionSpec, target: TargetNumbers) -> float:
    """The same of vectors."""
    scores = tile_cycles(spec.rows, spec.columns, spec.size, target)
    values = tile_cycles(spec.rows, spec.value_size, spec.columns, target)
    keys = spec.batch * spec.kv_heads * spec.columns * spec.size
    # All heads' keys are turned before they are used: with what is made of them they may leave the cache.
    turned = _TURNED if 8 * keys <= target.l2_bytes else _TURNED + 8 / L3_BYTES_PER_CYCLE
    heads = spec.batch * spec.heads
    return keys * turned + heads * (scores + values) * (0.5 if spec.causal else 1.0)


def _parts(heads: int, items: int, cores: int) -> int:
    """Tasks per head of keys: few, but enough to keep all cores busy."""
    for parts in range(1, items + 1):
        tasks = heads * parts
        if blocks(tasks, cores) * cores <= _UNEVEN * tasks:
            return parts
    return items
