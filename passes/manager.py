"""Runs a pipeline: each pass verified, timed, counted, and (on request) proven numerically.

Instrumentation is a list of observers, not flags inside passes.
"""

from __future__ import annotations

import contextlib
import gc
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import onnx_ir as ir

from ..ir.bodies import graphs_of
from ..ir.clone import clone
from ..ir.errors import GraphwrightError, PassCrash, PassError, VerifyError
from ..ir.shapes import infer_shapes
from ..ir.verify import verify
from .base import Firing, LeftAlone, Pass, PassContext
from .equivalence import Equivalence, check_equivalent
from .pipeline import Pipeline, as_pipeline, pass_text


@dataclass
class PassRecord:
    """What one pass did.

    Attributes:
        name: Pass name.
        text: The pass as pipeline text, with its options.
        lossless: Whether the pass promises equal outputs.
        seconds: Wall time of the pass itself, without checks.
        changed: Whether the graph was changed.
        nodes_before: Nodes in all graphs before the pass.
        nodes_after: Nodes in all graphs after it.
        statistics: Counters the pass kept.
        left_alone: Candidates that were not touched, with the reason.
        notes: Lines for the report.
        details: JSON-able facts for the report.
        check: Numbers of `--check-each`, or None where it was off.
        firings: Every rewrite of the pass's rules, in order.
        attempts: What each rule said to the node that was to be explained: (rule, outcome).
    """

    name: str
    text: str
    lossless: bool
    seconds: float
    changed: bool
    nodes_before: int
    nodes_after: int
    statistics: dict[str, int] = field(default_factory=dict)
    left_alone: list[LeftAlone] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    details: dict[str, Any] = field(default_factory=dict)
    check: Equivalence | None = None
    firings: list[Firing] = field(default_factory=list)
    attempts: list[tuple[str, str]] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """Return the record as JSON-able data; repeated reasons are grouped."""
        reasons = Counter((entry.op_type, entry.reason) for entry in self.left_alone)
        return {
            "name": self.name,
            "text": self.text,
            "lossless": self.lossless,
            "seconds": round(self.seconds, 6),
            "changed": self.changed,
            "nodes_before": self.nodes_before,
            "nodes_after": self.nodes_after,
            "statistics": dict(self.statistics),
            "left_alone": [
                {
                    "op_type": op,
                    "reason": reason,
                    "count": count,
                    "nodes": [e.node for e in self.left_alone if (e.op_type, e.reason) == (op, reason)],
                }
                for (op, reason), count in reasons.items()
            ],
            "notes": list(self.notes),
            "details": self.details,
            "check": self.check.to_json() if self.check else None,
        }


class Observer:
    """Watches a pipeline run; override what is of interest."""

    def before_pass(self, instance: Pass, model: ir.Model, index: int, total: int) -> None:
        """Called before pass `index` (from 0) of `total` runs."""

    def after_pass(self, instance: Pass, model: ir.Model, record: PassRecord) -> None:
        """Called after a pass ran and the graph was verified; `model` must not be changed."""


class PassManager:
    """Applies the passes of a pipeline to a model.

    Args:
        pipeline: Pipeline, its text, or passes.
        verify_each: Verify the structure of the graph after every pass that changed it.
        check_each: After every pass compare the outputs with those before it on the reference; a lossless
            pass that is off raises, a lossy one is measured.
        check_inputs: Feeds for `check_each`; seeded random and edge-case inputs where None.
        observers: Watchers of the run.
        target: Target description handed to the passes.
        calibration: Calibration data handed to the passes.
        seed: Seed handed to the passes.
        progress: Callback for long passes.
        rewrite_limit: Each pass stops after this many rewrites of its rules; for bisection.
        explain: Name of a node of which every attempt of a rule is recorded.

    Attributes:
        firings: Every rewrite of the last run, also of one that failed.
    """

    def __init__(
        self,
        pipeline: str | Pass | Pipeline | list[Pass],
        *,
        verify_each: bool = True,
        check_each: bool = False,
        check_inputs: Sequence[dict[str, Any]] | None = None,
        observers: Sequence[Observer] = (),
        target: Any = None,
        calibration: Any = None,
        seed: int = 0,
        progress: Any = None,
        rewrite_limit: int | None = None,
        explain: str | None = None,
    ):
        self.pipeline = as_pipeline(pipeline)
        self.verify_each = verify_each
        self.check_each = check_each
        self.check_inputs = check_inputs
        self.observers = list(observers)
        self.firings: list[Firing] = []
        self._context = PassContext(
            target, calibration, seed, progress, rewrite_limit=rewrite_limit, explain=explain
        )

    def run(self, model: ir.Model) -> tuple[ir.Model, list[PassRecord]]:
        """Run the pipeline on a copy of `model` (tensors are shared, the graph is not).

        Raises:
            VerifyError: The model is invalid before any pass ran.
            PassError: A pass cannot do what it was asked to do.
            PassCrash: A pass raised, left an invalid graph, or changed the outputs though it is lossless.
        """
        self.firings = []
        with _collector_paused():
            verify(model)
            working = clone(model)
            infer_shapes(working)
        records = []
        for index, instance in enumerate(self.pipeline):
            for observer in self.observers:
                observer.before_pass(instance, working, index, len(self.pipeline))
            try:
                with _collector_paused() if instance.lossless else contextlib.nullcontext():
                    record = self._run_one(instance, working)
            except PassCrash as error:
                error.index = index
                raise
            records.append(record)
            for observer in self.observers:
                observer.after_pass(instance, working, record)
        return working, records

    def _run_one(self, instance: Pass, model: ir.Model) -> PassRecord:
        before = clone(model) if self.check_each else None
        nodes_before = count_nodes(model)
        context = self._context.for_pass(instance)
        start = time.perf_counter()
        try:
            instance.apply(model, context)
            if context.changed:
                context.update_shapes(model)
        except GraphwrightError as error:
            if str(error).startswith(f"pass '{instance.name}'"):
                raise
            kind = type(error) if isinstance(error, PassCrash) else PassError
            raise kind(f"pass '{instance.name}': {error}") from error
        except Exception as error:
            raise PassCrash(f"pass '{instance.name}' failed: {type(error).__name__}: {error}") from error
        finally:
            self.firings.extend(context.firings)
        seconds = time.perf_counter() - start
        if self.verify_each and context.changed:
            self._verify_after(instance, model)
        record = PassRecord(
            name=instance.name,
            text=pass_text(instance),
            lossless=instance.lossless,
            seconds=seconds,
            changed=context.changed,
            nodes_before=nodes_before,
            nodes_after=count_nodes(model),
            statistics=context.statistics,
            left_alone=context.left_alone,
            notes=context.notes,
            details=context.details,
            firings=context.firings,
            attempts=context.attempts,
        )
        if before is not None and context.changed:
            record.check = check_equivalent(before, model, inputs=self.check_inputs, seed=self._context.seed)
            if instance.lossless and not record.check.passed:
                raise PassCrash(f"pass '{instance.name}' is lossless but changed the outputs: {record.check}")
        return record

    @staticmethod
    def _verify_after(instance: Pass, model: ir.Model) -> None:
        try:
            verify(model)
        except VerifyError as error:
            raise PassCrash(f"pass '{instance.name}' left an {error}") from error


@contextlib.contextmanager
def _collector_paused() -> Iterator[None]:
    """Make many small objects that live on without their being looked through again and again."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def count_nodes(model: ir.Model) -> int:
    """Number of nodes in all graphs, subgraphs and functions."""
    nodes = sum(len(graph) for graph in graphs_of(model))
    return nodes + sum(sum(1 for _ in function.all_nodes()) for function in model.functions.values())
