"""Products of states with recurrent weights for a register tile: weights as floats, or codes decoded to them.

Each way leaves the sums of a tile, the inputs' share included, in a staging buffer of (rows, columns, lanes);
a column is a vector of units of one gate.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from . import emit
from .arithmetic import cast
from .emit import Statements
from .microkernel import Accumulators
from .recurrence_buffers import Buffers
from .recurrence_plan import Block, packer, units_of
from .recurrence_spec import RecurrenceSpec
from .tables import LEVELS, pack_levels
from .tile import TargetNumbers, Tile
from .weight_form import WeightForm, decoded

Pack = Callable[[np.ndarray], np.ndarray]
Put = Callable[[Any, Any], Any]
"""(column, value) -> statement that makes it what a sum begins with."""


@dataclass(frozen=True)
class Place:
    """Which tile: `begin(p, put)` gives the statements that begin the sums of its p-th sequence."""

    step: Any
    direction: Any
    block: Any
    slot: Any
    begin: Callable[[Any, Put], Statements]


@dataclass(frozen=True)
class Part:
    """What of a layer is multiplied: some gates by tiles, with the state or, `second`, the reset one."""

    spec: RecurrenceSpec
    gates: tuple[int, ...]
    block: Block
    second: bool
    target: TargetNumbers

    @property
    def columns(self) -> int:
        """Vectors of a tile."""
        return len(self.gates) * self.block.vectors

    @property
    def outer(self) -> tuple[int, int]:
        """Directions and tiles of units, by which packed weights are ordered."""
        return self.spec.directions, self.block.count(self.spec.hidden)

    @property
    def width(self) -> int:
        """Units of a tile times gates."""
        return self.columns * self.block.lanes


class Products(Protocol):
    """One way to multiply."""

    parameters: list[Any]
    sources: list[str]
    packs: list[Pack]
    note: str

    def sums(self, buffers: Buffers, place: Place, staged: Any) -> Statements:
        """Statements that leave the sums of a tile in `staged`."""


class FloatProducts:
    """Weights as floats, packed (D, tiles, H, gates * units)."""

    note = ""

    def __init__(self, part: Part):
        self.part = part
        shape = (*part.outer, part.spec.hidden, part.width)
        self.weights = emit.buffer(f"weights{part.gates[0]}", shape)
        self.parameters, self.sources = [self.weights], ["weights"]
        self.packs: list[Pack] = [packer(part.spec, part.gates, part.block)]

    def sums(self, buffers: Buffers, place: Place, staged: Any) -> Statements:
        """All sums stay in registers."""
        part, lanes = self.part, self.part.block.lanes
        accumulators = Accumulators(Tile(part.block.rows, part.columns, lanes))

        def begin(p: Any) -> Statements:
            def put(column: Any, value: Any) -> Any:
                return emit.store(accumulators.buffer, value, [accumulators.position(p, column)], lanes)

            return place.begin(p, put)

        def multiply(k: Any) -> Statements:
            return accumulators.multiply_add(
                range(part.block.rows),
                lambda p: factor_of(buffers, part, place, p, k),
                lambda v: emit.load(self.weights, [place.direction, place.block, k, v * lanes], lanes),
            )

        return [
            *accumulators.declare(),
            emit.unrolled("row", part.block.rows, begin),
            emit.loop("k", part.spec.hidden, multiply),
            *accumulators.copy_to(staged),
        ]


class DecodedProducts:
    """Codes that become floats in registers; scales are applied once per group.

    Codes are packed (D, tiles, H / codes per byte, gates * units), scales and what is added to the codes of a
    group (D, tiles, groups, gates * units).
    """

    def __init__(self, part: Part, form: WeightForm):
        self.part, self.form, self._per_byte = part, form, 8 // form.bits
        spec, name = part.spec, part.gates[0]
        shape = (*part.outer, spec.hidden // self._per_byte, part.width)
        self.weights = emit.buffer(f"codes{name}", shape, "int8" if form.bits == 8 else "uint8")
        self.scale = emit.buffer(f"scale{name}", table_shape(part))
        self.parameters, self.sources = [self.weights, self.scale], ["weights", "scale"]
        order = packer(spec, part.gates, part.block)
        self.packs: list[Pack] = [lambda codes: bytes_of(order(codes), form.bits, 2), table_packer(part)]
        self.shift = self.levels = None
        if form.has_offset:
            self.shift = emit.buffer(f"offset{name}", table_shape(part))
            self.parameters.append(self.shift)
            self.sources.append("offset")
            self.packs.append(table_packer(part))
        if form.has_levels:
            self.levels = emit.buffer(f"levels{name}", (LEVELS,))
            self.parameters.append(self.levels)
            self.sources.append("levels")
            self.packs.append(pack_levels)
        count = min(1 << form.bits, LEVELS)
        self.note = f", {count} levels" if form.has_levels else f", int{form.bits} weights"

    def sums(self, buffers: Buffers, place: Place, staged: Any) -> Statements:
        """Sums of a group stay in registers, those of all groups in the staging buffer."""
        part, form = self.part, self.form
        lanes, rows, hidden = part.block.lanes, part.block.rows, part.spec.hidden
        accumulators = Accumulators(Tile(rows, part.columns, lanes))
        group = min(form.group, hidden)

        def column(k: Any, digit: int, v: Any) -> Any:
            stored = emit.load(self.weights, [place.direction, place.block, k, v * lanes], lanes)
            wide = cast(stored, "int32", lanes)
            return decoded(wide, digit, form, self.levels, lanes, part.target)

        def multiply(k: Any, digit: int) -> Statements:
            return accumulators.multiply_add(
                range(rows),
                lambda p: factor_of(buffers, part, place, p, k * self._per_byte + digit),
                lambda v: column(k, digit, v),
            )

        def add(table: Any, g: Any, p: Any, value: Callable[[Any], Any]) -> Any:
            def vector(v: Any) -> Any:
                at = accumulators.position(p, v)
                factor = emit.load(table, [place.direction, place.block, g, v * lanes], lanes)
                return emit.store(staged, emit.load(staged, [at], lanes) + value(at) * factor, [at], lanes)

            return emit.unrolled("vector", part.columns, vector)

        def of_group(g: Any) -> Statements:
            first = g * group
            count = group if hidden % group == 0 else emit.minimum(group, hidden - first)
            steps = emit.floordiv(count, self._per_byte)
            begin = emit.floordiv(first, self._per_byte)

            def finish(p: Any) -> Statements:
                made = [add(self.scale, g, p, lambda at: emit.load(accumulators.buffer, [at], lanes))]
                if self.shift is not None:
                    total, statements = total_of(
                        lambda k: factor_of(buffers, part, place, p, first + k), count
                    )
                    made += [*statements, add(self.shift, g, p, lambda at: emit.splat(total, lanes))]
                return made

            return [
                *accumulators.fill(),
                emit.loop("k", steps, lambda k: [multiply(begin + k, i) for i in range(self._per_byte)]),
                emit.unrolled("row", rows, finish),
            ]

        return [
            emit.unrolled("row", rows, lambda p: place.begin(p, into(staged, part, p))),
            *accumulators.declare(),
            emit.loop("group", part.spec.groups, of_group),
        ]


def total_of(value: Callable[[Any], Any], count: Any) -> tuple[Any, Statements]:
    """The sum of floats: what to read, and the statements in front of it."""
    total, allocation = emit.allocate("total", (1,))
    return emit.load(total, [0]), [
        allocation,
        emit.store(total, emit.constant(0.0), [0]),
        emit.loop("each", count, lambda k: emit.store(total, emit.load(total, [0]) + value(k), [0])),
    ]


def into(staged: Any, part: Part, p: Any) -> Put:
    """Puts what the sums of the p-th sequence of a tile begin with into the staging buffer."""
    lanes = part.block.lanes

    def put(column: Any, value: Any) -> Any:
        return emit.store(staged, value, [(p * part.columns + column) * lanes], lanes)

    return put


def factor_of(buffers: Buffers, part: Part, place: Place, p: Any, k: Any, lanes: int = 1) -> Any:
    """Values of the state that is multiplied."""
    slot = (place.direction, place.slot + p)
    if part.second:
        return emit.load(buffers.reset, [*slot, k], lanes)
    return emit.load(buffers.h, [emit.floormod(place.step, 2), *slot, k], lanes)


def table_shape(part: Part) -> tuple[int, ...]:
    """Shape of packed scales and the like."""
    return (*part.outer, part.spec.groups, part.width)


def table_packer(part: Part) -> Pack:
    """(groups, D G H) -> (D, tiles, groups, gates * units)."""
    spec = part.spec

    def pack(table: np.ndarray) -> np.ndarray:
        split = table.reshape(spec.groups, spec.directions, spec.gates, spec.hidden)[:, :, list(part.gates)]
        chosen = split[..., units_of(part.block, spec.hidden)]  # group, direction, gate, tile, unit
        return np.ascontiguousarray(chosen.transpose(1, 3, 0, 2, 4)).reshape(table_shape(part))

    return pack


def bytes_of(codes: np.ndarray, bits: int, axis: int) -> np.ndarray:
    """Codes with neighbours along an axis in one byte, the first in its lowest bits."""
    if bits == 8:
        return codes
    per_byte, wide = 8 // bits, np.moveaxis(codes, axis, 0).astype(np.uint8)
    made = wide[0::per_byte].copy()
    for digit in range(1, per_byte):
        made |= wide[digit::per_byte] << (digit * bits)
    return np.ascontiguousarray(np.moveaxis(made, 0, axis))
