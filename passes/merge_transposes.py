"""`merge-transposes`: transposes wander towards the outputs until they meet, cancel or become reshapes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from ..ir.constants import constant_array
from ..ir.static import constant_ints, input_of, only_reader, producer_of, rank_of, static_shape
from .base import Pass, PassContext
from .elementwise import BROADCASTING, UNARY
from .registry import register
from .rewriter import Rewriter
from .rules import Rule

_CONSTANT_LIMIT = 1 << 20
_REDUCTIONS = tuple(
    f"Reduce{kind}"
    for kind in ["L1", "L2", "LogSum", "LogSumExp", "Max", "Mean", "Min", "Prod", "Sum", "SumSquare"]
)


@register
@dataclass(frozen=True)
class MergeTransposes(Pass):
    """Merge transposes with each other and push them through what does not care about the order of axes.

    With P(x) the transpose by permutation p, (P x)[i] = x[.. axis p[k] at place k ..]:

    1. Q(P(x)) = (p o q)(x); it vanishes where p o q is the identity.
    2. f(P(x)) = P(f(x)) for element-wise f; with constants, which are transposed back at compile time, and
       with several operands where all are transposed by the same p.
    3. Reduce(P(x), axes) = P'(Reduce(x, p[axes])), Softmax likewise; Concat of P(x_i) = P(Concat of x_i).
    4. P(x) that only moves axes of size one is a Reshape.

    Rules 2 and 3 fire where the transposed value has no other reader, so that no work is done twice; they
    move transposes only towards the outputs, so they come to an end.
    """

    name: ClassVar[str] = "merge-transposes"

    def apply(self, model: ir.Model, context: PassContext) -> None:
        """Drive the rules to a fixpoint."""
        context.rewrite(
            model,
            ComposeTransposes(),
            TransposeToReshape(),
            SinkThroughElementwise(),
            SinkThroughReduction(),
            SinkThroughSoftmax(),
            SinkThroughConcat(),
        )


class ComposeTransposes(Rule):
    """Q(P(x)) = (p o q)(x)."""

    op_types: ClassVar[tuple[str, ...]] = ("Transpose",)
    benefit: ClassVar[int] = 3

    def match_and_rewrite(self, node: ir.Node, rewriter: Rewriter) -> bool | str:
        """Replace two transposes by one, or by nothing."""
        inner = producer_of(node.inputs[0], "Transpose")
        if inner is None or inner.inputs[0] is None:
            return False
        first, second = permutation(inner), permutation(node)
        if first is None or second is None:
            return "the rank is not known"
        composed = [first[axis] for axis in second]
        source = inner.inputs[0]
        if composed == sorted(composed) and not (
            node.outputs[0].is_graph_output() and source.producer() is None
        ):
            rewriter.replace(node, [source])
        else:
            rewriter.replace(node, rewriter.insert_before(node, "Transpose", [source], {"perm": composed}))
        rewriter.erase_unread(inner)
        return True


class TransposeToReshape(Rule):
    """A transpose that keeps the order of all axes larger than one moves no element."""

    op_types: ClassVar[tuple[str, ...]] = ("Transpose",)
    benefit: ClassVar[int] = 2

    def match_and_rewrite(self, node: ir.Node, rewriter: Rewriter) -> bool | str:
        """Replace it by a Reshape to the static output shape."""
        perm, shape = permutation(node), static_shape(node.inputs[0])
        if perm is None or shape is None:
            return False
        moved = [axis for axis in perm if shape[axis] != 1]
        if moved != sorted(moved) or 0 in shape:
            return False
        target = np.array([shape[axis] for axis in perm], np.int64)
        inputs = [node.inputs[0], rewriter.initializer(f"{node.name}/shape", target)]
        rewriter.replace(node, rewriter.insert_before(node, "Reshape", inputs))
        return True


class SinkThroughElementwise(Rule):
    """f(P(x), P(y), constant) = P(f(x, y, transposed constant))."""

    op_types: ClassVar[tuple[str, ...]] = tuple(sorted(UNARY | BROADCASTING))

    def match_and_rewrite(self, node: ir.Node, rewriter: Rewriter) -> bool | str:
        """Move the transposes of all operands behind the node."""
        data = node.inputs[:1] if node.op_type in UNARY else node.inputs
        transposes = [t for t in (producer_of(value, "Transpose") for value in data) if t is not None]
        if not transposes or len(node.outputs) != 1:
            return False
        perm = permutation(transposes[0])
        if perm is None or rank_of(node.outputs[0]) not in (None, len(perm)):
            return False
        if any(permutation(other) != perm for other in transposes[1:]):
            return "its operands are transposed in different ways"
        read_here = {value for value in node.inputs if value is not None}
        for transpose in transposes:
            readers = set(transpose.outputs[0].consumers())
            if readers != {node} or transpose.outputs[0].is_graph_output():
                return f"'{transpose.outputs[0].name}' has other readers"
        operands: list[ir.Value | None] = []
        constants: dict[int, np.ndarray] = {}
        for i, value in enumerate(node.inputs):
            transpose = producer_of(value, "Transpose") if value in read_here and i < len(data) else None
            if transpose is not None:
                operands.append(transpose.inputs[0])
            elif i >= len(data) or value is None or _is_scalar(value):
                operands.append(value)
            else:
                array = constant_array(value, _CONSTANT_LIMIT)
                if array is None:
                    return f"operand '{value.name}' is not transposed"
                operands.append(value)
                constants[i] = _unpermuted(array, perm)
        for i, array in constants.items():
            operands[i] = rewriter.initializer(f"{node.inputs[i].name}/transposed", array)  # type: ignore[union-attr]
        (inner,) = rewriter.insert_before(node, node.op_type, operands, dict(node.attributes))
        inner.type = node.outputs[0].type
        inner.shape = _permuted_shape(node.outputs[0].shape, _inverse(perm))
        rewriter.replace(node, rewriter.insert_before(node, "Transpose", [inner], {"perm": perm}))
        for transpose in dict.fromkeys(transposes):
            rewriter.erase_unread(transpose)
        return True


class SinkThroughReduction(Rule):
    """Reduce(P(x), axes) = P'(Reduce(x, p[axes]))."""

    op_types: ClassVar[tuple[str, ...]] = _REDUCTIONS

    def match_and_rewrite(self, node: ir.Node, rewriter: Rewriter) -> bool | str:
        """Reduce the other axes instead; P' keeps the order of those that remain."""
        transpose = producer_of(node.inputs[0], "Transpose")
        if transpose is None or not only_reader(transpose.outputs[0]):
            return False
        perm, axes = permutation(transpose), constant_ints(input_of(node, 1))
        if perm is None or not axes:
            return "its axes are not constant"
        axes = [axis % len(perm) for axis in axes]
        source_axes = np.array(sorted(perm[axis] for axis in axes), np.int64)
        inputs = [transpose.inputs[0], rewriter.initializer(f"{node.name}/axes", source_axes)]
        (reduced,) = rewriter.insert_before(node, node.op_type, inputs, dict(node.attributes))
        if node.attributes.get_int("keepdims", 1):
            remaining = perm
        else:
            kept = [perm[place] for place in range(len(perm)) if place not in axes]
            remaining = [sorted(kept).index(axis) for axis in kept]
        rewriter.replace(node, [_transposed(reduced, remaining, node, rewriter)])
        rewriter.erase_unread(transpose)
        return True


class SinkThroughSoftmax(Rule):
    """Softmax(P(x), axis) = P(Softmax(x, p[axis]))."""

    op_types: ClassVar[tuple[str, ...]] = ("Softmax", "LogSoftmax", "Hardmax")

    def match_and_rewrite(self, node: ir.Node, rewriter: Rewriter) -> bool | str:
        """Work along the axis where it was before the transpose."""
        transpose = producer_of(node.inputs[0], "Transpose")
        if transpose is None or not only_reader(transpose.outputs[0]):
            return False
        perm = permutation(transpose)
        if perm is None:
            return "the rank is not known"
        axis = perm[node.attributes.get_int("axis", -1) % len(perm)]
        (inner,) = rewriter.insert_before(node, node.op_type, [transpose.inputs[0]], {"axis": axis})
        rewriter.replace(node, [_transposed(inner, perm, node, rewriter)])
        rewriter.erase_unread(transpose)
        return True


class SinkThroughConcat(Rule):
    """Concat(P(x), P(y), axis) = P(Concat(x, y, p[axis]))."""

    op_types: ClassVar[tuple[str, ...]] = ("Concat",)

    def match_and_rewrite(self, node: ir.Node, rewriter: Rewriter) -> bool | str:
        """Concatenate before transposing, where every operand is transposed by the same permutation."""
        transposes = [producer_of(value, "Transpose") for value in node.inputs]
        known = [t for t in transposes if t is not None]
        if not known:
            return False
        perm = permutation(known[0])
        if len(known) < len(transposes) or any(permutation(t) != perm for t in known) or perm is None:
            return "not all of its operands are transposed in the same way"
        if any(set(t.outputs[0].consumers()) != {node} or t.outputs[0].is_graph_output() for t in known):
            return "a transposed operand has other readers"
        axis = perm[node.attributes.get_int("axis", 0) % len(perm)]
        (inner,) = rewriter.insert_before(node, "Concat", [t.inputs[0] for t in known], {"axis": axis})
        rewriter.replace(node, [_transposed(inner, perm, node, rewriter)])
        for transpose in dict.fromkeys(known):
            rewriter.erase_unread(transpose)
        return True


def permutation(node: ir.Node) -> list[int] | None:
    """Return the permutation of a Transpose (the reversal where not given), or None where it is not known."""
    perm = node.attributes.get_ints("perm", ())
    if perm:
        return list(perm)
    rank = rank_of(node.inputs[0])
    return None if rank is None else list(range(rank))[::-1]


def _transposed(value: ir.Value, perm: Sequence[int], node: ir.Node, rewriter: Rewriter) -> ir.Value:
    if list(perm) == sorted(perm):
        return value
    return rewriter.insert_before(node, "Transpose", [value], {"perm": list(perm)})[0]


def _inverse(perm: Sequence[int]) -> list[int]:
    return [perm.index(axis) for axis in range(len(perm))]


def _unpermuted(array: np.ndarray, perm: Sequence[int]) -> np.ndarray:
    """The constant that, transposed by `perm`, broadcasts like `array`."""
    full = array.reshape((1,) * (len(perm) - array.ndim) + array.shape)
    return np.ascontiguousarray(full.transpose(_inverse(perm)))


def _permuted_shape(shape: ir.Shape | None, perm: Sequence[int]) -> ir.Shape | None:
    return None if shape is None else ir.Shape([shape[axis] for axis in perm])


def _is_scalar(value: ir.Value) -> bool:
    shape = static_shape(value)
    return shape is not None and all(dim == 1 for dim in shape) and len(shape) <= 1
