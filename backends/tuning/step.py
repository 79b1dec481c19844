"""Tuning as a step of compiling: measure kernels, build with what was found, and check that it pays."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import onnx_ir as ir

from ..target import Target
from .database import Database
from .session import TuningReport, tune_graph

if TYPE_CHECKING:
    from ..compile_report import CompileReport
    from ..executable import Executable, Timing
    from ..tvm.strategy import Schedules

Build = Callable[["Schedules | None"], "Executable"]
_SECONDS = 1.5
"""Time for the runs of the model with and without records."""


@dataclass
class Outcome:
    """What tuning made of a model.

    Attributes:
        report: trials and kernels.
        timings: the whole model "analytic" and "tuned", in turns; empty where no kernel got faster.
    """

    report: TuningReport
    timings: dict[str, Timing] = field(default_factory=dict)

    @property
    def is_used(self) -> bool:
        """Whether the model runs with the tuned kernels."""
        return bool(self.timings) and self.timings["tuned"].median_ms <= self.timings["analytic"].median_ms

    def to_json(self) -> dict[str, Any]:
        """A JSON-able dictionary."""
        return {
            **self.report.to_json(),
            "used": self.is_used,
            "timings": {name: timing.to_json() for name, timing in self.timings.items()},
        }

    def __str__(self) -> str:
        spent = f"{self.report.spent} trials now, {self.report.trials} in all"
        if not self.timings:
            return f"tuning: {spent}; no kernel got faster than the analytic choice"
        before, after = self.timings["analytic"], self.timings["tuned"]
        words = (
            f"{before.median_ms:.3f} ms ({before.p10:.3f}-{before.p90:.3f}) to "
            f"{after.median_ms:.3f} ms ({after.p10:.3f}-{after.p90:.3f}), "
            f"{before.median_ms / after.median_ms:.2f} times as fast"
        )
        kept = "" if self.is_used else "; the analytic choices are kept, as they are faster in the model"
        return f"tuning: {spent}; {words}; medians of runs in turns{kept}"


def tuned(
    model: ir.Model,
    target: Target,
    database: Database,
    trials: int,
    threads: int,
    build: Build,
    report: CompileReport,
    say: Callable[[str], None],
    seed: int,
) -> Executable:
    """The model built with the best schedules known after spending trials.

    Args:
        model: static shapes, no calls of functions.
        target: what to build for; it must run here.
        database: where records are looked up and kept.
        trials: trials to spend, records of this model's kernels included.
        threads: threads that kernels and model run on.
        build: makes an executable from schedules.
        report: gets the outcome and the time of the steps.
        say: called with the progress.
        seed: seed of what is tried.
    """
    from ..interleave import measure_interleaved

    analytic = build(None)
    sizes = (report.kernels, report.library_bytes, report.weight_bytes)
    feeds = analytic.random_feeds()
    analytic.set_threads(threads)
    before = analytic.benchmark(feeds, threads=threads, seconds=_SECONDS)
    with report.step("tune"):
        found = tune_graph(
            model,
            target,
            database,
            trials,
            threads=threads,
            model_ms=before.min,
            say=lambda progress: say(str(progress)),
            seed=seed,
        )
    outcome = Outcome(found)
    report.trials, report.tuning = found.spent, outcome
    report.notes += found.skipped
    if not any(kernel.schedule for kernel in found.kernels):
        return analytic
    better = build(database.schedules(target, threads))
    with report.step("compare with untuned"):
        say("compare with untuned")
        contenders = {"analytic": analytic, "tuned": better}
        outcome.timings = measure_interleaved(contenders, feeds, threads=threads, seconds=_SECONDS)
    if outcome.is_used:
        return better
    report.kernels, report.library_bytes, report.weight_bytes = sizes
    return analytic
