"""`fuse-activation`: activation functions spelled out become one standard operator."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir

from ..ir.constants import constant_array
from .activation_rules import FuseSelu, activation_rules
from .base import Pass, PassContext
from .polynomials import Polynomial, Surroundings, close, first, replace
from .registry import register
from .rewriter import Rewriter
from .rules import NoMatch, Rule


@register
@dataclass(frozen=True)
class FuseActivation(Pass):
    """Fuse activation functions from their parts into standard operators.

    1. 0.5 x (1 + erf(x / sqrt 2)) = Gelu(x)   (Hendrycks and Gimpel, 2016);
       c x (1 + erf(x / sqrt 2)) = 2 c Gelu(x), where the half was folded elsewhere.
    2. 0.5 x (1 + tanh(u)) = x sigmoid(2 u) = Gelu(x, approximate="tanh") with
       u = sqrt(2/pi) (x + 0.044715 x^3).
    3. clip(a x + b, 0, m) / m = HardSigmoid(x, alpha=a/m, beta=b/m);
       max(low, min(x, high)) = Clip(x, low, high).
    4. x HardSigmoid(x, 1/6, 1/2) = HardSwish(x)   (Howard et al., 2019).
    5. x tanh(softplus(x)) = Mish(x)   (Misra, 2019).
    6. 1 / (1 + exp(-a x)) = Sigmoid(a x);  y / (1 + exp(-a x)) = y Sigmoid(a x), for `fuse-swish` to finish;
       x / (1 + |x|) = Softsign(x).
    7. x > 0 ? x : a (exp(x) - 1) = Elu(x, a)   (Clevert et al., 2016);
       g Elu(x, a) = Selu(x, a, g)   (Klambauer et al., 2017);
       max(x, 0) + min(0, a (exp(x / a) - 1)) = Celu(x, a)   (Barron, 2017).
    8. x > 0 ? x : a x = max(x, a x) = relu(x) - a relu(-x) = LeakyRelu(x, a), the maximum for a <= 1; a
       tensor of slopes gives PRelu.
    9. With `overflow`: log(1 + exp(x)) = Softplus(x).

    1 to 4 are compared as polynomials, so factors and constants may stand in any order. Numbers are compared
    to a relative 1e-4, or to the rounding of narrower types. It does not fire where something else reads a
    value in between, nor where a constant broadcasts x.
    """

    name: ClassVar[str] = "fuse-activation"

    overflow: bool = False
    """Also fuse spellings that overflow for large x where the operator does not."""

    def apply(self, model: ir.Model, context: PassContext) -> None:
        """Drive the rules to a fixpoint; GELU without its half only where it is nowhere to be found."""
        context.rewrite(
            model,
            GeluExact(),
            GeluTanh(),
            GeluTanhBySigmoid(),
            FuseHardSwish(),
            FuseHardSigmoid(),
            HardSigmoidTimesX(),
            *activation_rules(self.overflow),
        )
        context.rewrite(model, GeluOfOtherScale(), FuseSelu())


_CUBIC = math.sqrt(2 / math.pi)
_HALF_GATED: Polynomial = {(1, 0): 0.5, (1, 1): 0.5}


class _Centered(Rule):
    """A rule that starts at the function in the middle; see `polynomials`."""

    argument: ClassVar[Polynomial]
    result: ClassVar[Polynomial]
    becomes: ClassVar[str]
    attributes: ClassVar[dict[str, Any]] = {}

    def match_and_rewrite(self, node: ir.Node, rewriter: Rewriter) -> bool | str:
        """Compare argument and result with those of the formula."""
        found = first(node, self._fits)
        if found is None:
            return NoMatch("what stands around it is not the formula, or is read from outside")
        (result,) = rewriter.insert_before(found.last, self.becomes, [found.x], self.attributes)
        replace(found, result, rewriter)
        return True

    def _fits(self, found: Surroundings, tolerance: float) -> bool:
        return close(found.argument, self.argument, tolerance) and close(found.result, self.result, tolerance)


class GeluExact(_Centered):
    """0.5 x (1 + erf(x / sqrt 2)) = Gelu(x)."""

    op_types: ClassVar[tuple[str, ...]] = ("Erf",)
    argument: ClassVar[Polynomial] = {(1,): math.sqrt(0.5)}
    result: ClassVar[Polynomial] = _HALF_GATED
    becomes = "Gelu"


class GeluTanh(_Centered):
    """0.5 x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))) = Gelu(x, tanh)."""

    op_types: ClassVar[tuple[str, ...]] = ("Tanh",)
    argument: ClassVar[Polynomial] = {(1,): _CUBIC, (3,): _CUBIC * 0.044715}
    result: ClassVar[Polynomial] = _HALF_GATED
    becomes = "Gelu"
    attributes: ClassVar[dict[str, Any]] = {"approximate": "tanh"}


class GeluTanhBySigmoid(_Centered):
    """x sigmoid(2 u) = 0.5 x (1 + tanh(u))."""

    op_types: ClassVar[tuple[str, ...]] = ("Sigmoid",)
    argument: ClassVar[Polynomial] = {(1,): 2 * _CUBIC, (3,): 2 * _CUBIC * 0.044715}
    result: ClassVar[Polynomial] = {(1, 1): 1.0}
    becomes = "Gelu"
    attributes: ClassVar[dict[str, Any]] = {"approximate": "tanh"}


class GeluOfOtherScale(Rule):
    """c x (1 + erf(x / sqrt 2)) = 2 c Gelu(x), and the same by tanh."""

    op_types: ClassVar[tuple[str, ...]] = ("Erf", "Tanh")

    def match_and_rewrite(self, node: ir.Node, rewriter: Rewriter) -> bool | str:
        """Emit the operator and one factor."""
        inner = GeluExact.argument if node.op_type == "Erf" else GeluTanh.argument

        def fits(found: Surroundings, tolerance: float) -> bool:
            scale = found.result.get((1, 1), 0.0)
            wanted: Polynomial = {(1, 0): scale, (1, 1): scale}
            return (
                bool(scale) and close(found.argument, inner, tolerance) and close(found.result, wanted, 1e-6)
            )

        found = first(node, fits)
        if found is None or found.x.dtype is None:
            return NoMatch("what stands around it is not the formula, or is read from outside")
        attributes = {"approximate": "tanh"} if node.op_type == "Tanh" else {}
        (gelu,) = rewriter.insert_before(found.last, "Gelu", [found.x], attributes)
        gelu.shape, gelu.type = found.x.shape, found.x.type
        array = np.array(2 * found.result[1, 1], found.x.dtype.numpy())
        factor = rewriter.constant_before(found.last, f"{found.last.name}/factor", array)
        (result,) = rewriter.insert_before(found.last, "Mul", [gelu, factor])
        replace(found, result, rewriter)
        return True


class FuseHardSwish(_Centered):
    """x clip(x + 3, 0, 6) / 6 = HardSwish(x)."""

    op_types: ClassVar[tuple[str, ...]] = ("Clip",)
    argument: ClassVar[Polynomial] = {(0,): 3.0, (1,): 1.0}
    result: ClassVar[Polynomial] = {(1, 1): 1 / 6}
    becomes = "HardSwish"

    def match_and_rewrite(self, node: ir.Node, rewriter: Rewriter) -> bool | str:
        """Check the bounds first."""
        top = _top(node)
        if top is None or not math.isclose(top, 6.0, rel_tol=1e-4):
            return NoMatch("it does not clip to between 0 and 6")
        return super().match_and_rewrite(node, rewriter)


class FuseHardSigmoid(Rule):
    """clip(a x + b, 0, m) / m = HardSigmoid(x, a / m, b / m).

    Where b is missing it may be in the bias of the convolution before; then only with a quotient.
    """

    op_types: ClassVar[tuple[str, ...]] = ("Clip",)

    def match_and_rewrite(self, node: ir.Node, rewriter: Rewriter) -> bool | str:
        """Demand a quotient, or bounds of 0 and 1."""
        top = _top(node)
        if top is None:
            return NoMatch("it does not clip to between 0 and a positive number")

        def fits(found: Surroundings, tolerance: float) -> bool:
            terms = {key for key, factor in found.argument.items() if factor}
            affine = terms == {(0,), (1,)} or (terms == {(1,)} and top != 1.0)
            return affine and close(found.result, {(0, 1): 1 / top}, tolerance)

        found = first(node, fits)
        if found is None:
            return NoMatch("what stands around it is not the formula, or is read from outside")
        alpha, beta = found.argument[1,] / top, found.argument.get((0,), 0.0) / top
        (result,) = rewriter.insert_before(
            found.last, "HardSigmoid", [found.x], {"alpha": alpha, "beta": beta}
        )
        replace(found, result, rewriter)
        return True


class HardSigmoidTimesX(_Centered):
    """x HardSigmoid(x, 1/6, 1/2) = HardSwish(x)."""

    op_types: ClassVar[tuple[str, ...]] = ("HardSigmoid",)
    argument: ClassVar[Polynomial] = {(1,): 1.0}
    result: ClassVar[Polynomial] = {(1, 1): 1.0}
    becomes = "HardSwish"

    def match_and_rewrite(self, node: ir.Node, rewriter: Rewriter) -> bool | str:
        """Check slope and offset first."""
        alpha, beta = node.attributes.get_float("alpha", 0.2), node.attributes.get_float("beta", 0.5)
        if abs(alpha - 1 / 6) > 1e-5 or abs(beta - 0.5) > 1e-5:
            return NoMatch("its slope and offset are not those of HardSwish")
        return super().match_and_rewrite(node, rewriter)


def _top(node: ir.Node) -> float | None:
    """The upper bound of a Clip between zero and a positive constant."""
    bounds = [constant_array(each, 1) for each in (*node.inputs[1:3], None, None)[:2]]
    if any(each is None or each.size != 1 for each in bounds):
        return None
    low, high = (float(each.reshape(-1)[0]) for each in bounds if each is not None)
    return high if low == 0.0 < high else None
