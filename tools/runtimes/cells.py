"""Words and cells that the tables of the runtime benchmark share."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from ..measure import milliseconds, times_text
from .contenders import OURS
from .goals import geometric_mean
from .models import AS_IS, MODELS
from .records import Record

SLOW = 0.9
"""Rows below this share of a rival's speed are marked."""
_REASON = 60


def row_name(model: str, variant: str) -> str:
    """The model's title, and what was made of it."""
    title = MODELS[model].title
    return title if variant == AS_IS else f"{title}, {variant}"


def plural(threads: int) -> str:
    """A number of threads in words."""
    return "one thread" if threads == 1 else f"{threads} threads"


def thread_counts(rows: Iterable[Record]) -> list[int]:
    """Numbers of threads that something was measured with, in order."""
    return sorted({int(count) for row in rows for count in row.contenders.get(OURS, {})})


def mean_text(values: Sequence[float]) -> str:
    """The geometric mean."""
    return f"{geometric_mean(values):.2f}" if values else "-"


def ratio_text(ratio: float | None) -> str:
    """How many times faster we are than a rival; slower is said in words below `SLOW`."""
    if ratio is None:
        return "-"
    return f"**{ratio:.2f} SLOWER**" if ratio < SLOW else f"{ratio:.2f}"


def timing_cell(row: Record, name: str, threads: int, state: str) -> str:
    """Median and spread, or why there is none."""
    found = row.timing(name, threads, state)
    if found is None:
        trouble = row.trouble(name, threads)
        return f"failed: {_cut(trouble)}" if trouble else "-"
    return times_text(found["median_ms"], found["p10_ms"], found["p90_ms"])


def ours_ms(row: Record, threads: int, state: str = "warm") -> str:
    """Our median alone."""
    found = row.timing(OURS, threads, state)
    return milliseconds(found["median_ms"]) if found else "-"


def _cut(text: str) -> str:
    plain = text.replace("|", "/")
    return plain if len(plain) <= _REASON else f"{plain[: _REASON - 3]}..."
