"""The tables of `make bench-int8`: goals, every model, means for the README."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from .bench import machine
from .int8_measure import FLOAT_TVM, INT4, INT8, MODELS, ORT, ORT_FLOAT, Row
from .measure import times_text
from .runtimes.goals import Goal, geometric_mean
from .steps import markdown_table

MEAN, TUNED_MEAN = 1.2, 1.4
"""Times the speed of ONNX Runtime int8 on the same file, with zero trials and tuned."""
SHARES = {INT8: 0.27, INT4: 0.16}
"""Of the size of the float artifact."""


def goals(rows: Sequence[Row], threads: Sequence[int], trials: int = 0) -> list[Goal]:
    """What int8 is meant to reach, beside what was measured; rows that failed are no success."""
    measured, failed = _split(rows)
    found = []
    wanted = TUNED_MEAN if trials else MEAN
    for count in threads:
        ratios = {row.name: row.ratio(FLOAT_TVM, count) for row in measured}
        faster = sum(ratio > 1 for ratio in ratios.values())
        what = f"int8 faster than float, {_where(count)}"
        found.append(_each(what, ratios, faster, len(failed), min, "{:.2f}"))
    for count in threads:
        what = f"geometric mean at least {wanted} times ONNX Runtime int8's speed, {_where(count)}"
        mean = geometric_mean([row.ratio(ORT, count) for row in measured])
        known = bool(measured) and not failed
        found.append(Goal(what, f"{mean:.2f}" if measured else "-", mean >= wanted if known else None))
    for form, most in SHARES.items():
        shares = {row.name: row.share(form) for row in measured}
        what = f"{form} artifact at most {most:.0%} of float's"
        kept = [name for name, share in shares.items() if share <= most]
        found.append(_each(what, shares, len(kept), len(failed), max, "{:.1%}"))
    return found


def _each(
    what: str,
    values: dict[str, float],
    met: int,
    failed: int,
    worst: Callable[..., str],
    form: str,
) -> Goal:
    """A goal of every model; the worst one is named, and one that failed has not met it."""
    if not values:
        return Goal(what, "-", None)
    name = worst(values, key=values.__getitem__)
    words = f"{met} of {len(values) + failed} models; worst {form.format(values[name])} ({name})"
    return Goal(what, words, met == len(values) + failed)


def markdown(rows: Sequence[Row], threads: Sequence[int], trials: int = 0) -> str:
    """What it was measured on, the goals, every model, the geometric means, and what failed."""
    columns = ["model", "threads", "int8 ms", "float ms", "ORT int8 ms", "ORT float ms", "float / int8"]
    columns += ["ORT int8 / int8", "size int8", "size int4", "SQNR to the reference", "kernels"]
    measured, failed = _split(rows)
    cells = [_cells(row, count) for row in measured for count in threads]
    means = [
        f"Geometric mean of ONNX Runtime int8 over ours, {_where(count)}: "
        f"{geometric_mean([row.ratio(ORT, count) for row in measured]):.2f}"
        for count in threads
    ]
    found = [goal.cells() for goal in goals(rows, threads, trials)]
    parts = [
        _header(rows, trials),
        markdown_table([_tuning(trials), "measured", "met"], found),
        markdown_table(columns, cells),
        "\n".join(means),
    ]
    if failed:
        parts.append("\n".join(f"- {row.name}: {row.failure}" for row in failed))
    absent = [name for name in MODELS if name not in {row.name for row in rows}]
    if absent:
        parts.append(f"Not measured: {', '.join(absent)}.")
    return "\n\n".join(parts)


def _cells(row: Row, count: int) -> list[str]:
    return [
        row.name,
        str(count),
        *(times_text(*row.timings[each][str(count)]) for each in (INT8, FLOAT_TVM, ORT, ORT_FLOAT)),
        f"{row.ratio(FLOAT_TVM, count):.2f}",
        f"{row.ratio(ORT, count):.2f}",
        f"{row.share(INT8):.1%}",
        f"{row.share(INT4):.1%}",
        f"{row.sqnr:.1f} dB",
        f"{row.integer[0]} integer, {row.integer[1]} float",
    ]


def summary(rows: Sequence[Row], threads: Sequence[int]) -> str:
    """Ratios of every model in a line, for the README."""
    words = " / ".join(map(str, threads))
    columns = ["model", f"int8 ms, {words} threads", "float / int8", "ONNX Runtime int8 / int8", "size int8"]
    columns.append("size int4")
    measured, failed = _split(rows)
    lines = [
        [
            row.name,
            " / ".join(f"{row.median(INT8, count):.2f}" for count in threads),
            " / ".join(_marked(row.ratio(FLOAT_TVM, count)) for count in threads),
            " / ".join(_marked(row.ratio(ORT, count)) for count in threads),
            f"{row.share(INT8):.1%}",
            f"{row.share(INT4):.1%}",
        ]
        for row in measured
    ]
    means = [
        " / ".join(
            f"{geometric_mean([row.ratio(rival, count) for row in measured]):.2f}" for count in threads
        )
        for rival in (FLOAT_TVM, ORT)
    ]
    lines.append(["**geometric mean**", "", *means, "", ""])
    missing = [row.name for row in failed] + [n for n in MODELS if n not in {row.name for row in rows}]
    parts = [markdown_table(columns, lines), "Above 1 we are faster; bold where we are not."]
    if missing:
        parts[-1] += f" Not measured: {', '.join(missing)}."
    return "\n\n".join(parts)


def _marked(ratio: float) -> str:
    return f"**{ratio:.2f}**" if ratio < 1 else f"{ratio:.2f}"


def _split(rows: Sequence[Row]) -> tuple[list[Row], list[Row]]:
    return [row for row in rows if not row.failure], [row for row in rows if row.failure]


def _header(rows: Sequence[Row], trials: int) -> str:
    facts = machine()
    commits = ", ".join(dict.fromkeys(row.commit for row in rows if row.commit))
    days = sorted({row.day for row in rows if row.day})
    when = f", {' to '.join(dict.fromkeys((days[0], days[-1])))}" if days else ""
    return (
        f"{facts['cpu']}, {facts['cores']} cores{when}{', commit ' + commits if commits else ''}; TVM "
        f"{facts['apache-tvm']}, ONNX Runtime {facts['onnxruntime']}; medians (10th-90th percentile), "
        f"{_tuning(trials)}, in turns; sizes of library and weights beside those of float."
    )


def _tuning(trials: int) -> str:
    return f"{trials or 'zero'} tuning trials"


def _where(threads: int) -> str:
    return "1 thread" if threads == 1 else f"{threads} threads"
