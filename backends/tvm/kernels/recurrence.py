"""Recurrent layers: the whole loop over time in one function.

Products with the input are done before, for all steps at once. A step multiplies the state by recurrent
weights that are packed per register tile and come from the caches again and again, and finishes the gates of
a tile while its sums are at hand. Threads either take sequences and directions apart, or divide the units of
every step among them and wait for each other behind it, inside one parallel region.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from typing import Any

from tvm import tirx

from . import emit
from . import recurrence_cells as cells
from .emit import Statements
from .interface import Kernel
from .recurrence_buffers import Buffers, Row
from .recurrence_cells import Vector
from .recurrence_dots import DottedProducts
from .recurrence_plan import Block, choose_block, choose_split, dots_of, way_of
from .recurrence_products import DecodedProducts, FloatProducts, Part, Place, Products, Put
from .recurrence_spec import RecurrenceSpec
from .tile import TargetNumbers, blocks

_SHARING = {"none": "", "sequences": ", one thread per sequence", "units": ", threads share each step"}


def recurrence(spec: RecurrenceSpec, target: TargetNumbers) -> Kernel:
    """The steps of an LSTM, GRU or RNN.

    Buffers: products with the input, recurrent weights (what the products of each phase take if constant,
    else one buffer as ONNX has them), then bias, lengths, first h, first c and peepholes where they are
    given; the output.
    """
    return _Recurrence(spec, target).kernel()


@dataclass(frozen=True)
class _Phase:
    """Products with a state for some gates, and what is made of them."""

    gates: tuple[int, ...]
    block: Block
    finish: Callable[[RecurrenceSpec, Vector], Statements]
    products: Products


class _Recurrence:
    def __init__(self, spec: RecurrenceSpec, target: TargetNumbers):
        self.spec, self.target = spec, target
        self.phases = self._phases()
        block = self.phases[0].block
        self.tiles = blocks(spec.batch, block.rows)
        self.split = choose_split(spec, block, target)
        dots = dots_of(target) if way_of(spec, target) == "dotted" else None
        digits = "" if dots is None else dots.data
        self.buffers = Buffers(spec, block.rows, self.tiles, len(self.phases), digits)

    def _phases(self) -> list[_Phase]:
        spec, target = self.spec, self.target
        if spec.cell != "GRU" or spec.reset_after:
            finish = {"LSTM": cells.lstm, "GRU": cells.gru, "RNN": cells.rnn}[spec.cell]
            gates = tuple(range(spec.gates))
            block = choose_block(spec, spec.gates, target, "gates")
            return [self._phase(gates, block, finish)]
        first = choose_block(spec, 2, target, "gates")
        second = choose_block(spec, 1, target, "new", first.rows)
        return [
            self._phase((0, 1), first, cells.gru_gates),
            self._phase((2,), second, cells.gru_new, second=True),
        ]

    def _phase(
        self, gates: tuple[int, ...], block: Block, finish: Callable[..., Statements], second: bool = False
    ) -> _Phase:
        part, form = Part(self.spec, gates, block, second, self.target), self.spec.weights
        products: Products
        if form is None:
            products = FloatProducts(part)
        elif way_of(self.spec, self.target) == "dotted":
            products = DottedProducts(part, form)
        else:
            products = DecodedProducts(part, form)
        return _Phase(gates, block, finish, products)

    def kernel(self) -> Kernel:
        spec, buffers = self.spec, self.buffers
        weights = [each for phase in self.phases for each in phase.products.parameters]
        packs = tuple(pack for phase in self.phases for pack in phase.products.packs)
        stage: Statements = []
        if not spec.constant_weights:
            raw = emit.buffer("raw", (spec.directions, spec.gates * spec.hidden, spec.hidden))
            stage = [self._pack(raw, phase) for phase in self.phases]
            weights, packs = [raw], ()
        body = [*stage, *buffers.allocations, buffers.start(), self._steps(), buffers.last()]
        parameters = [buffers.products, *weights, *buffers.optional, buffers.out]
        tiles = " ".join(str(phase.block) for phase in self.phases)
        kind = self.phases[0].products.note
        note = f"{spec.cell} of {spec.steps} steps, {tiles}{kind}{_SHARING[self.split]}"
        sources = tuple(source for phase in self.phases for source in phase.products.sources)
        return Kernel(emit.function("recurrence", parameters, body), packs, spec.flops, note, sources)

    def _pack(self, raw: Any, phase: _Phase) -> Any:
        """The weights in the order of the tiles, where they are not constant."""
        hidden, block = self.spec.hidden, phase.block
        (weights,) = phase.products.parameters
        shape = tuple(int(size) for size in weights.shape)

        def row(t: Any) -> Any:
            d, tile, k = emit.unravel(t, shape[:3])
            first = emit.minimum(tile * block.units, hidden - block.units)

            def gate(number: int) -> Any:
                def unit(u: Any) -> Any:
                    value = emit.load(raw, [d, phase.gates[number] * hidden + first + u, k])
                    return emit.store(weights, value, [d, tile, k, number * block.units + u])

                return emit.loop("unit", block.units, unit)

            return [gate(number) for number in range(len(phase.gates))]

        return [tirx.AllocBuffer(weights), emit.parallel("row", prod(shape[:3]), row)]

    def _steps(self) -> Any:
        """All steps of all sequences."""
        if self.split == "sequences":
            return emit.parallel("task", self.spec.directions * self.tiles, self._alone)
        if self.split == "units":
            count = min(self.target.cores, self._pieces(self.phases[0]))
            return emit.when(emit.worker_count() == 1, self._together(1), emit.region(self._together(count)))
        return self._together(1)

    def _together(self, workers: int) -> Any:
        """All steps, each divided between threads that wait for each other behind it."""

        def phase_of(s: Any, phase: _Phase) -> Any:
            pieces = self._pieces(phase)
            share = blocks(pieces, workers)

            def worker(t: Any) -> Any:
                count = emit.minimum(share, pieces - t * share)

                def piece(i: Any) -> Any:
                    number = t * share + _to_and_fro(s, i, count)
                    d, block = emit.unravel(number, (self.spec.directions, pieces // self.spec.directions))
                    d, bound = emit.bind("d", d)
                    block, bound_block = emit.bind("block", block)
                    tiles = emit.loop("tile", self.tiles, lambda tile: self._tile(phase, s, d, block, tile))
                    return [*bound, *bound_block, tiles]

                return emit.loop("piece", count, piece)

            divided = emit.parallel("worker", blocks(pieces, share), worker)
            return emit.barrier(divided) if workers > 1 else divided

        return emit.loop("step", self.spec.steps, lambda s: [phase_of(s, phase) for phase in self.phases])

    def _pieces(self, phase: _Phase) -> int:
        """Tiles of units of all directions."""
        return self.spec.directions * phase.block.count(self.spec.hidden)

    def _alone(self, t: Any) -> Any:
        """All steps of one tile of sequences of one direction."""
        d, tile = emit.unravel(t, (self.spec.directions, self.tiles))

        def phase_of(s: Any, phase: _Phase) -> Any:
            count = phase.block.count(self.spec.hidden)

            def piece(i: Any) -> Any:
                block, bound = emit.bind("block", _to_and_fro(s, i, count))
                return [*bound, *self._tile(phase, s, d, block, tile)]

            return emit.loop("piece", count, piece)

        return emit.loop("step", self.spec.steps, lambda s: [phase_of(s, phase) for phase in self.phases])

    def _tile(self, phase: _Phase, s: Any, d: Any, block: Any, tile: Any) -> Statements:
        """One step of some sequences and some units of one direction."""
        shape, gates = phase.block, len(phase.gates)
        unit, bound = emit.bind("unit", emit.minimum(block * shape.units, self.spec.hidden - shape.units))
        staged, allocation = emit.allocate("staged", (shape.rows * gates * shape.units,))

        def begin(p: Any, put: Put) -> Statements:
            row, bindings = self.buffers.row(s, d, tile, p)

            def gate(number: int) -> Any:
                def vector(v: Any) -> Any:
                    value = self._first_sum(phase.gates[number], row, unit + v * shape.lanes, shape.lanes)
                    return put(number * shape.vectors + v, value)

                return emit.unrolled("vector", shape.vectors, vector)

            return [*bindings, *(gate(number) for number in range(gates))]

        def finish(p: Any) -> Statements:
            row, bindings = self.buffers.row(s, d, tile, p)

            def vector(v: Any) -> Any:
                def at(gate: int) -> Any:
                    return ((p * gates + gate) * shape.vectors + v) * shape.lanes

                return self._finish(phase, row, unit + v * shape.lanes, staged, at)

            return [*bindings, emit.loop("vector", shape.vectors, vector)]

        return [
            *bound,
            allocation,
            *phase.products.sums(self.buffers, Place(s, d, block, tile * shape.rows, begin), staged),
            emit.loop("row", shape.rows, finish),
        ]

    def _first_sum(self, gate: int, row: Row, unit: Any, lanes: int) -> Any:
        """What the sum of a gate begins with."""
        if self.spec.cell == "GRU" and self.spec.reset_after and gate == 2:
            return self.buffers.recurrent_bias(row, unit, lanes)
        return self.buffers.product(row, gate, unit, lanes)

    def _finish(self, phase: _Phase, row: Row, unit: Any, sums: Any, at: Callable[[int], Any]) -> Any:
        """The cells of one vector of units, sums of whose gates are staged."""
        lanes = phase.block.lanes
        kinds = self.spec.activations if len(set(self.spec.activations)) > 1 else self.spec.activations[:1]
        done = [
            emit.flatten(phase.finish(self.spec, Vector(self.buffers, row, unit, lanes, sums, at, kind)))
            for kind in kinds
        ]
        alive = emit.when(row.direction == 0, *done) if len(done) > 1 else done[0]
        frozen = emit.vectorized("lane", lanes, lambda lane: self.buffers.freeze(row, unit + lane))
        return emit.when(row.alive, alive, frozen)


def _to_and_fro(step: Any, i: Any, count: Any) -> Any:
    """The i-th of `count` at even steps, from the end at odd ones: a cache still holds what came last.

    Weights that exceed a cache would otherwise be evicted just before they are needed again.
    """
    return i + emit.floormod(step, 2) * (count - 1 - 2 * i)
