"""`backend="auto"`: TVM and ONNX Runtime run the same optimized graph here, and the faster one is taken."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..ir.errors import CompileError
from .executable import Executable
from .interleave import measure_interleaved
from .target import Target
from .timing import Timing

AUTO, TVM, ONNXRUNTIME = "auto", "tvm", "onnxruntime"
BACKENDS = (TVM, ONNXRUNTIME, AUTO)
_NAMES = {TVM: "TVM", ONNXRUNTIME: "ONNX Runtime"}
_SECONDS = 1.0
"""Time for the runs of each."""


@dataclass(frozen=True)
class Choice:
    """Which backend a model got, and why.

    Attributes:
        chosen: "tvm" or "onnxruntime".
        reason: why there was nothing to measure, or which one failed; "" where both were timed.
        timings: latency by backend, where both were timed; with several batch sizes that of the first.
        batches: latency by backend for each batch size, where there are several.
    """

    chosen: str
    reason: str = ""
    timings: Mapping[str, Timing] = field(default_factory=dict)
    batches: tuple[Mapping[str, Timing], ...] = ()

    def to_json(self) -> dict[str, Any]:
        """A JSON-able dictionary."""
        return {
            "requested": AUTO,
            "chosen": self.chosen,
            "reason": self.reason,
            "timings": {name: timing.to_json() for name, timing in self.timings.items()},
            "batches": [{name: timing.to_json() for name, timing in each.items()} for each in self.batches],
        }

    def __str__(self) -> str:
        name = _NAMES[self.chosen]
        if not self.timings:
            return f"backend auto: {name} without a comparison: {self.reason}"
        other = next(each for each in self.timings if each != self.chosen)
        own, slower = self.timings[self.chosen], self.timings[other]
        if self.batches:
            pairs = "; ".join(
                f"{_text(each[self.chosen])} against {_text(each[other])}" for each in self.batches
            )
            return (
                f"backend auto: {name} is the faster one here by the geometric mean over the batch sizes: "
                f"{pairs} of {_NAMES[other]} on {own.threads} thread(s), medians (10th-90th percentile) of "
                "runs in turns"
            )
        return (
            f"backend auto: {name} is the faster one here: {_text(own)} against {_text(slower)} of "
            f"{_NAMES[other]} on {own.threads} thread(s), median (10th-90th percentile) of {own.samples} and "
            f"{slower.samples} runs in turns"
        )


def why_no_choice(target: Target) -> str | None:
    """Why only TVM comes into question for a target, or None if both backends can run here."""
    reason = target.why_not_here()
    if reason:
        return f"code for {target.name} cannot be timed here, {reason}"
    if target.device != "cpu":
        return f"ONNX Runtime's CPU provider does not run on {target.name}"
    return None


def attempt(
    makers: Mapping[str, Callable[[], Executable]],
) -> tuple[dict[str, Executable], dict[str, CompileError]]:
    """What each function made, by backend, and the errors of those that could not.

    Raises:
        CompileError: all failed; the error is that of the first.
    """
    made: dict[str, Executable] = {}
    failures: dict[str, CompileError] = {}
    for name, make in makers.items():
        try:
            made[name] = make()
        except CompileError as error:
            failures[name] = error
    if not made:
        raise next(iter(failures.values()))
    return made, failures


def decide(
    made: Mapping[str, Executable],
    failures: Mapping[str, CompileError],
    cases: Sequence[Mapping[str, np.ndarray]],
    *,
    threads: int,
) -> Choice:
    """The faster of two backends by the median of interleaved runs, or the one that is left.

    Over several batch sizes the geometric mean of the medians decides.

    Args:
        made: executables by backend, checked.
        failures: errors of the backends that are not among them.
        cases: inputs by name to time them on, for each batch size.
        threads: threads that both may use.
    """
    if failures:
        failed, error = next(iter(failures.items()))
        return Choice(next(iter(made)), f"{_NAMES[failed]} failed: {error}")
    timed = [measure_interleaved(made, feeds, threads=threads, seconds=_SECONDS) for feeds in cases]
    chosen = min(made, key=lambda name: math.prod(each[name].median_ms for each in timed))
    return Choice(chosen, timings=timed[0], batches=tuple(timed) if len(timed) > 1 else ())


def _text(timing: Timing) -> str:
    return f"{timing.median_ms:.3f} ms ({timing.p10:.3f}-{timing.p90:.3f})"
