"""Tuning the kernels of one model: which there are, what is spent on them, what came of it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import onnx_ir as ir

from ...ir.errors import CompileError
from ..target import Target
from .database import Database, default_path
from .record import Key, isa_of
from .shipped_records import shipped_records
from .tuner import Progress, Task, Tuner


@dataclass(frozen=True)
class KernelRow:
    """What tuning made of one kernel; times in microseconds of one call, alone on the machine."""

    workload: str
    calls: int
    trials: int
    analytic: float
    best: float
    schedule: dict[str, Any]
    error: str = ""

    def to_json(self) -> dict[str, Any]:
        """A JSON-able dictionary."""
        return {
            "workload": self.workload,
            "calls": self.calls,
            "trials": self.trials,
            "analytic_us": None if math.isnan(self.analytic) else self.analytic,
            "best_us": None if math.isnan(self.best) else self.best,
            "schedule": self.schedule,
            "error": self.error,
        }


@dataclass
class TuningReport:
    """What was spent and gained.

    Attributes:
        database: the file of the records, "" where they are in memory only.
        trials: trials in the database for this model's kernels.
        spent: trials made now.
        estimate_ms: what the kernels' gains make of `before_ms`.
        before_ms: the model's latency with analytic choices.
        kernels: a row per kernel.
        skipped: lines of the database that could not be read.
    """

    database: str
    trials: int
    spent: int
    estimate_ms: float
    before_ms: float
    kernels: list[KernelRow] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """A JSON-able dictionary."""
        return {
            "database": self.database,
            "trials": self.trials,
            "spent": self.spent,
            "before_ms": self.before_ms,
            "estimate_ms": self.estimate_ms,
            "kernels": [row.to_json() for row in self.kernels],
            "skipped": self.skipped,
        }


def open_database(path: str | Path | None, *, keeps: bool) -> Database:
    """Records to build by: those in a file, before those that come with the package.

    Args:
        path: the file; None for none, or for where records are kept by default.
        keeps: new records are to be kept.

    Raises:
        CompileError: the file cannot be read, or is something else.
    """
    database = Database.open(default_path() if path is None and keeps else path)
    database.fallback = shipped_records()
    return database


def records_used(
    kernels: Sequence[Mapping[str, Any]], records: Database, target: Target, threads: int
) -> list[str]:
    """What a report says of the records that kernels were built by, and of lines that were passed over."""
    isa = isa_of(target)
    tuned = [kernel for kernel in kernels if kernel["tuned"]]
    own = sum(records.is_own(Key(kernel["workload"], isa, threads)) for kernel in tuned)
    sources = {str(records.path): own} if records.path is not None else {}
    shipped = len(tuned) - own
    if shipped:
        sources["the package (--no-records builds without them)"] = shipped
    bad = [*records.bad_lines, *(records.fallback.bad_lines if records.fallback is not None else [])]
    counted = [
        f"{count} of {len(kernels)} kernels are built by records of {source}"
        for source, count in sources.items()
    ]
    return [*map(str, bad), *counted]


def why_not_tunable(target: Target) -> str | None:
    """Why kernels for a target cannot be measured here, None if they can."""
    if target.kind != "llvm":
        return f"tuning is for CPUs; kernels for {target.name} are scheduled by TVM's DLight"
    reason = target.why_not_here()
    return f"kernels for {target.name} cannot be measured here: {reason}" if reason else None


def tasks_of(programs: Mapping[str, ir.Model], target: Target, threads: int) -> list[Task]:
    """The kernels of prepared models that have something to choose, most work first.

    Args:
        programs: static shapes, no calls of functions; one, or one per batch size.
        target: what to build for.
        threads: threads that kernels run on.
    """
    from ..tvm.lower import lower_programs

    lowered = lower_programs(programs, target)
    calls: dict[str, int] = {}
    work: dict[str, int] = {}
    for kernel in lowered.kernels:
        if kernel.workload:
            calls[kernel.workload] = calls.get(kernel.workload, 0) + kernel.calls
            work[kernel.workload] = work.get(kernel.workload, 0) + kernel.calls * kernel.flops
    isa = isa_of(target)
    ordered = sorted(calls, key=lambda workload: -work[workload])
    return [
        Task(Key(workload, isa, threads), lowered.workloads[workload], calls[workload])
        for workload in ordered
    ]


def tune_graph(
    programs: Mapping[str, ir.Model],
    target: Target,
    database: Database,
    trials: int,
    *,
    threads: int = 1,
    model_ms: float | None = None,
    say: Callable[[Progress], None] | None = None,
    seed: int = 0,
) -> TuningReport:
    """Measure schedules for the kernels of a prepared model and keep what was found.

    Args:
        programs: static shapes, no calls of functions; one, or one per batch size. Not changed.
        target: what to build for.
        database: where records are looked up and kept; those it has count as trials.
        trials: trials to spend on this model.
        threads: threads that kernels run on.
        model_ms: the model's latency as it is, over all batch sizes.
        say: called with the progress.
        seed: seed of what is tried.

    Raises:
        CompileError: the target does not run here, or the database cannot be written.
    """
    reason = why_not_tunable(target)
    if reason:
        raise CompileError(reason)
    tasks = tasks_of(programs, target, threads)
    tuner = Tuner(tasks, target, threads, database, trials, model_ms=model_ms, say=say, seed=seed)
    tuner.run()
    final = tuner.progress()
    return TuningReport(
        str(database.path or ""),
        final.trials,
        tuner.spent,
        final.estimate_ms,
        final.before_ms,
        [_row(task) for task in tasks],
        [str(line) for line in database.bad_lines],
    )


def _row(task: Task) -> KernelRow:
    return KernelRow(
        task.key.workload, task.calls, task.trials, task.analytic, task.best, dict(task.schedule), task.error
    )
