"""The results of `graphwright coverage` as Markdown and in numbers."""

from __future__ import annotations

import re
import textwrap
from collections import Counter
from collections.abc import Sequence

from .records import (
    FAILED,
    NO_EXPORT,
    NO_MODEL,
    NOTHING,
    OURS,
    PROVEN,
    RIVAL,
    STATUSES,
    WRONG,
    Outcome,
    of_tool,
)

HEAD = (
    "architecture",
    "export s",
    "nodes",
    "prune s",
    "parameters M",
    "MACs M",
    "MB in the file",
    "groups pruned / places kept",
    "largest difference",
    "status",
)
MUCH_LEFT = 0.4
"""Share of the parameters above which the page says what was kept."""
_PATH = re.compile(r"(?<![\w.])(?:/[\w.+@-]+)+/([\w.+@-]+)")
RIVAL_HEAD = ("Torch-Pruning: parameters M", "MACs M", "s", "status")


def summary(outcomes: Sequence[Outcome]) -> dict[str, dict[str, int]]:
    """How many outcomes of our tool have each status, by suite."""
    counts: dict[str, dict[str, int]] = {}
    for each in outcomes:
        if each.tool == OURS:
            row = counts.setdefault(each.suite, dict.fromkeys(STATUSES, 0))
            row[each.status()] += 1
    return counts


def to_markdown(outcomes: Sequence[Outcome], asked: dict[str, int]) -> str:
    """The page.

    Args:
        outcomes: of both tools.
        asked: how many architectures each suite has, so that it can be said what did not run.
    """
    lines = [
        "# Coverage: published architectures, pruned and proven",
        "",
        *_preface(outcomes),
        "",
        "## In all",
        "",
    ]
    lines += _table(("suite", "architectures", "ran", *STATUSES), _summary_rows(outcomes, asked))
    rivals = of_tool(outcomes, RIVAL)
    ran = sum(1 for each in outcomes if each.tool == OURS)
    if ran < sum(asked.values()):
        rest = f"{sum(asked.values()) - ran} of {sum(asked.values())} have not run yet"
        lines += ["", f"{rest}; the command goes on where it was stopped."]
    if rivals:
        lines += ["", *_rival_summary(outcomes)]
    lines += ["", *_troubles(outcomes), *_large(outcomes)]
    for suite in asked:
        ours = [each for each in outcomes if each.suite == suite and each.tool == OURS]
        if not ours:
            continue
        lines += ["", f"## {suite}", ""]
        lines += _suite_table(ours, rivals)
        remarks = dict.fromkeys(each.note for each in ours if each.note)
        lines += [line for index, note in enumerate(remarks, 1) for line in ("", f"{'*' * index} {note}.")]
    return "\n".join(lines) + "\n"


def _preface(outcomes: Sequence[Outcome]) -> list[str]:
    options = ", ".join(dict.fromkeys(each.options for each in outcomes if each.options))
    return _paragraph(
        "Written by `graphwright coverage` (`make coverage`). Every architecture is built with random "
        "weights, exported from torch at a small input, pruned with `prune-channels` and saved, each "
        f"in a process of its own ({options}). *Proven* means: the saved file, loaded again, is valid, "
        "its outputs have the same shapes, and on fresh random inputs it equals the original in which "
        "the removed channels contribute nothing; the largest difference is relative to the largest "
        "value of an output. A group that the pass's own proof finds wrong is not applied, and counts "
        "as wrong numbers all the same. Seconds are wall time of one run in one thread, whatever else the "
        "machine did; `python -m graphwright.tools.pruning_speed` measures time."
    )


def _summary_rows(outcomes: Sequence[Outcome], asked: dict[str, int]) -> list[list[str]]:
    counts = summary(outcomes)
    rows = []
    for suite, number in asked.items():
        row = counts.get(suite, dict.fromkeys(STATUSES, 0))
        ran = sum(row.values())
        said = "all" if ran == number else str(ran)
        rows.append([suite, str(number), said, *(str(row[status]) for status in STATUSES)])
    return rows


def _rival_summary(outcomes: Sequence[Outcome]) -> list[str]:
    rivals = of_tool(outcomes, RIVAL)
    ours = of_tool(outcomes, OURS)
    ran = [key for key in rivals if key in ours]
    stopped = [key for key in ran if rivals[key].cause]
    wrong = [key for key in ran if rivals[key].status() == WRONG]
    equal = [key for key in ran if key not in wrong and rivals[key].difference is not None]
    proven = [key for key in ran if ours[key].status() == PROVEN]
    causes = Counter(_short(rivals[key].cause) for key in ran if rivals[key].cause)
    lines = _paragraph(
        f"Torch-Pruning 1.6.1 ran on {len(ran)} of these architectures (as it comes: by magnitude, "
        f"the same ratio, layers that give outputs left alone). It stopped at {len(stopped)}, or left a "
        f"module that does not run; {len(ran) - len(stopped)} ran afterwards with outputs of the same shape. "
        "Of these, "
        f"{len(equal)} equal the original with zeros where it removed rows and columns, {len(wrong)} do not "
        "(*wrong by*, as above), and the rest cannot be compared so, because statistics of a normalization "
        "change. Its parameters and MACs are counted by its own rules, its seconds are without any proof. Of "
        f"the same {len(ran)}, Graphwright proved {len(proven)}."
    )
    if wrong:
        lines += ["", "Where its numbers are wrong:", ""]
        lines += [f"- {suite}/{name}: {rivals[suite, name].difference:.1e}" for suite, name in wrong]
    if causes:
        lines += ["", "Where Torch-Pruning stopped:", ""]
        lines += [f"- {count} x {text}" for text, count in causes.most_common()]
    return lines


def _troubles(outcomes: Sequence[Outcome]) -> list[str]:
    """Everything that is not proven, with its cause."""
    ours = [each for each in outcomes if each.tool == OURS]
    titles = {
        WRONG: "Wrong numbers",
        FAILED: "Failed",
        NOTHING: "Nothing pruned, and what stopped it",
        NO_EXPORT: "Not exported, and why",
        NO_MODEL: "Not built, and why",
    }
    lines = []
    for status, title in titles.items():
        found = [each for each in ours if each.status() == status]
        if not found:
            continue
        lines += [f"{title}:", ""]
        lines += [f"- {each.suite}/{each.name}: {_reason(each)}" for each in found]
        lines.append("")
    return lines[:-1] if lines else ["Nothing failed."]


def _large(outcomes: Sequence[Outcome]) -> list[str]:
    """Architectures of which unusually many parameters are left, and what stopped the pass there."""
    lines = []
    for each in outcomes:
        if each.tool != OURS or each.parameters is None or not each.parameters[0]:
            continue
        left = each.parameters[1] / each.parameters[0]
        if left > MUCH_LEFT and each.status() == PROVEN:
            lines.append(f"- {each.suite}/{each.name}: {left:.2f}; {'; '.join(each.barriers)}")
    if not lines:
        return []
    said = _paragraph(
        f"At this ratio about a quarter of a layer's weights is left, and a half of one that has a model's "
        f"output or image on one side. More than {MUCH_LEFT:g} of all parameters are left of these (small "
        "networks with a large classifier, mostly), and this kept channels:"
    )
    return ["", *said, "", *lines]


def _reason(each: Outcome) -> str:
    if each.unproven:
        return f"left alone by the proof: {each.unproven[0]}"
    if each.cause:
        return f"({each.phase}) {_short(each.cause)}"
    if each.difference is not None and each.status() == WRONG:
        return f"off by {each.difference:.1e}"
    return "; ".join(each.barriers) or "no layer has channels to remove"


def _short(text: str, limit: int = 160) -> str:
    line = " ".join(_PATH.sub(r"\1", text).replace("|", "/").split())
    return line if len(line) <= limit else f"{line[:limit]}..."


def _suite_table(ours: Sequence[Outcome], rivals: dict[tuple[str, str], Outcome]) -> list[str]:
    beside = any((each.suite, each.name) in rivals for each in ours)
    notes = list(dict.fromkeys(each.note for each in ours if each.note))
    rows = []
    for each in ours:
        mark = "\\*" * (notes.index(each.note) + 1) if each.note else ""
        row = [each.name + mark, *_cells(each)]
        if beside:
            row += _rival_cells(rivals.get((each.suite, each.name)))
        rows.append(row)
    return _table((*HEAD, *RIVAL_HEAD) if beside else HEAD, rows)


def _cells(each: Outcome) -> list[str]:
    groups = f"{each.groups} / {each.kept}" if each.parameters else "-"
    return [
        _number(each.export_seconds, 1),
        str(each.nodes or "-"),
        _number(each.prune_seconds, 1),
        _pair(each.parameters, 1e6),
        _pair(each.macs, 1e6, 1),
        _pair(each.bytes, 1e6, 1),
        groups,
        "-" if each.difference is None else f"{each.difference:.1e}",
        each.status(),
    ]


def _rival_cells(each: Outcome | None) -> list[str]:
    if each is None:
        return ["-"] * len(RIVAL_HEAD)
    status = "equal" if each.difference is not None else "ran"
    if each.cause:
        status = _short(each.cause, 60)
    elif each.status() == WRONG:
        status = f"wrong by {each.difference:.1e}"
    return [_pair(each.parameters, 1e6), _pair(each.macs, 1e6, 1), _number(each.prune_seconds, 1), status]


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _pair(pair: Sequence[int | None] | None, unit: float, digits: int = 3) -> str:
    if pair is None or None in pair:
        return "-"
    before, after = (float(value or 0) / unit for value in pair)
    return f"{before:.{digits}f} -> {after:.{digits}f}"


def _paragraph(text: str) -> list[str]:
    return textwrap.wrap(text, 110, break_long_words=False, break_on_hyphens=False)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    rule = ["---", *("---:" for _ in head[1:])]
    return [f"| {' | '.join(row)} |" for row in (head, rule, *rows)]
