"""LSTM, GRU and RNN: products with the input for all steps at once, and a kernel that runs the steps.

`recurrence::Recurrence(products, R[, bias, lengths, h, c, peepholes])` is what is left of a layer when its
products with the input are known (see `RecurrenceSpec`). Its output holds all states and behind them, as
further steps, the last ones. Where the kernel does not serve, steps are unrolled (see `unrolled`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from ...ir.constants import constant_array
from ...ir.static import only_reader, producer_of
from .recurrent_activations import activations_of, by_direction
from .recurrent_weights import DOMAIN, OPERANDS, SCALE, WEIGHTS, weight_form
from .unrolled import unrolled

if TYPE_CHECKING:
    from ..target import Target
    from .decompose import Assembler
    from .emission import Emitted
    from .spec import GroupSpec

RECURRENCE = f"{DOMAIN}::Recurrence"
_GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
_DIRECTIONS = {"forward": (0,), "reverse": (1,), "bidirectional": (0, 1)}
_FLOATS = (ir.DataType.FLOAT, ir.DataType.FLOAT16)
_BATCH_FIRST = (1, 0, 2)


def recurrent(new: Assembler) -> Sequence[ir.Value | None]:
    """The outputs Y, Y_h (and Y_c) of a recurrent operator.

    Raises:
        CompileError: activations that ONNX does not know, or what the unrolled form does not support where
            the kernel does not serve.
    """
    x = new.input(0)
    served = new.target is not None and new.target.kind == "llvm" and x is not None and x.dtype in _FLOATS
    if not served or 0 in new.shape(0) or 0 in new.shape(2):
        return unrolled(new)
    return _Layer(new).outputs()


class _Layer:
    """One layer on its way to the operator."""

    def __init__(self, new: Assembler):
        self.new, self.kind = new, new.node.op_type
        self.backwards = _DIRECTIONS[new.attr("direction", "forward")]
        self.hidden, self.gates = new.shape(2)[2], _GATES[self.kind]
        self.batch_first = bool(new.attr("layout", 0))
        first, second = new.shape(0)[:2]
        self.batch, self.steps = (first, second) if self.batch_first else (second, first)
        self.is_half = self._dtype(0) is ir.DataType.FLOAT16
        self.reset_after = self.kind == "GRU" and bool(new.attr("linear_before_reset", 0))

    def _dtype(self, position: int) -> ir.DataType | None:
        value = self.new.input(position)
        return value.dtype if value is not None else None

    def _float(self, position: int) -> ir.Value | None:
        """An input as float32."""
        value = self.new.input(position)
        if value is None or not self.is_half:
            return value
        return self.new("Cast", value, to=int(ir.DataType.FLOAT))

    def outputs(self) -> list[ir.Value | None]:
        """Values for the outputs of the node."""
        new = self.new
        count = 3 if self.kind == "LSTM" else 2
        keeps = [int(position < count and new.uses(position)) for position in range(3)]
        if not any(keeps):
            keeps[0] = 1
        order, reader = self._order(bool(keeps[0]))
        made = self._operator(keeps, order)
        time, results = order.index("t"), []
        begin = 0
        for position, size in enumerate((self.steps, 1, 1)):
            part = None
            if keeps[position]:
                part = made if sum(keeps) == 1 else self._slice(made, time, begin, size)
                begin += size
                part = self._squeezed(part, order) if position else part
                if self.is_half:
                    part = new("Cast", part, to=int(ir.DataType.FLOAT16))
            results.append(part)
        if reader is not None:
            new.rewriter.replace(reader, [results[0]])
            results[0] = None
        return results[: min(count, len(new.node.outputs))]

    def _slice(self, value: ir.Value, axis: int, begin: int, size: int) -> ir.Value:
        places = [np.array([each], np.int64) for each in (begin, begin + size, axis)]
        made: ir.Value = self.new("Slice", value, *places)
        return made

    def _squeezed(self, last: ir.Value, order: str) -> ir.Value:
        """Last states as (directions, batch, hidden), or (batch, directions, hidden) with layout 1."""
        wanted = "bdh" if self.batch_first else "dbh"
        rest = order.replace("t", "")
        value = self.new("Squeeze", last, np.array([order.index("t")], np.int64))
        if rest == wanted:
            return value  # type: ignore[no-any-return]
        turned: ir.Value = self.new("Transpose", value, perm=[rest.index(axis) for axis in wanted])
        return turned

    def _order(self, is_kept: bool) -> tuple[str, ir.Node | None]:
        """Axes in which the output is stored, and a Transpose behind it that becomes no work by that."""
        order = "btdh" if self.batch_first else "tdbh"
        value = self.new.node.outputs[0]
        if not is_kept or not only_reader(value):
            return order, None
        reader = next(iter(value.consumers()))
        if reader.op_type != "Transpose" or reader.domain not in ("", "ai.onnx"):
            return order, None
        perm = tuple(reader.attributes.get_ints("perm", (3, 2, 1, 0)) or ())
        turned = "".join(order[axis] for axis in perm)
        return (turned, reader) if turned.endswith("h") else (order, None)

    def _operator(self, keeps: Sequence[int], order: str) -> ir.Value:
        new = self.new
        products, is_turned = self._products()
        peepholes = self._float(7) if self.kind == "LSTM" else None
        first_c = self._float(6) if self.kind == "LSTM" else None
        operands = [products, self._float(2), self._new_bias(), self._lengths(), self._float(5), first_c]
        activations = activations_of(new, self.kind, len(self.backwards))
        attributes = {
            "cell": self.kind,
            "steps": self.steps,
            "backwards": list(self.backwards),
            "activations": [each.name for each in activations],
            "alphas": [each.alpha for each in activations],
            "betas": [each.beta for each in activations],
            "order": order,
            "batch_first": int(is_turned),
            "states_batch_first": int(self.batch_first),
            "clip": float(new.attr("clip", 0.0)),
            "coupled": int(self.kind == "LSTM" and bool(new.attr("input_forget", 0))),
            "reset_after": int(self.reset_after),
            "keeps": list(keeps),
        }
        (made,) = new.rewriter.insert_before(
            new.node, "Recurrence", [*operands, peepholes], attributes, domain=DOMAIN
        )
        sizes = {"t": self.steps * keeps[0] + keeps[1] + keeps[2], "d": len(self.backwards)}
        sizes |= {"b": self.batch, "h": self.hidden}
        made.type, made.shape = ir.TensorType(ir.DataType.FLOAT), ir.Shape([sizes[axis] for axis in order])
        return made

    def _products(self) -> tuple[ir.Value, bool]:
        """Products of all inputs with all gates, biases added; whether the batch is in front of time."""
        new, size = self.new, self.new.shape(1)[2]
        x, is_turned = self._float(0), self.batch_first
        made = producer_of(x, "Transpose") if x is not None else None
        if made is not None and tuple(made.attributes.get_ints("perm", ()) or ()) == _BATCH_FIRST:
            x, is_turned = made.inputs[0], not is_turned
        rows = len(self.backwards) * self.gates * self.hidden
        w = new("Reshape", self._float(1), np.array([rows, size], np.int64))
        products = new("MatMul", x, new("Transpose", w, perm=[1, 0]))
        b = self._float(3)
        if b is None:
            return products, is_turned
        halves = np.array([len(self.backwards), 2, self.gates * self.hidden], np.int64)
        w_bias, r_bias = new("Split", new("Reshape", b, halves), outputs=2, axis=1, num_outputs=2)
        if self.reset_after:
            # The reset gate multiplies the recurrent bias of the new value.
            apart = np.ones(self.gates * self.hidden, np.float32)
            apart[2 * self.hidden :] = 0
            r_bias = new("Mul", r_bias, apart)
        bias = new("Reshape", new("Add", w_bias, r_bias), np.array([rows], np.int64))
        return new("Add", products, bias), is_turned

    def _new_bias(self) -> ir.Value | None:
        """GRU: the recurrent bias of the new value, where the reset gate multiplies it."""
        b = self._float(3)
        if b is None or not self.reset_after:
            return None
        begin = (2 * self.gates - 1) * self.hidden
        return self._slice(b, 1, begin, self.hidden)

    def _lengths(self) -> ir.Value | None:
        """The lengths of sequences; None where all are whole."""
        lengths = constant_array(self.new.input(4))
        whole = lengths is not None and bool(np.all(lengths == self.steps))
        return None if whole else self.new.input(4)


def emit_recurrence(spec: GroupSpec, target: Target) -> Emitted:
    """The function of the operator."""
    from .emission import Argument, Emitted, Packed
    from .kernels.recurrence import recurrence
    from .kernels.recurrence_spec import RecurrenceSpec

    op, refs = spec.anchor_op, spec.members[spec.anchor].inputs
    batch_first, keeps = bool(op.attr("batch_first")), op.attr("keeps")
    shape = RecurrenceSpec(
        op.attr("cell"),
        op.attr("steps"),
        op.input(0).shape[0 if batch_first else 1],
        op.input(1).shape[2],
        tuple(bool(each) for each in op.attr("backwards")),
        by_direction(op.attributes),
        order=op.attr("order"),
        batch_first=batch_first,
        states_batch_first=bool(op.attr("states_batch_first")),
        clip=op.attr("clip"),
        coupled=bool(op.attr("coupled")),
        reset_after=bool(op.attr("reset_after")),
        has_bias=op.has(2),
        has_lengths=op.has(3),
        has_h=op.has(4),
        has_c=op.has(5),
        has_peepholes=op.has(6),
        constant_weights=1 in op.constant,
        weights=weight_form(op),
        keeps=(bool(keeps[0]), bool(keeps[1]), bool(keeps[2])),
    )
    kernel = recurrence(shape, target)
    external = {i: ref.external for i, ref in enumerate(refs) if ref is not None}
    arguments: list[Argument] = [external[0]]
    if shape.constant_weights:
        packs = zip(kernel.sources, kernel.pack, strict=True)
        arguments += [Packed(external[OPERANDS[source]], pack) for source, pack in packs]
    else:
        arguments.append(external[WEIGHTS])
    arguments += [each for i, each in external.items() if WEIGHTS < i < SCALE]
    return Emitted(kernel.func, tuple(arguments), shape.cell.lower(), kernel.flops, kernel.note)
