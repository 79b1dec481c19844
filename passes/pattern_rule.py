"""Rules stated as a pattern, a check and a rewrite."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import onnx_ir as ir

from ..ir.errors import PassError
from .matcher import Match, match_pattern
from .patterns import Pattern, root_types
from .rewriter import Rewriter
from .rules import NoMatch, Rule

Replacement = ir.Value | Sequence[Any]


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

    def rewrite(self, match: Match, rewriter: Rewriter) -> Replacement:
        """Build the replacement in front of `match.root` and return what replaces the root's outputs.

        Where the pattern has several outputs: a value (or a list, for a node of several) for each root.
        """
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
        if len(match.roots) == 1:
            _replace(rewriter, node, result)
        else:
            for root, each in zip(match.roots, _per_root(result, match), strict=True):
                _replace(rewriter, root, each)
        for covered in match.covered[len(match.roots) :]:
            rewriter.erase_unread(covered)
        return True


def _per_root(result: Replacement, match: Match) -> Sequence[Any]:
    values = [result] if isinstance(result, ir.Value) else list(result)
    if len(values) != len(match.roots):
        raise PassError(
            f"{len(match.roots)} nodes are to be replaced, but the rewrite gave {len(values)} values"
        )
    return values


def _replace(rewriter: Rewriter, node: ir.Node, result: Replacement) -> None:
    values = [result] if isinstance(result, ir.Value) else list(result)
    rewriter.replace(node, [*values, *[None] * (len(node.outputs) - len(values))])
