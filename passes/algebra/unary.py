"""Functions of one tensor that undo or repeat each other, and negations that operators absorb."""

from __future__ import annotations

from typing import ClassVar

import onnx_ir as ir

from ...ir.static import only_reader, producer_of
from ..leftovers import hand_on, supersede
from ..rewriter import Rewriter
from ..rules import Rule
from ..signs import never_negative

_INVOLUTIONS = ("BitwiseNot", "Neg", "Not")
_ROUNDING = ("Ceil", "Floor", "Round")
_WHOLE = (*_ROUNDING, "Sign")


class UndoTwice(Rule):
    """-(-x) = x;  not not x = x."""

    op_types: ClassVar[tuple[str, ...]] = _INVOLUTIONS

    def match_and_rewrite(self, node: ir.Node, rewriter: Rewriter) -> bool | str:
        """Hand the operand of the first one on."""
        inner = producer_of(node.inputs[0], node.op_type)
        if inner is None or inner.inputs[0] is None:
            return False
        return hand_on(node, inner.inputs[0], rewriter)


class RoundOnce(Rule):
    """Of a whole number Ceil, Floor and Round are that number;  |-x| = |x|, sign sign x = sign x."""

    op_types: ClassVar[tuple[str, ...]] = (*_WHOLE, "Abs")

    def match_and_rewrite(self, node: ir.Node, rewriter: Rewriter) -> bool | str:
        """Drop the function, or the one before it."""
        if node.op_type == "Abs":
            inner = producer_of(node.inputs[0], "Neg")
            if inner is None:
                return False
            return supersede(node, "Abs", [inner.inputs[0]], rewriter)
        wanted = ("Sign",) if node.op_type == "Sign" else _WHOLE
        if producer_of(node.inputs[0], *wanted) is None or node.inputs[0] is None:
            return False
        return hand_on(node, node.inputs[0], rewriter)


class NeverNegative(Rule):
    """Relu(x) = Abs(x) = x for x that is never negative: after Relu, Sigmoid, Softmax, Exp, Clip, ..."""

    op_types: ClassVar[tuple[str, ...]] = ("Abs", "Relu")

    def match_and_rewrite(self, node: ir.Node, rewriter: Rewriter) -> bool | str:
        """Hand the operand on."""
        if node.inputs[0] is None or not never_negative(node.inputs[0]):
            return False
        return hand_on(node, node.inputs[0], rewriter)


class AbsorbNegation(Rule):
    """a + (-b) = a - b;  (-a) + b = b - a;  a - (-b) = a + b;  (-a)(-b) = ab;  (-a)/(-b) = a/b. All exact."""

    op_types: ClassVar[tuple[str, ...]] = ("Add", "Sub", "Mul", "Div")
    reads: ClassVar[tuple[str, ...]] = ("Neg",)

    def match_and_rewrite(self, node: ir.Node, rewriter: Rewriter) -> bool | str:
        """Read the operand of the negation, where nothing else needs the negated value."""
        left, right = (self._negated(value) for value in node.inputs)
        a, b = node.inputs
        if node.op_type == "Add" and right is not None:
            return supersede(node, "Sub", [a, right], rewriter)
        if node.op_type == "Add" and left is not None:
            return supersede(node, "Sub", [b, left], rewriter)
        if node.op_type == "Sub" and right is not None:
            return supersede(node, "Add", [a, right], rewriter)
        if node.op_type in ("Mul", "Div") and left is not None and right is not None:
            if node.op_type == "Div" and (a is None or a.dtype is None or not a.dtype.is_floating_point()):
                return "the lowest integer has no negative to divide by"
            return supersede(node, node.op_type, [left, right], rewriter)
        return False

    @staticmethod
    def _negated(value: ir.Value | None) -> ir.Value | None:
        negation = producer_of(value, "Neg")
        return (
            negation.inputs[0] if negation is not None and value is not None and only_reader(value) else None
        )
