"""Which classes of every group go, given their scores and a ratio."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import onnx_ir as ir

from ...ir.errors import PassError
from ..channels import Dependencies, Group
from ..channels.removal import emptied_axes
from .members import Members

Ranking = Literal["local", "global", "isomorphic"]


@dataclass(frozen=True)
class Candidate:
    """A group that may be pruned.

    Attributes:
        group: The group.
        scores: One per class; larger is kept longer.
        original: How many classes it had before the first of several steps.
        ratio: Its own ratio where a selector gives one, else None.
        scope: Groups of one scope are ranked together.
    """

    group: Group
    scores: np.ndarray
    original: int
    ratio: float | None = None
    scope: str = ""


@dataclass(frozen=True)
class Cut:
    """The classes of one group that are to go, ascending."""

    group: Group
    removed: tuple[int, ...]


@dataclass(frozen=True)
class Limits:
    """What every group keeps.

    Attributes:
        multiple: Channels that stay are rounded up to a multiple of this.
        min_channels: At least this many channels stay.
        max_ratio: At most this share of a group's classes goes.
    """

    multiple: int = 1
    min_channels: int = 1
    max_ratio: float = 1.0

    def __str__(self) -> str:
        return f"multiple={self.multiple} min_channels={self.min_channels} max_ratio={self.max_ratio:g}"

    def kept(self, candidate: Candidate, wanted: float) -> int:
        """How many classes stay where the ranking wants to keep `wanted` of them."""
        classes, per_class = len(candidate.group.classes), max(candidate.group.channels_per_class)
        least = max(
            1,
            math.ceil(self.min_channels / per_class),
            math.ceil(candidate.original * (1.0 - self.max_ratio) - 1e-9),
        )
        step = self.step(candidate.group)
        return min(classes, math.ceil(max(math.ceil(wanted - 1e-9), least) / step) * step)

    def step(self, group: Group) -> int:
        """Classes that are `multiple` channels at least."""
        return self.multiple // math.gcd(self.multiple, max(group.channels_per_class))


def choose(candidates: Sequence[Candidate], ratio: float, ranking: Ranking, limits: Limits) -> list[Cut]:
    """The least important classes of every candidate.

    Args:
        candidates: The groups with their scores.
        ratio: Share of the original classes to remove: of every group ("local"), or of all that are ranked
            together. Candidates with a ratio of their own are ranked by themselves.
        ranking: `local`: each group by itself; `global`: all together; `isomorphic`: like with like.
        limits: What every group keeps.
    """
    wanted: dict[int, float] = {}
    scopes: dict[str, list[int]] = defaultdict(list)
    for index, candidate in enumerate(candidates):
        if candidate.ratio is not None or ranking == "local":
            share = ratio if candidate.ratio is None else candidate.ratio
            wanted[index] = candidate.original * (1.0 - share)
        else:
            scopes[candidate.scope if ranking == "isomorphic" else ""].append(index)
    for indices in scopes.values():
        wanted.update(_kept_together([candidates[index] for index in indices], indices, ratio))
    cuts = []
    for index, candidate in enumerate(candidates):
        kept = limits.kept(candidate, wanted[index])
        cut = cut_to(candidate, kept)
        if cut.removed:
            cuts.append(cut)
    return cuts


def cut_to(candidate: Candidate, kept: int) -> Cut:
    """Keep the `kept` most important classes; equals go in the order of their channels."""
    order = np.argsort(candidate.scores, kind="stable")
    count = max(len(candidate.group.classes) - kept, 0)
    return Cut(candidate.group, tuple(sorted(candidate.group.classes[order[:count]].tolist())))


def _kept_together(candidates: Sequence[Candidate], indices: Sequence[int], ratio: float) -> dict[int, float]:
    """How many classes of each stay when the least important of all go.

    A class counts as many times as it has channels in the widest layer that it goes through.
    """
    weights = [max(candidate.group.channels_per_class) for candidate in candidates]
    scores = np.concatenate([candidate.scores for candidate in candidates])
    owner = np.concatenate([np.full(len(c.scores), i) for i, c in enumerate(candidates)])
    weight = np.concatenate([np.full(len(c.scores), w) for w, c in zip(weights, candidates, strict=True)])
    original = sum(w * c.original for w, c in zip(weights, candidates, strict=True))
    to_go = weight.sum() - original * (1.0 - ratio)
    order = np.argsort(scores, kind="stable")
    gone = order[np.cumsum(weight[order]) <= to_go + 1e-9]
    count = np.bincount(owner[gone], minlength=len(candidates))
    return {
        index: float(len(c.group.classes) - n) for index, c, n in zip(indices, candidates, count, strict=True)
    }


def scope_of(group: Group, members: Members, index: int) -> str:
    """What a group is made of, whatever its width: groups with equal text are alike.

    Operators that make, scale and read its channels, with the sizes of their windows (Isomorphic Pruning,
    Fang et al. 2024).
    """
    parts = []
    for role in ("producer", "scale", "consumer"):
        for member in members.of(index, role):  # type: ignore[arg-type]
            window = "x".join(str(dim) for dim in list(member.value.shape or ())[2:])
            parts.append(f"{role} {member.node.op_type} {window}".rstrip())
    return "; ".join(sorted(parts)) + f"; {sorted(set(group.channels_per_class))} per class"


def parse_ratios(text: str | None, owner: str) -> list[tuple[re.Pattern[str], float]]:
    """`"layer1.*=0.3,fc=0"` to patterns with their ratios, in order.

    Raises:
        PassError: An entry is not PATTERN=RATIO with a ratio from 0 up to but not including 1.
    """
    found = []
    for entry in (part.strip() for part in (text or "").split(",")):
        if not entry:
            continue
        pattern, _, number = entry.rpartition("=")
        try:
            ratio = float(number)
            compiled = re.compile(pattern)
        except (ValueError, re.error):
            ratio, compiled = -1.0, re.compile("")
        if not pattern or not 0.0 <= ratio < 1.0:
            raise PassError(
                f"{owner}: option 'ratios' takes PATTERN=RATIO such as 'layer1.*=0.3,fc=0' (0 to below 1), "
                f"not '{entry}'"
            )
        found.append((compiled, ratio))
    return found


def own_ratio(
    group: Group, ratios: Sequence[tuple[re.Pattern[str], float]], faces: Callable[[ir.Node], Sequence[str]]
) -> float | None:
    """The ratio that selectors give a group: of each layer the first that matches, of these the least."""
    found = []
    for producer in group.producers:
        names = faces(producer.node)
        matching = [ratio for pattern, ratio in ratios if any(pattern.match(name) for name in names)]
        found += matching[:1]
    return min(found) if found else None


def without_empty_axes(found: Dependencies, cuts: Sequence[Cut], scores: dict[int, float]) -> list[Cut]:
    """Keep the most important class of every axis that would vanish (one part of a Split, say)."""
    removed = {name for cut in cuts for name in cut.removed}
    while empty := emptied_axes(found, removed):
        for classes in empty:
            if removed.issuperset(classes.tolist()):
                removed.discard(max(classes.tolist(), key=lambda name: scores[name]))
    left = [replace(cut, removed=tuple(name for name in cut.removed if name in removed)) for cut in cuts]
    return [cut for cut in left if cut.removed]
