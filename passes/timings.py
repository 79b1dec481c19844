"""Where the time went, as a tree: passes, in them rules, shape updates and the pass's own parts."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import onnx_ir as ir

from .rewriter import Rewriter
from .rules import NoMatch, Rule


@dataclass
class Timing:
    """One node of the tree.

    Attributes:
        name: What took the time.
        seconds: Wall time, everything below included.
        count: How often it ran.
        fired: For a rule, how often it rewrote something; None for what is no rule.
        parts: What it consists of, by name, in order of first appearance.
    """

    name: str
    seconds: float = 0.0
    count: int = 0
    fired: int | None = None
    parts: dict[str, Timing] = field(default_factory=dict)

    def part(self, name: str) -> Timing:
        """Return the part called `name`, made if there is none."""
        if name not in self.parts:
            self.parts[name] = Timing(name)
        return self.parts[name]

    def to_json(self) -> dict[str, Any]:
        """Return the tree as JSON-able data."""
        data: dict[str, Any] = {"name": self.name, "seconds": round(self.seconds, 6), "count": self.count}
        if self.fired is not None:
            data["fired"] = self.fired
        if self.parts:
            data["parts"] = [part.to_json() for part in self.parts.values()]
        return data


class Stopwatch:
    """Measures nested stretches of time into a `Timing` tree."""

    def __init__(self, name: str):
        self.tree = Timing(name)
        self._stack = [self.tree]

    @contextlib.contextmanager
    def timed(self, name: str) -> Iterator[Timing]:
        """Measure a stretch as part of the one around it."""
        part = self._stack[-1].part(name)
        self._stack.append(part)
        start = time.perf_counter()
        try:
            yield part
        finally:
            part.seconds += time.perf_counter() - start
            part.count += 1
            self._stack.pop()


class TimedRule(Rule):
    """A rule with a watch on it."""

    def __init__(self, rule: Rule, into: Timing):
        self._rule = rule
        self._into = into.part(rule.label)
        self._into.fired = self._into.fired or 0
        self.label = rule.label  # type: ignore[misc]
        self.op_types = rule.op_types  # type: ignore[misc]
        self.reads = rule.reads  # type: ignore[misc]
        self.benefit = rule.benefit  # type: ignore[misc]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._rule, name)

    def match_and_rewrite(self, node: ir.Node, rewriter: Rewriter) -> bool | str:
        """Let the rule try, and count."""
        start = time.perf_counter()
        try:
            outcome = self._rule.match_and_rewrite(node, rewriter)
        finally:
            self._into.seconds += time.perf_counter() - start
            self._into.count += 1
        if outcome and not isinstance(outcome, str | NoMatch):
            self._into.fired = (self._into.fired or 0) + 1
        return outcome
