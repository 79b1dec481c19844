"""`stabilize`: the rules of several passes together, again and again until none of them fires."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import onnx_ir as ir

from ..ir.errors import PassError
from .base import LeftAlone, Pass, PassContext
from .pipeline import parse_pipeline
from .registry import register

_MAX_ROUNDS = 16
_SIMPLIFYING = (
    "eliminate-dead,merge-shapes,eliminate-identity,merge-casts,drop-expands,canonicalize,merge-transposes,"
    "merge-reshapes,merge-softmax-reshapes,merge-slices,merge-pads,fold-constants{limit=1024 growth=0.0},"
    "eliminate-common-subexpressions"
)


@register
@dataclass(frozen=True)
class Stabilize(Pass):
    """Repeat other passes until none of them changes anything.

    f(x) = x for the result x, where f is all of them in a row: what one pass makes possible for an earlier
    one is done too. Passes that are sets of rules and stand side by side are driven together, in one sweep.
    """

    name: ClassVar[str] = "stabilize"

    passes: str = _SIMPLIFYING
    """The passes, as a pipeline of lossless ones."""

    def apply(self, model: ir.Model, context: PassContext) -> None:
        """Run rounds until one changes nothing."""
        members = [self._selecting(member) for member in parse_pipeline(self.passes)]
        lossy = next((member.name for member in members if not member.lossless), None)
        if lossy is not None:
            raise PassError(f"{self.name}: '{lossy}' is not lossless, so it may go on for ever")
        needing = next((member.name for member in members if member.needs), None)
        if needing is not None:
            raise PassError(f"{self.name}: '{needing}' reads analyses and cannot be repeated here")
        rewriter = context.rewriter(model)
        groups = _side_by_side(members)
        settled: dict[int, int] = {}
        reports: dict[int, list[LeftAlone]] = {}
        for _ in range(_MAX_ROUNDS):
            pending = [place for place in range(len(groups)) if settled.get(place) != rewriter.changes]
            for place in pending:
                before = rewriter.changes
                context.left_alone.clear()
                _run(groups[place], model, context)
                reports[place] = list(context.left_alone)
                # A set of rules ends where none fires; of the others only a run without a change shows that.
                if rewriter.changes == before or groups[place][0].rules():
                    settled[place] = rewriter.changes
            if rewriter.unsettled:
                context.update_shapes(model)
                settled.clear()
            if not pending:
                break
        else:
            context.note(f"not stable after {_MAX_ROUNDS} rounds")
        context.left_alone[:] = [entry for place in sorted(reports) for entry in reports[place]]

    def _selecting(self, member: Pass) -> Pass:
        """The member, with the selectors of this pass where it has none."""
        return replace(member, only=member.only or self.only, skip=member.skip or self.skip)


def _side_by_side(members: list[Pass]) -> list[list[Pass]]:
    """Sets of rules in a row together, everything else for itself."""
    groups: list[list[Pass]] = []
    for member in members:
        if member.rules() and groups and groups[-1][0].rules():
            groups[-1].append(member)
        else:
            groups.append([member])
    return groups


def _run(group: list[Pass], model: ir.Model, context: PassContext) -> None:
    rules = [rule for member in group for rule in member.rules()]
    if rules:
        context.rewrite(model, *rules)
    else:
        group[0].apply(model, context)
