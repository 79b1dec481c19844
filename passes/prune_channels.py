"""`prune-channels`: remove the least important output channels of convolutions and linear layers."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import onnx_ir as ir

from ..ir.account import account
from ..ir.clone import clone
from ..ir.collector import collector_paused
from ..ir.errors import PassError
from ..ir.shapes import infer_shapes
from .base import Pass, PassContext
from .channels import Dependencies, Removal, analyse, apply_removal
from .channels.heads import Attention, choices
from .channels.proof import Proof
from .fold_constants import FoldConstants
from .functions import flatten_functions
from .pruning.amount import Amount, figure
from .pruning.budget import KINDS, Budget, Sizer, parse_budget, plan
from .pruning.candidates import Scoring, faces_of, find_candidates, group_row, report_kept
from .pruning.copies import separate_uniform
from .pruning.counting import count_operations
from .pruning.importance import Normalization, Reduction, find_importance
from .pruning.latency import Machine, preferred_multiple
from .pruning.proving import proven
from .pruning.ranking import Cut, Limits, Ranking, parse_ratios
from .pruning.recovery import Recovery, recover
from .pruning.shuffles import open_shuffles
from .quantization.calibration import Calibration, as_calibration
from .registry import register
from .split_sequences import SequenceToSplit


@register
@dataclass(frozen=True)
class PruneChannels(Pass):
    """Remove the least important channels, and everything tied to them.

    For a layer y = f(W x + b) read by z = V y, removing channel i removes row i of W and b, whatever f holds
    of that channel (batch norm, a constant added, ...), and column i of V. The result equals, to the order of
    sums, the *masked* original: the one with column i of V set to zero. What goes together is found by
    labelling every index of every axis and following the labels through the graph (`passes/channels/`):
    residual adds tie channels of several layers, Flatten turns one channel into many columns, Concat and
    Split shift positions. Attention heads, their dimensions and neurons are channels like any other.

    Left alone, and reported with the node that stopped it:
    1. channels that reach a graph output, or are tied to a graph input;
    2. channels that reach an operator that mixes them in a way the analysis does not know, or whose result
       depends on how many there are (LayerNormalization, Softmax, ReduceMean over channels, ...);
    3. layers that the selectors exclude, or that share channels with one that they exclude;
    4. layers whose weights depend on the inputs.

    Constants are folded and sequences split first, as by `fold-constants` and `split-sequences`, and channel
    shuffles become Gathers where they tie channels that nothing else ties. The pruned model is compared with
    the masked original on the reference before anything is applied; groups that fail are not pruned. How to
    use all of it: docs/pruning.md.
    """

    name: ClassVar[str] = "prune-channels"
    lossless: ClassVar[bool] = False

    ratio: float = 0.5
    """Share of the channels to remove, from 0 up to but not including 1; with a budget it is searched for."""
    ratios: str | None = None
    """Ratios of single layers, such as "layer1.*=0.3,fc=0": patterns as in `only`, the first that matches."""
    macs: float | str | None = None
    """Budget of multiply-accumulates: the share to keep (0.5) or a number (300M)."""
    params: float | str | None = None
    """Budget of parameters: the share to keep (0.5) or a number (3M)."""
    bytes: float | str | None = None
    """Budget of weight bytes: the share to keep (0.5) or a size (2.5MB)."""
    latency: float | str | None = None
    """Budget of time, measured on the target where it can be: the share to keep (0.5) or a time (1.5ms)."""
    importance: str = "l1"
    """What makes a channel important: l1, l2, fpgm, bn-scale or random; apoz, activation or wanda from
    calibration data; or one that a plug-in registered."""
    reduction: Reduction = "mean"
    """How the scores of all layers that share channels become one."""
    normalize: Normalization = "mean"
    """What the scores of a layer, and of a group, are divided by so that they compare."""
    ranking: Ranking = "local"
    """Whether each group loses its share, all groups together do, or groups built alike (isomorphic) do."""
    multiple: int | None = None
    """Round the channels that stay up to a multiple of this; by default what the target likes, else 1."""
    min_channels: int = 1
    """Keep at least this many channels in every group."""
    max_ratio: float = 1.0
    """Remove at most this share of any group; for rankings and budgets over many groups."""
    steps: int = 1
    """Go in this many steps, with importance taken anew after each."""
    recover: Recovery = "none"
    """Make up for the loss from calibration data: `bias` by mean activations, `weights` by least squares."""
    allow_statistical: bool = False
    """Also remove channels that a normalization takes statistics over, which then change with them."""
    counting: Literal["graphwright", "torch-pruning", "torch-pruning-1.2"] = "graphwright"
    """Whose rules count the operations that the report names beside ours."""
    attention: Attention = "auto"
    """Whether attention loses heads or positions within all heads (dims); auto: what there is more of."""
    outputs: str | None = None
    """Outputs of the model that may get smaller, as a regular expression; all others keep their shapes."""
    inputs: str | None = None
    """Inputs of the model that may get smaller, as a regular expression; all others keep their shapes."""
    proof: bool = True
    """Prove on the reference that the pruned model equals the masked original before applying anything."""
    tolerance: float = 1e-4
    """Largest difference, relative to the largest output, that the proof accepts."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0.0 <= self.ratio < 1.0:
            raise PassError(f"{self.name}: option 'ratio' must be at least 0 and below 1, not {self.ratio}")
        if not 0.0 < self.max_ratio <= 1.0:
            raise PassError(
                f"{self.name}: option 'max_ratio' must be above 0 and at most 1, not {self.max_ratio}"
            )
        for option in ("multiple", "min_channels", "steps"):
            given = getattr(self, option)
            if given is not None and given < 1:
                raise PassError(f"{self.name}: option '{option}' must be at least 1, not {given}")
        if not self.tolerance > 0.0:
            raise PassError(f"{self.name}: option 'tolerance' must be above 0, not {self.tolerance}")
        find_importance(self.importance)
        parse_ratios(self.ratios, self.name)
        self.budgets()
        for option in ("outputs", "inputs"):
            try:
                re.compile(getattr(self, option) or "")
            except re.error as error:
                raise PassError(
                    f"{self.name}: option '{option}' is not a regular expression ({error}): "
                    f"{getattr(self, option)!r}"
                ) from None
        if self.inputs is not None and self.steps > 1:
            raise PassError(
                f"{self.name}: option 'inputs' goes in one step only; leave out steps={self.steps}"
            )

    def budgets(self) -> list[Budget]:
        """The budgets that are given."""
        given = [(kind, getattr(self, kind)) for kind in KINDS]
        return [parse_budget(kind, value, self.name) for kind, value in given if value is not None]

    def apply(self, model: ir.Model, context: PassContext) -> None:
        """Fold constants; then, step by step: analyse, choose, prove, remove, recover."""
        criterion = find_importance(self.importance)
        calibration = None if context.calibration is None else as_calibration(context.calibration)
        if calibration is None and self.recover != "none":
            raise PassError(
                f"recover={self.recover} needs calibration data: calibration=... in Python, "
                "--calibration FILE on the command line"
            )
        flatten_functions(model, context)
        self.prepare(model, context)
        before, operations = account(model), self._operations(model)
        run = _Run(self, self.scoring(context), self.limits(context.target), context, calibration)
        # Timed candidates hold sliced weights in cyclic graphs, which are to be collected.
        with collector_paused() if context.measure is None else contextlib.nullcontext():
            for step in range(1, self.steps + 1):
                run.step(model, step)
        if not run.rows and (self.ratio > 0.0 or self.ratios or self.budgets()):
            context.note(f"nothing was pruned, {run.why_nothing}")
        after = account(model)
        context.details.update(
            importance=criterion.name,
            groups=run.rows,
            parameters=[before.parameters, after.parameters],
            macs=[before.macs, after.macs],
            macs_formula=[before.formula, after.formula],
            proof=None if run.proof is None else {"error": run.proof.error, "output": run.proof.output},
        )
        if operations is not None:
            context.details["operations"] = [operations, self._operations(model)]
        if run.recovered:
            context.details["recovered"] = run.recovered
        for kind, kept in run.resized.items():
            if kept:
                context.details[f"{kind}_kept"] = kept
                context.note(f"{kind} got smaller: {', '.join(run.sizes[kind])}")

    def prepare(self, model: ir.Model, context: PassContext) -> None:
        """Rewrite, losslessly, what would hide which channels go together or tie more than must be."""
        # All of it, whatever the selectors choose: they say which channels go.
        active, context.active = context.active, replace(self, only=None, skip=None)
        try:
            self._prepare(model, context)
        finally:
            context.active = active

    def _prepare(self, model: ir.Model, context: PassContext) -> None:
        # Torch writes absent biases and shapes as computations.
        FoldConstants().apply(model, context)
        context.rewrite(model, SequenceToSplit())
        # What folding leaves computed is of no concern here.
        context.left_alone.clear()
        open_shuffles(model, context, self.analyse)
        separate_uniform(model, context, self.analyse)

    def _operations(self, model: ir.Model) -> dict[str, Any] | None:
        """Operations by the rules of another tool, if they are asked for."""
        if self.counting == "graphwright":
            return None
        infer_shapes(model)
        found = count_operations(model, self.counting)
        return {**vars(found), "explanation": found.explanation}

    def analyse(self, model: ir.Model) -> Dependencies:
        """Dependency analysis as the options want it."""
        return analyse(
            model,
            allow_statistical=self.allow_statistical,
            outputs=self._resized(model, "outputs"),
            inputs=self._resized(model, "inputs"),
            attention=self.attention,
        )

    def _resized(self, model: ir.Model, kind: Literal["inputs", "outputs"]) -> list[str]:
        """Names of the inputs or outputs that may get smaller."""
        pattern: str | None = getattr(self, kind)
        values = model.graph.inputs if kind == "inputs" else model.graph.outputs
        names = [str(value.name) for value in values]
        matching = [name for name in names if pattern is not None and re.match(pattern, name)]
        if pattern is not None and not matching:
            raise PassError(f"option '{kind}' matches none of the model's {kind}: {', '.join(names)}")
        return matching

    def scoring(self, context: PassContext) -> Scoring:
        """How groups are scored."""
        patterns = parse_ratios(self.ratios, self.name)
        return Scoring(self.importance, self.reduction, self.normalize, self.ranking, patterns, context.seed)

    def limits(self, target: Any) -> Limits:
        """What every group keeps."""
        multiple = preferred_multiple(target) if self.multiple is None else self.multiple
        return Limits(multiple, self.min_channels, self.max_ratio)


class _Run:
    """The steps of one run of the pass, and what they did."""

    def __init__(
        self,
        options: PruneChannels,
        scoring: Scoring,
        limits: Limits,
        context: PassContext,
        calibration: Calibration | None,
    ):
        self.rows: list[dict[str, Any]] = []
        self.recovered: list[dict[str, Any]] = []
        self.proof: Proof | None = None
        self.resized: dict[str, dict[str, dict[str, list[int]]]] = {"inputs": {}, "outputs": {}}
        self.sizes: dict[str, list[str]] = {"inputs": [], "outputs": []}
        self.why_nothing = "for the reasons given above"
        self._options = options
        self._scoring = scoring
        self._limits = limits
        self._context = context
        self._calibration = calibration
        self._budgets: list[tuple[Budget, float]] | None = None

    def step(self, model: ir.Model, step: int) -> None:
        options, context = self._options, self._context
        found = options.analyse(model)
        if step == 1:
            report_kept(found, context, options)
            self._note_idle_selectors(found)
            if options.attention != "auto" and not choices(found, options.attention):
                context.note(f"attention={options.attention}: nothing of that kind can go")
        candidates = find_candidates(model, found, self._scoring, options, self._calibration, context)
        sizer = Sizer(model, Machine.of(context.target)) if options.budgets() else None
        if self._budgets is None:
            self._budgets = [(budget, self._first(budget, model, sizer)) for budget in options.budgets()]
        done = step / options.steps
        amount = Amount(
            options.ratio * done, self._budgets, done, options.ranking, self._limits, context.measure
        )
        cuts = amount.cuts(model, found, candidates, sizer, context)
        if candidates and not cuts:
            whole = f"ratio={options.ratio:g} with {self._limits} leaves every group whole"
            self.why_nothing = "as the budgets hold without it" if self._budgets else f"as {whole}"
        if options.proof and cuts:
            cuts, self.proof = proven(
                model, found, cuts, seed=context.seed, tolerance=options.tolerance, leave=self._leave
            )
            if self.proof is not None and self.proof.vacuous:
                context.note("the proof says nothing: all outputs are zero or not finite on random inputs")
        removal = plan(found, cuts)
        self._remember(removal)
        rows = [group_row(found, cut.group, len(cut.removed)) for cut in cuts]
        if not removal:
            return
        original = clone(model) if options.recover != "none" else None
        apply_removal(model, removal, context.rewriter(model))
        if original is not None and self._calibration is not None:
            self.recovered += recover(original, model, removal, options.recover, self._calibration, context)
        self._count(cuts, rows, step)

    def _note_idle_selectors(self, found: Dependencies) -> None:
        layers = [made.node for made in found.tracer.producers]
        if layers and not any(self._options.selects(node) for node in layers):
            self.why_nothing = "as the selectors choose no layer that makes channels"
        for pattern, _ in self._scoring.ratios:
            if not any(pattern.match(face) for node in layers for face in faces_of(node)):
                self._context.note(f"ratios: '{pattern.pattern}' matches no layer that makes channels")

    def _remember(self, removal: Removal) -> None:
        """Note which indices of the original's inputs and outputs are left."""
        for kind, cuts in (("inputs", removal.inputs), ("outputs", removal.outputs)):
            for name, axes in cuts.items():
                kept = self.resized[kind].setdefault(name, {})
                for axis, mask in axes.items():
                    before = kept.get(str(axis), list(range(len(mask))))
                    kept[str(axis)] = [index for index, stays in zip(before, mask, strict=True) if stays]
                    self.sizes[kind].append(f"axis {axis} of '{name}' from {len(mask)} to {mask.sum()}")

    def _count(self, cuts: Sequence[Cut], rows: list[dict[str, Any]], step: int) -> None:
        for cut, row in zip(cuts, rows, strict=True):
            self._context.count("groups pruned")
            self._context.count("channels removed", len(cut.removed) * sum(cut.group.channels_per_class))
            self.rows.append(row if self._options.steps == 1 else {"step": step, **row})

    def _first(self, budget: Budget, model: ir.Model, sizer: Sizer | None) -> float:
        """The figure that a budget limits, of the model as it came."""
        if budget.kind == "latency" and self._context.measure is not None:
            return self._context.measure(model)
        if budget.kind == "latency":
            if budget.absolute:
                raise PassError(
                    f"the budget {budget} wants milliseconds, but nothing here can measure the target; give "
                    "a share such as latency=0.5, which the cost model estimates"
                )
            self._context.note("latency is estimated by the cost model; nothing here measures the target")
        assert sizer is not None
        return figure(sizer.before, budget)

    def _leave(self, cut: Cut, reason: str) -> None:
        self._context.leave(cut.group.producers[0].node, reason)
