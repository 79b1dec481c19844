"""Attention with both products on tile registers, float32 split into two bfloat16 (see `tile_registers`).

A task takes heads of keys one after another. Chunk by chunk it splits and packs their keys and values in
memory of its own; then blocks of queries pass by, as in `attention`: scores, weights relative to the largest
score so far, and weights times values. The scores of a block and a chunk are all that there is at a time.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tvm import tirx

from . import emit
from .attention_keys import StoredHeads
from .attention_spec import AttentionSpec
from .attention_tile_pack import (
    STEP,
    TILE,
    PanelWords,
    RowWords,
    pack_keys,
    pack_queries,
    pack_values,
    steps_of,
)
from .attention_tile_plan import TilePlan
from .attention_tile_product import SplitRegisters, Sums
from .attention_tile_rows import Rows, TileRows
from .emit import Statements
from .interface import Epilogue, Index, Kernel
from .microkernel import Writer
from .product import SERIAL_FLOPS
from .tile import blocks
from .tile_registers import LANES, release


def attention_on_tiles(spec: AttentionSpec, epilogue: Epilogue | None, plan: TilePlan) -> Kernel:
    """Scaled dot-product attention on tile registers.

    Buffers: q, k, v, bias where there is one, extra inputs, output.
    """
    return _TileAttention(spec, epilogue, plan).kernel()


@dataclass(frozen=True)
class _Block:
    """A block of queries: batch, head of queries, first register of rows, where its numbers are kept."""

    n: Any
    h: Any
    tile: Any
    number: Any
    """Of the blocks of a task."""


class _TileAttention:
    def __init__(self, spec: AttentionSpec, epilogue: Epilogue | None, plan: TilePlan):
        self.spec, self.plan = spec, plan
        self.q = StoredHeads.of("q", spec.batch, spec.heads, spec.rows, spec.size, spec.q_inner)
        self.k = StoredHeads.of("k", spec.batch, spec.kv_heads, spec.columns, spec.size, spec.k_inner)
        self.v = StoredHeads.of("v", spec.batch, spec.kv_heads, spec.columns, spec.value_size, spec.v_inner)
        self.bias = emit.buffer("bias", spec.bias) if spec.bias is not None else None
        self.writer = Writer(epilogue, spec.out_shape, self._store_index)
        self.registers = SplitRegisters(plan.own, plan.down, plan.format)
        self.steps = blocks(spec.size, STEP)
        self.panels = blocks(spec.value_size, LANES)

    def _store_index(self, index: Index) -> Index:
        n, h, row, column = index
        return (n, row, h, column) if self.spec.out_inner else index

    def kernel(self) -> Kernel:
        spec, plan = self.spec, self.plan
        operands = [self.q, self.k, self.v]
        buffers = [each.buffer for each in operands] + ([self.bias] if self.bias is not None else [])
        loops = emit.parallel("task", blocks(plan.tasks, plan.run), self._run, spec.flops > SERIAL_FLOPS)
        func = emit.function(
            "attention",
            [*buffers, *self.writer.extras, self.writer.output],
            [*(each.declaration for each in operands), loops],
        )
        note = f"attention tdpbf16ps x{len(plan.format.pairs)}, {plan.queries} x {plan.chunk} scores"
        return Kernel(func, (), spec.flops, note)

    def _run(self, number: Any) -> Statements:
        """Several tasks with the same memory and registers."""
        plan = self.plan
        count: Any = plan.run
        if plan.tasks % plan.run:
            count = emit.minimum(plan.run, plan.tasks - number * plan.run)
        return [
            *self._allocate(),
            *self.registers.configure(),
            emit.loop("own", count, lambda own: self._task(number * plan.run + own)),
            release(),
        ]

    def _allocate(self) -> Statements:
        spec, plan, parts = self.spec, self.plan, self.plan.format.parts
        statements: Statements = []

        def whole(name: str, size: int, dtype: str = "float32") -> Any:
            buffer, allocation = emit.allocate_whole(name, size, dtype, "global")
            statements.extend(allocation)
            return buffer

        per_key = parts * TILE // LANES
        self.keys = PanelWords(whole("keys", plan.chunk * self.steps * per_key, "uint32"), parts, self.steps)
        self.values = PanelWords(
            whole("values", plan.chunk // STEP * self.panels * parts * TILE, "uint32"), parts, self.panels
        )
        width = self.steps * LANES
        self.queries = RowWords(
            whole("queries", parts * plan.queries * width, "uint32"), parts, plan.queries, width
        )
        # Rows that lie a power of two apart would share few sets of the first-level cache.
        width = plan.chunk // 2 + (LANES if plan.chunk // STEP % 2 == 0 else 0)
        weights = RowWords(
            whole("weights", parts * plan.queries * width, "uint32"), parts, plan.queries, width
        )
        self.stride = plan.chunk + LANES
        self.scores = whole("scores", plan.queries * self.stride)
        kept = plan.kept if plan.chunks > 1 else 1
        self.sums = whole("sums", kept * plan.queries * self.panels * LANES)
        numbers = kept * plan.tiles * LANES
        if plan.chunks > 1:
            names = ("top", "base", "total", "fading")
            state = Rows(*(whole(name, numbers) for name in names))
        else:
            base, total = whole("base", numbers), whole("total", numbers)
            state = Rows(base, base, total, base)
        self.rows = TileRows(spec, self.bias, self.scores, self.stride, weights, state)
        return statements

    def _task(self, task: Any) -> Statements:
        """All queries of a head of keys, or every n-th block of them."""
        spec, plan = self.spec, self.plan
        n, kv, part = emit.unravel(task, (spec.batch, spec.kv_heads, plan.parts))
        count: Any = blocks(plan.items, plan.parts)
        if plan.items % plan.parts:
            count = emit.floordiv(plan.items - 1 - part, plan.parts) + 1

        def over(body: Callable[[_Block], Statements]) -> Any:
            def one(number: Any) -> Statements:
                group, block = emit.unravel(
                    part + number * plan.parts, (spec.heads // spec.kv_heads, plan.blocks)
                )
                tile, bound = emit.bind("first_tile", block * plan.tiles)
                return [*bound, *body(_Block(n, kv * (spec.heads // spec.kv_heads) + group, tile, number))]

            return emit.loop("block", count, one)

        def pack(begin: Any, keys: Any) -> Statements:
            k, bound_k = emit.bind("first_key", self.k.start(n, kv) + begin * self.k.row_stride)
            v, bound_v = emit.bind("first_value", self.v.start(n, kv) + begin * self.v.row_stride)
            return [
                *bound_k,
                pack_keys(self.k, k, keys, spec.size, self.keys),
                *bound_v,
                pack_values(self.v, v, keys, spec.value_size, self.values),
            ]

        if plan.chunks == 1:
            return [
                *pack(0, plan.columns),
                over(lambda b: [*self._chunk(b, 0, plan.columns, False), *self._finish(b, 0)]),
            ]

        def chunk(number: Any) -> Statements:
            begin: Any = number * plan.chunk
            keys: Any = plan.chunk
            bound: Statements = []
            if plan.columns % plan.chunk:
                keys, bound = emit.bind("own_keys", emit.minimum(plan.chunk, plan.columns - begin))

            def block(b: _Block) -> Statements:
                return [emit.when(self._steps(b, begin, keys)[0], self._chunk(b, begin, keys, True))]

            return [*bound, *pack(begin, keys), over(block)]

        return [
            over(self._start),
            emit.loop("chunk", plan.chunks, chunk),
            over(lambda b: self._finish(b, b.number)),
        ]

    def _first_row(self, tile: Any) -> Any:
        """First query of a register of rows; the last register shares some with the one before."""
        return emit.minimum(tile * self.plan.own, self.spec.rows - self.plan.own)

    def _steps(self, block: _Block, begin: Any, keys: Any) -> tuple[Any, Any]:
        """Whether a block sees any of a chunk's keys, and how many steps of them."""
        if not self.spec.causal:
            return True, steps_of(keys)
        last = self._first_row(block.tile + self.plan.tiles - 1)
        reach = emit.minimum(last + (self.plan.own + self.spec.offset) - begin, keys)
        return reach > 0, emit.maximum(steps_of(reach), 0)

    def _start(self, block: _Block) -> Statements:
        """Nothing is known of a block."""
        state, plan = self.rows.state, self.plan
        size = plan.queries * self.panels * LANES
        zero, lowest = emit.constant(0.0, LANES), emit.constant(float("-inf"), LANES)

        def tile(i: Any) -> Statements:
            at = (block.number * plan.tiles + i) * LANES
            return [
                emit.store(state.top, lowest, [at], LANES),
                emit.store(state.total, zero, [at], LANES),
            ]

        return [
            emit.loop("tile", plan.tiles, tile),
            emit.loop(
                "cell",
                size // LANES,
                lambda cell: emit.store(self.sums, zero, [block.number * size + cell * LANES], LANES),
            ),
        ]

    def _chunk(self, block: _Block, begin: Any, keys: Any, is_kept: bool) -> Statements:
        """A block of queries passes a chunk of keys."""
        spec, plan = self.spec, self.plan
        steps, bound = emit.bind("steps", self._steps(block, begin, keys)[1])
        query = self.q.start(block.n, block.h)

        def queries(i: Any) -> Any:
            first, bound = emit.bind(
                "first_query", query + self._first_row(block.tile + i) * self.q.row_stride
            )
            packed = pack_queries(
                self.q, first, plan.own, spec.size, self.rows.factor, self.queries, i * plan.own
            )
            return [*bound, packed]

        def softmax(i: Any) -> Statements:
            first, bound = emit.bind("first_row", self._first_row(block.tile + i))
            state = ((block.number if is_kept else 0) * plan.tiles + i) * LANES
            weights = self.rows.statements(
                (block.n, block.h, first),
                plan.own,
                i * plan.own,
                state,
                is_kept,
                begin,
                keys,
                plan.columns % STEP,
                steps,
            )
            return [*bound, *weights]

        return [
            *bound,
            emit.loop("tile", plan.tiles, queries),
            self._scores(steps),
            emit.loop("tile", plan.tiles, softmax),
            *(self._fade(block) if is_kept else []),
            *self._values(block.number if is_kept else 0, steps, is_kept),
        ]

    def _scores(self, steps: Any) -> Any:
        """Queries times keys, two panels of them at a time."""
        plan, registers, width = self.plan, self.registers, STEP // LANES

        def block(pair: Any, sweep: Any) -> Statements:
            row = sweep * (plan.down * plan.own)
            return [
                *registers.clear(width),
                emit.loop(
                    "step",
                    self.steps,
                    lambda step: registers.multiply_add(
                        width,
                        lambda i, part: self.queries.at(part, row + i * plan.own, step),
                        lambda j, part: self.keys.at(pair * width + j, step, part),
                    ),
                ),
                *registers.store(width, self.scores, row * self.stride + pair * STEP, self.stride),
            ]

        def pairs(pair: Any) -> Any:
            return emit.loop("sweep", plan.tiles // plan.down, lambda sweep: block(pair, sweep))

        return emit.loop("pair", steps, pairs)

    def _fade(self, block: _Block) -> Statements:
        """What former chunks added up to, relative to the new maxima."""
        plan, width = self.plan, self.panels * LANES

        def row(i: Any, r: Any) -> Statements:
            tile = block.number * plan.tiles + i
            place = (tile * plan.own + r) * width
            factor, bound = emit.hold(
                "factor",
                emit.splat(emit.load(self.rows.state.fading, [tile * LANES + r]), LANES),
                LANES,
            )
            return [
                bound,
                emit.loop(
                    "panel",
                    self.panels,
                    lambda p: emit.store(
                        self.sums,
                        emit.load(self.sums, [place + p * LANES], LANES) * factor,
                        [place + p * LANES],
                        LANES,
                    ),
                ),
            ]

        return [emit.loop("tile", plan.tiles, lambda i: emit.loop("row", plan.own, lambda r: row(i, r)))]

    def _values(self, number: Any, steps: Any, is_kept: bool) -> Statements:
        """Weights times values, added to the sums."""
        plan, registers, stride = self.plan, self.registers, self.panels * LANES

        def block(first: Any, width: int, sweep: Any) -> Statements:
            row = sweep * (plan.down * plan.own)
            place = (number * plan.queries + row) * stride + first * LANES
            return [
                *(registers.load(width, self.sums, place, stride) if is_kept else registers.clear(width)),
                emit.loop(
                    "step",
                    steps,
                    lambda step: registers.multiply_add(
                        width,
                        lambda i, part: self.rows.weights.at(part, row + i * plan.own, step),
                        lambda j, part: self.values.at(step, first + j, part),
                    ),
                ),
                *registers.store(width, self.sums, place, stride),
            ]

        def sweeps(first: Any, width: int) -> Any:
            return emit.loop("sweep", plan.tiles // plan.down, lambda sweep: block(first, width, sweep))

        whole, rest = divmod(self.panels, registers.most)
        return [
            emit.loop("panels", whole, lambda w: sweeps(w * registers.most, registers.most)),
            sweeps(whole * registers.most, rest) if rest else [],
        ]

    def _finish(self, block: _Block, number: Any) -> Statements:
        """Divide by the sums of the weights and write."""
        spec, plan, state = self.spec, self.plan, self.rows.state

        def tile(i: Any) -> Statements:
            kept = number * plan.tiles + i
            total, hold_total = emit.hold("total", emit.load(state.total, [kept * LANES], LANES), LANES)
            share, hold_share = emit.hold("share", self._share(total), LANES)
            first, bound = emit.bind("first_row", self._first_row(block.tile + i))
            finished = Sums(self.sums, kept * plan.own, state.total, kept * LANES, plan.own, self.panels)
            return [
                hold_total,
                hold_share,
                emit.store(state.total, share, [kept * LANES], LANES),
                *bound,
                *self.writer.write_tile(
                    finished,
                    lambda row, column: (block.n, block.h, first + row, column),
                    0,
                    True,
                    spec.value_size,
                ),
            ]

        return [emit.loop("tile", plan.tiles, tile)]

    def _share(self, total: Any) -> Any:
        one, zero = emit.constant(1.0, LANES), emit.constant(0.0, LANES)
        share = one / total
        return tirx.Select(total == zero, zero, share) if self.spec.may_be_empty else share
