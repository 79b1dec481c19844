"""The variant "tuned": spend trials or minutes on a model, then compile it by what the database holds."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ...ir.errors import ToolError
from ..console import print_line
from ..processes import StepFailed, StepTimedOut, run_step
from .process import cores_for

STEP = "runtimes.prepare"
_ENDLESS = 1_000_000
"""Trials where the clock alone ends tuning; it stops by itself where nothing more is to be gained."""


def check_database(database: Path, trials: int | None, minutes: float | None) -> None:
    """Refuse to measure something tuned that is not.

    Raises:
        ToolError: there are no records and none are to be made.
    """
    if trials is None and minutes is None and not database.exists():
        raise ToolError(
            f"there is no tuning database {database}; --trials N or --tune-minutes M makes one first"
        )


def tune_and_compile(
    folder: Path,
    database: Path,
    threads: Sequence[int],
    *,
    trials: int | None,
    minutes: float | None,
    timeout: float,
) -> dict[str, Any]:
    """Tune for each number of threads and write an artifact for each.

    Args:
        folder: prepared by the step `export`.
        database: records; those that it has count as trials.
        threads: numbers of threads.
        trials: for each of them; no end but the clock's where None and there are minutes.
        minutes: for the model, a share for each number of threads; what was measured until then counts.
        timeout: seconds for compiling, and for tuning where there are no minutes.

    Returns:
        What compiling says, and "tuning": by threads seconds, trials made and in all, and why it ended.

    Raises:
        ToolError: a step fails.
    """
    spent = {}
    if trials is not None or minutes is not None:
        limit = timeout if minutes is None else minutes * 60 / len(threads)
        for count in threads:
            spent[str(count)] = _tune(folder, database, count, trials or _ENDLESS, limit)
            print_line(f"  tuned for {count} thread(s): {spent[str(count)]}")
    if not database.exists():
        raise ToolError(f"tuning left no records in {database}")
    counts = [str(count) for count in threads]
    arguments = ["compile-tuned", str(folder), str(database), *counts]
    found = _step(arguments, timeout * len(counts), max(threads))
    return {**found, "tuning": spent}


def _tune(folder: Path, database: Path, threads: int, trials: int, limit: float) -> dict[str, Any]:
    database.parent.mkdir(parents=True, exist_ok=True)
    arguments = ["tune", str(folder), str(database), str(threads), str(trials)]
    try:
        return {**_step(arguments, limit, threads), "ended": "by itself"}
    except StepTimedOut:
        # Records are on disk as they are made, verdicts after every batch.
        return {"seconds": limit, "ended": "by the clock"}
    except StepFailed as error:
        raise ToolError(f"tune: {error}") from None


def _step(arguments: Sequence[str], timeout: float, threads: int) -> dict[str, Any]:
    return run_step(STEP, arguments, timeout=timeout, threads=threads, cores=cores_for(threads))
