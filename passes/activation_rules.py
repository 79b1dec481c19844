"""Rules that turn spelled-out activations into standard operators, stated as patterns."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir

from ..ir.static import static_shape
from .matcher import Match
from .pattern_rule import PatternRule
from .patterns import Pattern, any_of, constant, op, value
from .rewriter import Rewriter
from .rules import Rule


def activation_rules(overflow: bool) -> list[Rule]:
    """All of them; with `overflow` also those whose spelling overflows where the operator does not."""
    rules: list[Rule] = [
        FuseClip(),
        FuseSigmoid(),
        SigmoidOfMultiple(),
        GateBySigmoid(),
        FuseSoftsign(),
        FuseElu(),
        FuseCelu(),
        FuseLeakyRelu(),
        LeakyReluByMaximum(),
        LeakyReluByTwo(),
        FuseMish(),
        SoftplusWithThreshold(),
    ]
    return [*rules, FuseSoftplus()] if overflow else rules


_x = value("x")
_softplus = op("Softplus", _x)
_one, _zero = constant(equals=1.0, scalar=True), constant(equals=0.0, scalar=True)


def _times(left: Pattern, right: Pattern) -> Pattern:
    return op("Mul", left, right, commutative=True)


def _plus(left: Pattern, right: Pattern) -> Pattern:
    return op("Add", left, right, commutative=True)


def _minus_one(operand: Pattern) -> Pattern:
    return any_of(op("Sub", operand, _one), _plus(operand, constant(equals=-1.0, scalar=True)))


def _where_positive(positive: Pattern, negative: Pattern) -> Pattern:
    """One operand where x > 0, else the other; at zero they must agree."""
    return any_of(
        op("Where", op(("Greater", "GreaterOrEqual"), _x, _zero), positive, negative),
        op("Where", op(("Less", "LessOrEqual"), _zero, _x), positive, negative),
        op("Where", op(("Less", "LessOrEqual"), _x, _zero), negative, positive),
        op("Where", op(("Greater", "GreaterOrEqual"), _zero, _x), negative, positive),
    )


class _Unary(PatternRule):
    """Replaces a match by one operator on the value captured as x."""

    becomes: ClassVar[str] = ""

    def check(self, match: Match) -> str | None:
        """The result must have the shape of x, so no constant may broadcast it; further demands by rule."""
        result, x = match.root.outputs[0], match["x"]
        if result.shape is not None and x.shape is not None and result.shape != x.shape:
            return "a constant broadcasts its input"
        if x.dtype is None or not x.dtype.is_floating_point():
            return "its type is not known to be a float"
        return self.refusal(match)

    def refusal(self, match: Match) -> str | None:
        """Why the numbers of this match do not fit, or None."""
        return None

    def attributes(self, match: Match) -> dict[str, Any]:
        """Attributes of the operator."""
        return {}

    def rewrite(self, match: Match, rewriter: Rewriter) -> ir.Value:
        """Emit the operator."""
        return rewriter.insert_before(match.root, self.becomes, [match["x"]], self.attributes(match))[0]


def _number(match: Match, name: str) -> float:
    return float(match.array(name).reshape(-1)[0])


class FuseClip(_Unary):
    """max(low, min(x, high)) = Clip(x, low, high); a Relu is a maximum with zero."""

    _low, _high = constant("low", scalar=True), constant("high", scalar=True)
    pattern = any_of(
        op("Min", op("Relu", _x), _high, commutative=True),
        op("Min", op("Max", _x, _low, commutative=True), _high, commutative=True),
        op("Max", op("Min", _x, _high, commutative=True), _low, commutative=True),
        op("Relu", op("Min", _x, _high, commutative=True)),
    )

    def refusal(self, match: Match) -> str | None:
        """Demand an interval."""
        return None if _bounds(match)[0] <= _bounds(match)[1] else "the lower bound is above the upper one"

    def rewrite(self, match: Match, rewriter: Rewriter) -> ir.Value:
        """Emit Clip with scalars of the type of x."""
        x, root = match["x"], match.root
        assert x.dtype is not None
        bounds = [
            rewriter.constant_before(root, f"{root.name}/{name}", np.array(number, x.dtype.numpy()))
            for name, number in zip(("low", "high"), _bounds(match), strict=True)
        ]
        return rewriter.insert_before(root, "Clip", [x, *bounds])[0]


def _bounds(match: Match) -> tuple[float, float]:
    return (_number(match, "low") if match.get("low") is not None else 0.0), _number(match, "high")


class FuseSigmoid(_Unary):
    """1 / (1 + exp(-x)) = Sigmoid(x)."""

    _sum = _plus(op("Exp", any_of(op("Neg", _x), _times(_x, constant(equals=-1.0, scalar=True)))), _one)
    pattern = any_of(op("Div", _one, _sum), op("Reciprocal", _sum), op("Pow", _sum, constant(equals=-1.0)))
    becomes = "Sigmoid"


class SigmoidOfMultiple(_Unary):
    """1 / (1 + exp(-a x)) = Sigmoid(a x)."""

    _sum = _plus(op("Exp", _times(_x, constant("slope", scalar=True))), _one)
    pattern = any_of(op("Div", _one, _sum), op("Reciprocal", _sum), op("Pow", _sum, constant(equals=-1.0)))

    def rewrite(self, match: Match, rewriter: Rewriter) -> ir.Value:
        """Emit the product with the opposite slope, and the operator."""
        return _sigmoid(match, rewriter)


class GateBySigmoid(PatternRule):
    """y / (1 + exp(-a x)) = y Sigmoid(a x), which is Swish where y is x."""

    _argument = any_of(op("Neg", _x), _times(_x, constant("slope", scalar=True)))
    pattern = op("Div", value("y"), op("Add", op("Exp", _argument), _one, commutative=True, name="total"))

    def check(self, match: Match) -> str | None:
        """Demand a float whose shape no constant broadcasts."""
        x, total = match["x"], match.nodes["total"].outputs[0]
        if x.dtype is None or not x.dtype.is_floating_point():
            return "its type is not known to be a float"
        if x.shape is None or total.shape != x.shape:
            return "a constant broadcasts its input"
        return None

    def rewrite(self, match: Match, rewriter: Rewriter) -> ir.Value:
        """Emit gate and product."""
        return rewriter.insert_before(match.root, "Mul", [match["y"], _sigmoid(match, rewriter)])[0]


def _sigmoid(match: Match, rewriter: Rewriter) -> ir.Value:
    """Sigmoid(a x) in front of the match; the captured slope is -a, or not there for a = 1."""
    x, root = match["x"], match.root
    if match.get("slope") is not None and _number(match, "slope") != -1.0:
        slope = rewriter.constant_before(root, f"{root.name}/slope", np.asarray(-match.array("slope")))
        (x,) = rewriter.insert_before(root, "Mul", [x, slope])
    return rewriter.insert_before(root, "Sigmoid", [x])[0]


class FuseSoftsign(_Unary):
    """x / (1 + |x|) = Softsign(x)."""

    pattern = op("Div", _x, _plus(op("Abs", _x), _one))
    becomes = "Softsign"


class FuseSoftplus(_Unary):
    """log(1 + exp(x)) = Softplus(x)."""

    pattern = op("Log", _plus(op("Exp", _x), _one))
    becomes = "Softplus"


class SoftplusWithThreshold(_Unary):
    """x > c ? x : Softplus(x) = Softplus(x) where they agree to the last bit of float32, for c >= 17."""

    pattern = any_of(
        op("Where", op(("Greater", "GreaterOrEqual"), _x, constant("limit", scalar=True)), _x, _softplus),
        op("Where", op(("Less", "LessOrEqual"), constant("limit", scalar=True), _x), _x, _softplus),
        op("Where", op(("Less", "LessOrEqual"), _x, constant("limit", scalar=True)), _softplus, _x),
    )
    becomes = "Softplus"

    def refusal(self, match: Match) -> str | None:
        """log(1 + exp(x)) - x is below exp(-x)."""
        return None if _number(match, "limit") >= 17.0 else "the limit is too low to make no difference"


class FuseMish(_Unary):
    """x tanh(softplus(x)) = Mish(x)."""

    pattern = _times(_x, op("Tanh", op("Softplus", _x)))
    becomes = "Mish"


class FuseElu(_Unary):
    """x > 0 ? x : a (exp(x) - 1) = Elu(x, a)."""

    _grown = _minus_one(op("Exp", any_of(_x, op("Min", _x, _zero, commutative=True))))
    pattern = _where_positive(_x, any_of(_times(_grown, constant("alpha", scalar=True)), _grown))
    becomes = "Elu"

    def attributes(self, match: Match) -> dict[str, Any]:
        """The factor, one where there is none."""
        return {"alpha": _number(match, "alpha") if match.get("alpha") is not None else 1.0}


class FuseSelu(_Unary):
    """g Elu(x, a) = Selu(x, a, g)."""

    pattern = _times(op("Elu", _x, name="elu"), constant("gamma", scalar=True))
    becomes = "Selu"

    def attributes(self, match: Match) -> dict[str, Any]:
        """Both factors."""
        alpha = match.nodes["elu"].attributes.get_float("alpha", 1.0)
        return {"alpha": alpha, "gamma": _number(match, "gamma")}


class FuseCelu(_Unary):
    """max(x, 0) + min(0, a (exp(x / a) - 1)) = Celu(x, a)."""

    _scaled = any_of(
        op("Div", _x, constant("scale", scalar=True)), _times(_x, constant("inverse", scalar=True)), _x
    )
    _grown = _minus_one(op("Exp", _scaled))
    pattern = _plus(
        any_of(op("Relu", _x), op("Max", _x, _zero, commutative=True)),
        op(
            "Min",
            any_of(_times(_grown, constant("alpha", scalar=True)), _grown),
            _zero,
            commutative=True,
        ),
    )
    becomes = "Celu"

    def refusal(self, match: Match) -> str | None:
        """The factor outside must undo the one inside."""
        alpha = self.attributes(match)["alpha"]
        inside = 1.0
        if match.get("scale") is not None:
            inside = _number(match, "scale")
        elif match.get("inverse") is not None and _number(match, "inverse"):
            inside = 1.0 / _number(match, "inverse")
        if alpha <= 0.0 or abs(alpha - inside) > 1e-4 * alpha:
            return "the factors inside and outside of the exponential are no inverses"
        return None if match["x"].dtype == ir.DataType.FLOAT else "Celu takes float32 only"

    def attributes(self, match: Match) -> dict[str, Any]:
        """The factor, one where there is none."""
        return {"alpha": _number(match, "alpha") if match.get("alpha") is not None else 1.0}


class FuseLeakyRelu(_Unary):
    """x > 0 ? x : a x = LeakyRelu(x, a)."""

    pattern = _where_positive(_x, _times(_x, constant("alpha", scalar=True)))
    becomes = "LeakyRelu"

    def attributes(self, match: Match) -> dict[str, Any]:
        """The slope."""
        return {"alpha": _number(match, "alpha")}


class LeakyReluByMaximum(FuseLeakyRelu):
    """max(x, a x) = LeakyRelu(x, a) for a <= 1."""

    pattern = op("Max", _x, _times(_x, constant("alpha", scalar=True)), commutative=True)

    def refusal(self, match: Match) -> str | None:
        """Above one the maximum is the other way round."""
        return None if _number(match, "alpha") <= 1.0 else "the factor is above 1"


class LeakyReluByTwo(PatternRule):
    """relu(x) - a relu(-x) = LeakyRelu(x, a), or PRelu(x, a) where a is a tensor."""

    _opposite = op("Relu", any_of(op("Neg", _x), _times(_x, constant(equals=-1.0, scalar=True))))
    pattern = any_of(
        op("Sub", op("Relu", _x), _times(_opposite, constant("slope"))),
        _plus(op("Relu", _x), _times(_opposite, constant("negative"))),
    )

    def check(self, match: Match) -> str | None:
        """The slopes must broadcast to x."""
        x, slope = static_shape(match["x"]), _slope(match)
        if slope.size == 1 and slope.ndim == 0:
            return None
        if x is None or slope.ndim > len(x):
            return "it is not known whether the slopes broadcast it"
        tail = x[len(x) - slope.ndim :]
        if any(mine not in (1, theirs) for mine, theirs in zip(slope.shape, tail, strict=True)):
            return "the slopes broadcast it"
        return None

    def rewrite(self, match: Match, rewriter: Rewriter) -> ir.Value:
        """Emit the operator for one slope or for many."""
        slope, root = _slope(match), match.root
        if slope.size == 1:
            attributes = {"alpha": float(slope.reshape(-1)[0])}
            return rewriter.insert_before(root, "LeakyRelu", [match["x"]], attributes)[0]
        stored = rewriter.constant_before(root, f"{root.name}/slope", slope)
        return rewriter.insert_before(root, "PRelu", [match["x"], stored])[0]


def _slope(match: Match) -> np.ndarray:
    return match.array("slope") if match.get("slope") is not None else -match.array("negative")
