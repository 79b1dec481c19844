"""The softmax of the attention kernel: from scores to weights, with the maxima and sums of rows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from tvm import tirx
from tvm.tirx import ForKind

from .. import approximations as approx
from ..lazy import scoped
from . import emit
from .attention_spec import AttentionSpec
from .emit import Statements

_LOWEST = float("-inf")


@dataclass(frozen=True)
class Place:
    """Batch, head of queries, head of keys, first query."""

    n: Any
    h: Any
    kv: Any
    first: Any


@dataclass(frozen=True)
class ScoreRows:
    """Turns the scores of a block of queries into weights relative to the largest score so far."""

    spec: AttentionSpec
    width: int
    """Keys side by side."""
    scores: Any
    """(queries, keys of a chunk)."""
    top: Any
    """Largest score of each row so far."""
    total: Any
    """Sum of the weights of each row so far."""
    part: Any
    """`width` partial results."""
    bias: Any = None
    fading: Any = None
    """What the sums of each row are to be multiplied with; None where one chunk holds all keys."""

    def start(self, row: Any) -> Any:
        """Nothing is known of a row."""
        return [
            emit.store(self.top, emit.constant(_LOWEST), [row]),
            emit.store(self.total, emit.constant(0.0), [row]),
        ]

    def statements(self, at: Place, begin: Any, count: int, limit: Any) -> Statements:
        """Weights of `count` keys from `begin` on, of which queries see the first `limit` at most."""
        is_only = self.fading is None

        def row(r: Any) -> Any:
            adjust = self._adjust(at, r, begin)

            def find(first: Any, lane: Any) -> Any:
                best = emit.store(
                    self.part, tirx.max(emit.load(self.part, [lane]), self._score(r, first + lane)), [lane]
                )
                if adjust is None:
                    return best
                value = scoped(lambda: adjust(self._score(r, first + lane), first + lane))
                return [emit.store(self.scores, value, [r, first + lane]), best]

            old, hold_old = emit.hold("old", emit.load(self.top, [r]))
            largest = emit.load(self.part, [0])
            new, hold_new = emit.hold("new", largest if is_only else tirx.max(largest, old))
            # A row that is masked so far has no maximum; subtracting zero keeps its weights at zero.
            base, hold_base = emit.hold("base", self._finite(new))

            def weigh(first: Any, lane: Any) -> Any:
                value = self._score(r, first + lane)
                power = scoped(lambda: approx.falling_exp(value - base))
                if self._has_nothing:
                    power = tirx.Select(value == emit.constant(_LOWEST), emit.constant(0.0), power)
                return [
                    emit.store(self.scores, power, [r, first + lane]),
                    emit.store(
                        self.part, emit.load(self.part, [lane]) + self._score(r, first + lane), [lane]
                    ),
                ]

            total = emit.load(self.part, [0])
            statements: Statements = [
                self._fill_part(_LOWEST),
                *self._over_keys(limit, count, find),
                *self._halve(tirx.max),
            ]
            if is_only:
                tail = [emit.store(self.total, total, [r])]
                statements += [hold_new, hold_base]
            else:
                faded = scoped(lambda: approx.falling_exp(old - base))
                faded = tirx.Select(old == emit.constant(_LOWEST), emit.constant(0.0), faded)
                statements += [
                    hold_old,
                    hold_new,
                    hold_base,
                    emit.store(self.fading, faded, [r]),
                    emit.store(self.top, new, [r]),
                ]
                before = emit.load(self.total, [r]) * emit.load(self.fading, [r])
                tail = [emit.store(self.total, before + total, [r])]
            return [
                *statements,
                self._fill_part(0.0),
                *self._over_keys(limit, count, weigh),
                *self._halve(lambda a, b: a + b),
                *tail,
            ]

        return [emit.loop("row", int(self.scores.shape[0]), row)]

    @property
    def _has_nothing(self) -> bool:
        """Whether scores can be minus infinity."""
        return self.spec.causal or self.spec.bias is not None

    def _finite(self, value: Any) -> Any:
        if not self._has_nothing:
            return value
        return tirx.Select(value == emit.constant(_LOWEST), emit.constant(0.0), value)

    def _score(self, row: Any, column: Any) -> Any:
        return emit.load(self.scores, [row, column])

    def _adjust(self, at: Place, row: Any, begin: Any) -> Callable[[Any, Any], Any] | None:
        """What becomes of a scaled score at a row and a key of the chunk; None where nothing does."""
        spec = self.spec
        if not (spec.softcap or spec.causal or self.bias is not None):
            return None

        def adjusted(value: Any, column: Any) -> Any:
            if spec.softcap:
                cap = emit.constant(spec.softcap)
                value = approx.tanh(value * emit.constant(1.0 / spec.softcap)) * cap
            key = begin + column
            if self.bias is not None:
                whole = (at.n, at.h, at.first + row, key)
                shape = spec.bias or ()
                index = [0 if size == 1 else i for i, size in zip(whole, shape, strict=True)]
                value = value + emit.load(self.bias, index)
            if spec.causal:
                seen = key <= at.first + row + spec.offset
                value = tirx.Select(seen, value, emit.constant(_LOWEST))
            return value

        return adjusted

    def _fill_part(self, value: float) -> Any:
        return _lanewise(self.width, lambda lane: emit.store(self.part, emit.constant(value), [lane]))

    def _halve(self, combine: Callable[[Any, Any], Any]) -> Statements:
        """Combine the lanes of the partial results into the first."""
        statements: Statements = []
        width = self.width
        while width > 1:
            width //= 2

            def step(lane: Any, half: int = width) -> Any:
                pair = emit.load(self.part, [lane]), emit.load(self.part, [lane + half])
                return emit.store(self.part, combine(*pair), [lane])

            statements.append(_lanewise(width, step))
        return statements

    def _over_keys(self, limit: Any, count: int, body: Callable[[Any, Any], Any]) -> Statements:
        """`body(first, lane)` for vectors over the keys of a chunk, those beyond `limit` left out."""
        whole, rest = divmod(count, self.width)
        number: Any = whole
        if not isinstance(limit, int):
            number = emit.minimum(whole, emit.floordiv(limit + self.width - 1, self.width))
        pieces: Statements = []
        start, width = whole * self.width, self.width // 2
        while rest:
            if rest >= width:
                pieces.append(_lanewise(width, partial(body, start)))
                start, rest = start + width, rest - width
            width //= 2
        vectors = emit.loop(
            "vector", number, lambda v: _lanewise(self.width, lambda lane: body(v * self.width, lane))
        )
        return [vectors, *pieces]


def _lanewise(width: int, body: Callable[[Any], Any]) -> Any:
    return emit.loop("lane", width, body, ForKind.VECTORIZED)


def vector_width(extent: int, lanes: int) -> int:
    """Lanes side by side: up to four vectors, since additions of one chain wait for each other."""
    width = lanes
    while width * 2 <= min(extent, 4 * lanes):
        width *= 2
    while width > max(1, extent):
        width //= 2
    return width
