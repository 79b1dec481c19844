"""LSTM, GRU and RNN: torch's own where it computes the same, else step by step."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import onnx_ir as ir
import torch
import torch.nn.functional as F

from .elementwise import hard_sigmoid, thresholded_relu
from .emitter import Emitter, Form, refusal

# ONNX's order of gates, and torch's: iofc -> ifgo, zrh -> rzn.
_TORCH_ORDER = {"LSTM": (0, 2, 3, 1), "GRU": (1, 0, 2), "RNN": (0,)}
_DEFAULTS = {"LSTM": ["Sigmoid", "Tanh", "Tanh"], "GRU": ["Sigmoid", "Tanh"], "RNN": ["Tanh"]}
_STATES = {"LSTM": 2, "GRU": 1, "RNN": 1}


def _activation(name: str, alpha: float | None, beta: float | None) -> Callable[[torch.Tensor], torch.Tensor]:
    plain: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
        "sigmoid": torch.sigmoid,
        "tanh": torch.tanh,
        "relu": F.relu,
        "softsign": F.softsign,
        "softplus": F.softplus,
    }
    if name.lower() in plain:
        return plain[name.lower()]
    a, b = alpha, beta
    return {
        "affine": lambda x: (1.0 if a is None else a) * x + (0.0 if b is None else b),
        "leakyrelu": lambda x: F.leaky_relu(x, 0.01 if a is None else a),
        "thresholdedrelu": lambda x: thresholded_relu(x, 1.0 if a is None else a),
        "scaledtanh": lambda x: (1.0 if a is None else a) * torch.tanh((1.0 if b is None else b) * x),
        "hardsigmoid": lambda x: hard_sigmoid(x, 0.2 if a is None else a, 0.5 if b is None else b),
        "elu": lambda x: F.elu(x, 1.0 if a is None else a),
    }[name.lower()]


def recurrent(
    kind: str, x: torch.Tensor, w: torch.Tensor, r: torch.Tensor, b: torch.Tensor | None,
    states: list[torch.Tensor | None], reset_after: bool,
) -> tuple[torch.Tensor, ...]:  # fmt: skip
    """Return torch's LSTM, GRU or RNN over `x` `[steps, batch, width]`, forwards or both ways.

    Args:
        kind: "LSTM", "GRU" or "RNN".
        x: the sequence.
        w: weights of the input as ONNX lays them out, `[directions, gates * hidden, width]`.
        r: weights of the state, `[directions, gates * hidden, hidden]`.
        b: biases of both, `[directions, 2 * gates * hidden]`, or None.
        states: first states `[directions, batch, hidden]`, or None for zeros.
        reset_after: of GRU; torch knows no other.

    Returns:
        All states `[steps, directions, batch, hidden]`, then the last ones.
    """
    directions, hidden = r.shape[0], r.shape[2]
    batch = x.shape[1]
    first = [
        torch.zeros(directions, batch, hidden, dtype=x.dtype, device=x.device) if s is None else s
        for s in states
    ]
    weights: list[torch.Tensor] = []
    for direction in range(directions):
        weights.append(_ordered(w[direction], kind, hidden))
        weights.append(_ordered(r[direction], kind, hidden))
        if b is not None:
            gates = len(_TORCH_ORDER[kind]) * hidden
            weights += [_ordered(each, kind, hidden) for each in (b[direction, :gates], b[direction, gates:])]
    found = _library(kind, x, first, weights, b is not None, directions == 2)
    steps = found[0].reshape(x.shape[0], batch, directions, hidden).permute(0, 2, 1, 3)
    return (steps, *found[1:])


# As with torch's own modules, its compiler leaves recurrence to the library instead of unrolling it.
@torch.compiler.disable
def _library(
    kind: str,
    x: torch.Tensor,
    first: list[torch.Tensor],
    weights: list[torch.Tensor],
    biased: bool,
    both: bool,
) -> tuple[torch.Tensor, ...]:
    more = (weights, biased, 1, 0.0, False, both, False)
    if kind == "LSTM":
        return torch.lstm(x, first, *more)
    return (torch.gru if kind == "GRU" else torch.rnn_tanh)(x, first[0], *more)


def _ordered(array: torch.Tensor, kind: str, hidden: int) -> torch.Tensor:
    parts = [array[gate * hidden : (gate + 1) * hidden] for gate in _TORCH_ORDER[kind]]
    return torch.cat(parts) if len(parts) > 1 else array


def stepwise(
    kind: str, x: torch.Tensor, w: torch.Tensor, r: torch.Tensor, b: torch.Tensor | None,
    lengths: torch.Tensor | None, states: list[torch.Tensor | None], peepholes: torch.Tensor | None,
    activations: list[tuple[str, float | None, float | None]], backwards: list[bool], clip: float | None,
    reset_after: bool, coupled: bool,
) -> tuple[torch.Tensor, ...]:  # fmt: skip
    """The same one step after another, with everything that ONNX allows."""
    steps, batch = x.shape[:2]
    hidden, gates = r.shape[2], len(_TORCH_ORDER[kind])
    per_direction = len(activations) // len(backwards)
    outputs, lasts = [], []
    for d, reverse in enumerate(backwards):
        functions = [_activation(*each) for each in activations[d * per_direction : (d + 1) * per_direction]]
        wb, rb = (None, None) if b is None else (b[d, : gates * hidden], b[d, gates * hidden :])
        now = [
            torch.zeros(batch, hidden, dtype=x.dtype, device=x.device) if s is None else s[d] for s in states
        ]
        rows: list[Any] = [None] * steps
        for step in range(steps - 1, -1, -1) if reverse else range(steps):
            args = (x[step], now, w[d], r[d], wb, rb, functions, clip)
            if kind == "LSTM":
                new = _lstm_cell(*args, None if peepholes is None else peepholes[d], coupled)
            elif kind == "GRU":
                new = _gru_cell(*args, reset_after)
            else:
                new = _rnn_cell(*args)
            row = new[0]
            if lengths is not None:
                alive = (lengths > step)[:, None]
                new = [torch.where(alive, a, b) for a, b in zip(new, now, strict=True)]
                row = torch.where(alive, row, torch.zeros_like(row))
            rows[step], now = row, new
        outputs.append(torch.stack(rows))
        lasts.append(now)
    return (torch.stack(outputs, 1), *(torch.stack([last[i] for last in lasts]) for i in range(len(states))))


def _clipped(x: torch.Tensor, clip: float | None) -> torch.Tensor:
    return x if clip is None else torch.clamp(x, -clip, clip)


def _lstm_cell(
    x: Any, now: Any, w: Any, r: Any, wb: Any, rb: Any, functions: Any, clip: Any, p: Any, coupled: bool
) -> Any:
    hidden, cell = now
    f, g, h = functions
    i, o, forget, c = torch.chunk(F.linear(x, w, wb) + F.linear(hidden, r, rb), 4, 1)
    pi, po, pf = (0.0, 0.0, 0.0) if p is None else [part * cell for part in torch.chunk(p, 3)]
    gate_in = f(_clipped(i + pi, clip))
    gate_forget = 1 - gate_in if coupled else f(_clipped(forget + pf, clip))
    new_cell = gate_forget * cell + gate_in * g(_clipped(c, clip))
    if p is not None:
        po = torch.chunk(p, 3)[1] * new_cell
    return [f(_clipped(o + po, clip)) * h(new_cell), new_cell]


def _gru_cell(
    x: Any, now: Any, w: Any, r: Any, wb: Any, rb: Any, functions: Any, clip: Any, reset_after: bool
) -> Any:
    (hidden,) = now
    f, g = functions
    size = hidden.shape[1]
    from_x = F.linear(x, w, wb)
    gates = from_x[:, : 2 * size] + F.linear(hidden, r[: 2 * size], None if rb is None else rb[: 2 * size])
    z, reset = torch.chunk(f(_clipped(gates, clip)), 2, 1)
    bias = None if rb is None else rb[2 * size :]
    if reset_after:
        inner = reset * F.linear(hidden, r[2 * size :], bias)
    else:
        inner = F.linear(reset * hidden, r[2 * size :], bias)
    made = g(_clipped(from_x[:, 2 * size :] + inner, clip))
    return [(1 - z) * made + z * hidden]


def _rnn_cell(x: Any, now: Any, w: Any, r: Any, wb: Any, rb: Any, functions: Any, clip: Any) -> Any:
    (hidden,) = now
    return [functions[0](_clipped(F.linear(x, w, wb) + F.linear(hidden, r, rb), clip))]


def _activations(node: ir.Node, directions: int) -> list[tuple[str, float | None, float | None]]:
    names = list(node.attributes.get_strings("activations", [])) or _DEFAULTS[node.op_type] * directions
    alphas = list(node.attributes.get_floats("activation_alpha", []))
    betas = list(node.attributes.get_floats("activation_beta", []))
    found: list[tuple[str, float | None, float | None]] = []
    takes = {"affine": (1, 1), "leakyrelu": (1, 0), "thresholdedrelu": (1, 0), "scaledtanh": (1, 1)}
    takes |= {"hardsigmoid": (1, 1), "elu": (1, 0)}
    for name in names:
        wants_alpha, wants_beta = takes.get(name.lower(), (0, 0))
        alpha = alphas.pop(0) if wants_alpha and alphas else None
        beta = betas.pop(0) if wants_beta and betas else None
        found.append((name, alpha, beta))
    return found


def _form(emitter: Emitter, node: ir.Node) -> Any:
    attributes = node.attributes
    kind = node.op_type
    values = [*node.inputs, *[None] * 8]
    x, w, r, b, lengths = (emitter.tensor(value) for value in values[:5])
    states = [emitter.tensor(value) for value in values[5 : 5 + _STATES[kind]]]
    peepholes = emitter.tensor(values[7]) if kind == "LSTM" else None
    direction = attributes.get_string("direction", "forward")
    backwards = {"forward": [False], "reverse": [True]}.get(direction, [False, True])
    activations = _activations(node, len(backwards))
    clip = attributes.get_float("clip", None)
    reset_after = bool(attributes.get_int("linear_before_reset", 0))
    coupled = bool(attributes.get_int("input_forget", 0))
    batch_first = bool(attributes.get_int("layout", 0))
    if batch_first:
        x = emitter.call(torch.transpose, x, 0, 1)
        states = [None if each is None else emitter.call(torch.transpose, each, 0, 1) for each in states]
    usual = [name for name, _, _ in activations] == _DEFAULTS[kind] * len(backwards)
    plain = peepholes is None and lengths is None and clip is None and not coupled and backwards != [True]
    if plain and usual and (reset_after or kind != "GRU"):
        made = emitter.call(recurrent, kind, x, w, r, b, states, reset_after)
    else:
        if any(name.lower() not in _KNOWN for name, _, _ in activations):
            raise refusal(node, f"one of its activations {[name for name, _, _ in activations]} is unknown")
        made = emitter.call(
            stepwise,
            kind,
            x,
            w,
            r,
            b,
            lengths,
            states,
            peepholes,
            activations,
            backwards,
            clip,
            reset_after,
            coupled,
        )
    outputs = [emitter.call(operator.getitem, made, index) for index in range(len(node.outputs))]
    if batch_first:
        orders = [(2, 0, 1, 3), (1, 0, 2), (1, 0, 2)]
        outputs = [
            emitter.call(torch.permute, each, list(order))
            for each, order in zip(outputs, orders, strict=False)
        ]
    return outputs


_KNOWN = frozenset(
    {"sigmoid", "tanh", "relu", "softsign", "softplus", "affine", "leakyrelu", "thresholdedrelu"}
    | {"scaledtanh", "hardsigmoid", "elu"}
)

FORMS: dict[str, Form] = {"LSTM": _form, "GRU": _form, "RNN": _form}
