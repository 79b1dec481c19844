"""Truth values: conditions that are negated, repeated or known."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import onnx_ir as ir

from ...ir.constants import constant_array
from ...ir.static import known_equal, only_reader, producer_of
from ..leftovers import hand_on, supersede
from ..rewriter import Rewriter
from ..rules import Rule
from .broadcasting import fits_without_broadcast

_LIMIT = 1 << 16
_NEUTRAL = {"And": True, "Or": False, "Xor": False, "BitwiseOr": 0, "BitwiseXor": 0, "Equal": True}
_REPEATABLE = ("And", "BitwiseAnd", "BitwiseOr", "Max", "Min", "Or")
_OPPOSITE = {
    "Less": "GreaterOrEqual",
    "LessOrEqual": "Greater",
    "Greater": "LessOrEqual",
    "GreaterOrEqual": "Less",
}


class WhereNot(Rule):
    """Where(not c, a, b) = Where(c, b, a)."""

    op_types: ClassVar[tuple[str, ...]] = ("Where",)
    benefit: ClassVar[int] = 2

    def match_and_rewrite(self, node: ir.Node, rewriter: Rewriter) -> bool | str:
        """Swap the two choices."""
        negation = producer_of(node.inputs[0], "Not")
        if negation is None:
            return False
        return supersede(node, "Where", [negation.inputs[0], node.inputs[2], node.inputs[1]], rewriter)


class WhereSame(Rule):
    """Where(c, x, x) = x;  Where(c, true, false) = c;  Where(c, false, true) = not c."""

    op_types: ClassVar[tuple[str, ...]] = ("Where",)

    def match_and_rewrite(self, node: ir.Node, rewriter: Rewriter) -> bool | str:
        """Leave the choice out, where the shape stays."""
        condition, left, right = node.inputs
        if condition is None or left is None or right is None:
            return False
        shape = node.outputs[0].shape
        if left is right:
            if not known_equal(left.shape, shape):
                return "the condition may broadcast its choices"
            return hand_on(node, left, rewriter)
        if left.dtype != ir.DataType.BOOL or not known_equal(condition.shape, shape):
            return False
        choices = [constant_array(value, _LIMIT) for value in (left, right)]
        if any(choice is None or choice.size == 0 for choice in choices):
            return False
        if np.all(choices[0]) and not np.any(choices[1]):  # type: ignore[arg-type]
            return hand_on(node, condition, rewriter)
        if np.all(choices[1]) and not np.any(choices[0]):  # type: ignore[arg-type]
            return supersede(node, "Not", [condition], rewriter)
        return False


class NotOfComparison(Rule):
    """not (a < b) = a >= b, likewise for <=, > and >=, where no operand can be NaN: integers."""

    op_types: ClassVar[tuple[str, ...]] = ("Not",)

    def match_and_rewrite(self, node: ir.Node, rewriter: Rewriter) -> bool | str:
        """Compare the other way round."""
        comparison = producer_of(node.inputs[0], *_OPPOSITE)
        if comparison is None or not only_reader(comparison.outputs[0]):
            return False
        operand = comparison.inputs[0]
        if operand is None or operand.dtype is None or not operand.dtype.is_integer():
            return "NaN compares as false either way"
        return supersede(node, _OPPOSITE[comparison.op_type], list(comparison.inputs), rewriter)


class RepeatedOperand(Rule):
    """x and x = x or x = max(x, x) = x."""

    op_types: ClassVar[tuple[str, ...]] = _REPEATABLE

    def match_and_rewrite(self, node: ir.Node, rewriter: Rewriter) -> bool | str:
        """Hand the operand on."""
        first = node.inputs[0]
        if first is None or len(node.inputs) < 2 or any(value is not first for value in node.inputs):
            return False
        return hand_on(node, first, rewriter)


class NeutralTruth(Rule):
    """x and true = x;  x or false = x;  x xor false = x;  (x = true) = x for truth values."""

    op_types: ClassVar[tuple[str, ...]] = tuple(_NEUTRAL)

    def match_and_rewrite(self, node: ir.Node, rewriter: Rewriter) -> bool | str:
        """Hand the operand on, where the constant does not broadcast it."""
        if len(node.inputs) != 2:
            return False
        for place in (0, 1):
            source, array = node.inputs[place], constant_array(node.inputs[1 - place], _LIMIT)
            if source is None or array is None or array.size == 0:
                continue
            if node.op_type == "Equal" and array.dtype.kind != "b":
                continue
            if bool(np.all(array == _NEUTRAL[node.op_type])) and fits_without_broadcast(
                source, node.inputs[1 - place]
            ):
                return hand_on(node, source, rewriter)
        return False
