"""What one pass did: the facts that reports, printers and explanations draw on."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from .base import Firing, LeftAlone, Pass
from .equivalence import Equivalence
from .timings import Timing
from .watched import Event


@dataclass
class PassRecord:
    """What one pass did.

    Attributes:
        name: Pass name.
        text: The pass as pipeline text, with its options.
        lossless: Whether the pass promises equal outputs.
        seconds: Wall time of the pass itself, without checks.
        changed: Whether the graph was changed.
        nodes_before: Nodes in all graphs before the pass.
        nodes_after: Nodes in all graphs after it.
        statistics: Counters the pass kept.
        left_alone: Candidates that were not touched, with the reason.
        notes: Lines for the report.
        details: JSON-able facts for the report.
        check: Numbers of `--check-each`, or None where it was off.
        firings: Every rewrite of the pass's rules, in order.
        attempts: What each rule said to the node that was to be explained: (rule, outcome).
        looked_at: By label of its rules, the operators at which they start; () for every operator.
        story: What happened to nodes, of a run that is to be explained.
        costs: Work of the model after the pass, of a run with statistics: "macs" (a number or a formula, None
            if unknown) and "bytes_moved" by all nodes.
        timing: Where the time went, of a run with timing.
        instance: The pass itself.
        error: Why the pass failed, where the run went on without it; "" otherwise.
    """

    name: str
    text: str
    lossless: bool
    seconds: float
    changed: bool
    nodes_before: int
    nodes_after: int
    statistics: dict[str, int] = field(default_factory=dict)
    left_alone: list[LeftAlone] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    details: dict[str, Any] = field(default_factory=dict)
    check: Equivalence | None = None
    firings: list[Firing] = field(default_factory=list)
    attempts: list[tuple[str, str]] = field(default_factory=list)
    looked_at: dict[str, tuple[str, ...]] = field(default_factory=dict)
    story: list[Event] = field(default_factory=list)
    costs: dict[str, Any] | None = None
    timing: Timing | None = None
    instance: Pass | None = None
    error: str = ""

    def to_json(self) -> dict[str, Any]:
        """Return the record as JSON-able data; repeated reasons are grouped."""
        reasons = Counter((entry.op_type, entry.reason) for entry in self.left_alone)
        by_reason: dict[tuple[str, str], list[str]] = {}
        for entry in self.left_alone:
            by_reason.setdefault((entry.op_type, entry.reason), []).append(entry.node)
        data = {
            "name": self.name,
            "text": self.text,
            "lossless": self.lossless,
            "seconds": round(self.seconds, 6),
            "changed": self.changed,
            "nodes_before": self.nodes_before,
            "nodes_after": self.nodes_after,
            "statistics": dict(self.statistics),
            "left_alone": [
                {"op_type": op, "reason": reason, "count": count, "nodes": by_reason[op, reason]}
                for (op, reason), count in reasons.items()
            ],
            "notes": list(self.notes),
            "details": self.details,
            "check": self.check.to_json() if self.check else None,
            "costs": self.costs,
            "timing": self.timing.to_json() if self.timing else None,
        }
        return {**data, "error": self.error} if self.error else data
