"""`stabilize`: the rules of several passes together, again and again until none of them fires."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import ClassVar

import onnx_ir as ir

from ..ir.errors import PassError
from .base import LeftAlone, Pass, PassContext
from .driver import Fixpoint
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
        groups = [_Group(passes) for passes in _side_by_side(members)]
        for _ in range(_MAX_ROUNDS):
            pending = [group for group in groups if group.pending(model)]
            for group in pending:
                before = rewriter.changes
                group.run(model, context)
                touched = rewriter.take_history()
                for each in groups:
                    if each is not group:
                        each.hear(touched, rewriter.changes > before)
                    elif rewriter.changes > before and not group.settles:
                        group.hear(touched, True)
            if rewriter.unsettled:
                context.update_shapes(model)
                for group in groups:
                    group.forget()
                continue
            if not pending:
                break
        else:
            context.note(f"not stable after {_MAX_ROUNDS} rounds")
        context.left_alone[:] = [entry for group in groups for entry in group.left_alone]

    def _selecting(self, member: Pass) -> Pass:
        """The member, with the selectors of this pass where it has none."""
        return replace(member, only=member.only or self.only, skip=member.skip or self.skip)


class _Group:
    """Sets of rules that are driven together, or one other pass, and what it has left to do.

    Attributes:
        settles: Whether it has nothing left to do right after a run.
        left_alone: Its report.
    """

    def __init__(self, members: list[Pass]):
        self._member = members[0]
        self._rules = [rule for member in members for rule in member.rules()]
        self.settles = bool(self._rules) or self._member.settles
        self.left_alone: list[LeftAlone] = []
        self.forget()

    def forget(self) -> None:
        """Everything may be different now."""
        self._known = Fixpoint()
        self._anew, self._changed = True, False

    def hear(self, touched: Iterable[ir.Node], changed: bool) -> None:
        """Take note of what another group did."""
        self._known.since.update(dict.fromkeys(touched))
        self._changed |= changed

    def pending(self, model: ir.Model) -> bool:
        """Whether there may be something to do."""
        if self._anew:
            return True
        return self._changed and (bool(self._rules) or self._member.may_change(model, self._known.since))

    def run(self, model: ir.Model, context: PassContext) -> None:
        """Do it."""
        context.left_alone.clear()
        if self._rules:
            context.rewrite(model, *self._rules, fixpoint=self._known)
        else:
            self._member.apply(model, context)
            self._known.since.clear()
        self.left_alone = list(context.left_alone)
        self._anew = self._changed = False


def _side_by_side(members: list[Pass]) -> list[list[Pass]]:
    """Sets of rules in a row together, everything else for itself."""
    groups: list[list[Pass]] = []
    for member in members:
        if member.rules() and groups and groups[-1][0].rules():
            groups[-1].append(member)
        else:
            groups.append([member])
    return groups
