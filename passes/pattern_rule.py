"""Rules stated as a pattern, a check and a rewrite."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import onnx_ir as ir

from .matcher import Match, match_pattern
from .patterns import Pattern, root_types
from .rewriter import Rewriter
from .rules import NoMatch, Rule


class PatternRule(Rule):
    """A rule stated as pattern, check and rewrite."""

    pattern: ClassVar[Pattern]

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if "pattern" in cls.__dict__:
            cls.op_types = root_types(cls.pattern)

    def check(self, match: Match) -> str | None:
        """Return why the rule must not fire on this match, or None where it may."""
        return None

    def rewrite(self, match: Match, rewriter: Rewriter) -> ir.Value | Sequence[ir.Value | None]:
        """Build the replacement in front of `match.root` and return what replaces the root's outputs."""
        raise NotImplementedError

    def match_and_rewrite(self, node: ir.Node, rewriter: Rewriter) -> bool | str:
        """Match at `node`, check, rewrite, and erase what the match leaves dead."""
        match, reason = match_pattern(self.pattern, node)
        if match is None:
            return NoMatch(reason)
        refusal = self.check(match)
        if refusal is not None:
            return refusal
        result = self.rewrite(match, rewriter)
        values = [result] if isinstance(result, ir.Value) else list(result)
        rewriter.replace(node, [*values, *[None] * (len(node.outputs) - len(values))])
        for covered in match.covered[1:]:
            rewriter.erase_unread(covered)
        return True
