"""`merge-transposes`: transposes wander towards the outputs until they meet, cancel or become reshapes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from ..ir.static import constant_ints, input_of, only_reader, producer_of, rank_of
from .base import Pass, PassContext
from .elementwise import BROADCASTING, UNARY
from .leftovers import hand_on
from .merge_reshapes import shape_operand
from .permutations import (
    inverse,
    is_one_number,
    order_left,
    permutation,
    permuted_shape,
    transposed,
    unpermuted,
)
from .registry import register
from .rewriter import Rewriter
from .rules import Rule
from .sink_transposes import (
    SinkThroughArgMax,
    SinkThroughCumSum,
    SinkThroughGather,
    SinkThroughPad,
    SinkThroughSlice,
    SinkThroughSqueeze,
    SinkThroughUnsqueeze,
)
from .transposed_cones import SinkThroughCone
from .transposed_products import GemmInsteadOfTranspose, ProductOfTransposes, SinkThroughProduct

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
       with several operands where all are transposed by the same p; also where f has several parts that share
       P(x), as x sigmoid(x).
    3. Reduce(P(x), axes) = P'(Reduce(x, p[axes])); Softmax, ArgMax, CumSum, Slice, Pad, Gather, Squeeze and
       Unsqueeze likewise; Concat of P(x_i) = P(Concat of x_i), with constants transposed back.
    4. P(x) that only moves axes of size one is a Reshape.
    5. A^T B^T = (B A)^T; A^T B and A B^T of matrices are a Gemm with a flag; P(A) B = P(A B) where P does not
       touch the axis of the sum.

    Rules 2, 3 and 5 fire where the transposed value has no other reader, so that no work is done twice; they
    move transposes only towards the outputs, so they come to an end.
    """

    name: ClassVar[str] = "merge-transposes"

    def rules(self) -> tuple[Rule, ...]:
        """The rules of the list above."""
        return (
            ComposeTransposes(),
            TransposeToReshape(),
            SinkThroughElementwise(),
            SinkThroughReduction(),
            SinkThroughSoftmax(),
            SinkThroughConcat(),
            SinkThroughSlice(),
            SinkThroughPad(),
            SinkThroughGather(),
            SinkThroughSqueeze(),
            SinkThroughUnsqueeze(),
            SinkThroughArgMax(),
            SinkThroughCumSum(),
            ProductOfTransposes(),
            GemmInsteadOfTranspose(),
            SinkThroughProduct(),
            SinkThroughCone(),
        )

    def apply(self, model: ir.Model, context: PassContext) -> None:
        """Drive the rules to a fixpoint."""
        context.rewrite(model, *self.rules())


class ComposeTransposes(Rule):
    """Q(P(x)) = (p o q)(x)."""

    op_types: ClassVar[tuple[str, ...]] = ("Transpose",)
    reads: ClassVar[tuple[str, ...]] = ("Transpose",)
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
        if composed == sorted(composed):
            return hand_on(node, source, rewriter)
        rewriter.replace(node, rewriter.insert_before(node, "Transpose", [source], {"perm": composed}))
        rewriter.erase_unread(inner)
        return True


class TransposeToReshape(Rule):
    """A transpose that keeps the order of all axes larger than one moves no element."""

    op_types: ClassVar[tuple[str, ...]] = ("Transpose",)
    benefit: ClassVar[int] = 2

    def match_and_rewrite(self, node: ir.Node, rewriter: Rewriter) -> bool | str:
        """Replace it by a Reshape."""
        source, perm = node.inputs[0], permutation(node)
        if perm is None or source is None or source.shape is None:
            return False
        moved = [axis for axis in perm if source.shape[axis] != 1]
        if moved != sorted(moved):
            return False
        sizes = shape_operand(node.outputs[0], source)
        if sizes is None:
            return "it moves no element, but a Reshape cannot say its sizes"
        target = np.array(sizes, np.int64)
        inputs = [source, rewriter.constant_before(node, f"{node.name}/shape", target)]
        rewriter.replace(node, rewriter.insert_before(node, "Reshape", inputs))
        return True


class SinkThroughElementwise(Rule):
    """f(P(x), P(y), constant) = P(f(x, y, transposed constant))."""

    op_types: ClassVar[tuple[str, ...]] = tuple(sorted(UNARY | BROADCASTING | {"PRelu"}))
    reads: ClassVar[tuple[str, ...]] = ("Transpose",)

    def match_and_rewrite(self, node: ir.Node, rewriter: Rewriter) -> bool | str:
        """Move the transposes of all operands behind the node."""
        data = node.inputs[:1] if node.op_type in UNARY else node.inputs
        transposes = [t for t in (producer_of(value, "Transpose") for value in data) if t is not None]
        if not transposes or len(node.outputs) != 1:
            return False
        if node.op_type == "PRelu" and producer_of(node.inputs[0], "Transpose") is None:
            return "only its slope is transposed"
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
            elif i >= len(data) or value is None or is_one_number(value, len(perm)):
                operands.append(value)
            else:
                array = unpermuted(value, perm)
                if array is None:
                    return f"operand '{value.name}' is not transposed"
                operands.append(value)
                constants[i] = array
        for i, array in constants.items():
            operands[i] = rewriter.constant_before(node, f"{node.inputs[i].name}/transposed", array)  # type: ignore[union-attr]
        (inner,) = rewriter.insert_before(node, node.op_type, operands, dict(node.attributes))
        inner.type = node.outputs[0].type
        inner.shape = permuted_shape(node.outputs[0].shape, inverse(perm))
        rewriter.replace(node, rewriter.insert_before(node, "Transpose", [inner], {"perm": perm}))
        for transpose in dict.fromkeys(transposes):
            rewriter.erase_unread(transpose)
        return True


class SinkThroughReduction(Rule):
    """Reduce(P(x), axes) = P'(Reduce(x, p[axes]))."""

    op_types: ClassVar[tuple[str, ...]] = _REDUCTIONS
    reads: ClassVar[tuple[str, ...]] = ("Transpose",)

    def match_and_rewrite(self, node: ir.Node, rewriter: Rewriter) -> bool | str:
        """Reduce the other axes instead; P' keeps the order of those that remain."""
        transpose = producer_of(node.inputs[0], "Transpose")
        if transpose is None or not only_reader(transpose.outputs[0]):
            return False
        perm, operand = permutation(transpose), input_of(node, 1)
        axes = constant_ints(operand)
        if perm is None or (operand is not None and axes is None):
            return "its axes are not constant"
        if not axes:
            if node.attributes.get_int("noop_with_empty_axes", 0):
                return "it reduces nothing"
            # Over all axes the order does not matter.
            rewriter.set_input(node, 0, transpose.inputs[0])
            rewriter.erase_unread(transpose)
            return True
        axes = [axis % len(perm) for axis in axes]
        source_axes = np.array(sorted(perm[axis] for axis in axes), np.int64)
        inputs = [transpose.inputs[0], rewriter.constant_before(node, f"{node.name}/axes", source_axes)]
        (reduced,) = rewriter.insert_before(node, node.op_type, inputs, dict(node.attributes))
        if node.attributes.get_int("keepdims", 1):
            remaining = perm
        else:
            remaining = order_left(perm, axes)
        rewriter.replace(node, [transposed(reduced, remaining, node, rewriter)])
        rewriter.erase_unread(transpose)
        return True


class SinkThroughSoftmax(Rule):
    """Softmax(P(x), axis) = P(Softmax(x, p[axis]))."""

    op_types: ClassVar[tuple[str, ...]] = ("Softmax", "LogSoftmax", "Hardmax")
    reads: ClassVar[tuple[str, ...]] = ("Transpose",)

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
        rewriter.replace(node, [transposed(inner, perm, node, rewriter)])
        rewriter.erase_unread(transpose)
        return True


class SinkThroughConcat(Rule):
    """Concat(P(x), P(y), axis) = P(Concat(x, y, p[axis]))."""

    op_types: ClassVar[tuple[str, ...]] = ("Concat",)

    def match_and_rewrite(self, node: ir.Node, rewriter: Rewriter) -> bool | str:
        """Concatenate before transposing, where every operand is transposed by the same permutation."""
        transposes = [producer_of(value, "Transpose") for value in node.inputs]
        known = [t for t in transposes if t is not None]
        perm = permutation(known[0]) if known else None
        if perm is None:
            return False
        operands: list[ir.Value | np.ndarray | None] = []
        for value, transpose in zip(node.inputs, transposes, strict=True):
            if transpose is not None and permutation(transpose) == perm:
                operands.append(transpose.inputs[0])
                continue
            array = unpermuted(value, perm) if value is not None else None
            if array is None:
                return "not all of its operands are transposed in the same way"
            operands.append(array)
        if any(set(t.outputs[0].consumers()) != {node} or t.outputs[0].is_graph_output() for t in known):
            return "a transposed operand has other readers"
        axis = perm[node.attributes.get_int("axis", 0) % len(perm)]
        values = [
            rewriter.constant_before(node, f"{node.name}/transposed", operand)
            if isinstance(operand, np.ndarray)
            else operand
            for operand in operands
        ]
        (inner,) = rewriter.insert_before(node, "Concat", values, {"axis": axis})
        rewriter.replace(node, [transposed(inner, perm, node, rewriter)])
        for transpose in dict.fromkeys(known):
            rewriter.erase_unread(transpose)
        return True
