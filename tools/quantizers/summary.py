"""The quantization benchmark in one table, for the README: a line per way, a column per model."""

from __future__ import annotations

import math
from collections.abc import Sequence

from ..steps import markdown_table
from .report import Records, first
from .rivals import OURS, OURS_ON_ORT, RIVALS

_TITLES = {OURS: "Graphwright, its own kernels", OURS_ON_ORT: "Graphwright, ONNX Runtime's kernels"}


def summary(records: Records, models: Sequence[str]) -> str:
    """SQNR at the output in dB, one setting of each way for all models; the best of all sides is bold."""
    rows = []
    for way in (OURS, OURS_ON_ORT, *RIVALS):
        cells = []
        for model in models:
            value = _decibels(records, model, way)
            text = _text(records, model, way) if value is None else f"{value:.1f}"
            others = (_decibels(records, model, each) for each in (OURS, *RIVALS))
            best = max((each for each in others if each is not None), default=math.inf)
            cells.append(f"**{text}**" if value == best and way != OURS_ON_ORT else text)
        rows.append([_TITLES.get(way, way), *cells])
    return markdown_table(["SQNR, dB", *models], rows) + "\n"


def _decibels(records: Records, model: str, way: str) -> float | None:
    found = first(records, model, way)
    return None if found is None or "error" in found[1] else float(found[1]["sqnr_db"])


def _text(records: Records, model: str, way: str) -> str:
    return "not run" if first(records, model, way) is None else "refused"
