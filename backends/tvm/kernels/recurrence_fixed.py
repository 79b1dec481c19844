"""States as integers of 23 bits in three bytes, so that products with int8 weights are exact integer sums.

The states of the usual cells never exceed 1, or what the largest first state is. With that bound a state h is
stored beside its float as x = round(h / bound * 2^22), or nearly so; what is lost is below what float32
products lose. Digits of x to the base of 256 are -128 to 127; instructions that read bytes without a sign get
them with 128 added.
"""

from __future__ import annotations

from math import prod
from typing import Any

from tvm import tirx

from . import emit
from .emit import Statements
from .recurrence_spec import RecurrenceSpec

PARTS = 3
"""Bytes of a state, the lowest first."""
MIDDLE = 128
"""What is added to digits where bytes have no sign."""
WORD = 4
"""Bytes that one instruction multiplies per lane."""
_LIMIT = (1 << 22) - 8
"""What the bound is stored as, with room for activations that exceed 1 in their last bits."""
_ROUNDING = 1.5 * (1 << 23)
"""Added to a float that is small against it, this leaves the nearest integer in the lowest 22 bits."""
_DIGITS = 0x408080
"""Added to that, this leaves 128 + digit in each byte."""
_BOUNDED = ("Sigmoid", "Tanh", "Softsign")


def is_bounded(spec: RecurrenceSpec) -> bool:
    """Whether no state of a layer exceeds 1 and its first states, and what is not a number stays so."""
    for functions in spec.activations:
        names = [each.name for each in functions]
        # Between its states GRU takes means, whose weights are the first function's.
        means = names[0] == "Sigmoid" if spec.cell == "GRU" else names[0] in _BOUNDED
        if not means or names[-1] not in _BOUNDED:
            return False
    return True


class FixedStates:
    """Owns the bytes of states.

    Args:
        spec: the layer.
        slots: places for sequences per direction.
        phases: phases of a step; with two, the state behind the reset gate is held too.
        is_signed: whether instructions read bytes with a sign.
    """

    def __init__(self, spec: RecurrenceSpec, slots: int, phases: int, is_signed: bool):
        self._is_signed = is_signed
        self._hidden = spec.hidden
        self._size = -(-spec.hidden // (8 * WORD)) * 8 * WORD
        self.allocations: Statements = []
        outer = (spec.directions, slots)
        sizes = (*outer, PARTS, self._size)
        self._h = self._scratch("h_bytes", (2, *sizes), "uint8")
        self._reset = self._scratch("reset_bytes", sizes, "uint8") if phases > 1 else None
        self._bound = self._scratch("bound", (*outer, 2), "float32") if spec.has_h else None

    def _scratch(self, name: str, shape: tuple[int, ...], dtype: str) -> Any:
        buffer, allocation = emit.allocate(name, shape, dtype, scope="global")
        self.allocations.append(allocation)
        return buffer

    def clear(self) -> Statements:
        """Zeros behind the last unit, up to where instructions read: weights have none that stands for 0."""
        made = []
        for buffer in (self._h, self._reset):
            if buffer is None or self._size == self._hidden:
                continue
            *outer, size = (int(each) for each in buffer.shape)
            rest = size - self._hidden
            made.append(self._zeros(buffer, outer, rest))
        return made

    def _zeros(self, buffer: Any, outer: list[int], rest: int) -> Any:
        def one(t: Any) -> Any:
            *place, unit = emit.unravel(t, (*outer, rest))
            return emit.store(buffer, emit.constant(0, dtype="uint8"), [*place, self._hidden + unit])

        return emit.loop("byte", prod(outer) * rest, one)

    def set_bound(self, place: tuple[Any, Any], hidden: int, first: Any) -> Statements:
        """What states of a sequence are divided by; `first(unit)` are its first ones."""
        if self._bound is None:
            return []
        largest, allocation = emit.allocate("largest", (1,))
        one = emit.constant(1.0)

        def raise_(unit: Any) -> Any:
            value = first(unit)
            return emit.store(largest, tirx.max(emit.load(largest, [0]), tirx.max(value, -value)), [0])

        known, limit = emit.load(largest, [0]), emit.constant(_LIMIT)
        return [
            allocation,
            emit.store(largest, one, [0]),
            emit.loop("unit", hidden, raise_),
            emit.store(self._bound, limit / known, [*place, 0]),
            emit.store(self._bound, known / limit, [*place, 1]),
        ]

    def step(self, place: tuple[Any, Any]) -> Any:
        """The float that one step of the integers stands for."""
        if self._bound is None:
            return emit.constant(1.0 / _LIMIT)
        return emit.load(self._bound, [*place, 1])

    def put_h(self, parity: Any, place: tuple[Any, Any], unit: Any, value: Any) -> Statements:
        """Store a state."""
        return self._put(self._h, (parity, *place), place, unit, value)

    def put_reset(self, place: tuple[Any, Any], unit: Any, value: Any) -> Statements:
        """Store a state behind the reset gate."""
        return self._put(self._reset, place, place, unit, value)

    def _put(
        self, buffer: Any, outer: tuple[Any, ...], place: tuple[Any, Any], unit: Any, value: Any
    ) -> Statements:
        per_one = emit.constant(_LIMIT) if self._bound is None else emit.load(self._bound, [*place, 0])
        bits = tirx.reinterpret("int32", value * per_one + emit.constant(_ROUNDING))
        bits = bits + emit.constant(_DIGITS, dtype="int32")
        if self._is_signed:
            bits = tirx.bitwise_xor(bits, emit.constant(MIDDLE * 0x010101, dtype="int32"))

        def byte(part: int) -> Any:
            shifted = tirx.shift_right(bits, 8 * part)
            return tirx.Cast("uint8", tirx.bitwise_and(shifted, emit.constant(255, dtype="int32")))

        return [emit.store(buffer, byte(part), [*outer, part, unit]) for part in range(PARTS)]

    def word(self, second: bool, parity: Any, place: tuple[Any, Any], part: int, number: Any) -> Any:
        """The bytes of four neighbouring states as int32."""
        outer = place if second else (parity, *place)
        buffer = self._reset if second else self._h
        return tirx.reinterpret("int32", emit.load(buffer, [*outer, part, number * WORD], WORD))
