"""`canonicalize`: arithmetic and logic that says the same thing with fewer operators."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from .algebra.bounds import BoundOnce
from .algebra.logic import NeutralTruth, NotOfComparison, RepeatedOperand, WhereNot, WhereSame
from .algebra.numbers import DivideByPowerOfTwo, ScaleOnce, ShiftOnce, SumOfTwo, TimesMinusOne
from .algebra.reductions import (
    ReduceInOneStep,
    ReduceNothing,
    SqueezeReduction,
    SumOverCount,
    UnsqueezeReduction,
)
from .algebra.shuffles import PixelShuffle
from .algebra.unary import AbsorbNegation, NeverNegative, RoundOnce, UndoTwice
from .base import Pass, PassContext
from .registry import register
from .rules import Rule


@register
@dataclass(frozen=True)
class Canonicalize(Pass):
    """Write arithmetic, bounds, logic and reductions in the shortest way that computes the same.

    1. -(-x) = x, not not x = x, |-x| = |x|; Ceil, Floor and Round of whole numbers; Relu and Abs of what is
       never negative; a + (-b) = a - b, (-a)(-b) = ab.
    2. Clip, Relu, and Max and Min with a number, in a row: one pair of bounds.
    3. Sum(a, b) = a + b; x / 2^k = 2^-k x; -1 x = -x; c (d x) = (c d) x; (x + c) + d = x + (c + d), the last
       two only where no bits come back that were lost before.
    4. Where(not c, a, b) = Where(c, b, a); Where(c, x, x) = x; x and true = x; not (a < b) = a >= b for
       integers; max(x, x) = x.
    5. Reductions take over the Squeeze or Unsqueeze behind them, become one with the same reduction before
       them, and vanish along axes of size one. A sum over its count is a mean.
    6. Reshape, Transpose, Reshape become DepthToSpace or SpaceToDepth where they are that.

    It does not touch what is equal only on paper: x * 0, x - x, 1 / (1 / x), sqrt(x)^2, log(exp(x)),
    ArgMax(Softmax(x)); NaN, infinities and ties would come out differently.
    """

    name: ClassVar[str] = "canonicalize"

    def rules(self) -> tuple[Rule, ...]:
        """The rules of the list above."""
        return (
            UndoTwice(),
            RoundOnce(),
            NeverNegative(),
            AbsorbNegation(),
            BoundOnce(),
            SumOfTwo(),
            TimesMinusOne(),
            DivideByPowerOfTwo(),
            ScaleOnce(),
            ShiftOnce(),
            WhereNot(),
            WhereSame(),
            NotOfComparison(),
            RepeatedOperand(),
            NeutralTruth(),
            SqueezeReduction(),
            UnsqueezeReduction(),
            ReduceInOneStep(),
            ReduceNothing(),
            SumOverCount(),
            PixelShuffle(),
        )

    def apply(self, model: ir.Model, context: PassContext) -> None:
        """Drive the rules to a fixpoint."""
        context.rewrite(model, *self.rules())
