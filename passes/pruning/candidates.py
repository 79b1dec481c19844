"""Groups of a model that may be pruned, with their scores."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir

from ...ir.collector import without_collector
from ...ir.errors import PassError
from ...ir.provenance import module_path
from ..base import Pass, PassContext
from ..channels import Dependencies, Group, find_groups
from ..channels.tracer import Producer
from ..quantization.calibration import Calibration
from .importance import Normalization, Reduction, find_importance, places_of, score_group
from .members import Members
from .moments import measure_moments
from .ranking import Candidate, Ranking, own_ratio, scope_of

_LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul", "LSTM", "GRU", "RNN")

Key = tuple[str, int, tuple[int, ...]]
"""What names a group across several steps: its first weight, the axis, and channels per class."""


@dataclass(frozen=True)
class Scoring:
    """How groups are scored: the options of `prune-channels` of the same names."""

    importance: str
    reduction: Reduction
    normalize: Normalization
    ranking: Ranking
    ratios: Sequence[tuple[re.Pattern[str], float]] = ()
    seed: int = 0
    originals: dict[Key, int] = field(default_factory=dict)
    """Classes of every group before the first step; filled by the first call."""


@without_collector
def find_candidates(
    model: ir.Model,
    found: Dependencies,
    scoring: Scoring,
    selector: Pass,
    calibration: Calibration | None,
    context: PassContext,
) -> list[Candidate]:
    """All groups that may be pruned, scored; those that may not are reported.

    Raises:
        PassError: The criterion needs calibration data and there is none, or no layer has what it looks at.
    """
    criterion = find_importance(scoring.importance)
    groups = find_groups(found)
    members = Members(found, groups)
    moments = None
    if criterion.calibrated:
        if calibration is None:
            raise PassError(
                f"importance '{criterion.name}' looks at activations and needs calibration data: "
                "calibration=... in Python, --calibration FILE on the command line"
            )
        moments = measure_moments(model, places_of(members, groups), calibration)
    candidates: list[Candidate] = []
    blind: list[Group] = []
    for index, group in enumerate(groups):
        if not _may_prune(found, group, selector, context):
            continue
        # What is given, not made, shows in the weights that read it.
        given = all(made.value.is_graph_input() for made in group.producers)
        scores = score_group(
            found,
            group,
            members.of(index, "consumer" if given else criterion.role),
            criterion,
            reduction=scoring.reduction,
            normalize=scoring.normalize,
            moments=moments,
            seed=scoring.seed,
        )
        if scores is None:
            blind.append(group)
            continue
        candidates.append(
            Candidate(
                group,
                scores,
                scoring.originals.setdefault(key_of(group), len(group.classes)),
                own_ratio(group, scoring.ratios, faces_of),
                scope_of(group, members, index) if scoring.ranking == "isomorphic" else "",
            )
        )
    _report_blind(blind, criterion.role, criterion.name, bool(candidates), context)
    return candidates


def key_of(group: Group) -> Key:
    """The name of a group across steps."""
    first = group.producers[0]
    return str(first.value.name), first.axis, group.channels_per_class


def faces_of(node: ir.Node) -> list[str]:
    """What selectors match: node name, module path and op type."""
    return [face for face in (node.name, module_path(node), node.op_type) if face]


def _may_prune(found: Dependencies, group: Group, selector: Pass, context: PassContext) -> bool:
    excluded = [made.node for made in group.producers if not selector.selects(made.node)]
    if excluded:
        if len(excluded) < len(group.producers):
            context.leave(excluded[0], "the selectors exclude it, which keeps the layers tied to it")
        return False
    if len(group.classes) == 1:
        names = ", ".join(dict.fromkeys(name_of_layer(made) for made in group.producers[:3]))
        first = group.producers[0]
        if group.channels_per_class[0] == 1:
            # Channels of one layer may go different ways, as through the units of a ShuffleNet.
            context.leave(first.node, f"one channel of {names} takes a way of its own, and one stays")
            return False
        joint = found.joined_by(first.value, first.axis)
        reason = f"all channels of {names} can only go together"
        context.leave(joint or first.node, reason if joint is None else f"ties channels: {reason}")
        return False
    return True


def _report_blind(groups: list[Group], role: str, name: str, others: bool, context: PassContext) -> None:
    """Report the groups that a criterion cannot score; for scales it is an error if it can score none."""
    if role == "scale" and groups and not others:
        raise PassError(
            f"importance '{name}' reads the scales of normalizations, and no layer that can be pruned has "
            "one; run prune-channels before fold-batch-norm, whose weights no longer tell scale from filter, "
            "or take another importance"
        )
    reason = {
        "producer": "its weights depend on the inputs, so no importance is known",
        "scale": f"no normalization scales its channels, so importance '{name}' does not know them",
        "consumer": f"no layer that reads its channels was seen, so importance '{name}' does not know them",
    }[role]
    for group in groups:
        context.leave(group.producers[0].node, reason)


def name_of_layer(made: Producer) -> str:
    """What makes the channels, for people."""
    if made.value.is_graph_input():
        return f"input {made.value.name}"
    return str(made.node.name or made.node.op_type)


def group_row(found: Dependencies, group: Group, removed: int) -> dict[str, Any]:
    """What is pruned of a group, for the report."""

    def layer(made: Producer, per_class: int) -> dict[str, Any]:
        size = found.tracer.dims(made.value)[made.axis]
        return {"node": name_of_layer(made), "channels": size, "removed": per_class * removed}

    changed = getattr(found, "statistical", np.zeros(0, np.int64))
    return {
        "producers": [
            layer(made, n) for made, n in zip(group.producers, group.channels_per_class, strict=True)
        ],
        "consumers": [node.name for node in group.consumers],
        "before": len(group.classes),
        "after": len(group.classes) - removed,
        "class": "statistical" if np.isin(group.classes, changed).any() else "exact",
    }


def report_kept(found: Dependencies, context: PassContext, selector: Pass) -> None:
    """Report the layers of which some or all channels must stay, by the node that stops them."""
    for node, reason in found.tracer.stopped.items():
        if node.op_type in _LAYERS and selector.selects(node):
            context.leave(node, f"{reason}; keeps its channels")
    stopped: dict[tuple[ir.Node, str], list[str]] = {}
    for made in found.tracer.producers:
        pin = found.why_kept(made.value, made.axis)
        size = found.tracer.dims(made.value)[made.axis]
        if pin is None or size == 1 or not selector.selects(made.node):
            continue
        stay = int(np.count_nonzero(found.classes_of(made.value, made.axis) < 0))
        share = "" if stay == size else f" ({stay} of {size})"
        names = stopped.setdefault((pin.node or made.node, pin.reason), [])
        names.append(f"{name_of_layer(made)}{share}")
    for (node, reason), names in stopped.items():
        shown = ", ".join(dict.fromkeys(names[:3]))
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        context.leave(node, f"{reason}; keeps the output channels of {shown}{more}")
