"""The equations of LSTM, GRU and RNN behind their products, one vector of hidden units at a time.

Sums of the gates lie in a small buffer; every activation is a loop of its own over the lanes of a vector, so
that expressions stay short.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tvm import tirx

from .. import approximations as approx
from ..expressions import ELEMENTWISE
from ..lazy import scoped
from ..op import Op
from ..recurrent_activations import Activation
from . import emit
from .emit import Statements
from .recurrence_buffers import Buffers, Row
from .recurrence_spec import RecurrenceSpec


@dataclass(frozen=True)
class Vector:
    """One vector of units of one sequence behind the products of a step.

    Attributes:
        buffers: memory of the layer.
        row: the sequence and the step.
        unit: the first unit.
        lanes: units of the vector.
        sums: buffer that holds the sums of the gates.
        at: number of a sum -> where its vector begins in `sums`.
        activations: f, g and h.
    """

    buffers: Buffers
    row: Row
    unit: Any
    lanes: int
    sums: Any
    at: Callable[[int], Any]
    activations: tuple[Activation, ...]

    def sum(self, number: int, lane: Any) -> Any:
        """What the buffer holds."""
        return emit.load(self.sums, [self.at(number) + lane])

    def set(self, number: int, value: Callable[[Any], Any]) -> Any:
        """Replace what the buffer holds by `value(lane)`."""
        return self.each(lambda lane: emit.store(self.sums, value(lane), [self.at(number) + lane]))

    def each(self, body: Callable[[Any], Any]) -> Any:
        """A loop over the lanes."""
        return emit.vectorized("lane", self.lanes, body)

    def active(self, which: int, value: Any) -> Any:
        """An activation, f, g or h, of a value."""
        return scoped(lambda: activate(self.activations[which], value))

    def h(self, lane: Any) -> Any:
        """The state before the step."""
        return self.buffers.before(self.buffers.h, self.row, self.unit + lane)

    def c(self, lane: Any) -> Any:
        """The cell before the step."""
        return self.buffers.before(self.buffers.c, self.row, self.unit + lane)

    def put_h(self, number: int) -> Any:
        """The state after the step is what the buffer holds."""

        def put(lane: Any) -> Statements:
            value, unit = self.sum(number, lane), self.unit + lane
            state = self.buffers.put(self.buffers.h, self.row, unit, value)
            return [state, self.buffers.put_output(self.row, unit, value)]

        return self.each(put)

    def put_c(self, number: int) -> Any:
        """The cell after the step is what the buffer holds."""
        buffers = self.buffers
        return self.each(
            lambda lane: buffers.put(buffers.c, self.row, self.unit + lane, self.sum(number, lane))
        )

    def scratch(self, state: Any, lane: Any) -> Any:
        """What the first phase left in a buffer for the second."""
        return emit.load(state, [self.row.direction, self.row.slot, self.unit + lane])

    def leave_update(self, number: int) -> Any:
        """Leave the update gate, which the buffer holds, for the second phase."""
        place = [self.row.direction, self.row.slot]
        update = self.buffers.update
        return self.each(lambda lane: emit.store(update, self.sum(number, lane), [*place, self.unit + lane]))

    def leave_reset(self, number: int) -> Any:
        """Leave the state behind the reset gate, which the buffer holds, for the second phase."""
        return self.each(
            lambda lane: self.buffers.put_reset(self.row, self.unit + lane, self.sum(number, lane))
        )


def activate(activation: Activation, x: Any) -> Any:
    """The expression of an activation function; constants are those of the ONNX operators of that name."""
    alpha, beta = emit.constant(activation.alpha), emit.constant(activation.beta)
    if activation.name == "Affine":
        return x * alpha + beta
    if activation.name == "ScaledTanh":
        return alpha * approx.tanh(beta * x)
    op = Op(activation.name, "", {"alpha": activation.alpha, "beta": activation.beta}, (), ())
    return ELEMENTWISE[activation.name](op, x)


def _clipped(spec: RecurrenceSpec, x: Any) -> Any:
    if not spec.clip:
        return x
    return tirx.max(tirx.min(x, emit.constant(spec.clip)), emit.constant(-spec.clip))


def lstm(spec: RecurrenceSpec, at: Vector) -> Statements:
    """Gates in the order i, o, f, c."""

    def total(gate: int, lane: Any, state: Any) -> Any:
        value = at.sum(gate, lane)
        if spec.has_peepholes:
            value = value + at.buffers.peephole(at.row, gate, at.unit + lane) * state
        return _clipped(spec, value)

    def forget(lane: Any) -> Any:
        if spec.coupled:
            return emit.constant(1.0) - at.sum(0, lane)
        return at.active(0, total(2, lane, at.c(lane)))

    return [
        at.set(0, lambda lane: at.active(0, total(0, lane, at.c(lane)))),
        at.set(2, forget),
        at.set(3, lambda lane: at.active(1, _clipped(spec, at.sum(3, lane)))),
        at.set(3, lambda lane: at.sum(2, lane) * at.c(lane) + at.sum(0, lane) * at.sum(3, lane)),
        at.put_c(3),
        at.set(1, lambda lane: at.active(0, total(1, lane, at.sum(3, lane)))),
        at.set(1, lambda lane: at.sum(1, lane) * at.active(2, at.sum(3, lane))),
        at.put_h(1),
    ]


def gru(spec: RecurrenceSpec, at: Vector) -> Statements:
    """Gates in the order z, r, h; the reset gate multiplies the product with the state."""

    def new(lane: Any) -> Any:
        product = at.buffers.product(at.row, 2, at.unit + lane)
        return at.active(1, _clipped(spec, product + at.sum(1, lane) * at.sum(2, lane)))

    return [
        at.set(0, lambda lane: at.active(0, _clipped(spec, at.sum(0, lane)))),
        at.set(1, lambda lane: at.active(0, _clipped(spec, at.sum(1, lane)))),
        at.set(2, new),
        at.set(0, lambda lane: _mixed(at.sum(0, lane), at.sum(2, lane), at.h(lane))),
        at.put_h(0),
    ]


def gru_gates(spec: RecurrenceSpec, at: Vector) -> Statements:
    """The first of two phases: the gates z and r."""
    return [
        at.set(0, lambda lane: at.active(0, _clipped(spec, at.sum(0, lane)))),
        at.set(1, lambda lane: at.active(0, _clipped(spec, at.sum(1, lane)))),
        at.set(1, lambda lane: at.sum(1, lane) * at.h(lane)),
        at.leave_update(0),
        at.leave_reset(1),
    ]


def gru_new(spec: RecurrenceSpec, at: Vector) -> Statements:
    """The second of two phases: the new value, whose sum is the only one."""
    return [
        at.set(0, lambda lane: at.active(1, _clipped(spec, at.sum(0, lane)))),
        at.set(0, lambda lane: _mixed(at.scratch(at.buffers.update, lane), at.sum(0, lane), at.h(lane))),
        at.put_h(0),
    ]


def rnn(spec: RecurrenceSpec, at: Vector) -> Statements:
    """One gate."""
    return [at.set(0, lambda lane: at.active(0, _clipped(spec, at.sum(0, lane)))), at.put_h(0)]


def _mixed(update: Any, new: Any, old: Any) -> Any:
    return (emit.constant(1.0) - update) * new + update * old
