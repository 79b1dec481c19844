"""`fuse-swish`: x sigmoid(alpha x) becomes one call."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from .base import Pass, PassContext
from .functions import call_function
from .functions.activations import QUICK_GELU, SWISH
from .polynomials import Surroundings, close, first, replace
from .registry import register
from .rewriter import Rewriter
from .rules import NoMatch, Rule


@register
@dataclass(frozen=True)
class FuseSwish(Pass):
    """Fuse SiLU and the fast GELU into calls of the functions Swish and QuickGelu.

    1. x sigmoid(x) = Swish(x)   (Ramachandran, Zoph and Le, 2017).
    2. x sigmoid(alpha x) = QuickGelu(x)   (Hendrycks and Gimpel, 2016; alpha = 1.702).

    The canonical opset has no operator for them. Factors and constants may stand in any order. It does not
    fire where something else reads the gate.
    """

    name: ClassVar[str] = "fuse-swish"

    def apply(self, model: ir.Model, context: PassContext) -> None:
        """Drive the rule to a fixpoint."""
        context.rewrite(model, FuseGate())


class FuseGate(Rule):
    """x sigmoid(alpha x) = Swish(x) for alpha = 1, else QuickGelu(x)."""

    op_types: ClassVar[tuple[str, ...]] = ("Sigmoid",)

    def match_and_rewrite(self, node: ir.Node, rewriter: Rewriter) -> bool | str:
        """Look for x in the gate's argument and for the product behind it."""
        found = first(node, _is_gated)
        if found is None:
            if len(node.outputs[0].uses()) > 1:
                return NoMatch(f"'{node.outputs[0].name}' has several readers")
            return NoMatch("its result is not multiplied with what it is a gate of")
        alpha = found.argument[(1,)]
        if math.isclose(alpha, 1.0, rel_tol=1e-6):
            (result,) = call_function(rewriter, found.last, SWISH, [found.x])
        else:
            (result,) = call_function(rewriter, found.last, QUICK_GELU, [found.x], {"alpha": alpha})
        replace(found, result, rewriter)
        return True


def _is_gated(found: Surroundings, tolerance: float) -> bool:
    exponents = {key for key, factor in found.argument.items() if factor}
    return exponents == {(1,)} and close(found.result, {(1, 1): 1.0}, tolerance)
