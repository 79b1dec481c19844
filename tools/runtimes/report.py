"""The page of the runtime benchmark: means, every row, cost of compiling and starting, the worst kernels."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from ..console import human_bytes
from ..readme import splice
from ..steps import markdown_table
from .cells import SLOW, mean_text, plural, ratio_text, row_name, thread_counts, timing_cell
from .contenders import ORT, OURS, RIVALS, TITLES
from .goals import goals, tuned_goals
from .models import MODELS, TUNED, VARIANTS, VECTORS
from .records import STATES, UNSTEADY, Record, latest

MARKER = "runtimes"
_WORST = 10
_SHARE_OF_MODEL = 0.02
"""Part of its model's time from which on a kernel call counts among the worst."""
_TEXTS = {"warm": "warm caches", "cold": "cold caches"}


def write_report(records: Sequence[Record], commit: str, output: Path) -> None:
    """Write the page, between its markers where the file has them, and the records as JSON beside it."""
    rows = table_rows(records, commit)
    text = page(rows, commit)
    if output.exists() and f"<!-- {MARKER} -->" in output.read_text(encoding="utf-8"):
        text = splice(output.read_text(encoding="utf-8"), MARKER, text)
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(text, encoding="utf-8")
    data = [_shortened(record.to_json()) for record in rows]
    lines = ",\n".join(json.dumps(each) for each in data)
    output.with_suffix(".json").write_text(f"[{lines}]\n", encoding="utf-8")


def table_rows(records: Sequence[Record], commit: str) -> list[Record]:
    """The records that count, in the order of the tables; see `latest`."""
    chosen = latest(records, commit)
    variants = (*VARIANTS, TUNED, VECTORS)
    return [chosen[name, variant] for name in MODELS for variant in variants if (name, variant) in chosen]


def _shortened(data: dict[str, Any]) -> dict[str, Any]:
    """A record as JSON with the longest kernel calls alone; the record's own file has more of them."""
    profiles = {
        threads: {**each, "longest": each.get("longest", [])[:_WORST]}
        for threads, each in data["profiles"].items()
    }
    return {**data, "profiles": profiles}


def page(found: Sequence[Record], commit: str) -> str:
    """The whole as Markdown."""
    rows = [row for row in found if row.variant in VARIANTS]
    vectors = [row for row in found if row.variant == VECTORS]
    tuned = [row for row in found if row.variant == TUNED]
    parts = [_machines(rows, commit)]
    if rows:
        wanted = [goal.cells() for goal in goals(rows, thread_counts(rows))]
        parts += ["## Goals", markdown_table(["zero trials, warm caches", "measured", "met"], wanted)]
    if tuned:
        wanted = [goal.cells() for goal in tuned_goals(tuned, thread_counts(tuned))]
        parts += [markdown_table(["tuned, warm caches", "measured", "met"], wanted)]
        parts += ["## Tuned", *_tuned(tuned, commit)]
    parts += ["## Geometric means", means(rows), *_marked(rows)]
    for threads in thread_counts(rows):
        for state in STATES:
            parts += [f"## {plural(threads)}, {_TEXTS[state]}", latencies(rows, threads, state)]
    parts += _vectors(vectors)
    parts += ["## Compiling, starting, memory, error", costs(rows)]
    parts += _kernels(rows)
    parts += _troubles(found)
    return "\n\n".join(part for part in parts if part) + "\n"


def means(rows: Sequence[Record]) -> str:
    """Geometric means of rival over ours, and how many rows were won and lost."""
    columns = ["rival", "threads", "caches", *VARIANTS, "all", "all, by p10"]
    columns += ["faster", "slower", f"below {SLOW}", "least"]
    cells = []
    for rival in RIVALS:
        for threads in thread_counts(rows):
            for state in STATES:
                found = {row.key: row.ratio(rival, threads, state) for row in rows}
                ratios = {key: ratio for key, ratio in found.items() if ratio is not None}
                if not ratios:
                    continue
                least = min(ratios, key=lambda key: ratios[key])
                quiet = [row.quiet_ratio(rival, threads, state) for row in rows]
                by_variant = [
                    [ratio for (_, variant), ratio in ratios.items() if variant == each] for each in VARIANTS
                ]
                cells.append(
                    [
                        TITLES[rival],
                        str(threads),
                        state,
                        *(mean_text(values) for values in (*by_variant, list(ratios.values()))),
                        mean_text([ratio for ratio in quiet if ratio is not None]),
                        str(sum(ratio >= 1 for ratio in ratios.values())),
                        str(sum(ratio < 1 for ratio in ratios.values())),
                        str(sum(ratio < SLOW for ratio in ratios.values())),
                        f"{ratios[least]:.2f} ({row_name(*least)})",
                    ]
                )
    return markdown_table(columns, cells)


def latencies(rows: Sequence[Record], threads: int, state: str) -> str:
    """Median and spread of every contender, and how much longer each rival takes."""
    columns = ["model", "ours ms"]
    for rival in RIVALS:
        columns += [f"{TITLES[rival]} ms", "/ ours"]
    cells = []
    for row in rows:
        line = [row_name(*row.key), timing_cell(row, OURS, threads, state)]
        for rival in RIVALS:
            line += [timing_cell(row, rival, threads, state), ratio_text(row.ratio(rival, threads, state))]
        cells.append(line)
    return markdown_table(columns, cells)


def costs(rows: Sequence[Record]) -> str:
    """What there is besides latency, on one thread or the fewest that were measured."""
    columns = ["model", "parameters", "compile s (CPU s)", "kernels", "products", "max rel. error"]
    columns += [
        "error of rivals",
        "start to first result s, ours",
        "ORT",
        "peak memory, ours",
        "ORT",
        "GFLOP/s",
        "of peak",
    ]
    return markdown_table(columns, [_cost_cells(row) for row in rows])


def _vectors(rows: Sequence[Record]) -> Iterator[str]:
    """Latencies where float32 is multiplied by vectors alone."""
    if not rows:
        return
    yield "## Without products on tile registers"
    yield "The same models compiled for `host,-amx-bf16`: float32 multiplied by vectors, as the rivals do it."
    for threads in thread_counts(rows):
        yield f"{plural(threads).capitalize()}, {_TEXTS[STATES[0]]}:"
        yield latencies(rows, threads, STATES[0])


def _tuned(rows: Sequence[Record], commit: str) -> Iterator[str]:
    """Latencies of tuned models, and what tuning took and gave."""
    for threads in thread_counts(rows):
        for state in STATES:
            yield f"{plural(threads).capitalize()}, {_TEXTS[state]}:"
            yield latencies(rows, threads, state)
    cells = []
    for row in rows:
        for count, found in row.compiled.get("by_threads", {}).items():
            tuning = row.compiled.get("tuning", {}).get(count)
            cells.append(
                [
                    row_name(*row.key),
                    count,
                    f"{tuning['seconds'] / 60:.1f}, ended {tuning['ended']}" if tuning else "before",
                    str(tuning.get("trials", "-")) if tuning else "-",
                    f"{found['tuned_kernels']} of {found['kernels']}",
                    f"{found['times_untuned']:.2f}" + ("" if found["is_tuned"] else " (the untuned one ran)"),
                    row.commit if row.commit != commit else "",
                ]
            )
    columns = [
        "model",
        "threads",
        "tuned for minutes",
        "trials",
        "kernels by records",
        "times the untuned speed",
    ]
    yield markdown_table([*columns, "older commit"], cells)


def _cost_cells(row: Record) -> list[str]:
    threads = min(map(int, row.contenders.get(OURS, {"1": {}})))
    kept = row.facts.get("parameters_kept")
    parameters = row.facts.get("parameters")
    compiled = row.compiled
    start = row.startup.get(str(threads), {})
    profile = row.profiles.get(str(threads), {})
    errors = [_error(row, rival, threads) for rival in RIVALS]
    return [
        row_name(*row.key),
        "-" if parameters is None else f"{parameters / 1e6:.1f} M" + (f" ({kept:.0%})" if kept else ""),
        f"{compiled['seconds']:.1f} ({compiled['cpu_seconds']:.1f})" if compiled else "-",
        str(compiled.get("kernels", "-")),
        str(compiled.get("products", "-")),
        _error(row, OURS, threads),
        " / ".join(errors),
        *(_better(start, lambda each: each["seconds"], lambda value: f"{value:.2f}")),
        *(_better(start, lambda each: each["peak_bytes"], human_bytes)),
        f"{profile['gflops']:.0f}" if profile else "-",
        f"{profile['share_of_peak']:.0%}" if profile else "-",
    ]


def _better(
    found: dict[str, Any], value: Callable[[dict[str, Any]], float], text: Callable[[float], str]
) -> list[str]:
    """Ours and ONNX Runtime's; ours is marked where it is the larger one."""
    if OURS not in found or ORT not in found:
        return ["-", "-"]
    ours, theirs = value(found[OURS]), value(found[ORT])
    return [f"**{text(ours)} MORE**" if ours > theirs else text(ours), text(theirs)]


def worst_kernels(rows: Sequence[Record], threads: int) -> list[tuple[Record, dict[str, Any]]]:
    """The kernel calls with the smallest share of peak among those that matter to their model.

    Calls of the same kernel on the same shapes in a model count once.
    """
    found: dict[tuple[Any, ...], tuple[Record, dict[str, Any]]] = {}
    for row in rows:
        for call in row.profiles.get(str(threads), {}).get("longest", ()):
            if call["share_of_peak"] is None:
                continue
            same = (row.key, call["kind"], call["note"], *call["shapes"])
            if same in found:
                known = found[same][1]
                times, share = known["times"] + 1, known["share_all"] + call["share"]
                found[same] = (row, {**known, "times": times, "share_all": share})
            else:
                found[same] = (row, {**call, "times": 1, "share_all": call["share"]})
    ranked = [each for each in found.values() if each[1]["share_all"] >= _SHARE_OF_MODEL]
    return sorted(ranked, key=lambda each: each[1]["share_of_peak"])


def costliest_kernels(rows: Sequence[Record], threads: int) -> list[tuple[Record, dict[str, Any]]]:
    """The kernel calls that keep their model longest from its time at the machine's peak."""

    def lost(each: tuple[Record, dict[str, Any]]) -> float:
        call = each[1]
        return call["share_all"] * (1 - min(1.0, call["share_of_peak"]))

    return sorted(worst_kernels(rows, threads), key=lost, reverse=True)


def _kernels(rows: Sequence[Record]) -> Iterator[str]:
    counts = thread_counts(rows)
    if not counts:
        return
    threads = counts[0]
    yield f"## The {_WORST} worst kernels, {plural(threads)}"
    yield (
        f"The smallest share of the machine's measured peak (arithmetic or bandwidth, whichever binds) among "
        f"kernels that take at least {_SHARE_OF_MODEL:.0%} of their model's time:"
    )
    yield _kernel_table(worst_kernels(rows, threads)[:_WORST])
    yield "Those that lose the largest part of their model's time against the peak:"
    yield _kernel_table(costliest_kernels(rows, threads)[:_WORST])


def _kernel_table(found: Sequence[tuple[Record, dict[str, Any]]]) -> str:
    columns = ["model", "kernel", "shapes", "calls", "ms", "of the model", "GFLOP/s", "bound", "of peak"]
    cells = [
        [
            row_name(*row.key),
            call["note"] or call["kind"],
            _shapes(call["shapes"]),
            str(call["times"]),
            f"{call['median_ms']:.3f}",
            f"{call['share_all']:.0%}",
            "-" if call["gflops"] is None else f"{call['gflops']:.1f}",
            call["bound"],
            f"{call['share_of_peak']:.0%}",
        ]
        for row, call in found
    ]
    return markdown_table(columns, cells)


def _shapes(shapes: Sequence[str]) -> str:
    short = [shape.removeprefix("float32") for shape in shapes]
    if len(short) > 5:
        short = [*short[:3], f"({len(short) - 4} more)", short[-1]]
    return " ".join(short[:-1]) + f" -> {short[-1]}" if short else "-"


def _machines(rows: Sequence[Record], commit: str) -> str:
    if not rows:
        return "Nothing is measured yet."
    described = dict.fromkeys(map(_machine, rows))
    days = sorted({row.day for row in rows if row.contenders} or {row.day for row in rows})
    other = {row.commit for row in rows} - {commit}
    when = days[0] if len(days) == 1 else f"{days[0]} to {days[-1]}"
    lines = [
        f"{len(rows)} of {len(MODELS) * len(VARIANTS)} rows, measured {when} at commit {commit}, zero tuning "
        f"trials. {' '.join(described)}"
    ]
    if other:
        older = [f"{row_name(*row.key)} ({row.commit})" for row in rows if row.commit != commit]
        lines.append(f"Measured at other commits: {'; '.join(older)}.")
    missing = [
        row_name(name, variant)
        for name in MODELS
        for variant in VARIANTS
        if (name, variant) not in {row.key for row in rows}
    ]
    if missing:
        lines.append(f"Not measured: {'; '.join(missing)}.")
    return "\n\n".join(lines)


def _machine(row: Record) -> str:
    facts = row.machine
    return (
        f"{facts['cpu']}, {facts['cores']} cores; TVM {facts['apache-tvm']}, ONNX Runtime "
        f"{facts['onnxruntime']}, OpenVINO {facts.get('openvino', '-')}, torch {facts.get('torch', '-')}."
    )


def _marked(rows: Sequence[Record]) -> Iterator[str]:
    """Rows below `SLOW` in words, where they do not have to be looked for."""
    lines = []
    for rival in RIVALS:
        for threads in thread_counts(rows):
            for state in STATES:
                ratios = [(row, row.ratio(rival, threads, state)) for row in rows]
                slow = sorted((ratio, row_name(*row.key)) for row, ratio in ratios if ratio and ratio < SLOW)
                if slow:
                    named = ", ".join(f"{name} {ratio:.2f}" for ratio, name in slow)
                    lines.append(f"- {TITLES[rival]}, {plural(threads)}, {state}: {named}")
    if lines:
        yield f"Rows in which we are slower than {SLOW} of a rival's speed:"
        yield "\n".join(lines)
    elif rows:
        yield f"No row is below {SLOW} of any rival's speed."
    shaky = [
        f"- {plural(threads)}, {state}, {row_name(*row.key)}: {', '.join(TITLES[name] for name in names)}"
        for threads in thread_counts(rows)
        for state in STATES
        for row in rows
        if (names := row.unsteady(threads, state))
    ]
    if shaky:
        yield f"Unsteady: the 90th percentile is more than {UNSTEADY:g} times the 10th, medians say little:"
        yield "\n".join(shaky)


def _troubles(rows: Sequence[Record]) -> Iterator[str]:
    lines = [f"- {row_name(*row.key)}: {row.failure}" for row in rows if row.failure]
    for row in rows:
        lines += [f"- {row_name(*row.key)}: {note}" for note in row.notes]
        for name in (OURS, *RIVALS):
            reasons = {row.trouble(name, threads) for threads in thread_counts([row])} - {""}
            lines += [f"- {row_name(*row.key)}, {TITLES[name]}: {reason}" for reason in sorted(reasons)]
    if lines:
        yield "## What could not be measured"
        yield "\n".join(lines)


def _error(row: Record, name: str, threads: int) -> str:
    value = row.contenders.get(name, {}).get(str(threads), {}).get("max_relative_error")
    return "-" if value is None else f"{value:.0e}"
