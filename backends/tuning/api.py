"""`gw.tune`: measure the kernels of a model and keep what was found."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..target import Target
from .database import default_path

if TYPE_CHECKING:
    import onnx_ir as ir

    from .step import Outcome


def tune(
    model: ir.Model | str | Path,
    target: str | Target = "x86",
    *,
    trials: int = 256,
    database: str | Path | None = None,
    threads: int = 1,
    pipeline: Any = None,
    dims: Mapping[str, int] | None = None,
    seed: int = 0,
    progress: Callable[[str], None] | None = None,
) -> Outcome:
    """Find the fastest schedules for a model's kernels by measuring them on this machine.

    An interruption loses nothing but the trial in flight: call it again to go on. `compile` with the same
    database, target and number of threads then builds by what was found.

    Args:
        model: the model, which is not changed, or the file to load it from.
        target: a CPU that this machine can be.
        trials: candidates to measure; those of this model's kernels in the database count.
        database: file of records; `$GRAPHWRIGHT_TUNING` or a file in the user's cache if None.
        threads: threads that the model will run on.
        pipeline: passes to run first, as `compile` takes them.
        dims: sizes to bind symbolic dimensions to, by name.
        seed: seed of what is tried.
        progress: called with a line for each step and batch of trials.

    Returns:
        What was spent and gained, and the model's latency before and after.

    Raises:
        CompileError: the target does not run here, or the database cannot be written.
    """
    from ...ir.errors import CompileError
    from ..compile import compile

    if trials < 1:
        raise CompileError("tuning needs at least one trial")
    executable = compile(
        model,
        target,
        pipeline=pipeline,
        trials=trials,
        database=default_path() if database is None else database,
        threads=threads,
        dims=dims,
        seed=seed,
        progress=progress,
    )
    assert executable.report is not None and executable.report.tuning is not None
    return executable.report.tuning
