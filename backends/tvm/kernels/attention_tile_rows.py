"""The softmax between the products of attention on tile registers: from scores to weights split in two.

Weights are powers of two: the logarithm of e is part of the factor of the queries, or is multiplied with what
is left of a score where something is added to it. Rows come in registers of up to sixteen: what is known of
each of them is a vector.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import log2
from typing import Any

import numpy as np
from tvm import tirx

from .. import approximations as approx
from ..lazy import scoped
from . import emit
from .attention_spec import AttentionSpec
from .attention_tile_pack import STEP, RowWords, split_words
from .emit import Statements
from .tile_registers import LANES

_LOWEST = float("-inf")
LOG2_E = log2(np.e)
# Minimax polynomial of 2^r on |r| <= 1/2, relative error 7.5e-8 (Remez).
_TERMS = (
    1.3276471992533978e-3,
    9.675541334453752e-3,
    5.5507132734978495e-2,
    2.4022119723839974e-1,
    6.931469670647609e-1,
    1.0000000716546849,
)
_ROUND = 12582912.0
"""1.5 * 2^23: added to a number up to 2^22 it leaves the nearest integer in the lowest bits."""
_LEAST = -125.0
"""Smaller powers count as zero: arithmetic on numbers below the normal range takes a hundred cycles."""


def falling_exp2(x: Any) -> Any:
    """Two to the power of a float32x16 that is at most zero; zero below 2^-125."""
    # As bits, since TVM would take the number off that was added, as if floats were exact.
    shifted = _bits(x + emit.constant(_ROUND, LANES))
    whole = tirx.reinterpret(f"float32x{LANES}", shifted) - emit.constant(_ROUND, LANES)
    rest = x - whole
    power = emit.constant(_TERMS[0], LANES)
    for term in _TERMS[1:]:
        power = power * rest + emit.constant(term, LANES)
    exponent = tirx.shift_left(shifted, emit.constant(23, LANES, "uint32"))
    scaled = tirx.reinterpret(f"float32x{LANES}", _bits(power) + exponent)
    return tirx.Select(x < emit.constant(_LEAST, LANES), emit.constant(0.0, LANES), scaled)


def _bits(value: Any) -> Any:
    return tirx.reinterpret(f"uint32x{LANES}", value)


def reduce_lanes(vector: Any, combine: Callable[[Any, Any], Any], name: str) -> tuple[Any, Statements]:
    """All lanes of a float32x16 as one number, and the statements that compute it."""
    statements: Statements = []
    width = LANES
    while width > 1:
        half = width // 2
        parts = [emit.pick(vector, width, range(first, first + half)) for first in (0, half)]
        vector, bound = emit.hold(f"{name}{half}", combine(*parts), half)
        statements.append(bound)
        width = half
    return vector, statements


@dataclass(frozen=True)
class Rows:
    """What is known of the rows of a block: a vector of sixteen per register of rows."""

    top: Any
    """Largest score so far."""
    base: Any
    """What is subtracted from the scores of this chunk: the same, or zero where all is masked."""
    total: Any
    """Sum of the weights so far."""
    fading: Any
    """What former sums are multiplied with."""


@dataclass(frozen=True)
class TileRows:
    """Turns the scores of a register of rows into weights."""

    spec: AttentionSpec
    bias: Any
    scores: Any
    """Flat float32, `stride` from row to row."""
    stride: int
    weights: RowWords
    state: Rows

    @property
    def natural(self) -> bool:
        """Whether scores are exponents of e, of two otherwise: what is added must not overflow."""
        return self.bias is not None

    @property
    def factor(self) -> float:
        """What queries are multiplied with."""
        spec = self.spec
        if spec.softcap:
            return spec.scale / spec.softcap
        return spec.scale if self.natural else spec.scale * LOG2_E

    def statements(
        self,
        place: tuple[Any, Any, Any],
        rows: int,
        to: Any,
        at: Any,
        is_kept: bool,
        begin: Any,
        count: Any,
        rest: int,
        steps: Any,
    ) -> Statements:
        """Weights of a chunk for a register of rows.

        Args:
            place: batch, head of queries, first query.
            rows: how many.
            to: first row in the block's buffers.
            at: where the rows' numbers lie in the state.
            is_kept: whether there are other chunks.
            begin: first key.
            count: keys.
            rest: keys of the last step of all, none where it is whole.
            steps: steps of keys that any row sees.
        """
        whole, bound = emit.bind("whole", emit.floordiv(count, STEP))
        is_static = isinstance(steps, int) and isinstance(whole, int)
        inside = whole if is_static else emit.minimum(steps, whole)
        has_last = True if is_static else steps > whole
        adjust = self._adjust(place, begin)
        best, declare_best = emit.allocate("best", (2 * LANES,))
        sums, declare_sums = emit.allocate("sums", (2 * LANES,))
        local, declare_local = emit.allocate("tops", (LANES,))

        def blank(row: Any) -> Statements:
            """Keys that do not exist, and what becomes of the last that do."""
            first = (to + row) * self.stride + whole * STEP
            done: Statements = []
            if adjust is not None:
                done += [
                    adjust(row, first + i, whole * STEP + i, min(LANES, rest - i))
                    for i in range(0, rest, LANES)
                ]
            end = -(-rest // LANES) * LANES
            if end > rest:
                lowest = emit.constant(_LOWEST, end - rest)
                done.append(emit.store(self.scores, lowest, [first + rest], end - rest))
            if end < STEP:
                done.append(emit.store(self.scores, emit.constant(_LOWEST, LANES), [first + end], LANES))
            return done

        def largest(row: Any) -> Statements:
            def pair(step: Any, adjusted: Any) -> Statements:
                key = step * STEP
                first = (to + row) * self.stride + key
                done: Statements = []
                for half in (0, LANES):
                    if adjusted is not None:
                        done.append(adjusted(row, first + half, key + half, LANES))
                    value = tirx.max(
                        emit.load(best, [half], LANES), emit.load(self.scores, [first + half], LANES)
                    )
                    done.append(emit.store(best, value, [half], LANES))
                return done

            lowest = emit.constant(_LOWEST, LANES)
            whole_best = tirx.max(emit.load(best, [0], LANES), emit.load(best, [LANES], LANES))
            top, reduced = reduce_lanes(whole_best, tirx.max, "top")
            return [
                *(emit.store(best, lowest, [half], LANES) for half in (0, LANES)),
                emit.loop("step", inside, lambda step: pair(step, adjust)),
                emit.when(has_last, pair(whole, None)) if rest else [],
                *reduced,
                emit.store(local, top, [row]),
            ]

        def weigh(row: Any) -> Statements:
            base, hold_base = emit.hold(
                "base", emit.splat(emit.load(self.state.base, [at + row]), LANES), LANES
            )

            def pair(step: Any) -> Statements:
                done: Statements = []
                powers = []
                for half in (0, LANES):
                    score = emit.load(self.scores, [(to + row) * self.stride + step * STEP + half], LANES)
                    apart, bound = emit.hold(f"apart{half}", self._exponent(score - base), LANES)
                    power, raised = emit.hold(f"power{half}", falling_exp2(apart), LANES)
                    powers.append(power)
                    added = emit.load(sums, [half], LANES) + power
                    done += [bound, raised, emit.store(sums, added, [half], LANES)]
                words, statements = split_words(powers[0], powers[1], self.weights.parts, "p")
                stored = [
                    emit.store(self.weights.buffer, each, [self.weights.place(part, to + row, step)], LANES)
                    for part, each in enumerate(words)
                ]
                return [*done, *statements, *stored]

            both = emit.load(sums, [0], LANES) + emit.load(sums, [LANES], LANES)
            total, reduced = reduce_lanes(both, lambda a, b: a + b, "total")
            before = emit.load(self.state.total, [at + row])
            return [
                hold_base,
                *(emit.store(sums, emit.constant(0.0, LANES), [half], LANES) for half in (0, LANES)),
                emit.loop("step", steps, pair),
                *reduced,
                emit.store(self.state.total, before + total if is_kept else total, [at + row]),
            ]

        return [
            *bound,
            declare_best,
            declare_sums,
            declare_local,
            emit.store(local, emit.constant(0.0, LANES), [0], LANES),
            emit.when(has_last, emit.loop("row", rows, blank)) if rest else [],
            emit.loop("row", rows, largest),
            *self._advance(local, at, is_kept),
            emit.loop("row", rows, weigh),
        ]

    def _advance(self, local: Any, at: Any, is_kept: bool) -> Statements:
        """From the maxima of a chunk to those so far, and what they make of former sums."""
        state = self.state
        new, hold_new = emit.hold("new", emit.load(local, [0], LANES), LANES)
        if not is_kept:
            return [hold_new, emit.store(state.base, self._finite(new), [at], LANES)]
        old, hold_old = emit.hold("old", emit.load(state.top, [at], LANES), LANES)
        most, hold_most = emit.hold("most", tirx.max(old, new), LANES)
        base, hold_base = emit.hold("from", self._finite(most), LANES)
        apart, hold_apart = emit.hold("apart", self._exponent(old - base), LANES)
        fading, hold_fading = emit.hold("fading", falling_exp2(apart), LANES)
        return [
            hold_new,
            hold_old,
            hold_most,
            hold_base,
            hold_apart,
            hold_fading,
            emit.store(state.base, base, [at], LANES),
            emit.store(state.top, most, [at], LANES),
            emit.store(state.fading, fading, [at], LANES),
            emit.store(state.total, emit.load(state.total, [at], LANES) * fading, [at], LANES),
        ]

    def _exponent(self, apart: Any) -> Any:
        return apart * emit.constant(LOG2_E, LANES) if self.natural else apart

    def _finite(self, value: Any) -> Any:
        """A row that is masked so far has no maximum; subtracting zero keeps its weights at zero."""
        lowest = emit.constant(_LOWEST, LANES)
        return tirx.Select(value == lowest, emit.constant(0.0, LANES), value)

    def _adjust(self, place: tuple[Any, Any, Any], begin: Any) -> Callable[[Any, Any, Any, int], Any] | None:
        """(row, place, key in the chunk, lanes) -> what becomes of scores; None where nothing does."""
        spec = self.spec
        if not (spec.softcap or spec.causal or self.bias is not None):
            return None
        n, h, first = place

        def value(row: Any, at: Any, key: Any) -> Any:
            score = emit.load(self.scores, [at])
            if spec.softcap:
                cap = spec.softcap * (1.0 if self.natural else LOG2_E)
                score = approx.tanh(score) * emit.constant(cap)
            if self.bias is not None:
                whole = (n, h, first + row, begin + key)
                index = [0 if size == 1 else i for i, size in zip(whole, spec.bias or (), strict=True)]
                score = score + emit.load(self.bias, index)
            if spec.causal:
                seen = begin + key <= first + row + spec.offset
                score = tirx.Select(seen, score, emit.constant(_LOWEST))
            return score

        def adjusted(row: Any, at: Any, key: Any, lanes: int) -> Any:
            return emit.vectorized(
                "lane",
                lanes,
                lambda lane: emit.store(
                    self.scores, scoped(lambda: value(row, at + lane, key + lane)), [at + lane]
                ),
            )

        return adjusted
