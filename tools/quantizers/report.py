"""The quantization benchmark's records as Markdown: SQNR, task metrics, refusals, where we are not ahead.

Nobody's variant is picked on the data that is reported: once every way has its first variant for all models,
and once each way picks the variant that is best on held-out data.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ..steps import markdown_table
from .rivals import OURS, OURS_ON_ORT, PLAIN, RIVALS, WAYS

Record = Mapping[str, Any]
Records = Mapping[str, Record]
Choice = Callable[[Records, str, str], "tuple[str, Record] | None"]


def first(records: Records, model: str, way: str) -> tuple[str, Record] | None:
    """The first variant of a way with its record; None where it was not run."""
    variant = next(iter(WAYS[way]))
    record = records.get(f"{model}/{way}/{variant}")
    return None if record is None else (variant, record)


def picked(records: Records, model: str, way: str) -> tuple[str, Record] | None:
    """The variant of a way with the highest SQNR on held-out data, and its record; None where none was run.

    A way all of whose variants failed gives the first failure.
    """
    every = ((variant, records.get(f"{model}/{way}/{variant}")) for variant in WAYS[way])
    found = [(variant, record) for variant, record in every if record is not None and _is_whole(record)]
    return max(found, key=lambda pair: float(pair[1].get("held_out_db", -math.inf)), default=None)


def behind(records: Records, models: Sequence[str], choice: Choice = picked) -> list[tuple[str, str, float]]:
    """(model, "rival over ours", decibels) where a rival's SQNR is higher than ours.

    Files for ONNX Runtime's integer kernels are compared with those that ONNX Runtime makes for them. Picked
    variants are compared where all variants of both sides were measured.
    """
    lines = []
    pairs = [*((OURS, rival) for rival in RIVALS), (OURS_ON_ORT, "ONNX Runtime")]
    for model in models:
        for way, rival in pairs:
            if choice is picked and (_missing(records, model, way) or _missing(records, model, rival)):
                continue
            ours, theirs = choice(records, model, way), choice(records, model, rival)
            if ours is None or theirs is None or "error" in theirs[1]:
                continue
            lead = _sqnr(theirs[1]) - _sqnr(ours[1])
            if lead > 0.0:
                lines.append((model, f"{rival} ({theirs[0]}) over {way} ({ours[0]})", lead))
    return lines


def markdown(records: Records, models: Sequence[str], ways: Sequence[str]) -> str:
    """All tables: SQNR, task metrics, methods for ranges, refusals, gaps, and where a rival is ahead."""
    choosing = [way for way in ways if way != PLAIN]
    parts = [
        "SQNR at the output, dB; one setting of each side for all models:",
        _table(records, models, choosing, first),
        "SQNR at the output, dB; sides with several variants pick theirs on held-out data:",
        _table(records, models, choosing, picked),
    ]
    tasks = [model for model in models if any(_metric(records, model, way) for way in choosing)]
    if tasks:
        rows = [
            [model, _float_metric(records, model), *(_metric(records, model, way) for way in choosing)]
            for model in tasks
        ]
        parts += ["Task metrics of the second table:", markdown_table(["model", "float", *choosing], rows)]
    if PLAIN in ways:
        parts += ["SQNR of `insert-qdq{target=tvm calibration=...}` alone, dB:", _ranges(records, models)]
    refused = [
        f"- {model}, {way} ({variant}): {record['error']}"
        for model in models
        for way in ways
        for variant in WAYS[way]
        if "error" in (record := records.get(f"{model}/{way}/{variant}", {}))
    ]
    if refused:
        parts += ["Refused or failed:", "\n".join(refused)]
    missing = [
        f"- {model}: {'; '.join(lacking)}"
        for model in models
        if (lacking := [text for way in ways if (text := _missing(records, model, way))])
    ]
    if missing:
        parts += ["Not measured yet on held-out data:", "\n".join(missing)]
    for table, choice in (("first", first), ("second", picked)):
        lost = [
            f"- {model}: {rival}: {lead:.1f} dB" for model, rival, lead in behind(records, models, choice)
        ]
        parts.append(
            f"Where a rival is ahead in the {table} table:\n\n" + "\n".join(lost)
            if lost
            else f"No rival is ahead in the {table} table, of the cells that were measured."
        )
    return "\n\n".join(parts) + "\n"


def _table(records: Records, models: Sequence[str], ways: Sequence[str], choice: Choice) -> str:
    head = ["model", *(f"{way} ({next(iter(WAYS[way]))})" if choice is first else way for way in ways)]
    rows = [[model, *(_cell(records, model, way, choice) for way in ways)] for model in models]
    return markdown_table(head, rows)


def _ranges(records: Records, models: Sequence[str]) -> str:
    methods = list(WAYS[PLAIN])
    rows = [
        [model, *(_decibels(records.get(f"{model}/{PLAIN}/{method}")) for method in methods)]
        for model in models
    ]
    return markdown_table(["model", *methods], rows)


def _cell(records: Records, model: str, way: str, choice: Choice) -> str:
    if choice is picked and _missing(records, model, way):
        return "not all run"
    found = choice(records, model, way)
    text = _decibels(None if found is None else found[1])
    named = choice is picked and found is not None and "error" not in found[1] and len(WAYS[way]) > 1
    return f"{text} ({found[0]})" if named and found is not None else text


def _decibels(record: Record | None) -> str:
    if record is None:
        return "not run"
    return "refused" if "error" in record else f"{record['sqnr_db']:.1f}"


def _missing(records: Records, model: str, way: str) -> str:
    """A way with those of its variants that were not measured; empty where all were."""
    every = ((variant, records.get(f"{model}/{way}/{variant}", {})) for variant in WAYS[way])
    lacking = [variant for variant, record in every if not _is_whole(record)]
    if len(lacking) == len(WAYS[way]):
        return way
    return f"{way} ({', '.join(lacking)})" if lacking else ""


def _is_whole(record: Record) -> bool:
    """Whether held-out data was measured too, which records of older versions lack."""
    return "held_out_db" in record or "error" in record


def _metric(records: Records, model: str, way: str) -> str:
    found = None if _missing(records, model, way) else picked(records, model, way)
    return "" if found is None else str(found[1].get("metric", ""))


def _float_metric(records: Records, model: str) -> str:
    held = [record for key, record in records.items() if key.split("/")[0] == model]
    return next((str(record["float_metric"]) for record in held if "float_metric" in record), "")


def _sqnr(record: Record) -> float:
    return float(record.get("sqnr_db", -math.inf))
