"""Rules that turn spelled-out layer and RMS normalization into one operator with scale one."""

from __future__ import annotations

import math
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from ..ir.static import constant_ints, input_of, producer_of, rank_of
from .available import lacks
from .matcher import Match, match_pattern
from .pattern_rule import PatternRule
from .patterns import Pattern, any_of, constant, op, value
from .rewriter import Rewriter
from .rules import NoMatch

_x, _epsilon = value("x"), constant("epsilon", scalar=True)
_mean = op("ReduceMean", _x, constant("mean_axes"), name="mean", keepdims=(1, 1))
_centered, _centered_again = op("Sub", _x, _mean), op("Sub", _x, _mean)
_one = constant(equals=1.0, scalar=True)


def _square(operand: Pattern) -> Pattern:
    return any_of(op("Pow", operand, constant(equals=2.0)), op("Mul", operand, operand))


def _mean_square(operand: Pattern) -> Pattern:
    """The mean of the squares over the axes, or their sum by their number."""
    mean = op("ReduceMean", _square(operand), constant("axes"), keepdims=(1, 1))
    total = any_of(
        op("ReduceSumSquare", operand, constant("axes"), keepdims=(1, 1)),
        op("ReduceSum", _square(operand), constant("axes"), keepdims=(1, 1)),
    )
    share = constant("share", scalar=True)
    return any_of(
        mean, op("Div", total, constant("count", scalar=True)), op("Mul", total, share, commutative=True)
    )


def _power(variance: Pattern, exponent: float) -> Pattern:
    """(variance + epsilon) to the power of 1/2 or -1/2."""
    shifted = op("Add", variance, _epsilon, commutative=True)
    written = op("Pow", shifted, constant(equals=exponent, scalar=True))
    if exponent > 0:
        return any_of(op("Sqrt", shifted), written)
    root = any_of(op("Sqrt", shifted), op("Pow", shifted, constant(equals=0.5, scalar=True)))
    return any_of(op("Reciprocal", root), op("Div", _one, root), written)


def _normalized(numerator: Pattern, variance: Pattern) -> Pattern:
    return any_of(
        op("Div", numerator, _power(variance, 0.5)),
        op("Mul", numerator, _power(variance, -0.5), commutative=True),
    )


class NormCore(PatternRule):
    """A normalization without scale and bias."""

    becomes: ClassVar[str] = "LayerNormalization"

    def check(self, match: Match) -> str | None:
        """Demand known axes of known sizes, the same for mean and variance."""
        axes, x = axes_of(match, "axes"), match["x"]
        if match.get("mean_axes") is not None and axes_of(match, "mean_axes") != axes:
            return "mean and variance are taken over different axes"
        if not axes or x.shape is None:
            return "the axes or the rank are not known"
        if any(not isinstance(x.shape[axis], int) for axis in axes):
            return "the size of the normalized axes is not known"
        if x.dtype is None or not x.dtype.is_floating_point():
            return "its type is not known to be a float"
        refusal = not_a_mean(match, axes)
        if refusal is not None:
            return refusal
        if self.becomes == "LayerNormalization" and len(axes) > 1 and axes == list(range(2, len(x.shape))):
            return "it normalizes whole images, see fuse-group-norm"
        return None

    def match_and_rewrite(self, node: ir.Node, rewriter: Rewriter) -> bool | str:
        """Match only where the operator exists."""
        absent = lacks(rewriter.model, self.becomes)
        if absent is None:
            return super().match_and_rewrite(node, rewriter)
        match, reason = match_pattern(self.pattern, node)
        return NoMatch(reason) if match is None else absent

    def rewrite(self, match: Match, rewriter: Rewriter) -> ir.Value:
        """Emit the operator with a scale of ones, between transposes where the axes are not the last ones."""
        axes, x = axes_of(match, "axes"), match["x"]
        return emit_norm(match.root, self.becomes, x, axes or [], epsilon_of(match), rewriter)


def not_a_mean(match: Match, axes: list[int]) -> str | None:
    """Why a sum of squares over `axes` is no mean of them; None where it is, or where there is a mean."""
    if match.get("count") is None and match.get("share") is None:
        return None
    sizes = [match["x"].shape[axis] for axis in axes]  # type: ignore[index]
    if not all(isinstance(size, int) for size in sizes):
        return "it is not known how many squares are summed"
    count = math.prod(int(str(size)) for size in sizes)
    if match.get("count") is not None:
        mean = math.isclose(number_of(match, "count"), count, rel_tol=rounding(match["x"]))
    else:
        mean = math.isclose(number_of(match, "share") * count, 1.0, rel_tol=rounding(match["x"]))
    if mean:
        return None
    return "the sum of the squares is not divided by their number"


def rounding(x: ir.Value) -> float:
    """Relative error of a constant in the type of x."""
    return 1e-3 if x.dtype == ir.DataType.FLOAT16 else 1e-2 if x.dtype == ir.DataType.BFLOAT16 else 1e-6


def number_of(match: Match, name: str) -> float:
    """The number that a captured constant of one element holds."""
    return float(match.array(name).reshape(-1)[0])


class LayerNorm(NormCore):
    """d / sqrt(mean(d^2) + epsilon) = LayerNormalization(x, 1)."""

    pattern = any_of(
        _normalized(_centered, _mean_square(_centered)), _normalized(_centered, _mean_square(_centered_again))
    )


class RmsNorm(NormCore):
    """x / sqrt(mean(x^2) + epsilon) = RMSNormalization(x, 1)."""

    pattern = _normalized(_x, _mean_square(_x))
    becomes = "RMSNormalization"

    def check(self, match: Match) -> str | None:
        """Leave what is centered over the same axes to layer normalization."""
        centered = producer_of(match["x"], "Sub")
        mean = producer_of(centered.inputs[1], "ReduceMean") if centered is not None else None
        if centered is not None and mean is not None and mean.inputs[0] is centered.inputs[0]:
            axes, rank = constant_ints(input_of(mean, 1)), rank_of(match["x"]) or 1
            if axes and sorted(axis % rank for axis in axes) == axes_of(match, "axes"):
                return NoMatch("it is centered")
        return super().check(match)


_gain = op("Mul", _power(_mean_square(_centered), -0.5), constant("gamma"), commutative=True)


class RmsNormByLength(NormCore):
    """sqrt(n) x / |x| = RMSNormalization(x, 1) without epsilon, n elements along the axes."""

    _length = any_of(
        op("ReduceL2", _x, constant("axes"), keepdims=(1, 1)),
        op("Sqrt", op("ReduceSumSquare", _x, constant("axes"), keepdims=(1, 1))),
        op("Sqrt", op("ReduceSum", _square(_x), constant("axes"), keepdims=(1, 1))),
    )
    _times, _by = constant("times", scalar=True), constant("by", scalar=True)
    pattern = any_of(
        op("Div", _x, any_of(op("Div", _length, _times), op("Mul", _length, _by, commutative=True))),
        op("Mul", op("Div", _x, _length), _times, commutative=True),
        op("Mul", _x, op("Div", _times, _length), commutative=True),
        op("Div", op("Mul", _x, _times, commutative=True), _length),
    )
    becomes = "RMSNormalization"

    def check(self, match: Match) -> str | None:
        """Demand that the factor is the square root of the number of elements."""
        refusal = super().check(match)
        if refusal is not None:
            return refusal
        x, axes = match["x"], axes_of(match, "axes")
        assert x.shape is not None and axes is not None
        count = math.prod(int(str(x.shape[axis])) for axis in axes)
        by = number_of(match, "by") if match.get("by") is not None else None
        times = number_of(match, "times") if by is None else 1 / by if by else 0.0
        if not math.isclose(times, math.sqrt(count), rel_tol=rounding(x)):
            return NoMatch("its factor is not the square root of the number of elements")
        return None


class LayerNormByMoments(NormCore):
    """The variance as E[x^2] - E[x]^2, possibly bounded by zero."""

    _moments = op("Sub", _mean_square(_x), _square(_mean))
    _bounded = any_of(op("Max", _moments, constant(equals=0.0), commutative=True), op("Relu", _moments))
    _variance = any_of(_moments, _bounded)
    pattern = any_of(
        _normalized(_centered, _variance),
        op("Mul", _centered, op("Mul", _power(_variance, -0.5), constant("gamma"), commutative=True)),
    )

    def rewrite(self, match: Match, rewriter: Rewriter) -> ir.Value:
        """Emit the core, and the scale where it was multiplied in before; it is absorbed next."""
        core = super().rewrite(match, rewriter)
        if match.get("gamma") is None:
            return core
        core.shape, core.type = match["x"].shape, match["x"].type
        return rewriter.insert_before(match.root, "Mul", [core, match["gamma"]])[0]


class WouldCancel(PatternRule):
    """Reports what only `cancellation` fuses."""

    pattern = LayerNormByMoments.pattern

    def check(self, match: Match) -> str | None:
        """Say which option would fuse it."""
        return "E[x^2] - E[x]^2 loses digits where the mean is large; see the option 'cancellation'"


class LayerNormByParts(NormCore):
    """x r + (b - mean(x) r) = d r + b with r = g / sqrt(v + epsilon)."""

    pattern = op(
        "Add",
        op("Mul", _x, _gain, commutative=True),
        op("Sub", constant("beta"), op("Mul", _mean, _gain, commutative=True)),
        commutative=True,
    )

    def rewrite(self, match: Match, rewriter: Rewriter) -> ir.Value:
        """Emit core, scale and bias; the latter are absorbed next."""
        core = super().rewrite(match, rewriter)
        core.shape, core.type = match["x"].shape, match["x"].type
        (scaled,) = rewriter.insert_before(match.root, "Mul", [core, match["gamma"]])
        scaled.shape, scaled.type = match.root.outputs[0].shape, core.type
        return rewriter.insert_before(match.root, "Add", [scaled, match["beta"]])[0]


def emit_norm(
    anchor: ir.Node, op_type: str, x: ir.Value, axes: list[int], epsilon: float, rewriter: Rewriter
) -> ir.Value:
    """Insert a normalization of `x` over `axes` (sorted, not negative, of known size), with scale one."""
    assert x.shape is not None and x.dtype is not None
    rank = len(x.shape)
    sizes = [int(str(x.shape[axis])) for axis in axes]
    ones = rewriter.constant_before(anchor, f"{anchor.name}/scale", np.ones(sizes, x.dtype.numpy()))
    attributes = {"axis": -len(axes), "epsilon": epsilon}
    order = [axis for axis in range(rank) if axis not in axes] + axes
    if order == list(range(rank)):
        return rewriter.insert_before(anchor, op_type, [x, ones], attributes)[0]
    (moved,) = rewriter.insert_before(anchor, "Transpose", [x], {"perm": order})
    moved.shape, moved.type = ir.Shape([x.shape[axis] for axis in order]), x.type
    (normal,) = rewriter.insert_before(anchor, op_type, [moved, ones], attributes)
    normal.shape, normal.type = moved.shape, x.type
    back = [order.index(axis) for axis in range(rank)]
    return rewriter.insert_before(anchor, "Transpose", [normal], {"perm": back})[0]


def axes_of(match: Match, name: str) -> list[int] | None:
    """The reduced axes, sorted, not negative."""
    axes, rank = constant_ints(match[name]), rank_of(match["x"])
    if not axes or rank is None or any(not -rank <= axis < rank for axis in axes):
        return None
    return sorted(axis % rank for axis in axes)


def epsilon_of(match: Match) -> float:
    """The number added to the variance, zero where there is none."""
    return number_of(match, "epsilon") if match.get("epsilon") is not None else 0.0
