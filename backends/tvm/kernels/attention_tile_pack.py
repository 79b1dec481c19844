"""Operands of attention as tile registers read them: float32 split into two bfloat16, two to a word.

A word holds numbers that lie sixteen apart: both halves of it then come from whole vectors, and nothing moves
between lanes. The order along a reduction is free as long as both of its operands keep to it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tvm import tirx

from . import emit
from .attention_keys import StoredHeads
from .emit import Statements
from .tile import blocks
from .tile_registers import LANES
from .transpose import transpose

STEP = 2 * LANES
"""Numbers of a reduction per product."""
TILE = LANES * LANES
"""Words of a packed register."""
_HIGH = 0xFFFF0000
_HALF = 0x8000


def split_words(first: Any, second: Any, parts: int, name: str) -> tuple[list[Any], Statements]:
    """Words of the parts of two float32x16, the largest part first, and the statements that bind them.

    Rounding is to nearest, halves away from zero: an addition and a mask. `second` may be None, for zeros.
    Numbers beyond 3.39e38 overflow.
    """
    statements: Statements = []

    def keep(what: str, value: Any, dtype: str) -> Any:
        held, bound = emit.hold(f"{name}_{what}", value, LANES, dtype)
        statements.append(bound)
        return held

    rests = [keep("x", first, "float32")]
    if second is not None:
        rests.append(keep("y", second, "float32"))
    words = []
    for part in range(parts):
        bits = [
            keep(f"bits{i}", _reinterpret("uint32", rest) + emit.constant(_HALF, LANES, "uint32"), "uint32")
            for i, rest in enumerate(rests)
        ]
        word = tirx.shift_right(bits[0], emit.constant(16, LANES, "uint32"))
        if second is not None:
            word = tirx.bitwise_or(word, _upper(bits[1]))
        words.append(keep(f"part{part}", word, "uint32"))
        if part + 1 < parts:
            rests = [
                keep(f"rest{i}", rest - _reinterpret("float32", _upper(own)), "float32")
                for i, (rest, own) in enumerate(zip(rests, bits, strict=True))
            ]
    return words, statements


def _reinterpret(dtype: str, vector: Any) -> Any:
    return tirx.reinterpret(f"{dtype}x{LANES}", vector)


def _upper(bits: Any) -> Any:
    return tirx.bitwise_and(bits, emit.constant(_HIGH, LANES, "uint32"))


def load_padded(flat: Any, place: Any, count: int) -> Any:
    """Up to sixteen neighbours of a flat float32 buffer as float32x16, zeros behind; None for none."""
    if count <= 0:
        return None
    if count >= LANES:
        return emit.load(flat, [place], LANES)
    zeros = [emit.constant(0.0, count)] * (blocks(LANES, count) - 1)
    picks = [min(lane, count) for lane in range(LANES)]
    return tirx.Shuffle([emit.load(flat, [place], count), *zeros], [tirx.const(i, "int32") for i in picks])


def steps_of(count: Any) -> Any:
    """Steps of a reduction over `count` numbers."""
    return emit.floordiv(count + (STEP - 1), STEP)


def _is_whole(count: Any) -> bool:
    return isinstance(count, int) and count % STEP == 0


def _load_pair(flat: Any, place: Any, count: int) -> tuple[Any, Any]:
    return load_padded(flat, place, count), load_padded(flat, place + LANES, count - LANES)


@dataclass(frozen=True)
class RowWords:
    """Rows as the left operand: flat (parts, rows, words of a row), sixteen words per step."""

    buffer: Any
    parts: int
    rows: int
    stride: int
    """Words of a row, those between rows included."""

    def place(self, part: int, row: Any, step: Any) -> Any:
        """Where the words of a step of a row begin."""
        return (row + part * self.rows) * self.stride + step * LANES

    def at(self, part: int, row: Any, step: Any) -> tuple[Any, Any, int]:
        """The buffer, where the words of a register begin, and words between rows."""
        return self.buffer, self.place(part, row, step), self.stride


@dataclass(frozen=True)
class PanelWords:
    """The right operand: flat (panels, steps, parts, 16 rows, 16 words), or steps before panels.

    `inner` is how many of the inner of the two there are.
    """

    buffer: Any
    parts: int
    inner: int

    def place(self, outer: Any, inner: Any, part: Any) -> Any:
        """Where a register begins."""
        return ((outer * self.inner + inner) * self.parts + part) * TILE

    def at(self, outer: Any, inner: Any, part: int) -> tuple[Any, Any]:
        """The buffer, and where a register begins."""
        return self.buffer, self.place(outer, inner, part)


def _steps(size: int, body: Callable[[Any, int], Statements]) -> Statements:
    """`body(step, how many numbers it has)` for every step of a row."""
    whole, rest = divmod(size, STEP)
    return [
        emit.loop("step", whole, lambda step: body(step, STEP)),
        *(body(whole, rest) if rest else []),
    ]


def pack_queries(
    queries: StoredHeads, start: Any, count: int, size: int, factor: float, target: RowWords, to: Any
) -> Any:
    """Split `count` rows of `size` from `start`, times `factor`, to the rows from `to` on."""

    def row(r: Any) -> Statements:
        def step(at: Any, length: int) -> Statements:
            pair = _load_pair(queries.flat, start + r * queries.row_stride + at * STEP, length)
            scaled = [None if each is None else each * emit.constant(factor, LANES) for each in pair]
            words, statements = split_words(scaled[0], scaled[1], target.parts, "q")
            stored = [
                emit.store(target.buffer, each, [target.place(part, to + r, at)], LANES)
                for part, each in enumerate(words)
            ]
            return [*statements, *stored]

        return _steps(size, step)

    return emit.loop("row", count, row)


def pack_keys(keys: StoredHeads, start: Any, count: Any, size: int, target: PanelWords) -> Any:
    """Split `count` keys from `start` into panels of sixteen; the last one is repeated up to a whole step."""

    def panel(number: Any) -> Any:
        def step(at: Any, length: int) -> Statements:
            def place(part: Any, row: Any) -> list[Any]:
                return [target.place(number, at, part) + row * LANES]

            def key(lane: Any) -> Statements:
                own = number * LANES + lane
                if not _is_whole(count):
                    own = emit.minimum(own, count - 1)
                pair = _load_pair(keys.flat, start + own * keys.row_stride + at * STEP, length)
                words, statements = split_words(pair[0], pair[1], target.parts, "k")
                stored = [
                    emit.store(target.buffer, each, place(part, lane), LANES)
                    for part, each in enumerate(words)
                ]
                return [*statements, *stored]

            def turn(part: Any) -> Statements:
                """From a row per key to a column per key."""
                rows, loads = [], []
                for row in range(LANES):
                    name, bound = emit.hold(
                        f"row{row}", emit.load(target.buffer, place(part, row), LANES), LANES, "uint32"
                    )
                    rows.append(name)
                    loads.append(bound)
                columns, turned = transpose(rows, dtype="uint32")
                stored = [
                    emit.store(target.buffer, each, place(part, row), LANES)
                    for row, each in enumerate(columns)
                ]
                return [*loads, *turned, *stored]

            return [emit.loop("lane", LANES, key), emit.loop("part", target.parts, turn)]

        return _steps(size, step)

    return emit.loop("panel", steps_of(count) * 2, panel)


def pack_values(values: StoredHeads, start: Any, count: Any, size: int, target: PanelWords) -> Any:
    """Split `count` rows of values from `start`; the last one is repeated up to a whole step."""

    def step(number: Any) -> Any:
        def row(r: Any) -> Statements:
            keys = [number * STEP + r, number * STEP + LANES + r]
            if not _is_whole(count):
                keys = [emit.minimum(key, count - 1) for key in keys]
            done: Statements = []
            for panel in range(blocks(size, LANES)):
                pair = [
                    load_padded(
                        values.flat, start + key * values.row_stride + panel * LANES, size - panel * LANES
                    )
                    for key in keys
                ]
                words, statements = split_words(pair[0], pair[1], target.parts, f"v{panel}")
                stored = [
                    emit.store(target.buffer, each, [target.place(number, panel, part) + r * LANES], LANES)
                    for part, each in enumerate(words)
                ]
                done += [*statements, *stored]
            return done

        return emit.loop("r", LANES, row)

    return emit.loop("step", steps_of(count), step)
