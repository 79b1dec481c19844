"""Attention block by block: the scores of a few queries and keys at a time, never the whole matrix.

A task takes a block of queries of one head past the keys in chunks. It keeps the running maximum and sum of
its rows in float32 and corrects what it has summed up whenever a maximum grows (Milakov and Gimelshein, 2018,
arXiv:1805.02867; Dao et al., 2022, arXiv:2205.14135). Where all keys fit one chunk nothing is corrected. Keys
are first packed as [heads, blocks, size, block], so that vectors run over keys; values are read in place.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from math import prod
from typing import Any

from tvm import tirx

from . import emit
from .attention_keys import StoredHeads, pack_keys
from .attention_rows import Place, ScoreRows, vector_width
from .attention_spec import AttentionSpec
from .attention_tile_plan import plan_tiles
from .attention_tiles import attention_on_tiles
from .choices import choose_size
from .emit import Statements
from .interface import Epilogue, Index, Kernel
from .microkernel import Accumulators, Writer
from .product import SERIAL_FLOPS
from .tile import TargetNumbers, Tile, blocks, choose_tile, lanes_of

_QUERIES = 32
"""Queries per task, about."""
_SCORE_BYTES = 64 << 10
"""Scores of a task, about; they pass through the caches three times."""


def attention(spec: AttentionSpec, epilogue: Epilogue | None, target: TargetNumbers) -> Kernel:
    """Scaled dot-product attention.

    Buffers: q, k, v, bias where there is one, extra inputs, output.
    """
    plan = plan_tiles(spec, target)
    if plan is not None:
        return attention_on_tiles(spec, epilogue, plan)
    return _Attention(spec, epilogue, target).kernel()


class _Attention:
    def __init__(self, spec: AttentionSpec, epilogue: Epilogue | None, target: TargetNumbers):
        self.spec, self.target, self.lanes = spec, target, lanes_of(target)
        self.q = StoredHeads.of("q", spec.batch, spec.heads, spec.rows, spec.size, spec.q_inner)
        self.k = StoredHeads.of("k", spec.batch, spec.kv_heads, spec.columns, spec.size, spec.k_inner)
        self.v = StoredHeads.of("v", spec.batch, spec.kv_heads, spec.columns, spec.value_size, spec.v_inner)
        self.bias = emit.buffer("bias", spec.bias) if spec.bias is not None else None
        self.writer = Writer(epilogue, spec.out_shape, self._store_index)
        self.score_tile = choose_tile(spec.rows, spec.columns, spec.size, target)
        wide = choose_tile(spec.rows, spec.value_size, spec.columns, target, name="value_tile")
        self.value_tile = self._inside(wide)
        tile = self.score_tile
        most = blocks(spec.rows, tile.pixels)
        fitting = min(_QUERIES, max(_SCORE_BYTES // (4 * spec.columns), 1))
        usual = min(most, max(1, round(fitting / tile.pixels)))
        row_tiles = choose_size("query_tiles", blocks(most, blocks(most, usual)), most)
        self.queries = min(row_tiles * tile.pixels, spec.rows)
        self.value_tile = Tile(min(self.value_tile.pixels, self.queries), *self.value_tile.value[1:])
        key_blocks = blocks(spec.columns, tile.block)
        # Chunks are for keys whose scores with one tile of queries exceed the second-level cache.
        usual = min(key_blocks, max(1, target.l2_bytes // 4 // (4 * self.queries * tile.block)))
        even = blocks(key_blocks, blocks(key_blocks, usual))
        self.chunk = choose_size("key_blocks", even, key_blocks) * tile.block
        self.key_blocks = key_blocks
        self.width = vector_width(min(self.chunk, spec.columns), self.lanes)

    def _store_index(self, index: Index) -> Index:
        n, h, row, column = index
        return (n, row, h, column) if self.spec.out_inner else index

    def _inside(self, tile: Tile) -> Tile:
        """A tile no wider than the values, so that blocks that overlap stay inside."""
        size = self.spec.value_size
        if size < tile.lanes:
            return Tile(tile.pixels, 1, size)
        return Tile(tile.pixels, min(tile.vectors, size // tile.lanes), tile.lanes)

    def kernel(self) -> Kernel:
        spec = self.spec
        operands = [self.q, self.k, self.v]
        declarations = [each.declaration for each in operands]
        self.packed, stage = pack_keys(spec, self.k, self.score_tile)
        count = blocks(spec.rows, self.queries)

        def task(t: Any) -> Any:
            n, h, block = emit.unravel(t, (spec.batch, spec.heads, count))
            first, bound = emit.bind("first", emit.minimum(block * self.queries, spec.rows - self.queries))
            return [*bound, *self._task(n, h, first)]

        loops = emit.parallel("task", spec.batch * spec.heads * count, task, spec.flops > SERIAL_FLOPS)
        buffers = [each.buffer for each in operands] + ([self.bias] if self.bias is not None else [])
        func = emit.function(
            "attention",
            [*buffers, *self.writer.extras, self.writer.output],
            [*declarations, *stage, loops],
        )
        note = f"attention {self.score_tile} {self.value_tile}, {self.queries} x {self.chunk} scores"
        return Kernel(func, (), spec.flops, note)

    def _task(self, n: Any, h: Any, first: Any) -> Statements:
        """All keys for one block of queries of one head."""
        spec = self.spec
        # Rows that lie a power of two apart would share few sets of the first-level cache.
        stride = self.chunk + (self.lanes if self.chunk % (8 * self.lanes) == 0 else 0)
        self.scores, scores = emit.allocate("scores", (self.queries, stride), scope="global")
        top, declare_top = emit.allocate("top", (self.queries,))
        self.total, total = emit.allocate("total", (self.queries,))
        part, declare_part = emit.allocate("part", (self.width,))
        self.rows = ScoreRows(spec, self.width, self.scores, top, self.total, part, self.bias)
        whole, rest = divmod(spec.columns, self.chunk)
        at = Place(n, h, emit.floordiv(h, spec.heads // spec.kv_heads), first)
        statements = [scores, declare_top, total, declare_part]
        if whole + (rest > 0) == 1:
            return [
                *statements,
                *self._scores(at, 0, spec.columns),
                *self.rows.statements(at, 0, spec.columns, self._limit(at, 0, spec.columns)),
                *self._values(at, 0, spec.columns, self._write_out),
            ]
        shape = (
            blocks(self.queries, self.value_tile.pixels),
            blocks(spec.value_size, self.value_tile.block),
            self.value_tile.pixels * self.value_tile.block,
        )
        self.sums, sums = emit.allocate("sums", shape, scope="global")
        self.fading, fading = emit.allocate("fading", (self.queries,))
        self.rows = replace(self.rows, fading=self.fading)

        def part_of(begin: Any, count: int) -> Statements:
            return [
                *self._scores(at, begin, count),
                *self.rows.statements(at, begin, count, self._limit(at, begin, count)),
                *self._values(at, begin, count, self._keep),
            ]

        reach = self._reach(at)
        chunks: Any = (
            whole if reach is None else emit.minimum(whole, emit.floordiv(reach + self.chunk - 1, self.chunk))
        )
        last = True if reach is None else reach > whole * self.chunk
        return [
            *statements,
            sums,
            fading,
            emit.loop("row", self.queries, self.rows.start),
            emit.loop("cell", prod(shape), lambda cell: self._clear(cell, shape)),
            emit.loop("chunk", chunks, lambda chunk: part_of(chunk * self.chunk, self.chunk)),
            emit.when(last, part_of(whole * self.chunk, rest)) if rest else [],
            *self._each_tile(lambda tile, block: self._finish(at, tile, block)),
        ]

    def _clear(self, cell: Any, shape: tuple[int, ...]) -> Any:
        return emit.store(self.sums, emit.constant(0.0), [*emit.unravel(cell, shape)])

    def _reach(self, at: Place) -> Any:
        """Keys that the last query of a block sees, where causal; None for all."""
        if not self.spec.causal:
            return None
        reach = at.first + (self.queries + self.spec.offset)
        return emit.maximum(emit.minimum(reach, self.spec.columns), 0)

    def _limit(self, at: Place, begin: Any, count: int) -> Any:
        """How many of `count` keys from `begin` on any query of the block sees."""
        reach = self._reach(at)
        return count if reach is None else emit.maximum(emit.minimum(reach - begin, count), 0)

    def _scores(self, at: Place, begin: Any, count: int) -> Statements:
        """Scaled products of the queries with a chunk of keys."""
        spec, tile = self.spec, self.score_tile
        base = (at.n * spec.kv_heads + at.kv) * self.key_blocks
        query = self.q.start(at.n, at.h)
        limit = self._limit(at, begin, count)
        block_count = (
            blocks(limit, tile.block)
            if isinstance(limit, int)
            else emit.floordiv(limit + tile.block - 1, tile.block)
        )

        def product(b: Any, number: Any) -> Any:
            row, bound = emit.bind("row", emit.minimum(number * tile.pixels, self.queries - tile.pixels))
            panel = (base + emit.floordiv(begin, tile.block) + b) * (spec.size * tile.block)
            accumulators = Accumulators(tile)

            def step(d: Any) -> Any:
                return accumulators.multiply_add(
                    range(tile.pixels),
                    lambda p: emit.load(self.q.flat, [query + (at.first + row + p) * self.q.row_stride + d]),
                    lambda v: emit.load(self.packed, [panel + d * tile.block + v * tile.lanes], tile.lanes),
                )

            def store(p: Any, v: Any) -> Any:
                value = emit.load(accumulators.buffer, [accumulators.position(p, v)], tile.lanes)
                scaled = value * emit.constant(spec.scale, tile.lanes)
                return emit.store(self.scores, scaled, [row + p, b * tile.block + v * tile.lanes], tile.lanes)

            return [
                *bound,
                *accumulators.clear(),
                emit.loop("d", spec.size, step),
                emit.unrolled(
                    "p", tile.pixels, lambda p: emit.unrolled("v", tile.vectors, lambda v: store(p, v))
                ),
            ]

        def panels(b: Any) -> Any:
            return emit.loop("number", blocks(self.queries, tile.pixels), lambda number: product(b, number))

        return [emit.loop("b", block_count, panels)]

    def _values(
        self, at: Place, begin: Any, count: int, done: Callable[[Place, Accumulators, Any, Any], Statements]
    ) -> Statements:
        """Weights of a chunk times values, a tile at a time."""
        tile = self.value_tile
        limit = self._limit(at, begin, count)
        source = self.v.start(at.n, at.kv) + begin * self.v.row_stride

        def one(number: Any, block: Any) -> Statements:
            row, bound = emit.bind("row", self._first_row(number))
            column = self._first_column(block)
            accumulators = Accumulators(tile)

            def step(key: Any) -> Any:
                return accumulators.multiply_add(
                    range(tile.pixels),
                    lambda p: emit.load(self.scores, [row + p, key]),
                    lambda v: emit.load(
                        self.v.flat, [source + key * self.v.row_stride + column + v * tile.lanes], tile.lanes
                    ),
                )

            return [
                *bound,
                *accumulators.clear(),
                emit.loop("key", limit, step),
                *done(at, accumulators, number, block),
            ]

        return self._each_tile(one)

    def _each_tile(self, one: Callable[[Any, Any], Statements]) -> Statements:
        row_tiles = blocks(self.queries, self.value_tile.pixels)
        count = blocks(self.spec.value_size, self.value_tile.block)
        return [
            emit.loop("block", count, lambda b: emit.loop("number", row_tiles, lambda number: one(number, b)))
        ]

    def _first_row(self, number: Any) -> Any:
        pixels = self.value_tile.pixels
        return emit.minimum(number * pixels, self.queries - pixels)

    def _first_column(self, block: Any) -> Any:
        return emit.minimum(block * self.value_tile.block, self.spec.value_size - self.value_tile.block)

    def _scaled(self, accumulators: Accumulators, factor: Callable[[Any], Any]) -> Any:
        """Multiply the rows of a tile by numbers."""
        tile = self.value_tile

        def row(p: Any) -> Any:
            name, bound = emit.hold("factor", factor(p))
            spread = emit.splat(name, tile.lanes)
            return [
                bound,
                emit.unrolled(
                    "v", tile.vectors, lambda v: accumulators.update(p, v, spread, lambda a, b: a * b)
                ),
            ]

        return emit.unrolled("p", tile.pixels, row)

    def _keep(self, at: Place, accumulators: Accumulators, number: Any, block: Any) -> Statements:
        """Add a chunk's part to the sums, which fade by how much the maxima of their rows have grown."""
        tile, row = self.value_tile, self._first_row(number)

        def add(p: Any, v: Any) -> Any:
            place = [number, block, accumulators.position(p, v)]
            faded = emit.load(self.sums, place, tile.lanes) * emit.splat(
                emit.load(self.fading, [row + p]), tile.lanes
            )
            own = emit.load(accumulators.buffer, [accumulators.position(p, v)], tile.lanes)
            return emit.store(self.sums, faded + own, place, tile.lanes)

        return [
            emit.unrolled("p", tile.pixels, lambda p: emit.unrolled("v", tile.vectors, lambda v: add(p, v)))
        ]

    def _finish(self, at: Place, number: Any, block: Any) -> Statements:
        accumulators = Accumulators(self.value_tile)
        return [
            *accumulators.declare(),
            *accumulators.copy_from(self.sums, (number, block)),
            *self._write_out(at, accumulators, number, block),
        ]

    def _write_out(self, at: Place, accumulators: Accumulators, number: Any, block: Any) -> Statements:
        row = self._first_row(number)
        first = self._first_column(block)

        def share(p: Any) -> Any:
            total = emit.load(self.total, [row + p])
            if not self.spec.may_be_empty:
                return emit.constant(1.0) / total
            return tirx.Select(total == emit.constant(0.0), emit.constant(0.0), emit.constant(1.0) / total)

        return [
            self._scaled(accumulators, share),
            *self.writer.write_tile(
                accumulators,
                lambda pixel, column: (at.n, at.h, at.first + row + pixel, column),
                first,
                True,
                self.value_tile.block,
            ),
        ]
