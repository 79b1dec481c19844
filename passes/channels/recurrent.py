"""Labels through LSTM, GRU and RNN.

A hidden unit is one index of the state with its row of every gate and its column of the recurrent matrix; the
two directions of a bidirectional layer share their size, and so lose the same units. The recurrent sum is
masked like any other, so a removed unit reaches no gate of another one.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx_ir as ir

from .labels import Axis, spread
from .tracer import Edit, Keep, Tracer, traces

_GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
_PEEPHOLES = 3


@traces("LSTM", "GRU", "RNN")
def _recurrent(node: ir.Node, tracer: Tracer) -> str | None:
    inputs = [*node.inputs, *[None] * (8 - len(node.inputs))]
    data, weight, recurrent, bias, lengths, hidden, cell, peepholes = inputs[:8]
    if data is None or weight is None or recurrent is None:
        return "an operand is missing"
    size, gates = tracer.dims(recurrent)[2], _GATES[node.op_type]
    if not isinstance(size, int) or tracer.dims(weight)[1] != gates * size:
        return "its hidden size is not static"
    batch_first = node.attributes.get_int("layout", 0) == 1
    steps, batch = (1, 0) if batch_first else (0, 1)
    fixed = tracer.labels.new_pin(node, f"{node.op_type} steps along this axis, or has one matrix per index")
    tracer.tie(fixed, data, steps)
    for value in (weight, recurrent, bias, peepholes):
        if value is not None:
            tracer.tie(fixed, value, 0)
    tracer.tie(tracer.axis(data, 2), weight, 2)
    tracer.contract(node, 1, 2)
    units = tracer.axis(recurrent, 2)
    tracer.contract(node, 2, 2)
    tracer.produce(node, weight, 1)
    for value, axis, times in (
        (weight, 1, gates),
        (recurrent, 1, gates),
        (bias, 1, 2 * gates),
        (peepholes, 1, _PEEPHOLES),
    ):
        if value is not None:
            tracer.tie(_blocks(units, times), value, axis)
    kept_batch = tracer.axis(data, batch)
    if lengths is not None:
        tracer.tie(kept_batch, lengths, 0)
    state: list[Axis] = [kept_batch, fixed, units] if batch_first else [fixed, kept_batch, units]
    for value in (hidden, cell):
        if value is not None:
            for axis, labels in enumerate(state):
                tracer.tie(labels, value, axis)
    sequence: list[Axis] = (
        [kept_batch, fixed, fixed, units] if batch_first else [fixed, fixed, kept_batch, units]
    )
    for output, axes in zip(node.outputs, (sequence, state, state), strict=False):
        if output.name != "":
            tracer.set(output, axes)
    tracer.on_removal(lambda keep: _hidden_size(node, keep, units, size))
    return None


def _blocks(units: Axis, times: int) -> Axis:
    return units if isinstance(units, int) else np.tile(spread(units, 0), times)


def _hidden_size(node: ir.Node, keep: Keep, units: Axis, size: int) -> Iterator[Edit]:
    if keep.count(units, size) != size:
        yield Edit(node, "hidden_size", keep.count(units, size))
