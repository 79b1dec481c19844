"""The outcome of comparing a compiled model with the reference; how it is found is in `checking.py`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from ..ir.compare import Comparison


@dataclass(frozen=True)
class Check:
    """The outcome of the comparison, or why there was none.

    Attributes:
        checked: whether the compiled model ran and was compared.
        where: "here", or "qemu" for an emulated CPU; empty if not checked.
        reason: why it was not checked; empty if it was.
        bound: the bound applied, in words.
        comparison: the figures, None if not checked.
        notes: what the reader of the figures should know.
    """

    checked: bool
    where: str = ""
    reason: str = ""
    bound: str = ""
    comparison: Comparison | None = None
    notes: tuple[str, ...] = field(default=())

    def to_json(self) -> dict[str, Any]:
        """A JSON-able dictionary."""
        return {
            "checked": self.checked,
            "where": self.where,
            "reason": self.reason,
            "bound": self.bound,
            "comparison": self.comparison.to_json() if self.comparison else None,
            "notes": list(self.notes),
        }

    def __str__(self) -> str:
        if not self.checked:
            return f"not checked: {self.reason}"
        emulated = " (under qemu)" if self.where == "qemu" else ""
        return f"agrees with the reference{emulated}: {self.comparison}; bound: {self.bound}"
