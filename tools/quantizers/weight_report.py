"""Records of weights alone as Markdown: one table of ways that need no data, one of those that use some."""

from __future__ import annotations

from collections.abc import Sequence

from ..steps import markdown_table
from .report import Records
from .weight_rivals import NO_DATA, USES_DATA, WEIGHT_WAYS, WITH_DATA, Setting, settings_of


def weight_markdown(records: Records, models: Sequence[str], ways: Sequence[str]) -> str:
    """SQNR by model and grid, task metrics, refusals, and where a rival is ahead of ours."""
    parts: list[str] = []
    for title, chosen in (
        ("without data", [way for way in ways if way not in USES_DATA]),
        ("with calibration data", [way for way in ways if way in USES_DATA]),
    ):
        if chosen:
            parts += [f"SQNR at the output {title}, dB:", _table(records, models, chosen, "sqnr_db")]
    tasks = [model for model in models if any("metric" in records.get(key, {}) for key in _keys(model, ways))]
    if tasks:
        parts += ["Task metrics:", _table(records, tasks, ways, "metric", transposed=True)]
    refused: dict[str, list[str]] = {}
    for model in models:
        for key in _keys(model, ways):
            if "error" in (record := records.get(key, {})):
                name, way, variant = key.split("/")
                refused.setdefault(f"{name}, {way}: {record['error']}", []).append(variant)
    if refused:
        lines = [f"- {what} ({', '.join(variants)})" for what, variants in refused.items()]
        parts += ["Refused or failed:", "\n".join(lines)]
    lost = weights_behind(records, models, ways)
    if lost:
        lines = [f"- {model}, {setting}: {rival}: {lead:.1f} dB" for model, setting, rival, lead in lost]
        parts.append("Where a rival is ahead on the same grid:\n\n" + "\n".join(lines))
    else:
        parts.append("No rival is ahead on the same grid, of the cells that were measured.")
    return "\n\n".join(parts) + "\n"


def weights_behind(
    records: Records, models: Sequence[str], ways: Sequence[str]
) -> list[tuple[str, str, str, float]]:
    """(model, grid, rival, decibels) where a rival that knows as much as ours has the higher SQNR."""
    lines = []
    for model in models:
        for setting in settings_of(model):
            for way in ways:
                ours = WITH_DATA if way in USES_DATA else NO_DATA
                mine, theirs = (records.get(_key(model, each, setting), {}) for each in (ours, way))
                if way == ours or "sqnr_db" not in mine or "sqnr_db" not in theirs:
                    continue
                lead = theirs["sqnr_db"] - mine["sqnr_db"]
                if lead > 0.0:
                    lines.append((model, setting.name, way, lead))
    return lines


def _table(
    records: Records, models: Sequence[str], ways: Sequence[str], field: str, *, transposed: bool = False
) -> str:
    cells = {
        (model, setting.name): [_cell(records, model, way, setting, field) for way in ways]
        for model in models
        for setting in settings_of(model)
    }
    named = {key: row for key, row in cells.items() if any(row)}
    if not transposed:
        rows = [[model, grid, *row] for (model, grid), row in named.items()]
        return markdown_table(["model", "weights", *ways], rows)
    # Metrics are long: a line for each way.
    lines = [
        [model, grid, way, text]
        for (model, grid), row in named.items()
        for way, text in zip(ways, row, strict=True)
        if text not in ("", "refused", "not run")
    ]
    return markdown_table(["model", "weights", "way", "metric"], lines)


def _cell(records: Records, model: str, way: str, setting: Setting, field: str) -> str:
    if setting.name not in WEIGHT_WAYS[way]:
        return ""
    record = records.get(_key(model, way, setting))
    if record is None:
        return "not run"
    if "error" in record:
        return "refused"
    return f"{record[field]:.1f}" if field == "sqnr_db" else str(record.get(field, ""))


def _keys(model: str, ways: Sequence[str]) -> list[str]:
    return [_key(model, way, setting) for way in ways for setting in settings_of(model)]


def _key(model: str, way: str, setting: Setting) -> str:
    return f"{model}/{way}/{setting.name}"
