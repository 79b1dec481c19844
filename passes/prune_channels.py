"""`prune-channels`: remove the least important output channels of convolutions and linear layers."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import onnx_ir as ir

from ..ir.account import account
from ..ir.errors import GraphwrightError, PassError
from .base import Pass, PassContext
from .channels import Dependencies, Group, analyse, apply_removal, find_groups, plan_removal
from .channels.groups import importance as importance_of
from .channels.proof import Proof, prove
from .channels.removal import emptied_axes
from .fold_constants import FoldConstants
from .registry import register
from .split_sequences import SequenceToSplit

_LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul", "LSTM", "GRU", "RNN")


@dataclass(frozen=True)
class _Cut:
    """The classes of one group that are to go."""

    group: Group
    removed: tuple[int, ...]


@register
@dataclass(frozen=True)
class PruneChannels(Pass):
    """Remove the least important channels, and everything tied to them.

    For a layer y = f(W x + b) read by z = V y, removing channel i removes row i of W and b, whatever f holds
    of that channel (batch norm, a constant added, ...), and column i of V. The result equals, to the order of
    sums, the *masked* original: the one with column i of V set to zero. What goes together is found by
    labelling every index of every axis and following the labels through the graph (`passes/channels/`):
    residual adds tie channels of several layers, Flatten turns one channel into many columns, Concat and
    Split shift positions.

    Left alone, and reported with the node that stopped it:
    1. channels that reach a graph output, or are tied to a graph input;
    2. channels that reach an operator that mixes them in a way the analysis does not know, or whose result
       depends on how many there are (LayerNormalization, Softmax, ReduceMean over channels, ...);
    3. layers that the selectors exclude, or that share channels with one that they exclude;
    4. layers whose weights depend on the inputs.

    Constants are folded and sequences split first, as by `fold-constants` and `split-sequences`. The
    pruned model is compared with the masked original on the reference before anything is applied; groups
    that fail are not pruned.
    """

    name: ClassVar[str] = "prune-channels"
    lossless: ClassVar[bool] = False

    ratio: float = 0.5
    """Share of the channels to remove in every group of layers, from 0 up to but not including 1."""
    importance: Literal["l1", "l2", "random"] = "l1"
    """What makes a channel important: L1 or L2 norm of its filters, over all layers tied to it, or chance."""
    multiple: int = 1
    """Round the number of channels that stay up to a multiple of this."""
    min_channels: int = 1
    """Keep at least this many channels in every group."""
    proof: bool = True
    """Prove on the reference that the pruned model equals the masked original before applying anything."""
    tolerance: float = 1e-4
    """Largest difference, relative to the largest output, that the proof accepts."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0.0 <= self.ratio < 1.0:
            raise PassError(f"{self.name}: option 'ratio' must be at least 0 and below 1, not {self.ratio}")
        for option in ("multiple", "min_channels"):
            if getattr(self, option) < 1:
                raise PassError(
                    f"{self.name}: option '{option}' must be at least 1, not {getattr(self, option)}"
                )

    def apply(self, model: ir.Model, context: PassContext) -> None:
        """Fold constants, analyse, choose, prove, remove."""
        # Torch writes absent biases and shapes as computations, which would hide what is tied to what.
        FoldConstants().apply(model, context)
        context.rewrite(model, SequenceToSplit())
        # What folding leaves computed is of no concern here.
        context.left_alone.clear()
        found = analyse(model)
        _report_kept(found, context, self)
        cuts = self._choose(found, find_groups(found), context)
        before = account(model)
        proof: Proof | None = None
        if self.proof and cuts:
            cuts, proof = self._prove(model, found, cuts, context)
        removal = plan_removal(found, _removed(cuts))
        if removal:
            apply_removal(model, removal, context.rewriter(model))
        after = account(model)
        for cut in cuts:
            context.count("groups pruned")
            context.count("channels removed", len(cut.removed) * sum(cut.group.channels_per_class))
        context.details.update(
            groups=[_row(found, cut) for cut in cuts],
            parameters=[before.parameters, after.parameters],
            macs=[before.macs, after.macs],
            macs_formula=[before.formula, after.formula],
            proof=None if proof is None else {"error": proof.error, "output": proof.output},
        )

    def _choose(self, found: Dependencies, groups: list[Group], context: PassContext) -> list[_Cut]:
        """Pick the least important classes of every group, leaving no axis empty."""
        cuts: list[_Cut] = []
        scores: dict[int, float] = {}
        for group in groups:
            excluded = [made.node for made in group.producers if not self.selects(made.node)]
            if excluded:
                if len(excluded) < len(group.producers):
                    context.leave(excluded[0], "the selectors exclude it, which keeps the layers tied to it")
                continue
            if len(group.classes) == 1 and self.ratio > 0:
                names = ", ".join(dict.fromkeys(str(made.node.name) for made in group.producers[:3]))
                context.leave(group.producers[0].node, f"all channels of {names} can only go together")
                continue
            weight = importance_of(found, group, self.importance, context.seed)
            if weight is None:
                context.leave(
                    group.producers[0].node, "its weights depend on the inputs, so no importance is known"
                )
                continue
            count = len(group.classes) - self.kept_count(len(group.classes), max(group.channels_per_class))
            if count == 0:
                continue
            scores.update(zip(group.classes.tolist(), weight.tolist(), strict=True))
            # Stable, so that equals go in the order of their channels.
            order = np.argsort(weight, kind="stable")
            cuts.append(_Cut(group, tuple(sorted(group.classes[order[:count]].tolist()))))
        return _without_empty_axes(found, cuts, scores)

    def kept_count(self, classes: int, channels_per_class: int) -> int:
        """How many of a group's classes stay."""
        kept = max(
            math.ceil(classes * (1.0 - self.ratio) - 1e-9), math.ceil(self.min_channels / channels_per_class)
        )
        step = self.multiple // math.gcd(self.multiple, channels_per_class)
        return min(classes, math.ceil(max(kept, 1) / step) * step)

    def _prove(
        self, model: ir.Model, found: Dependencies, cuts: list[_Cut], context: PassContext
    ) -> tuple[list[_Cut], Proof | None]:
        """Return the largest part of `cuts` that proves exact, halving where the whole does not."""
        proof, failure = self._try(model, found, cuts, context.seed)
        if failure is None:
            if proof is not None and proof.vacuous:
                context.note("the proof says nothing: all outputs are zero or not finite on random inputs")
            return cuts, proof
        if len(cuts) == 1:
            context.leave(cuts[0].group.producers[0].node, f"the proof failed: {failure}")
            return [], None
        middle = len(cuts) // 2
        halves = [self._prove(model, found, half, context) for half in (cuts[:middle], cuts[middle:])]
        good = [cut for half, _ in halves for cut in half]
        if not good:
            return [], None
        if len(good) == len(cuts):
            # Each half holds by itself but not both together: keep the first.
            for cut in halves[1][0]:
                context.leave(
                    cut.group.producers[0].node, f"the proof failed together with others: {failure}"
                )
            return halves[0]
        return self._prove(model, found, good, context)

    def _try(
        self, model: ir.Model, found: Dependencies, cuts: list[_Cut], seed: int
    ) -> tuple[Proof | None, str | None]:
        try:
            proof = prove(model, plan_removal(found, _removed(cuts)), seed)
        except GraphwrightError as error:
            return None, str(error)
        # Not "greater": NaN must fail.
        if not proof.error <= self.tolerance:
            return proof, f"output '{proof.output}' is off by {proof.error:.3g} from the masked original"
        return proof, None


def _removed(cuts: list[_Cut]) -> set[int]:
    return {name for cut in cuts for name in cut.removed}


def _without_empty_axes(found: Dependencies, cuts: list[_Cut], scores: dict[int, float]) -> list[_Cut]:
    """Keep the most important class of every axis that would vanish (one part of a Split, say)."""
    removed = _removed(cuts)
    while empty := emptied_axes(found, removed):
        for classes in empty:
            if removed.issuperset(classes.tolist()):
                removed.discard(max(classes.tolist(), key=lambda name: scores[name]))
    left = [_Cut(cut.group, tuple(name for name in cut.removed if name in removed)) for cut in cuts]
    return [cut for cut in left if cut.removed]


def _row(found: Dependencies, cut: _Cut) -> dict[str, Any]:
    layers = []
    for made, per_class in zip(cut.group.producers, cut.group.channels_per_class, strict=True):
        size = found.tracer.dims(made.value)[made.axis]
        layers.append({"node": made.node.name, "channels": size, "removed": per_class * len(cut.removed)})
    return {
        "producers": layers,
        "consumers": [node.name for node in cut.group.consumers],
        "before": len(cut.group.classes),
        "after": len(cut.group.classes) - len(cut.removed),
    }


def _report_kept(found: Dependencies, context: PassContext, selector: Pass) -> None:
    """Report the layers of which some or all channels must stay, by the node that stops them."""
    for node, reason in found.tracer.stopped.items():
        if node.op_type in _LAYERS and selector.selects(node):
            context.leave(node, f"{reason}; keeps its channels")
    stopped: dict[tuple[ir.Node, str], list[str]] = {}
    for made in found.tracer.producers:
        pin = found.why_kept(made.value, made.axis)
        if pin is None or not selector.selects(made.node):
            continue
        stay = int(np.count_nonzero(found.classes_of(made.value, made.axis) < 0))
        size = found.tracer.dims(made.value)[made.axis]
        share = "" if stay == size else f" ({stay} of {size})"
        names = stopped.setdefault((pin.node or made.node, pin.reason), [])
        names.append(f"{made.node.name or made.node.op_type}{share}")
    for (node, reason), names in stopped.items():
        shown = ", ".join(dict.fromkeys(names[:3]))
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        context.leave(node, f"{reason}; keeps the output channels of {shown}{more}")
