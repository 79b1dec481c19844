"""Tuning as a step of compiling: measure kernels, build with what was found, and check that it pays."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from ..target import Target
from .database import Database
from .session import TuningReport, tune_graph

if TYPE_CHECKING:
    from ..compile_report import CompileReport
    from ..executable import Executable
    from ..timing import Timing
    from ..tvm.strategy import Schedules

Build = Callable[["Schedules | None"], "Executable"]
_SECONDS = 1.5
"""Time for the runs of the model with and without records."""
_LEAST_TURNS, _MOST_TURNS = 15, 300


@dataclass
class Outcome:
    """What tuning made of a model.

    Attributes:
        report: trials and kernels.
        timings: the whole model "analytic" and "tuned", in turns; empty where no kernel got faster. With
            several batch sizes those of the one that gained least.
        ratio: median over the turns of the tuned model's time over the other's.
    """

    report: TuningReport
    timings: dict[str, Timing] = field(default_factory=dict)
    ratio: float = 1.0

    @property
    def is_used(self) -> bool:
        """Whether the model runs with the tuned kernels."""
        return bool(self.timings) and self.ratio <= 1

    def to_json(self) -> dict[str, Any]:
        """A JSON-able dictionary."""
        return {
            **self.report.to_json(),
            "used": self.is_used,
            "ratio": self.ratio,
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
            f"{1 / self.ratio:.3f} times as fast"
        )
        kept = "" if self.is_used else "; the analytic choices are kept, as they are faster in the model"
        return f"tuning: {spent}; {words}; medians of {before.samples} runs in turns{kept}"


def tuned(
    programs: Mapping[str, ir.Model],
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
        programs: static shapes, no calls of functions; one, or one per batch size.
        target: what to build for; it must run here.
        database: where records are looked up and kept.
        trials: trials to spend, records of this model's kernels included.
        threads: threads that kernels and model run on.
        build: makes an executable from schedules.
        report: gets the outcome and the time of the steps.
        say: called with the progress.
        seed: seed of what is tried.
    """
    analytic = build(None)
    sizes = (report.kernels, report.library_bytes, report.weight_bytes, report.batches)
    sizes_of_batches = analytic.batches.sizes if analytic.batches is not None else (None,)
    cases = [analytic.random_feeds(batch=size) for size in sizes_of_batches]
    analytic.set_threads(threads)
    before = [analytic.benchmark(feeds, threads=threads, seconds=_SECONDS) for feeds in cases]
    with report.step("tune"):
        found = tune_graph(
            programs,
            target,
            database,
            trials,
            threads=threads,
            model_ms=sum(timing.min for timing in before),
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
        for feeds in cases:
            timings, ratio = in_turns(analytic, better, feeds, threads)
            # With several batch sizes none may get slower.
            if not outcome.timings or ratio > outcome.ratio:
                outcome.timings, outcome.ratio = timings, ratio
    if outcome.is_used:
        return better
    report.kernels, report.library_bytes, report.weight_bytes, report.batches = sizes
    return analytic


def in_turns(
    analytic: Executable, better: Executable, feeds: Mapping[str, Any], threads: int
) -> tuple[dict[str, Timing], float]:
    """Both models run after run, and the median over the turns of the second's time over the first's.

    With one thread the time is the thread's own, which does not count what else the machine does.
    """
    from ..timing import Timing

    contenders = {"analytic": analytic, "tuned": better}
    samples: dict[str, list[float]] = {name: [] for name in contenders}
    end = time.perf_counter() + 2 * _SECONDS
    turn = 0
    while turn < _LEAST_TURNS or (turn < _MOST_TURNS and time.perf_counter() < end):
        order = list(contenders) if turn % 2 == 0 else list(contenders)[::-1]
        for name in order:
            samples[name].append(_run(contenders[name], feeds, threads))
        turn += 1
    ratios = [b / a for a, b in zip(samples["analytic"], samples["tuned"], strict=True)]
    return {name: Timing.of(each, threads) for name, each in samples.items()}, statistics.median(ratios)


def _run(executable: Executable, feeds: Mapping[str, Any], threads: int) -> float:
    """Milliseconds of one run after another one, which brings the weights near."""
    from ..compiled import TvmExecutable

    assert isinstance(executable, TvmExecutable)
    executable.set_threads(threads)
    program = executable.load()
    tensors = program.prepare([np.asarray(feeds[spec.name]) for spec in executable.inputs])
    clock = time.thread_time if threads == 1 else time.perf_counter
    program.invoke(tensors)
    start = clock()
    program.invoke(tensors)
    return (clock() - start) * 1e3
