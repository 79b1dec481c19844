"""`stabilize`: the rules of several passes together, again and again until none of them fires."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace
from typing import ClassVar

import onnx_ir as ir

from ..ir.errors import PassError
from .base import Pass, PassContext
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
        groups = [list(group) for _, group in itertools.groupby(members, key=lambda each: bool(each.rules()))]
        for _ in range(_MAX_ROUNDS):
            before = rewriter.changes
            context.left_alone.clear()
            for group in groups:
                rules = [rule for member in group for rule in member.rules()]
                if rules:
                    context.rewrite(model, *rules)
                for member in group if not rules else ():
                    member.apply(model, context)
            if rewriter.changes == before:
                return
            context.update_shapes(model)
        context.note(f"not stable after {_MAX_ROUNDS} rounds")

    def _selecting(self, member: Pass) -> Pass:
        """The member, with the selectors of this pass where it has none."""
        return replace(member, only=member.only or self.only, skip=member.skip or self.skip)
