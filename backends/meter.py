"""How long a model takes on a target, for passes with a latency budget."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx_ir as ir

    from .target import Target

SECONDS = 0.5
"""Time to spend on the runs of one version of a model."""
WANTED_BY = ("prune-channels", "latency=")
"""What looks at the clock: a budget of time, and rounding, which must not end up slower."""


def latency_meter(
    target: Target | None, *, threads: int = 1, seconds: float = SECONDS
) -> Callable[[ir.Model], float] | None:
    """A function from a model to the milliseconds of its fastest decile of runs, compiled for `target`.

    The tenth percentile is what the model can do; a median also measures what else the machine does.

    Args:
        target: Where the model is to run.
        threads: Threads to use.
        seconds: Time to spend on the runs of each model.

    Returns:
        None where there is no target or its code does not run on this machine.
    """
    if target is None or not target.runs_here:
        return None

    def measure(model: ir.Model) -> float:
        from .compile import compile as compile_model

        executable = compile_model(model, target, check=False)
        return float(executable.benchmark(threads=threads, seconds=seconds).p10)

    return measure


def wants_clock(pipeline: str) -> bool:
    """Whether a pipeline text holds something that measuring helps."""
    return any(each in pipeline for each in WANTED_BY)
