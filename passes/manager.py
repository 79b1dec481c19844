"""Runs a pipeline: each pass verified, timed, counted, and (on request) proven numerically.

Instrumentation is a list of observers, not flags inside passes.
"""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Callable, Sequence
from typing import Any

import onnx_ir as ir

from ..ir.clone import clone
from ..ir.collector import collector_paused
from ..ir.errors import GraphwrightError, PassCrash, VerifyError
from ..ir.shapes import infer_shapes
from ..ir.verify import verify
from .analyses import Analyses
from .base import Firing, Pass, PassContext
from .blame import blamed, crash_of, name_interruption, named_failures
from .equivalence import Expectation, check_equivalent
from .fingerprint import Fingerprint, interface_of
from .pipeline import Pipeline, as_pipeline, pass_text
from .quantization.given_batches import once_at_most
from .records import PassRecord
from .run_state import Observer, RunState, costs_of, count_nodes
from .shape_loss import Known, known_values
from .timings import Stopwatch, Timing
from .watchdog import watching

__all__ = ["Observer", "PassManager", "PassRecord", "count_nodes"]

_PACKAGE = __name__.partition(".passes")[0]


class PassManager:
    """Applies the passes of a pipeline to a model.

    Args:
        pipeline: Pipeline, its text, or passes.
        verify_each: Verify graph, shapes and preserved analyses after every pass that changed something.
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
        timing: Time rules and the parts of passes one by one.
        statistics: Record what the model costs after every pass.
        keep_going: Leave out a pass that fails and go on with the model from before it.
        investigate: When a pass fails, search the rule and node at fault and recover the model before it.
        measure: Milliseconds that a model takes on the target, for passes with a latency budget.
        rule_timeout: Seconds that one rule may take at one node; 0 for no limit, None for the default.

    Attributes:
        firings: Every rewrite of the last run, also of one that failed.
        timing: The tree of the last run; its parts are the passes.
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
        timing: bool = False,
        statistics: bool = False,
        keep_going: bool = False,
        investigate: bool = True,
        measure: Callable[[ir.Model], float] | None = None,
        rule_timeout: float | None = None,
    ):
        self.pipeline = as_pipeline(pipeline)
        self.verify_each = verify_each
        self.check_each = check_each
        self.check_inputs = check_inputs
        self.observers = list(observers)
        self.firings: list[Firing] = []
        self.timing = Timing("pipeline")
        self._detailed = timing
        self._statistics = statistics
        self._keep_going = keep_going
        self._investigate = investigate
        self._rule_timeout = rule_timeout
        self._context = PassContext(
            target,
            once_at_most(calibration),
            seed,
            progress,
            rewrite_limit=rewrite_limit,
            explain=explain,
            measure=measure,
        )

    def run(
        self, model: ir.Model, *, reload: Callable[[], ir.Model] | None = None
    ) -> tuple[ir.Model, list[PassRecord]]:
        """Run the pipeline on a copy of `model` (tensors are shared, the graph is not).

        Args:
            model: The model.
            reload: Gives the model again as it was given, from its file; `model`, which was verified when it
                was loaded, is then changed itself instead of a copy.

        Raises:
            VerifyError: The model is invalid before any pass ran.
            PassError: A pass cannot do what it was asked to do.
            PassCrash: A pass raised, left an invalid graph, lost a shape, or changed the outputs though it is
                lossless; `.before` is the model from before it.
        """
        # Lossless passes make nothing but nodes; others may hold activations in cycles that have to go.
        lossless = all(instance.lossless for instance in self.pipeline)
        with watching(self._rule_timeout), collector_paused() if lossless else contextlib.nullcontext():
            return self._run(model, reload)

    def _run(
        self, model: ir.Model, reload: Callable[[], ir.Model] | None
    ) -> tuple[ir.Model, list[PassRecord]]:
        self.firings = []
        run = self._prepare(model, reload)
        for index, instance in enumerate(self.pipeline):
            for observer in self.observers:
                observer.before_pass(instance, run.model, index, len(self.pipeline))
            start = time.perf_counter()
            try:
                record = self._run_one(instance, run)
            except PassCrash as crash:
                record = self._failed(crash, instance, index, run, time.perf_counter() - start)
            except KeyboardInterrupt as interruption:
                name_interruption(interruption, instance.name, index, _is_ours(instance))
                raise
            if not instance.lossless and index + 1 < len(self.pipeline):
                # What depends on data may not come out the same when it is run again.
                run.saved = (index + 1, functools.partial(_itself, clone(run.model)))
            run.records.append(record)
            for observer in self.observers:
                observer.after_pass(instance, run.model, record)
        return run.model, run.records

    @property
    def data(self) -> dict[str, Any]:
        """What a reproducer needs to know of the run beside model and pipeline."""
        mine = self._context
        return {
            "seed": mine.seed,
            "inputs": self.check_inputs,
            "calibration": mine.calibration,
            "target": mine.target,
        }

    def _prepare(self, model: ir.Model, reload: Callable[[], ir.Model] | None) -> RunState:
        stopwatch = Stopwatch("pipeline")
        self.timing = stopwatch.tree
        with collector_paused(), stopwatch.timed("preparation"):
            working = model
            if reload is None:
                with stopwatch.timed("verify"):
                    verify(model)
                with stopwatch.timed("copy"):
                    working = clone(model)
            with stopwatch.timed("infer shapes"):
                infer_shapes(working)
        known = known_values(working) if self.verify_each else Known()
        original = reload if reload is not None else functools.partial(_itself, model)
        return RunState(working, known, Analyses(working), stopwatch, (0, original), count_nodes(working))

    def _run_one(self, instance: Pass, run: RunState) -> PassRecord:
        if self.check_each and run.expected is None:
            run.expected = self._expectation(clone(run.model))
        nodes_before = run.nodes
        context = self._context.for_pass(instance)
        context.model, context.analyses = run.model, run.analyses
        context.stopwatch = run.stopwatch if self._detailed else None
        context.story = [] if context.explain is not None else None
        run.analyses.settle(context.mutations)
        interface = interface_of(run.model)
        with run.stopwatch.timed(f"{len(run.records) + 1} {pass_text(instance)}") as timing:
            start = time.perf_counter()
            changed = self._apply(instance, run.model, context)
            seconds = time.perf_counter() - start
            if interface_of(run.model) != interface:
                names = " and outputs ".join(f"({', '.join(map(str, each))})" for each in interface)
                raise crash_of(
                    "graph", f"pass '{instance.name}' left a model that no longer has inputs {names}"
                )
            run.nodes = nodes_after = count_nodes(run.model) if changed else nodes_before
            if self.verify_each and changed:
                with run.stopwatch.timed("verify"):
                    self._inspect(instance, run, context)
            run.analyses.trust(instance.preserves)
            record = PassRecord(
                name=instance.name,
                text=pass_text(instance),
                lossless=instance.lossless,
                seconds=seconds,
                changed=changed,
                nodes_before=nodes_before,
                nodes_after=nodes_after,
                statistics=context.statistics,
                left_alone=context.left_alone,
                notes=context.notes,
                details=context.details,
                firings=context.firings,
                attempts=context.attempts,
                looked_at=context.looked_at,
                story=context.story or [],
                timing=timing if self._detailed else None,
                instance=instance,
            )
            if self.check_each and changed:
                with run.stopwatch.timed("check"):
                    self._check(instance, run, record)
        if self._statistics:
            record.costs = costs_of(run)
        return record

    def _apply(self, instance: Pass, model: ir.Model, context: PassContext) -> bool:
        """Run the pass and bring shapes up to date; whatever goes wrong ends in one line that names it.

        Returns:
            Whether the graph was changed; of passes of others it is not taken for granted that they tell.
        """
        if not instance.selects_any(model):
            context.note("only= and skip= leave no node of this model to it")
            return False
        before = None if _is_ours(instance) else Fingerprint(model)
        name = f"pass '{instance.name}'"
        try:
            with named_failures(name):
                for needed in instance.needs:
                    context.analysis(needed)
                instance.apply(model, context)
                secretly = not context.changed and before is not None and before.differs(model)
                if context.changed or secretly:
                    context.update_shapes(model)
                return context.changed or secretly
        finally:
            self.firings.extend(context.firings)

    def _inspect(self, instance: Pass, run: RunState, context: PassContext) -> None:
        """Look for what a pass must not leave behind: an invalid graph, a lost shape, a broken promise."""
        name = f"pass '{instance.name}'"
        try:
            # A pass of ours changes nothing behind the rewriter's back.
            verify(run.model, changed=context.altered(run.model) if _is_ours(instance) else None)
        except VerifyError as error:
            raise crash_of("graph", f"{name} left an {error}") from error
        now = known_values(run.model, run.known)
        if now.lost is not None:
            raise crash_of("shapes", f"{name} lost a shape: {now.lost}")
        if now.other is not None and instance.lossless:
            self._judge(instance, run, context, now.other)
        run.known = now
        promised = [cls for cls in instance.preserves if run.analyses.cached(cls)]
        wrong = run.analyses.wrong(promised)
        if wrong is not None:
            raise crash_of(
                "analysis", f"{name} says that it preserves analysis '{wrong.name}', but it does not"
            )

    def _judge(self, instance: Pass, run: RunState, context: PassContext, problem: str) -> None:
        """A shape is another one: is the rewrite wrong, or what was declared? Let the reference say."""
        line = f"pass '{instance.name}' changed a shape: {problem}"
        before = self._replayed(len(run.records), run)
        try:
            same = before is not None and check_equivalent(before, run.model, inputs=self.check_inputs).passed
        except GraphwrightError as error:
            raise crash_of("shapes", f"{line} ({error})") from error
        if not same:
            raise crash_of("shapes", line)
        context.note(f"{problem}; the outputs are the same, so the shape declared before was wrong")

    def _check(self, instance: Pass, run: RunState, record: PassRecord) -> None:
        assert run.expected is not None
        if "inputs_kept" in record.details or "outputs_kept" in record.details:
            record.notes.append("not compared with the model before: inputs or outputs have other shapes now")
            run.expected = None
            return
        try:
            record.check = run.expected.compare(run.model)
        except GraphwrightError as error:
            raise crash_of(
                "numbers", f"pass '{instance.name}' left a model that does not run: {error}"
            ) from error
        if instance.lossless and not record.check.passed:
            line = f"pass '{instance.name}' is lossless but changed the outputs: {record.check}"
            raise crash_of("numbers", line)
        run.expected = None

    def _expectation(self, model: ir.Model) -> Expectation:
        progress = self._context.progress
        return Expectation(model, inputs=self.check_inputs, seed=self._context.seed, progress=progress)

    def _failed(
        self, crash: PassCrash, instance: Pass, index: int, run: RunState, seconds: float
    ) -> PassRecord:
        """Find out what can be found out about a crash; go on without the pass where that was asked for."""
        found = crash
        if self._investigate:
            before = self._replayed(index, run)
            if before is not None:
                found = blamed(crash, before, lambda limit: self._trial(instance, before, limit, crash.kind))
                found.before = before
        found.index = index
        if not self._keep_going or found.before is None:
            raise found from crash.__cause__
        run.model = clone(found.before)
        infer_shapes(run.model)
        run.known = known_values(run.model) if self.verify_each else Known()
        run.analyses = Analyses(run.model)
        run.expected = None
        run.nodes = nodes = count_nodes(run.model)
        return PassRecord(
            instance.name,
            pass_text(instance),
            instance.lossless,
            seconds,
            False,
            nodes,
            nodes,
            notes=["it failed and was left out"],
            error=str(found),
        )

    def _replayed(self, index: int, run: RunState) -> ir.Model | None:
        """The model as it was before pass `index`, made once more; None where that does not work."""
        start, saved = run.saved
        skipped = {i for i, record in enumerate(run.records) if record.error}
        passes = [p for i, p in enumerate(self.pipeline) if start <= i < index and i not in skipped]
        try:
            return self._plain(passes).run(saved())[0]
        except GraphwrightError:
            return None

    def _trial(self, instance: Pass, before: ir.Model, limit: int | None, kind: str) -> list[Firing] | None:
        """Run one pass again with at most `limit` rewrites; its rewrites if it fails in the same way."""
        manager = self._plain([instance], limit)
        manager.check_each = kind == "numbers"
        manager.check_inputs = self.check_inputs
        try:
            manager.run(before)
        except PassCrash as crash:
            return manager.firings if crash.kind == kind else None
        except GraphwrightError:
            return None
        return None

    def _plain(self, passes: list[Pass], limit: int | None = None) -> PassManager:
        mine = self._context
        return PassManager(
            passes,
            target=mine.target,
            calibration=mine.calibration,
            seed=mine.seed,
            rewrite_limit=limit,
            investigate=False,
            measure=mine.measure,
        )


def _is_ours(instance: Pass) -> bool:
    """Whether a pass belongs to this package; of others it is not known that they tell what they change."""
    return type(instance).__module__.startswith(f"{_PACKAGE}.")


def _itself(model: ir.Model) -> ir.Model:
    return model
