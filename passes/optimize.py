"""`gw.optimize`: a model and a pipeline in, the optimized model and a record of every pass out."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import onnx_ir as ir

from ..ir.errors import GraphwrightError, PassCrash
from .base import Pass
from .manager import Observer, PassManager, PassRecord
from .pipeline import Pipeline
from .timings import Timing

_UNASKED_BYTES = 1 << 30


@dataclass(frozen=True)
class OptimizeReport:
    """What a pipeline did.

    Attributes:
        pipeline: The pipeline as text, presets expanded.
        records: One per pass, in order.
        timing: Where the time went, as a tree.
    """

    pipeline: str
    records: tuple[PassRecord, ...]
    timing: Timing = field(default_factory=lambda: Timing("pipeline"), compare=False)

    def to_json(self) -> dict[str, Any]:
        """Return the report as JSON-able data."""
        passes = [record.to_json() for record in self.records]
        return {"pipeline": self.pipeline, "passes": passes, "timing": self.timing.to_json()}

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
    timing: bool = False,
    statistics: bool = False,
    keep_going: bool = False,
    reproducer: str | Path | None = "",
    reload: Callable[[], ir.Model] | None = None,
    rule_timeout: float | None = None,
) -> Result:
    """Apply a pipeline to a copy of `model`; `model` itself is not changed.

    Args:
        model: An `onnx_ir.Model`, from `gw.load` or `gw.trace`.
        pipeline: Pipeline text such as `"simplify,fold-batch-norm"`, or passes.
        calibration: Iterable of feeds (`dict[str, np.ndarray]`) for passes that look at activations.
        target: Target description for passes that depend on the device.
        verify_each: Verify graph, shapes and preserved analyses after every pass.
        check_each: Prove lossless passes and measure lossy ones, on the reference.
        check_inputs: Feeds for `check_each`.
        observers: Watchers of the run.
        seed: Seed for everything random.
        progress: Called with (done, total, text) by long passes.
        explain: Name of a node of which every attempt of a rule is recorded (see `passes.explain`).
        measure: Milliseconds that a model takes on the target, for passes with a latency budget.
        timing: Time rules and the parts of passes one by one (`result.report.timing`).
        statistics: Record multiply-accumulates and bytes moved after every pass.
        keep_going: Leave out a pass that fails, and go on with the model from before it; its record says so.
        reproducer: Folder for the file that shows a crash again, None for no file; by default the system's
            folder for temporary files, unless the model's constants take more than 1 GiB.
        reload: Gives the model again as it was given, such as `lambda: gw.load(path)`. With it `model` itself
            is changed, which must come straight from `gw.load`: that saves a copy and a check. The model from
            before is still there for whoever needs it, as `reload()`.
        rule_timeout: Seconds that one rule may take at one node before it is stopped and reported; 60 by
            default, 0 for no limit.

    Raises:
        PipelineError: The pipeline text is wrong.
        PassError: A pass cannot do what it was asked to do.
        PassCrash: A pass is wrong: the line names pass, rule, node and reproducer; `.before` is the model
            from before it.
        VerifyError: The model is invalid to begin with.
        KeyboardInterrupt: As it came; where a rule, or a pass of yours, was at work, with a note that names
            it and a reproducer.
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
        timing=timing,
        statistics=statistics,
        keep_going=keep_going,
        rule_timeout=rule_timeout,
    )
    try:
        optimized, records = manager.run(model, reload=reload)
    except PassCrash as crash:
        if reproducer is None:
            raise
        model = model if reload is None else reload()
        if not reproducer and _constant_bytes(model) > _UNASKED_BYTES:
            raise
        path = _reproduce(model, manager, crash, Path(reproducer or tempfile.gettempdir()))
        raise _located(crash, path) from crash.__cause__
    except KeyboardInterrupt as interruption:
        _write_interrupted(interruption, model, manager, reproducer, reload)
        raise
    return Result(optimized, OptimizeReport(str(manager.pipeline), tuple(records), manager.timing))


def _reproduce(model: ir.Model, manager: PassManager, crash: PassCrash, folder: Path) -> Path | None:
    """Write down what crashes; None where that does not work, which must not hide the crash."""
    from .reproducer import save_crash

    try:
        descriptor, name = tempfile.mkstemp(".onnx", "graphwright-reproducer-", folder)
        os.close(descriptor)
        return save_crash(model, manager.pipeline, crash, name, **manager.data)
    except (GraphwrightError, OSError):
        return None


def _write_interrupted(
    interruption: KeyboardInterrupt,
    model: ir.Model,
    manager: PassManager,
    reproducer: str | Path | None,
    reload: Callable[[], ir.Model] | None,
) -> None:
    """Write down what was interrupted where a pass may hang, and note the file on the interruption."""
    from .reproducer import save_interrupted

    if reproducer is None or not hasattr(interruption, "pass_index"):
        return
    try:
        model = model if reload is None else reload()
        if not reproducer and _constant_bytes(model) > _UNASKED_BYTES:
            return
        folder = Path(reproducer or tempfile.gettempdir())
        descriptor, name = tempfile.mkstemp(".onnx", "graphwright-reproducer-", folder)
        os.close(descriptor)
        path = save_interrupted(model, manager.pipeline, interruption, name, **manager.data)
    except (GraphwrightError, OSError):
        return
    interruption.add_note(f"reproducer: {path}")


def _constant_bytes(model: ir.Model) -> int:
    tensors = (value.const_value for value in model.graph.initializers.values())
    return sum(tensor.nbytes for tensor in tensors if tensor is not None)


def _located(crash: PassCrash, path: Path | None) -> PassCrash:
    if path is None:
        return crash
    found = PassCrash(f"{crash}; reproducer: {path}")
    found.index, found.kind, found.before = crash.index, crash.kind, crash.before
    found.reproducer = str(path)
    return found
