"""`fuse-l2-normalization`: division by the Euclidean length becomes one call."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir

from ..ir.static import constant_ints, rank_of
from .base import Pass, PassContext
from .functions import call_function, define
from .matcher import Match
from .pattern_rule import PatternRule
from .patterns import Pattern, any_of, constant, op, value
from .registry import register
from .rewriter import Rewriter


@register
@dataclass(frozen=True)
class FuseL2Normalization(Pass):
    """Fuse division by the Euclidean length into calls of the function L2Normalization.

    1. x / max(sqrt(sum(x^2)), epsilon) = L2Normalization(x), along any axes; without maximum epsilon is zero.
    2. x / max(c sqrt(sum(x^2)), epsilon) = L2Normalization(x) / c with epsilon / c, for c > 0.

    The operator LpNormalization differs for vectors shorter than epsilon and for zero, so it will not do. It
    does not fire where something else reads a value in between.
    """

    name: ClassVar[str] = "fuse-l2-normalization"

    def apply(self, model: ir.Model, context: PassContext) -> None:
        """Drive the rule to a fixpoint."""
        context.rewrite(model, DivideByLength())


L2_NORMALIZATION = define(
    """
    L2Normalization <axes, epsilon: float = 0.0> (x) => (y)
    {
        along = Constant <value_ints: ints = @axes> ()
        length = ReduceL2 <keepdims: int = 1> (x, along)
        number = Constant <value_float: float = @epsilon> ()
        least = CastLike (number, x)
        divisor = Max (length, least)
        y = Div (x, divisor)
    }
    """,
    "x / max(|x|, epsilon) with the Euclidean length along the axes",
)

_x = value("x")
_squares = any_of(op("Mul", _x, _x), op("Pow", _x, constant(equals=2.0)))
_length = any_of(
    op("ReduceL2", _x, constant("axes"), keepdims=(1, 1)),
    op("Sqrt", op("ReduceSumSquare", _x, constant("axes"), keepdims=(1, 1))),
    op("Sqrt", op("ReduceSum", _squares, constant("axes"), keepdims=(1, 1))),
)
_epsilon = constant("epsilon", scalar=True)
_scaled = any_of(
    op("Mul", _length, constant("factor", scalar=True), commutative=True),
    op("Div", _length, constant("divisor", scalar=True)),
)


def _bounded(length: Pattern) -> Pattern:
    return any_of(op("Max", length, _epsilon, commutative=True), op("Clip", length, _epsilon))


_divisor = any_of(_bounded(_length), _bounded(_scaled), _length)


class DivideByLength(PatternRule):
    """x / max(|x|, epsilon) = L2Normalization(x)."""

    pattern = any_of(op("Div", _x, _divisor), op("Mul", _x, op("Reciprocal", _divisor), commutative=True))

    def check(self, match: Match) -> str | None:
        """Demand known axes and a float."""
        axes, rank = constant_ints(match["axes"]), rank_of(match["x"])
        if not axes or rank is None or any(not -rank <= axis < rank for axis in axes):
            return "the axes or the rank are not known"
        if match.get("epsilon") is not None and not _number(match, "epsilon") >= 0.0:
            return "the least length is negative"
        if not _factor(match) > 0.0:
            return "the length is multiplied by a number that is not positive"
        dtype = match["x"].dtype
        return (
            None if dtype is not None and dtype.is_floating_point() else "its type is not known to be a float"
        )

    def rewrite(self, match: Match, rewriter: Rewriter) -> ir.Value:
        """Emit the call."""
        attributes: dict[str, Any] = {"axes": constant_ints(match["axes"])}
        factor, x = _factor(match), match["x"]
        if match.get("epsilon") is not None:
            attributes["epsilon"] = _number(match, "epsilon") / factor
        (unit,) = call_function(rewriter, match.root, L2_NORMALIZATION, [x], attributes)
        if factor == 1.0:
            return unit
        assert x.dtype is not None
        inverse = np.array(1.0 / factor, x.dtype.numpy())
        number = rewriter.constant_before(match.root, f"{match.root.name}/factor", inverse)
        return rewriter.insert_before(match.root, "Mul", [unit, number])[0]


def _factor(match: Match) -> float:
    """What the length is multiplied by."""
    if match.get("divisor") is not None:
        divisor = _number(match, "divisor")
        return 1.0 / divisor if divisor else 0.0
    return _number(match, "factor") if match.get("factor") is not None else 1.0


def _number(match: Match, name: str) -> float:
    return float(match.array(name).reshape(-1)[0])
