"""The quantization benchmark's records as Markdown: SQNR, task metrics, refusals, where we are not ahead."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from ..steps import markdown_table
from .rivals import OURS, OURS_ON_ORT, RIVALS, WAYS

Records = Mapping[str, Mapping[str, Any]]


def best(records: Records, model: str, way: str) -> tuple[str, Mapping[str, Any]] | None:
    """The variant of a way that has the highest SQNR on a model, with its record; None where none was run.

    A way all of whose variants failed gives the first failure.
    """
    found = [
        (variant, records[f"{model}/{way}/{variant}"])
        for variant in WAYS[way]
        if f"{model}/{way}/{variant}" in records
    ]
    return max(found, key=lambda pair: _sqnr(pair[1]), default=None)


def behind(records: Records, models: Sequence[str]) -> list[tuple[str, str, float]]:
    """(model, "rival over ours", decibels) where a rival's SQNR is higher than ours.

    Files for ONNX Runtime's integer kernels are compared with those that ONNX Runtime makes for them.
    """
    lines = []
    pairs = [*((OURS, rival) for rival in RIVALS), (OURS_ON_ORT, "ONNX Runtime")]
    for model in models:
        for way, rival in pairs:
            ours, theirs = best(records, model, way), best(records, model, rival)
            if ours is None or theirs is None or "error" in theirs[1]:
                continue
            lead = _sqnr(theirs[1]) - _sqnr(ours[1])
            if lead > 0.0:
                lines.append((model, f"{rival} over {way}", lead))
    return lines


def markdown(records: Records, models: Sequence[str], ways: Sequence[str]) -> str:
    """All tables: SQNR of every way, task metrics, what was refused, and where a rival is ahead."""
    head = ["model", *ways]
    rows = [[model, *(_cell(records, model, way) for way in ways)] for model in models]
    parts = ["SQNR at the output, dB (best variant):", markdown_table(head, rows)]
    tasks = [model for model in models if any(_metric(records, model, way) for way in ways)]
    if tasks:
        rows = [
            [model, _float_metric(records, model), *(_metric(records, model, way) for way in ways)]
            for model in tasks
        ]
        parts += ["Task metrics:", markdown_table(["model", "float", *ways], rows)]
    refused = [
        f"- {model}, {way} ({variant}): {record['error']}"
        for model in models
        for way in ways
        for variant in WAYS[way]
        if "error" in (record := records.get(f"{model}/{way}/{variant}", {}))
    ]
    if refused:
        parts += ["Refused or failed:", "\n".join(refused)]
    lost = [f"- {model}: {rival}: {lead:.1f} dB" for model, rival, lead in behind(records, models)]
    parts.append(
        "Where a rival is ahead:\n\n" + "\n".join(lost) if lost else "No rival is ahead on any model."
    )
    return "\n\n".join(parts) + "\n"


def _cell(records: Records, model: str, way: str) -> str:
    found = best(records, model, way)
    if found is None:
        return "not run"
    variant, record = found
    if "error" in record:
        return "refused"
    return f"{record['sqnr_db']:.1f} ({variant})" if len(WAYS[way]) > 1 else f"{record['sqnr_db']:.1f}"


def _metric(records: Records, model: str, way: str) -> str:
    found = best(records, model, way)
    return "" if found is None else str(found[1].get("metric", ""))


def _float_metric(records: Records, model: str) -> str:
    held = [record for key, record in records.items() if key.split("/")[0] == model]
    return next((str(record["float_metric"]) for record in held if "float_metric" in record), "")


def _sqnr(record: Mapping[str, Any]) -> float:
    return float(record.get("sqnr_db", -math.inf))
