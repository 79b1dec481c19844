"""LSTM, GRU and RNN unrolled over time, for targets and types without a kernel that runs the steps.

The part of a step that does not depend on the state is one product over the whole sequence. What is left of
every step has the same structure, so all steps call the same few functions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from ...ir.constants import constant_array

if TYPE_CHECKING:
    from .decompose import Assembler

_MAX_STEPS = 512
_GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
_ACTIVATIONS = {"LSTM": ("Sigmoid", "Tanh", "Tanh"), "GRU": ("Sigmoid", "Tanh"), "RNN": ("Tanh",)}
_AXIS = {axis: np.array([axis], np.int64) for axis in range(-1, 3)}


def unrolled(new: Assembler) -> Sequence[ir.Value | None]:
    """The outputs Y, Y_h (and Y_c) of a recurrent operator.

    Raises:
        CompileError: sequences of different lengths, clipping, or more steps than are unrolled.
    """
    kind = new.node.op_type
    _refuse(new, kind)
    batch_first = bool(new.attr("layout", 0))
    x = new("Transpose", new.input(0), perm=[1, 0, 2]) if batch_first else new.input(0)
    steps = new.shape(0)[1 if batch_first else 0]
    if steps > _MAX_STEPS:
        raise new.error(f"{steps} steps are more than the {_MAX_STEPS} that the TVM backend unrolls")
    directions = {"forward": (False,), "reverse": (True,), "bidirectional": (False, True)}
    sequences, states = [], []
    for d, backwards in enumerate(directions[new.attr("direction", "forward")]):
        hidden, final = _one_direction(new, kind, x, d, steps, backwards)
        sequences.append(new("Unsqueeze", new("Concat", *hidden, axis=0), _AXIS[1]))
        states.append([new("Unsqueeze", each, _AXIS[0]) for each in final])
    y = _joined(new, sequences, 1)
    last = [_joined(new, list(each), 0) for each in zip(*states, strict=True)]
    if batch_first:
        y = new("Transpose", y, perm=[2, 0, 1, 3])
        last = [new("Transpose", each, perm=[1, 0, 2]) for each in last]
    return [y, *last][: len(new.node.outputs)]


def _refuse(new: Assembler, kind: str) -> None:
    names = new.attr("activations")
    expected = _ACTIVATIONS[kind]
    if names is not None and tuple(names) != expected * (len(names) // len(expected)):
        raise new.error(f"activations other than {', '.join(expected)} are not supported by the TVM backend")
    lengths = constant_array(new.input(4))
    steps = new.shape(0)[1 if new.attr("layout", 0) else 0]
    if new.input(4) is not None and (lengths is None or np.any(lengths != steps)):
        raise new.error("sequence_lens is not supported by the TVM backend; pad or split the batch")
    if new.attr("clip") is not None or new.attr("input_forget", 0):
        raise new.error("clip and input_forget are not supported by the TVM backend")


def _joined(new: Assembler, values: list[Any], axis: int) -> Any:
    return values[0] if len(values) == 1 else new("Concat", *values, axis=axis)


def _of_direction(new: Assembler, position: int, d: int) -> Any:
    """A parameter of one direction, its leading axis removed; None where it is absent."""
    if new.input(position) is None:
        return None
    return new("Gather", new.input(position), np.array(d, np.int64), axis=0)


def _one_direction(
    new: Assembler, kind: str, x: Any, d: int, steps: int, backwards: bool
) -> tuple[list[Any], list[Any]]:
    """The hidden states (1, batch, hidden) by time, and the last states (batch, hidden)."""
    w, r, b = (_of_direction(new, position, d) for position in (1, 2, 3))
    gates, size = _GATES[kind], new.attr("hidden_size") or new.shape(2)[2]
    w_bias, r_bias = new("Split", b, outputs=2, axis=0, num_outputs=2) if b is not None else (None, None)
    projected = new("MatMul", x, new("Transpose", w, perm=[1, 0]))
    # GRU needs the bias of its recurrent part apart: a gate may multiply it.
    bias = w_bias if kind == "GRU" or b is None else new("Add", w_bias, r_bias)
    projected = new("Add", projected, bias) if bias is not None else projected
    batch = new.shape(0)[0 if new.attr("layout", 0) else 1]
    h = _initial(new, 5, d, (batch, size))
    c = _initial(new, 6, d, (batch, size)) if kind == "LSTM" else None
    step = _STEPS[kind](new, new("Transpose", r, perm=[1, 0]), r_bias, size, gates, d)
    hidden: list[Any] = [None] * steps
    for t in reversed(range(steps)) if backwards else range(steps):
        row = new("Gather", projected, np.array(t, np.int64), axis=0)
        h, c = step(row, h, c)
        hidden[t] = new("Unsqueeze", h, _AXIS[0])
    return hidden, [h, c] if kind == "LSTM" else [h]


def _initial(new: Assembler, position: int, d: int, shape: tuple[int, int]) -> Any:
    given = new.input(position)
    if given is None:
        return np.zeros(shape, np.float32).astype(new.number(0).dtype)
    axis = 1 if new.attr("layout", 0) else 0
    return new("Gather", given, np.array(d, np.int64), axis=axis)


Step = Callable[[Any, Any, Any], tuple[Any, Any]]


def _lstm(new: Assembler, r: Any, r_bias: Any, size: int, gates: int, d: int) -> Step:
    peep = _of_direction(new, 7, d)
    p_i, p_o, p_f = new("Split", peep, outputs=3, axis=0, num_outputs=3) if peep is not None else (None,) * 3

    def looked(value: Any, state: Any, factor: Any) -> Any:
        return value if factor is None else new("Add", value, new("Mul", factor, state))

    def step(row: Any, h: Any, c: Any) -> tuple[Any, Any]:
        total = new("Add", new("MatMul", h, r), row)
        i, o, f, g = new("Split", total, outputs=4, axis=-1, num_outputs=4)
        kept = new("Mul", new("Sigmoid", looked(f, c, p_f)), c)
        fresh = new("Mul", new("Sigmoid", looked(i, c, p_i)), new("Tanh", g))
        c = new("Add", kept, fresh)
        return new("Mul", new("Sigmoid", looked(o, c, p_o)), new("Tanh", c)), c

    return step


def _gru(new: Assembler, r: Any, r_bias: Any, size: int, gates: int, d: int) -> Step:
    sizes = np.array([2 * size, size], np.int64)
    r_gates, r_new = new("Split", r, sizes, outputs=2, axis=1)
    b_gates, b_new = new("Split", r_bias, sizes, outputs=2, axis=0) if r_bias is not None else (None, None)
    after = new.attr("linear_before_reset", 0)

    def biased(value: Any, bias: Any) -> Any:
        return value if bias is None else new("Add", value, bias)

    def step(row: Any, h: Any, c: Any) -> tuple[Any, Any]:
        x_gates, x_new = new("Split", row, sizes, outputs=2, axis=-1)
        total = new("Sigmoid", new("Add", biased(new("MatMul", h, r_gates), b_gates), x_gates))
        z, reset = new("Split", total, outputs=2, axis=-1, num_outputs=2)
        if after:
            part = new("Mul", reset, biased(new("MatMul", h, r_new), b_new))
        else:
            part = biased(new("MatMul", new("Mul", reset, h), r_new), b_new)
        fresh = new("Tanh", new("Add", part, x_new))
        # h' = (1 - z) n + z h = n + z (h - n)
        return new("Add", fresh, new("Mul", z, new("Sub", h, fresh))), c

    return step


def _rnn(new: Assembler, r: Any, r_bias: Any, size: int, gates: int, d: int) -> Step:
    def step(row: Any, h: Any, c: Any) -> tuple[Any, Any]:
        return new("Tanh", new("Add", new("MatMul", h, r), row)), c

    return step


_STEPS: dict[str, Callable[..., Step]] = {"LSTM": _lstm, "GRU": _gru, "RNN": _rnn}
