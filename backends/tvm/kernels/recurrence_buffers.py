"""The memory of a recurrent layer: operands, states and output, addressed by sequence, step and unit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tvm import tirx

from . import emit
from .emit import Statements
from .interface import Index
from .recurrence_fixed import FixedStates
from .recurrence_spec import RecurrenceSpec


@dataclass(frozen=True)
class Row:
    """One sequence of one direction at one step.

    Attributes:
        step: number of the step, counted in the order of work.
        direction: the direction.
        batch: the sequence.
        slot: where its state is kept.
        time: the place in time that the step works on.
        alive: whether the sequence is so long (True where all are).
    """

    step: Any
    direction: Any
    batch: Any
    slot: Any
    time: Any
    alive: Any


class Buffers:
    """Owns the buffers of the function.

    States are held in slots, one per row of a tile of sequences; a sequence that two tiles share has two, so
    that tiles never wait for each other. States before and after a step lie apart.

    Args:
        spec: the layer.
        rows: sequences per tile.
        tiles: tiles of sequences.
        phases: phases of a step.
        digits: type of the digits as which states are held too, uint8 or int8; "" for none.
    """

    def __init__(self, spec: RecurrenceSpec, rows: int, tiles: int, phases: int, digits: str = ""):
        self.spec, self.rows, self.tiles = spec, rows, tiles
        directions, hidden = spec.directions, spec.hidden
        self.products = emit.buffer("products", spec.products_shape)
        self.out = emit.buffer("out", spec.out_shape)
        outer = (spec.batch, directions) if spec.states_batch_first else (directions, spec.batch)
        self.bias = _given(spec.has_bias, "bias", (directions, hidden))
        self.lengths = _given(spec.has_lengths, "lengths", (spec.batch,), "int32")
        self.first_h = _given(spec.has_h, "first_h", (*outer, hidden))
        self.first_c = _given(spec.has_c, "first_c", (*outer, hidden))
        self.peepholes = _given(spec.has_peepholes, "peepholes", (directions, 3 * hidden))
        self.allocations: Statements = []
        slots = (directions, tiles * rows, hidden)
        self.h = self._scratch("h", (2, *slots))
        self.c = self._scratch("c", (2, *slots)) if spec.cell == "LSTM" else None
        self.update = self._scratch("update", slots) if phases > 1 else None
        self.reset = self._scratch("reset", slots) if phases > 1 else None
        self.fixed = FixedStates(spec, tiles * rows, phases, digits == "int8") if digits else None
        self.allocations += self.fixed.allocations if self.fixed is not None else []

    @property
    def optional(self) -> list[Any]:
        """Operands behind products and weights, in order."""
        every = (self.bias, self.lengths, self.first_h, self.first_c, self.peepholes)
        return [each for each in every if each is not None]

    def _scratch(self, name: str, shape: tuple[int, ...]) -> Any:
        buffer, allocation = emit.allocate(name, shape, scope="global")
        self.allocations.append(allocation)
        return buffer

    def row(self, step: Any, direction: Any, tile: Any, p: Any) -> tuple[Row, Statements]:
        """The p-th sequence of a tile at a step."""
        batch, bindings = emit.bind("batch", emit.minimum(tile * self.rows, self.spec.batch - self.rows) + p)
        forward, backward, alive = step, self.spec.steps - 1 - step, True
        if self.lengths is not None:
            length = emit.load(self.lengths, [batch])
            # A length that the model was not made for must not lead outside of the data.
            length = tirx.max(tirx.min(length, self.spec.steps), 0)
            length, bound = emit.bind("length", length)
            bindings += bound
            alive = step < length
            backward = tirx.Select(alive, length - 1 - step, step)
        time = backward if self.spec.backwards[0] else forward
        if len(set(self.spec.backwards)) == 2:
            time = tirx.Select(direction == 0, forward, backward)
        time, bound = emit.bind("time", time)
        return Row(step, direction, batch, tile * self.rows + p, time, alive), [*bindings, *bound]

    def product(self, row: Row, gate: int, unit: Any, lanes: int = 1) -> Any:
        """What the input contributes to the sum of a gate, its bias included."""
        spec = self.spec
        outer = (row.batch, row.time) if spec.batch_first else (row.time, row.batch)
        column = (row.direction * spec.gates + gate) * spec.hidden + unit
        return emit.load(self.products, [*outer, column], lanes)

    def recurrent_bias(self, row: Row, unit: Any, lanes: int) -> Any:
        """The bias of GRU's new value that the reset gate multiplies."""
        if self.bias is None:
            return emit.constant(0.0, lanes)
        return emit.load(self.bias, [row.direction, unit], lanes)

    def peephole(self, row: Row, gate: int, unit: Any) -> Any:
        """The weight between the cell and a gate (in the order i, o, f)."""
        return emit.load(self.peepholes, [row.direction, gate * self.spec.hidden + unit])

    def before(self, state: Any, row: Row, unit: Any) -> Any:
        """A state as the step finds it."""
        return emit.load(state, [emit.floormod(row.step, 2), row.direction, row.slot, unit])

    def put(self, state: Any, row: Row, unit: Any, value: Any) -> Any:
        """Store a state as the step leaves it."""
        return self._put(state, emit.floormod(row.step + 1, 2), row, unit, value)

    def _put(self, state: Any, parity: Any, row: Row, unit: Any, value: Any) -> Statements:
        slot = (row.direction, row.slot)
        made = [emit.store(state, value, [parity, *slot, unit])]
        if self.fixed is not None and state is self.h:
            made += self.fixed.put_h(parity, slot, unit, value)
        return made

    def put_reset(self, row: Row, unit: Any, value: Any) -> Statements:
        """Store the state behind the reset gate."""
        slot = (row.direction, row.slot)
        made = [emit.store(self.reset, value, [*slot, unit])]
        return made if self.fixed is None else [*made, *self.fixed.put_reset(slot, unit, value)]

    def put_output(self, row: Row, unit: Any, value: Any) -> Any:
        """Store what the step gives; nothing where only last states are wanted."""
        if not self.spec.keeps[0]:
            return []
        return emit.store(self.out, value, self._at(row.time, row, unit))

    def freeze(self, row: Row, unit: Any) -> Statements:
        """What a step is to a sequence that has ended: its states stay, its output is zero."""
        states = [each for each in (self.h, self.c) if each is not None]
        return [
            *(self.put(each, row, unit, self.before(each, row, unit)) for each in states),
            self.put_output(row, unit, emit.constant(0.0)),
        ]

    def start(self) -> Any:
        """Fill the states before the first step."""
        states = [(self.h, self.first_h), (self.c, self.first_c)]

        def fill(row: Row, unit: Any) -> Statements:
            return [
                self._put(state, 0, row, unit, self._first(given, row, unit))
                for state, given in states
                if state is not None
            ]

        return [self.fixed.clear() if self.fixed is not None else [], self._bounds(), self._each(0, fill)]

    def _bounds(self) -> Any:
        """How large the states of each sequence can become, where they are held as integers."""
        fixed = self.fixed
        if fixed is None or self.first_h is None:
            return []

        def one(t: Any) -> Statements:
            direction, tile, p = emit.unravel(t, (self.spec.directions, self.tiles, self.rows))
            row = self._at_rest(direction, tile, p)
            return fixed.set_bound(
                (direction, row.slot), self.spec.hidden, lambda unit: self._first(self.first_h, row, unit)
            )

        return emit.loop("slot", self.spec.directions * self.tiles * self.rows, one)

    def _at_rest(self, direction: Any, tile: Any, p: Any, step: int = 0) -> Row:
        """A sequence before the first step, or behind the last one."""
        batch = emit.minimum(tile * self.rows, self.spec.batch - self.rows) + p
        return Row(step, direction, batch, tile * self.rows + p, 0, True)

    def _first(self, given: Any, row: Row, unit: Any) -> Any:
        if given is None:
            return emit.constant(0.0)
        outer = (row.batch, row.direction) if self.spec.states_batch_first else (row.direction, row.batch)
        return emit.load(given, [*outer, unit])

    def last(self) -> Any:
        """Store the states behind the last step, where they are asked for."""
        _, wants_h, wants_c = self.spec.keeps
        wanted = [state for state, wants in ((self.h, wants_h), (self.c, wants_c)) if wants]
        first = self.spec.rows - len(wanted)
        if not wanted:
            return []

        def value(state: Any, row: Row, unit: Any) -> Any:
            known = self.before(state, row, unit)
            if self.lengths is None:
                return known
            # A sequence without any step has no last state, whatever its first one is.
            return tirx.Select(emit.load(self.lengths, [row.batch]) > 0, known, emit.constant(0.0))

        def copy(row: Row, unit: Any) -> Statements:
            return [
                emit.store(self.out, value(state, row, unit), self._at(first + i, row, unit))
                for i, state in enumerate(wanted)
            ]

        return self._each(self.spec.steps, copy)

    def _each(self, step: int, body: Any) -> Any:
        """`body(row, unit)` for all sequences and units."""

        def one(t: Any) -> Any:
            direction, tile, p, unit = emit.unravel(
                t, (self.spec.directions, self.tiles, self.rows, self.spec.hidden)
            )
            return body(self._at_rest(direction, tile, p, step), unit)

        return emit.loop("element", self.spec.directions * self.tiles * self.rows * self.spec.hidden, one)

    def _at(self, time: Any, row: Row, unit: Any) -> Index:
        axes = {"t": time, "d": row.direction, "b": row.batch, "h": unit}
        return tuple(axes[axis] for axis in self.spec.order)


def _given(present: bool, name: str, shape: tuple[int, ...], dtype: str = "float32") -> Any:
    return emit.buffer(name, shape, dtype) if present else None
