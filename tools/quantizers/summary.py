"""The quantization benchmark in one table, for the README: a line per way, a column per model."""

from __future__ import annotations

import math
from collections.abc import Sequence

from ..steps import markdown_table
from .report import Records, picked
from .rivals import OURS, OURS_ON_ORT, RIVALS, WAYS

_TITLES = {OURS: "Graphwright, its own kernels", OURS_ON_ORT: "Graphwright, ONNX Runtime's kernels"}


def summary(records: Records, models: Sequence[str]) -> str:
    """SQNR at the output in dB, variants picked on held-out data; the best of all sides is bold."""
    rows, open_cells = [], 0
    for way in (OURS, OURS_ON_ORT, *RIVALS):
        cells = []
        for model in models:
            value = _decibels(records, model, way)
            text = _text(records, model, way) if value is None else f"{value:.1f}"
            best = max(_decibels(records, model, each) or -math.inf for each in (OURS, *RIVALS))
            cells.append(f"**{text}**" if value == best and way != OURS_ON_ORT else text)
            open_cells += sum(f"{model}/{way}/{variant}" not in records for variant in WAYS[way])
        rows.append([_TITLES.get(way, way), *cells])
    text = markdown_table(["SQNR, dB", *models], rows)
    return f"{text}\n\n{open_cells} variants of a side are not measured yet.\n" if open_cells else f"{text}\n"


def _decibels(records: Records, model: str, way: str) -> float | None:
    found = picked(records, model, way)
    return None if found is None or "error" in found[1] else float(found[1]["sqnr_db"])


def _text(records: Records, model: str, way: str) -> str:
    return "not run" if picked(records, model, way) is None else "refused"
