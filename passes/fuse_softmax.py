"""`fuse-softmax`: softmax and its logarithm, spelled out, become one standard operator."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from ..ir.static import constant_ints, rank_of
from .base import Pass, PassContext
from .matcher import Match
from .pattern_rule import PatternRule
from .patterns import Pattern, any_of, constant, op, value
from .registry import register
from .rewriter import Rewriter
from .rules import Rule


@register
@dataclass(frozen=True)
class FuseSoftmax(Pass):
    """Fuse Softmax and LogSoftmax from their parts.

    With m = max(x) over one axis, kept as a dimension:

    1. exp(x - m) / sum(exp(x - m)) = Softmax(x); the quotient may be a product with the reciprocal.
    2. (x - m) - log(sum(exp(x - m))) = x - (m + log(sum(exp(x - m)))) = x - logsumexp(x) = LogSoftmax(x).
    3. exp(LogSoftmax(x)) = Softmax(x).
    4. Softmax(x - m) = Softmax(x), and so for LogSoftmax.
    5. With `overflow`: exp(x) / sum(exp(x)) = Softmax(x), and x - log(sum(exp(x))) = log(Softmax(x)) =
       LogSoftmax(x).

    A mask added to x is part of x. It does not fire over several axes at once, nor where something else reads
    a value in between.
    """

    name: ClassVar[str] = "fuse-softmax"

    overflow: bool = False
    """Also fuse spellings that overflow, or round to zero, where the operator does not."""

    def apply(self, model: ir.Model, context: PassContext) -> None:
        """Drive the rules to a fixpoint."""
        rules: list[Rule] = [SoftmaxOfParts(), LogSoftmaxOfParts(), ExpOfLogSoftmax(), SoftmaxOfShifted()]
        if self.overflow:
            rules += [SoftmaxWithoutMaximum(), LogSoftmaxWithoutMaximum(), LogOfSoftmax()]
        else:
            rules += [WouldOverflow()]
        context.rewrite(model, *rules)


_x = value("x")
_maximum = op("ReduceMax", _x, constant("max_axes"), name="max", keepdims=(1, 1))
_shifted = op("Sub", _x, _maximum)


def _sum(exponential: Pattern) -> Pattern:
    return op("ReduceSum", exponential, constant("axes"), name="sum", keepdims=(1, 1))


def _share(exponential: Pattern) -> Pattern:
    """The exponential by its sum."""
    total = _sum(exponential)
    return any_of(
        op("Div", exponential, total), op("Mul", exponential, op("Reciprocal", total), commutative=True)
    )


def _log_sum(exponential: Pattern) -> Pattern:
    return any_of(
        op("Log", _sum(exponential)),
        op("ReduceLogSum", exponential, constant("axes"), keepdims=(1, 1)),
    )


class _AlongAxis(PatternRule):
    """Replaces a match by one operator along the axis that all reductions in it share."""

    becomes: ClassVar[str] = "Softmax"

    def check(self, match: Match) -> str | None:
        """Demand one axis, the same for maximum and sum."""
        axis = _axis(match, "axes")
        if axis is None:
            return "it is not along one known axis"
        if match.get("max_axes") is not None and _axis(match, "max_axes") != axis:
            return "maximum and sum are taken along different axes"
        dtype = match["x"].dtype
        return (
            None if dtype is not None and dtype.is_floating_point() else "its type is not known to be a float"
        )

    def rewrite(self, match: Match, rewriter: Rewriter) -> ir.Value:
        """Emit the operator."""
        axis = _axis(match, "axes")
        return rewriter.insert_before(match.root, self.becomes, [match["x"]], {"axis": axis})[0]


def _axis(match: Match, name: str) -> int | None:
    axes, rank = constant_ints(match[name]), rank_of(match["x"])
    if axes is None or rank is None or len(axes) != 1:
        return None
    return axes[0] % rank - rank if -rank <= axes[0] < rank else None


class SoftmaxOfParts(_AlongAxis):
    """exp(x - m) / sum(exp(x - m)) = Softmax(x)."""

    pattern = _share(op("Exp", _shifted))


class LogSoftmaxOfParts(_AlongAxis):
    """(x - m) - log(sum(exp(x - m))) = LogSoftmax(x), and its other spellings."""

    pattern = any_of(
        op("Sub", _shifted, _log_sum(op("Exp", _shifted))),
        op("Sub", _x, op("Add", _maximum, _log_sum(op("Exp", _shifted)), commutative=True)),
        op("Sub", _x, op("ReduceLogSumExp", _x, constant("axes"), keepdims=(1, 1))),
    )
    becomes = "LogSoftmax"


class SoftmaxWithoutMaximum(_AlongAxis):
    """exp(x) / sum(exp(x)) = Softmax(x)."""

    pattern = _share(op("Exp", _x))


class LogSoftmaxWithoutMaximum(_AlongAxis):
    """x - log(sum(exp(x))) = LogSoftmax(x)."""

    pattern = op("Sub", _x, _log_sum(op("Exp", _x)))
    becomes = "LogSoftmax"


class ExpOfLogSoftmax(PatternRule):
    """exp(LogSoftmax(x)) = Softmax(x)."""

    pattern = op("Exp", op("LogSoftmax", _x, name="softmax"))

    def rewrite(self, match: Match, rewriter: Rewriter) -> ir.Value:
        """Emit the operator along the same axis."""
        axis = match.nodes["softmax"].attributes.get_int("axis", -1)
        return rewriter.insert_before(match.root, "Softmax", [match["x"]], {"axis": axis})[0]


class SoftmaxOfShifted(PatternRule):
    """Softmax(x - max(x)) = Softmax(x), which does that by itself."""

    pattern = op(("Softmax", "LogSoftmax"), _shifted, name="softmax")

    def check(self, match: Match) -> str | None:
        """Demand the maximum along the axis of the softmax."""
        rank, axis = rank_of(match["x"]), match.nodes["softmax"].attributes.get_int("axis", -1)
        along = _axis(match, "max_axes")
        if along is None or rank is None or along % rank != axis % rank:
            return "the maximum is not taken along the axis of the softmax"
        return None

    def rewrite(self, match: Match, rewriter: Rewriter) -> ir.Value:
        """Emit the operator on x."""
        attributes = dict(match.root.attributes)
        return rewriter.insert_before(match.root, match.root.op_type, [match["x"]], attributes)[0]


class LogOfSoftmax(PatternRule):
    """log(Softmax(x)) = LogSoftmax(x)."""

    pattern = op("Log", op("Softmax", _x, name="softmax"))

    def rewrite(self, match: Match, rewriter: Rewriter) -> ir.Value:
        """Emit the operator along the same axis."""
        axis = match.nodes["softmax"].attributes.get_int("axis", -1)
        return rewriter.insert_before(match.root, "LogSoftmax", [match["x"]], {"axis": axis})[0]


class WouldOverflow(PatternRule):
    """Reports what only `overflow` fuses."""

    pattern = any_of(SoftmaxWithoutMaximum.pattern, LogSoftmaxWithoutMaximum.pattern, LogOfSoftmax.pattern)

    def check(self, match: Match) -> str | None:
        """Say which option would fuse it."""
        return "its exponential overflows or vanishes where the operator does not; see the option 'overflow'"
