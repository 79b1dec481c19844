"""What is known about one architecture after one tool has pruned it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from ...ir.errors import ToolError

OURS = "graphwright"
RIVAL = "torch-pruning"

PROVEN = "proven"
NOTHING = "nothing pruned"
WRONG = "wrong numbers"
FAILED = "failed"
NO_EXPORT = "export failed"
NO_MODEL = "not built"
STATUSES = (PROVEN, NOTHING, WRONG, FAILED, NO_EXPORT, NO_MODEL)


@dataclass(frozen=True)
class Outcome:
    """What one tool made of one architecture.

    Attributes:
        suite: `torchvision`, `timm` or `transformers`.
        name: of the architecture in its suite.
        tool: `OURS` or `RIVAL`.
        phase: how far it came: build, export, prune, check, done.
        cause: one line on what went wrong; "" where nothing did.
        note: what of the architecture was taken, where it is not all of it.
        export_seconds: wall seconds from module to graph.
        nodes: of the exported graph.
        prune_seconds: wall seconds of pruning with its proof; of the rival, without one.
        parameters: before and after.
        macs: before and after; None where shapes are symbolic.
        bytes: of the initializers in the saved files, before and after.
        groups: groups of channels that lost some.
        kept: places that were left alone, each with a reason.
        barriers: the commonest of these reasons.
        unproven: groups that the proof found wrong, which were therefore not pruned.
        proof: largest difference from the masked original, relative to the largest value of an output.
        difference: the same of the saved and reloaded file on other inputs.
        effect: how far the masked original is from the original, likewise.
        seconds: wall seconds of the whole process.
        options: what it ran with.
    """

    suite: str
    name: str
    tool: str = OURS
    phase: str = "start"
    cause: str = ""
    note: str = ""
    export_seconds: float | None = None
    nodes: int | None = None
    prune_seconds: float | None = None
    parameters: tuple[int, int] | None = None
    macs: tuple[int | None, int | None] | None = None
    bytes: tuple[int, int] | None = None
    groups: int = 0
    kept: int = 0
    barriers: tuple[str, ...] = ()
    unproven: tuple[str, ...] = ()
    proof: float | None = None
    difference: float | None = None
    effect: float | None = None
    seconds: float | None = None
    options: str = ""

    @property
    def key(self) -> tuple[str, str, str]:
        """What names it in a file of results."""
        return self.suite, self.name, self.tool

    def status(self, tolerance: float = 1e-4) -> str:
        """One of `STATUSES`.

        Numbers count as wrong where the finished file differs from the masked original by more than
        `tolerance`, or where the pass's own proof found a group that it then left alone.
        """
        # Not "greater": NaN must count as wrong.
        if self.difference is not None and not self.difference <= tolerance:
            return WRONG
        if self.unproven:
            return WRONG
        if self.cause:
            return {"start": NO_MODEL, "build": NO_MODEL, "export": NO_EXPORT}.get(self.phase, FAILED)
        if self.groups == 0 and self.tool == OURS:
            return NOTHING
        return PROVEN

    def to_json(self) -> dict[str, Any]:
        """A JSON-able dictionary; infinities and NaN as strings."""
        return {
            name: str(value) if isinstance(value, float) and value - value != 0 else value
            for name, value in asdict(self).items()
        }

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Outcome:
        """What `to_json` made.

        Raises:
            ToolError: a field is unknown, or suite or name is missing.
        """
        known = {field.name for field in fields(cls)}
        if not {"suite", "name"} <= set(data) <= known:
            raise ToolError("the file of results was written by another version; remove it")
        values: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in data.items()}
        for name in ("proof", "difference", "effect"):
            if isinstance(values.get(name), str):
                values[name] = float(values[name])
        return cls(**values)


def read_outcomes(path: Path | None) -> list[Outcome]:
    """The outcomes in a file of JSON lines, of several on the same architecture the last.

    A last line that is not whole, of a run that was stopped, is left out.

    Raises:
        ToolError: another line is no outcome.
    """
    if path is None or not path.exists():
        return []
    found: dict[tuple[str, str, str], Outcome] = {}
    lines = path.read_text(encoding="utf-8").splitlines()
    for number, line in enumerate(lines, 1):
        try:
            outcome = Outcome.from_json(json.loads(line))
        except (ValueError, TypeError) as error:
            if number == len(lines):
                break
            raise ToolError(f"'{path}' line {number} is no result of this command: {error}") from error
        found.pop(outcome.key, None)
        found[outcome.key] = outcome
    return list(found.values())


def append_outcome(path: Path | None, outcome: Outcome) -> None:
    """Add a line to a file of results; one that is not whole is finished first."""
    if path is None:
        return
    whole = not path.exists() or path.read_bytes()[-1:] in (b"", b"\n")
    with path.open("a", encoding="utf-8") as file:
        file.write(("" if whole else "\n") + json.dumps(outcome.to_json()) + "\n")


def of_tool(outcomes: Sequence[Outcome], tool: str) -> dict[tuple[str, str], Outcome]:
    """The outcomes of one tool, by suite and name."""
    return {(each.suite, each.name): each for each in outcomes if each.tool == tool}
