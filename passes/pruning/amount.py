"""How much goes in one step: a ratio, or the mildest one that meets all budgets."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from ...ir.clone import clone
from ...ir.errors import PassError
from ..base import PassContext
from ..channels import Dependencies, apply_removal
from ..rewriter import Rewriter
from .budget import Budget, Cost, Sizer, give_back, mildest_ratio, plan
from .ranking import Candidate, Cut, Limits, Ranking, choose, without_empty_axes

_MEASURED_STEPS = 7
_ROOM = 0.95
"""A budget of which a larger share is used is met closely."""
_NOISE = 1.02
"""Measured times that differ by less say nothing."""


@dataclass
class Amount:
    """Chooses the cuts of one step.

    Attributes:
        ratio: Share of the original classes that is gone after this step; used where there is no budget.
        budgets: Limits to meet, each with the figure of the model before the first step.
        progress: Part of the way to the budgets that this step goes, 0 to 1.
        ranking, limits: As in `choose`.
        measure: Milliseconds of a model on the target, or None for the cost model.
    """

    ratio: float
    budgets: Sequence[tuple[Budget, float]]
    progress: float
    ranking: Ranking
    limits: Limits
    measure: Callable[[ir.Model], float] | None = None

    def cuts(
        self,
        model: ir.Model,
        found: Dependencies,
        candidates: list[Candidate],
        sizer: Sizer | None,
        context: PassContext,
    ) -> list[Cut]:
        """What goes in this step; `sizer` tells the costs for budgets.

        Raises:
            PassError: A budget cannot be met.
        """
        chooser = _Chooser(found, candidates, self.ranking)
        if not self.budgets:
            cuts = chooser.at(self.ratio, self.limits)
            return self._faster(chooser, model, cuts, lambda limits: chooser.at(self.ratio, limits), context)
        assert sizer is not None
        calculated = [each for each in self.budgets if each[0].kind != "latency" or self.measure is None]
        measured = [each for each in self.budgets if each not in calculated]

        kinds = [budget.kind for budget, _ in calculated]

        def meets(cuts: Sequence[Cut]) -> bool:
            cost = sizer.cost(plan(found, cuts), kinds)
            return all(figure(cost, budget) <= self._limit(budget, first) for budget, first in calculated)

        def mildest(limits: Limits) -> tuple[float, list[Cut]] | None:
            ratio = mildest_ratio(lambda ratio: meets(chooser.at(ratio, limits)))
            if ratio is None:
                return None
            return ratio, give_back(candidates, chooser.at(ratio, limits), limits, meets)

        found_here = mildest(self.limits)
        if found_here is None:
            self._refuse(sizer.cost(plan(found, chooser.at(1.0 - 1e-6, self.limits))), calculated)
        assert found_here is not None
        ratio, cuts = found_here
        if not measured:
            cuts = self._faster(
                chooser, model, cuts, lambda limits: (mildest(limits) or (0.0, []))[1], context
            )
        if cuts:
            self._note_room(sizer.cost(plan(found, cuts), kinds), calculated, context)
        for budget, first in measured:
            cuts = self._timed(chooser, model, cuts, ratio, self._limit(budget, first), context)
        return cuts

    def _note_room(self, cost: Cost, budgets: Sequence[tuple[Budget, float]], context: PassContext) -> None:
        """Say why no budget is nearly used up, if so: one channel more of any group would exceed it."""
        used = [(figure(cost, budget), self._limit(budget, first), budget) for budget, first in budgets]
        if self.progress < 1.0 or not used or any(found >= _ROOM * limit for found, limit, _ in used):
            return
        found, limit, budget = max(used, key=lambda each: each[0] / each[1])
        steps = (
            f"; multiple={self.limits.multiple} makes the steps larger" if self.limits.multiple > 1 else ""
        )
        context.note(
            f"{found / limit:.0%} of the budget {budget} is used: putting back what goes together anywhere "
            f"would exceed it{steps}"
        )

    def _limit(self, budget: Budget, first: float) -> float:
        return first - (first - budget.of(first)) * self.progress

    def _refuse(self, least: Cost, budgets: Sequence[tuple[Budget, float]]) -> None:
        for budget, first in budgets:
            reached = figure(least, budget)
            if reached > self._limit(budget, first):
                share = "" if first <= 0 else f" ({reached / first:.0%} of {first:.4g})"
                unit = " ms" if budget.kind == "latency" else ""
                raise PassError(
                    f"the budget {budget} cannot be met: what may go leaves {reached:.4g}{unit}{share};"
                    " see what was left alone, or relax min_channels, max_ratio or multiple"
                )

    def _timed(
        self,
        chooser: _Chooser,
        model: ir.Model,
        cuts: list[Cut],
        start: float,
        limit: float,
        context: PassContext,
    ) -> list[Cut]:
        """The mildest cuts from ratio `start` on that are measured to take no longer than `limit` ms."""
        assert self.measure is not None
        best: tuple[float, list[Cut]] | None = None
        low, high = start, 1.0 - 1e-6
        tried: list[tuple[float, float]] = []
        for step in range(_MEASURED_STEPS):
            # First what the other budgets want, then all that may go: between them lies what is looked for.
            ratio = (start, high)[step] if step < 2 else (low + high) / 2.0
            trial = cuts if step == 0 else chooser.at(ratio, self.limits)
            took = self._measured(chooser.found, model, trial)
            tried.append((ratio, took))
            if context.progress is not None:
                context.progress(step, _MEASURED_STEPS, f"{took:.3g} ms at ratio {ratio:.2f}")
            if took <= limit:
                best, high = (took, trial), ratio
                if step == 0:
                    break
            elif step == 1:
                break
            else:
                low = ratio
        context.details["latency_tried"] = [{"ratio": ratio, "ms": took} for ratio, took in tried]
        if best is None:
            fastest = min(took for _, took in tried)
            raise PassError(
                f"the latency budget of {limit:.4g} ms cannot be met: the fastest that was measured takes "
                f"{fastest:.4g} ms; see what was left alone, or relax min_channels, max_ratio or multiple"
            )
        return best[1]

    def _faster(
        self,
        chooser: _Chooser,
        model: ir.Model,
        cuts: list[Cut],
        choose: Callable[[Limits], list[Cut]],
        context: PassContext,
    ) -> list[Cut]:
        """The rounded `cuts`, unless those that `choose` makes without rounding are measured to be faster."""
        if self.limits.multiple == 1 or self.measure is None or not cuts:
            return cuts
        unrounded = choose(Limits(1, self.limits.min_channels, self.limits.max_ratio))
        if not unrounded or plan_text(unrounded) == plan_text(cuts):
            return cuts
        took, plain = (self._measured(chooser.found, model, each) for each in (cuts, unrounded))
        context.details["rounding_ms"] = {"rounded": took, "unrounded": plain}
        if took <= plain * _NOISE:
            return cuts
        context.note(
            f"multiple={self.limits.multiple} is not applied: {took:.4g} ms rounded, {plain:.4g} ms unrounded"
        )
        return unrounded

    def _measured(self, found: Dependencies, model: ir.Model, cuts: Sequence[Cut]) -> float:
        assert self.measure is not None
        pruned = clone(model)
        removal = plan(found, cuts)
        if removal:
            apply_removal(pruned, removal, Rewriter(pruned))
        return self.measure(pruned)


@dataclass(frozen=True)
class _Chooser:
    found: Dependencies
    candidates: list[Candidate]
    ranking: Ranking

    def at(self, ratio: float, limits: Limits) -> list[Cut]:
        cuts = choose(self.candidates, ratio, self.ranking, limits)
        scores = {
            name: score
            for candidate in self.candidates
            for name, score in zip(candidate.group.classes.tolist(), candidate.scores.tolist(), strict=True)
        }
        return without_empty_axes(self.found, cuts, scores)


def figure(cost: Cost, budget: Budget) -> float:
    """The figure of a cost that a budget limits."""
    return float(getattr(cost, budget.kind))


def plan_text(cuts: Sequence[Cut]) -> list[tuple[int, ...]]:
    """What some cuts remove, to compare them."""
    return [cut.removed for cut in cuts]
