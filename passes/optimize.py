"""`gw.optimize`: a model and a pipeline in, the optimized model and a record of every pass out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import onnx_ir as ir

from .base import Pass
from .manager import Observer, PassManager, PassRecord
from .pipeline import Pipeline


@dataclass(frozen=True)
class OptimizeReport:
    """What a pipeline did.

    Attributes:
        pipeline: The pipeline as text, presets expanded.
        records: One per pass, in order.
    """

    pipeline: str
    records: tuple[PassRecord, ...]

    def to_json(self) -> dict[str, Any]:
        """Return the report as JSON-able data."""
        return {"pipeline": self.pipeline, "passes": [record.to_json() for record in self.records]}

    def __str__(self) -> str:
        lines = [f"pipeline: {self.pipeline}"]
        for record in self.records:
            counts = ", ".join(f"{name} {n}" for name, n in record.statistics.items())
            lines.append(
                f"  {record.text}: {record.nodes_before} -> {record.nodes_after} nodes, "
                f"{record.seconds * 1e3:.1f} ms{'; ' + counts if counts else ''}"
            )
            if record.left_alone:
                lines.append(f"    left alone: {len(record.left_alone)}")
        return "\n".join(lines)


@dataclass(frozen=True)
class Result:
    """The optimized model and how it came about."""

    model: ir.Model
    report: OptimizeReport


def optimize(
    model: ir.Model,
    pipeline: str | Pass | Pipeline | list[Pass],
    *,
    calibration: Any = None,
    target: Any = None,
    verify_each: bool = True,
    check_each: bool = False,
    check_inputs: Sequence[dict[str, Any]] | None = None,
    observers: Sequence[Observer] = (),
    seed: int = 0,
    progress: Any = None,
    explain: str | None = None,
    measure: Callable[[ir.Model], float] | None = None,
) -> Result:
    """Apply a pipeline to a copy of `model`; `model` itself is not changed.

    Args:
        model: An `onnx_ir.Model`, from `gw.load` or `gw.trace`.
        pipeline: Pipeline text such as `"simplify,fold-batch-norm"`, or passes.
        calibration: Iterable of feeds (`dict[str, np.ndarray]`) for passes that look at activations.
        target: Target description for passes that depend on the device.
        verify_each: Verify the graph after every pass.
        check_each: Prove lossless passes and measure lossy ones, on the reference.
        check_inputs: Feeds for `check_each`.
        observers: Watchers of the run.
        seed: Seed for everything random.
        progress: Called with (done, total, text) by long passes.
        explain: Name of a node of which every attempt of a rule is recorded (see `passes.explain`).
        measure: Milliseconds that a model takes on the target, for passes with a latency budget.

    Raises:
        PipelineError: The pipeline text is wrong.
        PassError: A pass failed.
        VerifyError: The model is invalid to begin with.
    """
    manager = PassManager(
        pipeline,
        verify_each=verify_each,
        check_each=check_each,
        check_inputs=check_inputs,
        observers=observers,
        target=target,
        calibration=calibration,
        seed=seed,
        progress=progress,
        explain=explain,
        measure=measure,
    )
    optimized, records = manager.run(model)
    return Result(optimized, OptimizeReport(str(manager.pipeline), tuple(records)))
