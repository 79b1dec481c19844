"""What the comparison of simplifiers shows: tables, sums, growth, and where rivals win or fail."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from ..console import print_line, print_table
from ..steps import markdown_table
from .bench import FUSED, OURS, RIVALS, SLOW_SECONDS, Outcome
from .models import LARGE, SYNTHETIC

GROWTH = 1.05
"""Factor by which constants may grow."""


def print_report(outcomes: Sequence[Outcome]) -> None:
    """Print one line per model and tool, then sums, growth and findings."""
    head = ["model", "tool", "nodes", "wall ms (min-max)", "CPU ms", "cold s", "memory MiB", "constants"]
    rows = [
        [
            o.model,
            o.tool,
            f"{o.nodes_before} -> {_nodes(o)}",
            f"{_ms(o.wall)} ({_ms(o.fastest)}-{_ms(o.slowest)})" + (" 1 run" if _cut_short(o) else ""),
            _ms(o.cpu),
            f"{o.cold:.2f}",
            f"{o.memory / 2**20:.0f}",
            f"{o.constant_bytes / max(o.bytes_before, 1):.2f}" if o.nodes else "-",
            f"{o.difference:.1g}" if o.difference == o.difference else "-",
        ]
        for o in outcomes
    ]
    print_table("simplifiers", [*head, "difference"], rows, left=2)
    for line in (*summary(outcomes), *findings(outcomes)):
        print_line(line)


def markdown(outcomes: Sequence[Outcome]) -> str:
    """The same as pages: a table of times, of nodes and of memory, then sums, growth and findings."""
    parts = [
        ("Wall time, ms: median (least-most)", _times),
        ("Nodes left", _nodes),
        ("Cold: start of the process to finished file, s", lambda o: f"{o.cold:.2f}" if o.runs else "-"),
        ("Peak memory beyond the imported tool, MiB", lambda o: f"{o.memory / 2**20:.0f}" if o.runs else "-"),
    ]
    tools = _tools(outcomes)
    found = {(o.model, o.tool): o for o in outcomes}
    models = list(dict.fromkeys(o.model for o in outcomes))
    blocks = []
    for title, cell in parts:
        rows = []
        for model in models:
            present = [found.get((model, tool)) for tool in tools]
            before = next(o.nodes_before for o in present if o is not None)
            rows.append([model, str(before), *("-" if o is None else cell(o) for o in present)])
        blocks.append(f"**{title}**\n\n{markdown_table(['model', 'nodes before', *tools], rows)}")
    lists = ("\n".join(f"- {line}" for line in lines) for lines in (summary(outcomes), findings(outcomes)))
    return "\n\n".join([*blocks, *(text for text in lists if text)]) + "\n"


def _times(o: Outcome) -> str:
    if not o.runs:
        return "crashes" if o.error.startswith("crashes") else "not done"
    mark = " (wrong)" if o.error else " (1 run)" if _cut_short(o) else ""
    return f"{_ms(o.wall)} ({_ms(o.fastest)}-{_ms(o.slowest)}){mark}"


def _cut_short(o: Outcome) -> bool:
    return o.cold > SLOW_SECONDS


def _nodes(o: Outcome) -> str:
    if not o.runs:
        return "-"
    return f"{o.nodes}" + (f" ({o.foreign} non-standard)" if o.foreign else "")


def _ms(seconds: float) -> str:
    if seconds != seconds:
        return "-"
    return f"{seconds * 1e3:.1f}" if seconds < 0.1 else f"{seconds * 1e3:.0f}"


def _tools(outcomes: Sequence[Outcome]) -> list[str]:
    return [tool for tool in (OURS, FUSED, *RIVALS) if any(o.tool == tool for o in outcomes)]


def total(outcomes: Sequence[Outcome], tool: str, against: Sequence[str]) -> tuple[float, int]:
    """Seconds of `tool` over the models that it and all of `against` take without an error, and how many."""
    taken = [
        {o.model for o in outcomes if o.tool == each and not o.error}
        for each in dict.fromkeys((tool, *against))
    ]
    models = set.intersection(*taken)
    return sum(o.wall for o in outcomes if o.tool == tool and o.model in models), len(models)


def summary(outcomes: Sequence[Outcome]) -> list[str]:
    """Sums over the models that every tool takes, ours against each rival, and growth; one line each."""
    tools = _tools(outcomes)
    lines = []
    for tool in tools:
        seconds, count = total(outcomes, tool, tools)
        exponent = growth_exponent(outcomes, tool)
        grows = f"; time grows with nodes to the power of {exponent:.2f}" if exponent == exponent else ""
        lines.append(f"{tool}: {seconds:.2f} s over the {count} models that every tool takes{grows}")
    for ours in (tool for tool in tools if tool in (OURS, FUSED)):
        for rival in (tool for tool in tools if tool in RIVALS):
            mine, count = total(outcomes, ours, [rival])
            theirs, _ = total(outcomes, rival, [ours])
            if count:
                lines.append(
                    f"{ours} against {rival}, {count} models that both take: {mine:.2f} s against "
                    f"{theirs:.2f} s, ratio {mine / theirs:.2f}"
                )
    return lines


def findings(outcomes: Sequence[Outcome]) -> list[str]:
    """Where a tool fails or changes outputs, where a rival wins, and where we miss what we promise."""
    lines = [f"{o.model}: {o.tool} {o.error}" for o in outcomes if o.error]
    for ours in (o for o in outcomes if o.tool in (OURS, FUSED) and not o.error):
        for rival in (o for o in outcomes if o.model == ours.model and o.tool in RIVALS and not o.error):
            if rival.nodes < ours.nodes:
                lines.append(
                    f"{ours.model}: {rival.tool} leaves {_nodes(rival)} nodes, {ours.tool} {ours.nodes}"
                )
            if rival.wall < ours.wall:
                lines.append(
                    f"{ours.model}: {rival.tool} takes {_ms(rival.wall)} ms, {ours.tool} {_ms(ours.wall)}"
                )
        if ours.constant_bytes > GROWTH * ours.bytes_before:
            lines.append(
                f"{ours.model}: constants of {ours.tool} grew from {ours.bytes_before} to "
                f"{ours.constant_bytes} bytes"
            )
        if ours.model == LARGE and ours.memory > 2 * ours.bytes_before:
            ratio = ours.memory / ours.bytes_before
            lines.append(f"{ours.model}: {ours.tool} peaks at {ratio:.2f} times the model")
    return lines


def growth_exponent(outcomes: Sequence[Outcome], tool: str) -> float:
    """Exponent b of time = a * nodes^b over the synthetic graphs; NaN with fewer than two."""
    points = [
        (o.nodes_before, o.wall)
        for o in outcomes
        if o.tool == tool and o.model.startswith(SYNTHETIC) and o.wall == o.wall
    ]
    if len(points) < 2:
        return math.nan
    nodes, seconds = np.log(np.array(points)).T
    return float(np.polyfit(nodes, seconds, 1)[0])
