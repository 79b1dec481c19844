"""What a library for several batch sizes holds for each of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .batches import Batches
from .check import Check
from .timing import Timing
from .weights import stored_bytes


@dataclass
class BatchRow:
    """One batch size.

    Attributes:
        size: rows.
        kernels: functions that its program calls.
        code_bytes: their machine code; None where it is not known.
        weight_bytes: weights that its program reads.
        own_weight_bytes: those of them that no other batch size reads.
        check: the comparison with the reference.
        timing: latency of a whole batch; None where it was not timed.
    """

    size: int
    kernels: int = 0
    code_bytes: int | None = None
    weight_bytes: int = 0
    own_weight_bytes: int = 0
    check: Check = field(default_factory=lambda: Check(False, reason="it was not asked for"))
    timing: Timing | None = None

    def to_json(self) -> dict[str, Any]:
        """A JSON-able dictionary."""
        return {
            "size": self.size,
            "kernels": self.kernels,
            "code_bytes": self.code_bytes,
            "weight_bytes": self.weight_bytes,
            "own_weight_bytes": self.own_weight_bytes,
            "check": self.check.to_json(),
            "timing": self.timing.to_json() if self.timing else None,
        }


@dataclass
class BatchReport:
    """The batch sizes of a library, and what becomes of others."""

    batches: Batches
    rows: list[BatchRow]

    def to_json(self) -> dict[str, Any]:
        """A JSON-able dictionary."""
        return {**self.batches.to_json(), "rows": [row.to_json() for row in self.rows]}

    @property
    def others(self) -> str:
        """What becomes of other batch sizes, in words."""
        sizes = self.batches.sizes
        if self.batches.refusal:
            return f"other batch sizes are refused: {self.batches.refusal}"
        example = next(size for size in range(sizes[0] + 1, sizes[-1] + 2) if size not in sizes)
        return (
            f"other batch sizes run in pieces ({example} as {self.batches.describe(example)}): "
            "rows do not depend on each other on the reference"
        )

    def cells(self) -> tuple[list[str], list[list[str]]]:
        """Column names and a row of text per batch size."""
        columns = ["batch", "ms", "ms per row", "kernels", "code", "weights", "only its own"]
        return columns, [
            [
                str(row.size),
                "-" if row.timing is None else f"{row.timing.median_ms:.3f}",
                "-" if row.timing is None else f"{row.timing.median_ms / row.size:.3f}",
                str(row.kernels),
                "-" if row.code_bytes is None else f"{row.code_bytes / 1e3:.0f} kB",
                f"{row.weight_bytes / 1e6:.2f} MB",
                f"{row.own_weight_bytes / 1e6:.2f} MB",
            ]
            for row in self.rows
        ]


def rows_of(
    batches: Batches,
    kernels: Sequence[Mapping[str, Any]],
    code: Mapping[str, int],
    weights: Sequence[np.ndarray],
    used: Mapping[str, Sequence[int]],
) -> list[BatchRow]:
    """A row per batch size.

    Args:
        batches: the sizes.
        kernels: entries of the compile report.
        code: bytes of machine code by kernel.
        weights: packed weights of the library.
        used: positions of the weights that each program reads.
    """
    stored = [stored_bytes(weight) for weight in weights]
    rows = []
    for size, entry in batches.entries.items():
        names = {str(kernel["name"]) for kernel in kernels if kernel.get("entry") == entry}
        others = {each for other, positions in used.items() if other != entry for each in positions}
        rows.append(
            BatchRow(
                size,
                len(names),
                sum(code.get(name, 0) for name in names) if code else None,
                sum(stored[each] for each in used[entry]),
                sum(stored[each] for each in used[entry] if each not in others),
            )
        )
    return rows
