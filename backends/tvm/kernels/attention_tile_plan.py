"""How attention is divided for tile registers, and whether they pay."""

from __future__ import annotations

from dataclasses import dataclass

from .attention_spec import AttentionSpec
from .attention_tile_pack import STEP
from .choices import choose_flag, choose_size
from .tile import TargetNumbers, blocks
from .tile_registers import ROWS, Format, float_format

_KEYS = 512
"""Keys of a chunk, about: with their values they stay in the second-level cache."""
_FEWEST_ROWS = 4
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


def plan_tiles(spec: AttentionSpec, target: TargetNumbers) -> TilePlan | None:
    """The division of an attention; None where tile registers are missing or do not pay."""
    columns = min(spec.columns, spec.rows + spec.offset) if spec.causal else spec.columns
    form = float_format(target)
    if form is None or spec.rows < 2 or columns < 1:
        return None
    if not choose_flag("tiles", spec.rows >= _FEWEST_ROWS):
        return None
    down = 1 if spec.rows <= ROWS else 2
    needed = blocks(spec.rows, ROWS * down)
    sweeps = choose_size("query_tiles", 1, min(needed, 8))
    tiles = down * sweeps
    count = blocks(needed, sweeps)
    own = blocks(spec.rows, count * tiles)
    steps = blocks(columns, STEP)
    usual = blocks(steps, blocks(steps, _KEYS // STEP))
    chunk = choose_size("key_blocks", usual, steps) * STEP
    items = spec.heads // spec.kv_heads * count
    heads = spec.batch * spec.kv_heads
    parts = _parts(heads, items, target.cores)
    tasks = heads * parts
    run = max(1, tasks // (_ITERATIONS * target.cores))
    return TilePlan(own, down, tiles, count, items, columns, chunk, parts, tasks, run, form)


def _parts(heads: int, items: int, cores: int) -> int:
    """Tasks per head of keys: few, but enough to keep all cores busy."""
    for parts in range(1, items + 1):
        tasks = heads * parts
        if blocks(tasks, cores) * cores <= _UNEVEN * tasks:
            return parts
    return items
