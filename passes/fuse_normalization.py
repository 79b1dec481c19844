"""`fuse-normalization`: layer and RMS normalization spelled out become one standard operator."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from ..ir.constants import constant_array
from ..ir.static import constant_ints, only_reader, producer_of, rank_of, static_shape
from .base import Pass, PassContext
from .matcher import Match
from .pattern_rule import PatternRule
from .patterns import any_of, constant, op, value
from .registry import register
from .rewriter import Rewriter
from .rules import Rule


@register
@dataclass(frozen=True)
class FuseNormalization(Pass):
    """Fuse LayerNormalization and RMSNormalization from their parts.

    Ba, Kiros and Hinton, 2016; Zhang and Sennrich, 2019.

    With the mean over the last axes, d = x - mean(x):

    1. d / sqrt(mean(d^2) + epsilon) = LayerNormalization(x) with scale one; the square may be Pow or Mul, the
       quotient a Div or a Mul by the Reciprocal.
    2. x / sqrt(mean(x^2) + epsilon) = RMSNormalization(x) with scale one.
    3. A Mul or Add behind with a constant over the normalized axes becomes its scale or bias.

    The axes must be the last ones, so that the operators mean the same; the dimension must be known.
    """

    name: ClassVar[str] = "fuse-normalization"

    def apply(self, model: ir.Model, context: PassContext) -> None:
        """Drive the rules to a fixpoint; scales and biases follow once the core is fused."""
        context.rewrite(model, LayerNorm(), RmsNorm(), AbsorbScale(), AbsorbBias())


_x, _epsilon = value("x"), constant("epsilon", scalar=True)
_mean = op("ReduceMean", _x, constant("mean_axes"), name="mean", keepdims=(1, 1))
_centered = op("Sub", _x, _mean)


def _inverse_root(squared):  # type: ignore[no-untyped-def]
    variance = op("ReduceMean", squared, constant("axes"), name="variance", keepdims=(1, 1))
    return op("Sqrt", op("Add", variance, _epsilon, commutative=True))


def _normalized(numerator, squared):  # type: ignore[no-untyped-def]
    root = _inverse_root(squared)
    return any_of(op("Div", numerator, root), op("Mul", numerator, op("Reciprocal", root), commutative=True))


def _square(operand):  # type: ignore[no-untyped-def]
    return any_of(op("Pow", operand, constant(equals=2.0)), op("Mul", operand, operand))


class LayerNorm(PatternRule):
    """d / sqrt(mean(d^2) + epsilon) = LayerNormalization(x, 1)."""

    pattern = _normalized(_centered, _square(_centered))

    def check(self, match: Match) -> str | None:
        """Demand the same trailing axes for mean and variance."""
        if _trailing(match, "mean_axes") != _trailing(match, "axes"):
            return "mean and variance are taken over different axes"
        return _refusal(match)

    def rewrite(self, match: Match, rewriter: Rewriter) -> ir.Value:
        """Emit LayerNormalization with a scale of ones."""
        return _emit("LayerNormalization", match, rewriter)


class RmsNorm(PatternRule):
    """x / sqrt(mean(x^2) + epsilon) = RMSNormalization(x, 1)."""

    pattern = _normalized(_x, _square(_x))

    def check(self, match: Match) -> str | None:
        """Demand known trailing axes."""
        return _refusal(match)

    def rewrite(self, match: Match, rewriter: Rewriter) -> ir.Value:
        """Emit RMSNormalization with a scale of ones."""
        return _emit("RMSNormalization", match, rewriter)


class AbsorbScale(Rule):
    """Norm(x, 1) * g = Norm(x, g)."""

    op_types: ClassVar[tuple[str, ...]] = ("Mul",)

    def match_and_rewrite(self, node: ir.Node, rewriter: Rewriter) -> bool | str:
        """Replace a scale of ones."""
        found = _norm_and_constant(node, ("LayerNormalization", "RMSNormalization"))
        if found is None:
            return False
        norm, array = found
        scale = constant_array(norm.inputs[1])
        if scale is None or not (scale == 1).all() or len(norm.inputs) > 2:
            return "the normalization has a scale or bias already"
        return _absorb(node, norm, [array], rewriter)


class AbsorbBias(Rule):
    """LayerNorm(x, g) + b = LayerNorm(x, g, b)."""

    op_types: ClassVar[tuple[str, ...]] = ("Add",)

    def match_and_rewrite(self, node: ir.Node, rewriter: Rewriter) -> bool | str:
        """Add the missing bias."""
        found = _norm_and_constant(node, ("LayerNormalization",))
        if found is None:
            return False
        norm, array = found
        scale = constant_array(norm.inputs[1])
        if scale is None or len(norm.inputs) > 2:
            return "the normalization has a bias already"
        return _absorb(node, norm, [scale, array], rewriter)


def _trailing(match: Match, name: str) -> int | None:
    """First of the reduced axes, counted from the end, where they are the last ones."""
    axes, rank = constant_ints(match[name]), rank_of(match["x"])
    if not axes or rank is None:
        return None
    normal = sorted(axis % rank for axis in axes)
    return normal[0] - rank if normal == list(range(normal[0], rank)) else None


def _refusal(match: Match) -> str | None:
    axis, x = _trailing(match, "axes"), match["x"]
    if axis is None:
        return "it does not normalize over the last axes"
    if x.shape is None or any(not isinstance(dim, int) for dim in list(x.shape)[axis:]):
        return "the size of the normalized axes is not known"
    if x.dtype not in (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.DOUBLE):
        return "its type is not known to be a float"
    return None


def _emit(op_type: str, match: Match, rewriter: Rewriter) -> ir.Value:
    axis, x = _trailing(match, "axes"), match["x"]
    assert axis is not None and x.shape is not None and x.dtype is not None
    ones = np.ones([int(dim) for dim in list(x.shape)[axis:]], x.dtype.numpy())  # type: ignore[arg-type]
    scale = rewriter.initializer(f"{match.root.name}/scale", ones)
    attributes = {"axis": axis, "epsilon": float(match.array("epsilon").reshape(-1)[0])}
    return rewriter.insert_before(match.root, op_type, [x, scale], attributes)[0]


def _norm_and_constant(node: ir.Node, op_types: tuple[str, ...]) -> tuple[ir.Node, np.ndarray] | None:
    """The normalization that one operand comes from and the other operand, where that is a constant."""
    for data, other in ((0, 1), (1, 0)):
        norm = producer_of(node.inputs[data], *op_types)
        array = constant_array(node.inputs[other])
        if norm is not None and array is not None:
            return norm, array
    return None


def _absorb(node: ir.Node, norm: ir.Node, parameters: list[np.ndarray], rewriter: Rewriter) -> bool | str:
    if not only_reader(norm.outputs[0]):
        return f"'{norm.outputs[0].name}' has other readers"
    wanted = static_shape(norm.inputs[1])
    assert wanted is not None
    operands = [norm.inputs[0]]
    for name, array in zip(("scale", "bias"), parameters, strict=False):
        leading = array.shape[: max(array.ndim - len(wanted), 0)]
        trailing = array.reshape(array.shape[len(leading) :])
        if (
            any(dim != 1 for dim in leading)
            or trailing.ndim > len(wanted)
            or not _broadcasts(trailing, wanted)
        ):
            return f"the constant of shape {list(array.shape)} is not one over the normalized axes"
        full = np.ascontiguousarray(np.broadcast_to(trailing, wanted))
        operands.append(rewriter.initializer(f"{norm.name}/{name}", full))
    (result,) = rewriter.insert_before(node, norm.op_type, operands, dict(norm.attributes))
    rewriter.replace(node, [result])
    rewriter.erase_unread(norm)
    return True


def _broadcasts(array: np.ndarray, shape: tuple[int, ...]) -> bool:
    tail = shape[len(shape) - array.ndim :]
    return all(mine in (1, wanted) for mine, wanted in zip(array.shape, tail, strict=True))
