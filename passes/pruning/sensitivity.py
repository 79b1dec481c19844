"""How much each group of channels, and all of them together, cost in quality.

Each group is pruned alone, at several ratios, and the outputs are compared with the original's on calibration
data: groups whose curve falls early want a small ratio. Then all groups together, at more ratios: the list
of versions that no other beats in both MACs and quality (the Pareto list) says what a budget costs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import onnx_ir as ir

from ...ir.clone import clone
from ...ir.compare import compare
from ...ir.errors import PassError
from ...ir.reference import Reference
from ..base import PassContext
from ..channels import Dependencies, apply_removal
from ..prune_channels import PruneChannels
from ..quantization.calibration import Calibration
from ..rewriter import Rewriter
from .budget import Sizer, plan
from .candidates import find_candidates
from .latency import Machine
from .ranking import Candidate, Cut, choose, cut_to, without_empty_axes

Metric = Callable[[ir.Model], float]
RATIOS = (0.25, 0.5, 0.75)
PARETO_RATIOS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8)


@dataclass(frozen=True)
class Point:
    """One pruned version.

    Attributes:
        name: The group that was pruned, by the layers that make its channels; "all" for all of them.
        ratio: What was asked for.
        kept: Channels that stayed, and how many there were, in the widest layer of every group.
        macs, params: Shares of the original's.
        sqnr_db: Worst output against the original's on the calibration data, in dB.
        metric: What the user's own metric says; None without one.
    """

    name: str
    ratio: float
    kept: tuple[int, int]
    macs: float
    params: float
    sqnr_db: float
    metric: float | None = None

    @property
    def quality(self) -> float:
        """The metric, or the SQNR where there is none; larger is better."""
        return self.sqnr_db if self.metric is None else self.metric

    def to_json(self) -> dict[str, Any]:
        """JSON-able numbers; an infinite SQNR (no difference) is null."""
        exact = not math.isfinite(self.sqnr_db)
        return {**vars(self), "kept": list(self.kept), "sqnr_db": None if exact else self.sqnr_db}


@dataclass
class Sensitivity:
    """What a scan found.

    Attributes:
        by_group: One point per group and ratio.
        together: One point per ratio for all groups at once.
        metric: What the user's metric says about the original; None without one.
    """

    by_group: list[Point] = field(default_factory=list)
    together: list[Point] = field(default_factory=list)
    metric: float | None = None

    @property
    def pareto(self) -> list[Point]:
        """The points for all groups that no other beats in MACs and quality at once, most MACs first."""
        found: list[Point] = []
        for point in sorted(self.together, key=lambda p: (p.macs, -p.quality)):
            if not found or point.quality > found[-1].quality:
                found.append(point)
        return found[::-1]

    def to_json(self) -> dict[str, Any]:
        """JSON-able data."""
        return {
            "groups": [point.to_json() for point in self.by_group],
            "together": [point.to_json() for point in self.together],
            "pareto": [point.to_json() for point in self.pareto],
            "metric": self.metric,
        }


def scan(
    model: ir.Model,
    calibration: Calibration,
    options: PruneChannels | None = None,
    *,
    ratios: Sequence[float] = RATIOS,
    pareto_ratios: Sequence[float] = PARETO_RATIOS,
    metric: Metric | None = None,
    context: PassContext | None = None,
) -> Sensitivity:
    """Prune every group alone, and all together, at several ratios.

    Args:
        model: At the canonical opset, shapes inferred; not changed.
        calibration: The data that outputs are compared on; read once per version.
        options: Importance, ranking, limits and selectors.
        ratios: Shares of classes to remove from single groups.
        pareto_ratios: Shares to remove from all.
        metric: Quality of a model, larger is better; beside the SQNR.
        context: Target, seed and progress.

    Raises:
        PassError: There is nothing to prune, or the data can be read only once.
    """
    if not calibration.repeatable:
        raise PassError(f"a scan reads the data often, but an {calibration.source} can be read once only")
    options = options or PruneChannels()
    context = context or PassContext()
    base = clone(model)
    options = replace(options, outputs=None, inputs=None)
    options.prepare(base, context)
    found = options.analyse(base)
    candidates = find_candidates(base, found, options.scoring(context), options, calibration, context)
    if not candidates:
        raise PassError("there is nothing to prune: every channel is kept (see `prune-channels --stats`)")
    versions = _Versions(base, found, candidates, calibration, metric, Machine.of(context.target))
    limits = options.limits(context.target)
    result = Sensitivity(metric=None if metric is None else metric(base))
    total, done = len(candidates) * len(ratios) + len(pareto_ratios), 0
    for candidate in candidates:
        for ratio in ratios:
            kept = limits.kept(candidate, len(candidate.group.classes) * (1.0 - ratio))
            cuts = [cut_to(candidate, kept)]
            result.by_group.append(versions.point(name_of(candidate), ratio, [candidate], cuts))
            done += 1
            if context.progress is not None:
                context.progress(done, total, name_of(candidate))
    for ratio in pareto_ratios:
        cuts = choose(candidates, ratio, options.ranking, limits)
        result.together.append(versions.point("all", ratio, candidates, cuts))
        done += 1
        if context.progress is not None:
            context.progress(done, total, f"all at {ratio:g}")
    return result


def name_of(candidate: Candidate) -> str:
    """A group by the first layers that make its channels."""
    names = list(
        dict.fromkeys(str(made.node.name or made.node.op_type) for made in candidate.group.producers)
    )
    return ", ".join(names[:2]) + (f" and {len(names) - 2} more" if len(names) > 2 else "")


class _Versions:
    """Pruned versions of one model, measured against it."""

    def __init__(
        self,
        model: ir.Model,
        found: Dependencies,
        candidates: list[Candidate],
        calibration: Calibration,
        metric: Metric | None,
        machine: Machine,
    ):
        self._model = model
        self._found = found
        self._calibration = calibration
        self._metric = metric
        self._sizer = Sizer(model, machine)
        self._expected = self._outputs(model)
        self._scores = {
            name: score
            for candidate in candidates
            for name, score in zip(candidate.group.classes.tolist(), candidate.scores.tolist(), strict=True)
        }

    def point(self, name: str, ratio: float, candidates: Sequence[Candidate], cuts: Sequence[Cut]) -> Point:
        cuts = without_empty_axes(self._found, cuts, self._scores)
        removal = plan(self._found, cuts)
        pruned = clone(self._model)
        if removal:
            apply_removal(pruned, removal, Rewriter(pruned))
        cost, before = self._sizer.cost(removal, ("macs", "params")), self._sizer.before
        worst = compare(self._expected, self._outputs(pruned))
        # Also of groups that lose nothing at this ratio, so that rows compare.
        channels = sum(len(each.group.classes) * max(each.group.channels_per_class) for each in candidates)
        gone = sum(len(cut.removed) * max(cut.group.channels_per_class) for cut in cuts)
        return Point(
            name,
            ratio,
            (channels - gone, channels),
            cost.macs / max(before.macs, 1.0),
            cost.params / max(before.params, 1.0),
            float(worst.sqnr_db),
            None if self._metric is None else self._metric(pruned),
        )

    def _outputs(self, model: ir.Model) -> dict[str, np.ndarray]:
        """Outputs of all batches, one behind the other; without those that are no numbers."""
        reference = Reference(model)
        parts: dict[str, list[np.ndarray]] = {}
        for feeds in self._calibration.batches(model):
            for name, array in reference.run(feeds).items():
                if isinstance(array, np.ndarray) and array.dtype.kind == "f":
                    parts.setdefault(name, []).append(array.reshape(-1))
        if not parts:
            raise PassError("the model has no floating-point output to compare")
        return {name: np.concatenate(arrays) for name, arrays in parts.items()}
