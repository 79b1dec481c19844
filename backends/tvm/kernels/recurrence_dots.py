"""Products of the bytes of states (see `recurrence_fixed`) with weights of up to 8 bits: exact sums."""

from __future__ import annotations

from typing import Any

import numpy as np
from tvm import tirx

from . import emit
from .arithmetic import cast
from .emit import Statements
from .recurrence_buffers import Buffers
from .recurrence_fixed import MIDDLE, PARTS, WORD
from .recurrence_plan import dots_of, packer
from .recurrence_products import (
    Pack,
    Part,
    Place,
    bytes_of,
    factor_of,
    into,
    table_packer,
    table_shape,
    total_of,
)
from .tile import blocks
from .weight_form import WeightForm

_INFINITE, _NOT_A_NUMBER = 0x7F800000, 0x7FC00000
"""Bits of float32."""


class DottedProducts:
    """Integer products of the bytes of states with int8 weights, four at a time; sums are exact.

    Weights are packed (D, tiles, steps, gates * units, 4), several steps to a byte where they have fewer
    bits. Groups begin with a step of their own.
    """

    def __init__(self, part: Part, form: WeightForm):
        self.part, self.form, self._per_byte = part, form, 8 // form.bits
        spec, name = part.spec, part.gates[0]
        self._group = min(form.group, spec.hidden)
        self._steps = blocks(self._group, WORD * self._per_byte)
        self._all_steps = blocks(spec.hidden, WORD * self._per_byte)
        # Codes stand for twice what they are where nothing whole stands for 0.
        self._factor = 1 if float(form.zero).is_integer() else 2
        shape = (*part.outer, self._all_steps, part.width * WORD)
        self.weights = emit.buffer(f"codes{name}", shape, "int8" if form.bits == 8 else "uint8")
        self.scale = emit.buffer(f"scale{name}", table_shape(part))
        self.parameters, self.sources = [self.weights, self.scale], ["weights", "scale"]
        self.start = self.offset = None
        table = table_packer(part)
        self.packs: list[Pack] = [
            self._pack,
            lambda scale: table((scale / self._factor).astype(np.float32)),
        ]
        arithmetic = dots_of(part.target)
        assert arithmetic is not None
        self.arithmetic = arithmetic
        if arithmetic.data == "uint8":
            self.start = emit.buffer(f"start{name}", table_shape(part), "int32")
            self.parameters.append(self.start)
            self.sources.append("weights")
            self.packs.append(self._pack_start)
        if form.has_offset:
            self.offset = emit.buffer(f"offset{name}", table_shape(part))
            self.parameters.append(self.offset)
            self.sources.append("offset")
            self.packs.append(table)
        self.note = f", int{form.bits} weights {self.arithmetic.name}"

    def _pack(self, codes: np.ndarray) -> np.ndarray:
        """(D, G H, H) -> words of neighbours that one lane multiplies."""
        part, per_byte = self.part, self._per_byte
        ordered = packer(part.spec, part.gates, part.block)(codes)
        gap = self._all_steps * WORD * per_byte - part.spec.hidden
        empty = round(self.form.zero) if self.form.bits < 8 else 0
        filled = np.pad(ordered, [(0, 0), (0, 0), (0, gap), (0, 0)], constant_values=empty)
        outer = (*part.outer, self._all_steps * per_byte)
        split = filled.reshape(*outer, WORD, part.width).swapaxes(-1, -2)
        return bytes_of(np.ascontiguousarray(split).reshape(*outer, -1), self.form.bits, 2)

    def _pack_start(self, codes: np.ndarray) -> np.ndarray:
        """What sums begin with, so that what is added to digits does not count."""
        part, hidden = self.part, self.part.spec.hidden
        whole = self._factor * codes.astype(np.int64) - round(self._factor * self.form.zero)
        gap = part.spec.groups * self._group - hidden
        padded = np.pad(whole, [(0, 0), (0, 0), (0, gap)])
        totals = padded.reshape(-1, part.spec.groups, self._group).sum(axis=2)
        return table_packer(part)((-MIDDLE * totals.T).astype(np.int32))

    def sums(self, buffers: Buffers, place: Place, staged: Any) -> Statements:
        """Three sums per vector of a group stay in registers, those of all groups in the staging buffer."""
        part, lanes, rows = self.part, self.part.block.lanes, self.part.block.rows
        acc, allocation = emit.allocate("acc", (rows * part.columns * PARTS * lanes,), "int32")
        cells = [(p, v, i) for p in range(rows) for v in range(part.columns) for i in range(PARTS)]
        units, made = [], []
        for p in range(rows):
            unit, statements = self._unit(buffers, place, p)
            units.append(unit)
            made += statements

        def begin(g: Any, p: int, v: int, i: int) -> Any:
            nothing = emit.constant(0, lanes, "int32")
            value = nothing if self.start is None else self._entry(self.start, place, g, v)
            return emit.store(acc, value, [self._at(p, v, i)], lanes)

        def of_group(g: Any) -> Statements:
            first, count = g * self._steps, self._steps
            if self._all_steps % self._steps:
                count = emit.minimum(count, self._all_steps - first)

            def step(k: Any) -> Statements:
                return [
                    self._multiply(buffers, place, acc, first + k, digit) for digit in range(self._per_byte)
                ]

            return [
                *(begin(g, *cell) for cell in cells),
                emit.loop("k", count, step),
                *(self._finish(buffers, place, acc, staged, g, p, units[p]) for p in range(rows)),
            ]

        return [
            emit.unrolled("row", rows, lambda p: place.begin(p, into(staged, part, p))),
            *made,
            allocation,
            emit.loop("group", part.spec.groups, of_group),
        ]

    def _at(self, p: int, v: int, i: int) -> int:
        """Where the sum of byte `i` of sequence `p` with vector `v` is held."""
        return ((p * self.part.columns + v) * PARTS + i) * self.part.block.lanes

    def _entry(self, table: Any, place: Place, g: Any, v: int) -> Any:
        """A vector of what every group has one of."""
        lanes = self.part.block.lanes
        return emit.load(table, [place.direction, place.block, g, v * lanes], lanes)

    def _multiply(self, buffers: Buffers, place: Place, acc: Any, k: Any, digit: int) -> Statements:
        """Adds the products of four neighbouring states of each sequence."""
        part, lanes, rows = self.part, self.part.block.lanes, self.part.block.rows
        words, made = {}, []
        for p in range(rows):
            for i in range(PARTS):
                words[p, i], bound = emit.hold("x", self._word(buffers, place, p, i, k, digit), dtype="int32")
                made.append(bound)
        for v in range(part.columns):
            column, bound = emit.hold("w", self._column(place, k, digit, v), lanes, "int32")
            made.append(bound)
            for p in range(rows):
                for i in range(PARTS):
                    at = [self._at(p, v, i)]
                    total = self.arithmetic.combine(emit.load(acc, at, lanes), words[p, i], column, lanes)
                    made.append(emit.store(acc, total, at, lanes))
        return made

    def _finish(
        self, buffers: Buffers, place: Place, acc: Any, staged: Any, g: Any, p: int, unit: Any
    ) -> Statements:
        """Adds the sums of a group, as floats, to those of a sequence."""
        part, lanes = self.part, self.part.block.lanes
        share, made = self._states(buffers, place, g, p)

        def vector(v: int) -> Any:
            parts = [cast(emit.load(acc, [self._at(p, v, i)], lanes), "float32", lanes) for i in range(PARTS)]
            low = parts[1] * emit.constant(256.0, lanes) + parts[0]
            total = parts[2] * emit.constant(65536.0, lanes) + low
            total = total * (self._entry(self.scale, place, g, v) * emit.splat(unit, lanes))
            if self.offset is not None:
                total = total + self._entry(self.offset, place, g, v) * emit.splat(share, lanes)
            at = [(p * part.columns + v) * lanes]
            return emit.store(staged, emit.load(staged, at, lanes) + total, at, lanes)

        return [*made, *(vector(v) for v in range(part.columns))]

    def _word(self, buffers: Buffers, place: Place, p: int, part: int, k: Any, digit: int) -> Any:
        """A byte each of four neighbouring states."""
        slot = (place.direction, place.slot + p)
        number = k * self._per_byte + digit
        assert buffers.fixed is not None
        return buffers.fixed.word(self.part.second, emit.floormod(place.step, 2), slot, part, number)

    def _column(self, place: Place, k: Any, digit: int, v: int) -> Any:
        """The weights of one instruction, as int32 lanes."""
        form, lanes = self.form, self.part.block.lanes
        count, wide = lanes * WORD, f"int32x{lanes}"
        stored = emit.load(self.weights, [place.direction, place.block, k, v * count], count)
        word = tirx.reinterpret(wide, stored)
        if form.bits == 8:
            return word
        if digit:
            word = tirx.shift_right(word, emit.constant(digit * form.bits, lanes, "int32"))
        mask = ((1 << form.bits) - 1) * 0x01010101
        codes = tirx.reinterpret(f"int8x{count}", tirx.bitwise_and(word, emit.constant(mask, lanes, "int32")))
        if self._factor == 2:
            codes = codes + codes
        zero = round(self._factor * form.zero)
        return tirx.reinterpret(wide, codes - emit.constant(zero, count, "int8") if zero else codes)

    def _states(self, buffers: Buffers, place: Place, g: Any, p: int) -> tuple[Any, Statements]:
        """The sum of the states of a group, by which offsets of weights count."""
        part, lanes = self.part, self.part.block.lanes
        if self.offset is None:
            return None, []
        sums, allocation = emit.allocate("states", (lanes,))
        first = g * self._group
        count = emit.minimum(self._group, part.spec.hidden - first)

        def add(k: Any) -> Any:
            state = factor_of(buffers, part, place, p, first + k * lanes, lanes)
            return emit.store(sums, emit.load(sums, [0], lanes) + state, [0], lanes)

        def add_one(k: Any) -> Any:
            state = factor_of(buffers, part, place, p, first + emit.floordiv(count, lanes) * lanes + k)
            return emit.store(sums, emit.load(sums, [0]) + state, [0])

        total, statements = total_of(lambda lane: emit.load(sums, [lane]), lanes)
        held, bound = emit.hold("sum", total)
        return held, [
            allocation,
            emit.store(sums, emit.constant(0.0, lanes), [0], lanes),
            emit.loop("k", emit.floordiv(count, lanes), add),
            emit.loop("k", emit.floormod(count, lanes), add_one),
            *statements,
            bound,
        ]

    def _unit(self, buffers: Buffers, place: Place, p: int) -> tuple[Any, Statements]:
        """The float that one step of a sequence's integers stands for; no number if a state is none."""
        part = self.part
        lanes, hidden = part.block.lanes, part.spec.hidden
        most, allocation = emit.allocate("most", (lanes,), "int32")
        largest, allocation_of_one = emit.allocate("largest", (1,), "int32")

        def raised(k: Any) -> Any:
            bits = tirx.reinterpret(f"int32x{lanes}", factor_of(buffers, part, place, p, k, lanes))
            magnitude = tirx.bitwise_and(bits, emit.constant(0x7FFFFFFF, lanes, "int32"))
            return emit.store(most, tirx.max(emit.load(most, [0], lanes), magnitude), [0], lanes)

        def across(lane: Any) -> Any:
            return emit.store(largest, tirx.max(emit.load(largest, [0]), emit.load(most, [lane])), [0])

        assert buffers.fixed is not None
        step = buffers.fixed.step((place.direction, place.slot + p))
        none = tirx.reinterpret("float32", emit.constant(_NOT_A_NUMBER, dtype="int32"))
        value = tirx.Select(emit.load(largest, [0]) >= emit.constant(_INFINITE, dtype="int32"), none, step)
        unit, bound = emit.hold("unit", value)
        return unit, [
            allocation,
            allocation_of_one,
            emit.store(most, emit.constant(0, lanes, "int32"), [0], lanes),
            emit.loop("k", hidden // lanes, lambda k: raised(k * lanes)),
            *([raised(hidden - lanes)] if hidden % lanes else []),
            emit.store(largest, emit.constant(0, dtype="int32"), [0]),
            emit.loop("lane", lanes, across),
            bound,
        ]
