"""What a pass is: a frozen dataclass whose typed fields are its options.

A pass declares `name`, says whether it is `lossless`, and implements `apply(model, context)`. Everything else
(pipeline syntax, command-line help, selectors, timing, statistics, verification) follows from that.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

import onnx_ir as ir

from ..ir.bodies import all_graphs
from ..ir.errors import PassError
from ..ir.provenance import module_path
from .analyses import Analyses, Analysis

if TYPE_CHECKING:
    from .driver import Fixpoint
    from .rewriter import Rewriter
    from .rules import Rule
    from .timings import Stopwatch
    from .watched import Event

A = TypeVar("A", bound=Analysis)


@dataclass(frozen=True)
class Pass:
    """Base of all passes.

    Subclasses are frozen dataclasses with a docstring whose first line is their one-line purpose, and a
    docstring under each field, which is the help text of that option.
    """

    name: ClassVar[str] = ""
    """Kebab-case name used in pipelines."""
    lossless: ClassVar[bool] = True
    """Whether the outputs stay the same to float tolerance; a lossy pass is measured instead of proven."""
    needs: ClassVar[tuple[type[Analysis], ...]] = ()
    """The analyses that `apply` reads through `context.analysis`."""
    preserves: ClassVar[tuple[type[Analysis], ...]] = ()
    """Analyses that stay true whatever the pass does; checked wherever graphs are verified."""
    settles: ClassVar[bool] = False
    """Whether a second run right after the first never changes anything; asked by `stabilize`."""

    only: str | None = field(default=None, kw_only=True)
    """Touch only nodes whose name, module path or op type this regular expression matches from the start."""
    skip: str | None = field(default=None, kw_only=True)
    """Leave alone nodes whose name, module path or op type this regular expression matches from the start."""

    def __post_init__(self) -> None:
        for option in ("only", "skip"):
            pattern = getattr(self, option)
            try:
                re.compile(pattern or "")
            except re.error as error:
                raise PassError(
                    f"{self.name}: option '{option}' is not a regular expression ({error}): {pattern!r}"
                ) from None

    def apply(self, model: ir.Model, context: PassContext) -> None:
        """Rewrite `model` in place through `context.rewriter(model)` or `context.rewrite(model, *rules)`.

        Args:
            model: The graph, at the canonical opset, shapes inferred.
            context: Statistics, reports, calibration data and the rewriter.

        Raises:
            PassError: When the pass cannot do what its options ask for.
        """
        raise NotImplementedError

    def rules(self) -> tuple[Rule, ...]:
        """The rules of a pass that does nothing but drive them; `stabilize` drives those of several."""
        return ()

    def may_change(self, model: ir.Model, touched: Collection[ir.Node]) -> bool:
        """Whether this pass can change anything in a model in which it had left nothing to do.

        Args:
            model: The model.
            touched: The nodes whose surroundings changed since.
        """
        return True

    def selects(self, node: ir.Node) -> bool:
        """Whether the `only` and `skip` selectors let this pass touch `node`."""
        if self.only is None and self.skip is None:
            return True
        faces = [face for face in (node.name, module_path(node), node.op_type) if face]
        if self.only is not None and not any(re.match(self.only, face) for face in faces):
            return False
        return self.skip is None or not any(re.match(self.skip, face) for face in faces)

    def selects_any(self, model: ir.Model) -> bool:
        """Whether the selectors let this pass touch anything; without selectors they always do."""
        if self.only is None and self.skip is None:
            return True
        return any(self.selects(node) for graph in all_graphs(model) for node in graph)


@dataclass(frozen=True)
class LeftAlone:
    """A node that a pass did not touch although it was a candidate, and why."""

    node: str
    op_type: str
    reason: str


@dataclass(frozen=True)
class Firing:
    """One rewrite: which rule fired, at which node, and what it made."""

    rule: str
    node: str
    op_type: str
    created: tuple[str, ...]


@dataclass
class PassContext:
    """What one run of one pass may read and report.

    Attributes:
        target: The target description the model is optimized for, or None.
        calibration: Iterable of feeds (`dict[str, np.ndarray]`), or None where the user gave no data.
        seed: Seed for everything random, so that a run can be repeated.
        progress: Called with (done, total or None, text) by passes that take long.
        statistics: Counters by name.
        left_alone: Candidates that were not touched, with reasons.
        notes: Free lines for the report.
        details: JSON-able facts for the report.
        firings: Every rewrite of the driver, in order.
        explain: Name of a node of which every attempt of a rule is to be recorded; None for none.
        attempts: What the rules said to the node named by `explain`: (rule, outcome).
        rewrite_limit: The driver stops after this many rewrites; None for no limit. Bisection uses it.
        measure: Milliseconds that a model takes on the target, measured; None where nothing here can.
        model: The model that the pass runs on.
        analyses: The analyses of that model that are known.
        stopwatch: Where times go, or None where nobody wants them.
        story: Everything that happened to nodes, or None where nobody wants to know.
        looked_at: By label, the operators at which the rules of this pass start; () for every operator.
    """

    target: Any = None
    calibration: Any = None
    seed: int = 0
    progress: Callable[[int, int | None, str], None] | None = None
    active: Pass | None = None
    statistics: dict[str, int] = field(default_factory=dict)
    left_alone: list[LeftAlone] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    details: dict[str, Any] = field(default_factory=dict)
    firings: list[Firing] = field(default_factory=list)
    rewrite_limit: int | None = None
    explain: str | None = None
    attempts: list[tuple[str, str]] = field(default_factory=list)
    measure: Callable[[ir.Model], float] | None = None
    model: ir.Model | None = field(default=None, repr=False)
    analyses: Analyses | None = field(default=None, repr=False)
    stopwatch: Stopwatch | None = field(default=None, repr=False)
    story: list[Event] | None = field(default=None, repr=False)
    looked_at: dict[str, tuple[str, ...]] = field(default_factory=dict)
    _rewriters: dict[int, Rewriter] = field(default_factory=dict, repr=False)

    def for_pass(self, active: Pass) -> PassContext:
        """Return a context with the same inputs and empty reports for one pass."""
        return PassContext(
            self.target,
            self.calibration,
            self.seed,
            self.progress,
            active,
            rewrite_limit=self.rewrite_limit,
            explain=self.explain,
            measure=self.measure,
            stopwatch=self.stopwatch,
        )

    def count(self, statistic: str, n: int = 1) -> None:
        """Add `n` to a counter that ends in the report."""
        self.statistics[statistic] = self.statistics.get(statistic, 0) + n

    def leave(self, node: ir.Node, reason: str) -> None:
        """Report that `node` was a candidate and stays as it is."""
        entry = LeftAlone(node.name or "", node.op_type, reason)
        if entry not in self.left_alone[-64:]:
            self.left_alone.append(entry)

    def note(self, text: str) -> None:
        """Add a line to the report."""
        self.notes.append(text)

    def rewriter(self, model: ir.Model) -> Rewriter:
        """Return the one rewriter of `model` in this pass."""
        known = self._rewriters.get(id(model))
        if known is not None:
            return known
        if self.model is None:
            self.model = model
        origin = self.active.name if self.active else ""
        if self.model is model and (self.analyses or self.story is not None):
            from .watched import WatchedRewriter

            analyses = self.analyses if self.analyses is not None else Analyses(model)
            made: Rewriter = WatchedRewriter(model, origin, analyses=analyses, story=self.story)
        else:
            from .rewriter import Rewriter

            made = Rewriter(model, origin)
        self._rewriters[id(model)] = made
        return made

    def analysis(self, wanted: type[A]) -> A:
        """Return an analysis of the model as it is now; it stays right until the next rewrite.

        Raises:
            PassError: The pass did not declare that it needs it, or runs on no model yet.
        """
        active = self.active
        if active is not None and wanted not in active.needs:
            raise PassError(
                f"analysis '{wanted.name}' is used but not declared; write needs = ({wanted.__name__},)"
            )
        if self.model is None:
            raise PassError(f"analysis '{wanted.name}': say of which model, by context.rewriter(model) first")
        if self.analyses is None:
            self.analyses = Analyses(self.model)
            self.analyses.settle(self.mutations)
        with self.timed(f"analysis {wanted.name}"):
            return self.analyses.get(wanted)

    def mutations(self) -> int:
        """How many mutations the rewriters of this pass made."""
        return sum(rewriter.changes for rewriter in self._rewriters.values())

    def timed(self, part: str) -> contextlib.AbstractContextManager[Any]:
        """Measure a stretch of the pass, shown by `--timing`: `with context.timed("search"): ...`."""
        return contextlib.nullcontext() if self.stopwatch is None else self.stopwatch.timed(part)

    def update_shapes(self, model: ir.Model) -> None:
        """Infer shapes again, around what the rewriter of this pass changed since the last call.

        Raises:
            ShapeError: Shapes contradict each other.
        """
        from ..ir.incremental import infer_changed
        from ..ir.shapes import infer_shapes

        rewriter = self._rewriters.get(id(model))
        with self.timed("shape update"):
            if self.active is None or not self.active.lossless or rewriter is None:
                infer_shapes(model)
                local = False
            else:
                local = infer_changed(model, rewriter.take_stale())
        if not local and self.analyses and model is self.model:
            self.analyses.forget()

    def altered(self, model: ir.Model) -> Collection[ir.Node | ir.Value]:
        """Nodes and initializers of `model` that this pass made or changed."""
        rewriter = self._rewriters.get(id(model))
        return () if rewriter is None else rewriter.altered

    @property
    def changed(self) -> bool:
        """Whether a rewriter of this pass changed anything."""
        return any(rewriter.changes for rewriter in self._rewriters.values())

    def rewrite(self, model: ir.Model, *rules: Rule, fixpoint: Fixpoint | None = None) -> bool:
        """Drive `rules` over `model` to a fixpoint; returns whether anything changed.

        Args:
            model: The model.
            rules: The rules.
            fixpoint: What is known from the last time that the same rules were driven over the model; they
                start then where something was touched since. Brought up to date.
        """
        from .driver import drive

        self.looked_at.update((rule.label, tuple(rule.op_types)) for rule in rules)
        if self.stopwatch is None:
            return drive(model, rules, self, fixpoint)
        from .timings import TimedRule

        with self.stopwatch.timed("rules") as part:
            return drive(model, [TimedRule(rule, part) for rule in rules], self, fixpoint)
