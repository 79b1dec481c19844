"""`fuse-activation`: activation functions spelled out become one standard operator."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import onnx_ir as ir

from .base import Pass, PassContext
from .matcher import Match
from .pattern_rule import PatternRule
from .patterns import Pattern, any_of, constant, op, value
from .registry import register
from .rewriter import Rewriter


@register
@dataclass(frozen=True)
class FuseActivation(Pass):
    """Fuse GELU (exact and by tanh), HardSigmoid, HardSwish and Mish from their parts.

    1. 0.5 x (1 + erf(x / sqrt 2)) = Gelu(x)   (Hendrycks and Gimpel, 2016), the factors in any order.
    2. 0.5 x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))) = Gelu(x, approximate="tanh").
    3. clip(x + 3, 0, 6) / 6 = HardSigmoid(x, alpha=1/6, beta=1/2).
    4. x HardSigmoid(x, 1/6, 1/2) = HardSwish(x)   (Howard et al., 2019).
    5. x tanh(softplus(x)) = Mish(x)   (Misra, 2019).

    Constants are compared to a relative 1e-4, as exporters round them to their type.
    """

    name: ClassVar[str] = "fuse-activation"

    def apply(self, model: ir.Model, context: PassContext) -> None:
        """Drive the rules to a fixpoint."""
        context.rewrite(model, GeluExact(), GeluTanh(), FuseHardSigmoid(), FuseHardSwish(), FuseMish())


_x = value("x")


def _number(number: float) -> Pattern:
    return constant(equals=number, tolerance=1e-4, scalar=True)


def _times(left: Pattern, right: Pattern) -> Pattern:
    return op("Mul", left, right, commutative=True)


def _plus(left: Pattern, right: Pattern) -> Pattern:
    return op("Add", left, right, commutative=True)


def _scaled(operand: Pattern, factor: float) -> Pattern:
    """The operand times a constant, written as a product or a quotient."""
    return any_of(_times(operand, _number(factor)), op("Div", operand, _number(1 / factor)))


def _half_product(left: Pattern, right: Pattern) -> Pattern:
    """0.5 * left * right, the factors in any order."""
    return any_of(
        _scaled(_times(left, right), 0.5),
        _times(_scaled(left, 0.5), right),
        _times(left, _scaled(right, 0.5)),
    )


class _Unary(PatternRule):
    """Replaces a match by one operator on the value captured as x."""

    becomes: ClassVar[str] = ""
    attributes: ClassVar[dict[str, Any]] = {}

    def check(self, match: Match) -> str | None:
        """The result must have the shape and type of x, so no constant may broadcast it."""
        result = match.root.outputs[0]
        if result.shape is not None and match["x"].shape is not None and result.shape != match["x"].shape:
            return "a constant broadcasts its input"
        return None

    def rewrite(self, match: Match, rewriter: Rewriter) -> ir.Value:
        """Emit the operator."""
        return rewriter.insert_before(match.root, self.becomes, [match["x"]], self.attributes)[0]


class GeluExact(_Unary):
    """0.5 x (1 + erf(x / sqrt 2)) = Gelu(x)."""

    pattern = _half_product(_x, _plus(op("Erf", _scaled(_x, math.sqrt(0.5))), _number(1.0)))
    becomes = "Gelu"


_cube = any_of(op("Pow", _x, _number(3.0)), _times(_times(_x, _x), _x))
_inner = any_of(
    _scaled(_plus(_x, _times(_cube, _number(0.044715))), math.sqrt(2 / math.pi)),
    _times(
        _times(_x, _number(math.sqrt(2 / math.pi))),
        _plus(_times(_times(_x, _x), _number(0.044715)), _number(1.0)),
    ),
)


class GeluTanh(_Unary):
    """0.5 x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))) = Gelu(x, tanh)."""

    pattern = _half_product(_x, _plus(op("Tanh", _inner), _number(1.0)))
    becomes = "Gelu"
    attributes: ClassVar[dict[str, Any]] = {"approximate": "tanh"}


_relu6 = any_of(
    op("Clip", _plus(_x, _number(3.0)), constant(equals=0.0), _number(6.0)),
    op("Min", op("Relu", _plus(_x, _number(3.0))), _number(6.0), commutative=True),
)


class FuseHardSigmoid(_Unary):
    """clip(x + 3, 0, 6) / 6 = HardSigmoid(x)."""

    pattern = _scaled(_relu6, 1 / 6)
    becomes = "HardSigmoid"
    attributes: ClassVar[dict[str, Any]] = {"alpha": 1 / 6, "beta": 0.5}


def _sixth(alpha: Any) -> bool:
    return isinstance(alpha, float) and abs(alpha - 1 / 6) < 1e-6


class FuseHardSwish(_Unary):
    """x HardSigmoid(x) = HardSwish(x)."""

    pattern = any_of(
        _times(_x, op("HardSigmoid", _x, alpha=_sixth, beta=(0.5, 0.5))), _scaled(_times(_x, _relu6), 1 / 6)
    )
    becomes = "HardSwish"


class FuseMish(_Unary):
    """x tanh(softplus(x)) = Mish(x)."""

    pattern = _times(_x, op("Tanh", op("Softplus", _x)))
    becomes = "Mish"
