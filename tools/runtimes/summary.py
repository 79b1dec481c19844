"""All ratios of the runtime benchmark in one table, for the README."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from ..steps import markdown_table
from .cells import mean_text, ours_ms, row_name, thread_counts
from .contenders import RIVALS, TITLES
from .models import AS_IS, MODELS, TUNED, VARIANTS
from .records import Record


def summary_table(rows: Sequence[Record], commit: str) -> str:
    """A line per model: our time, and each rival's over ours as is and pruned; then the tuned ones.

    Cells hold a ratio for each number of threads; warm caches.
    """
    plain = {row.key: row for row in rows if row.variant in VARIANTS}
    counts = thread_counts(rows)
    if not plain or not counts:
        return "Nothing is measured yet.\n"
    words = " / ".join(map(str, counts))
    rivals = _measured(list(plain.values()), counts)
    columns = ["model", f"ours ms, {words} threads"]
    columns += [f"{TITLES[rival]} / ours, {variant}" for rival in rivals for variant in VARIANTS]
    lines = []
    for model in dict.fromkeys(model for model, _ in plain):
        first = plain.get((model, AS_IS))
        ours = "-" if first is None else " / ".join(ours_ms(first, count) for count in counts)
        cells = [
            _ratios(plain.get((model, variant)), rival, counts) for rival in rivals for variant in VARIANTS
        ]
        lines.append([MODELS[model].title, ours, *cells])
    means = [
        " / ".join(mean_text(_all(plain.values(), rival, count, variant)) for count in counts)
        for rival in rivals
        for variant in VARIANTS
    ]
    lines.append(["**geometric mean**", "", *means])
    parts = [_where(rows, commit), markdown_table(columns, lines)]
    parts += [_least(list(plain.values()), rivals, counts)]
    tuned = [row for row in rows if row.variant == TUNED]
    if tuned:
        parts += ["Tuned:", _tuned(tuned, plain, counts, words)]
    missing = [
        row_name(name, variant) for name in MODELS for variant in VARIANTS if (name, variant) not in plain
    ]
    if missing:
        parts.append(f"Not measured: {'; '.join(missing)}.")
    return "\n\n".join(parts) + "\n"


def _where(rows: Sequence[Record], commit: str) -> str:
    facts = rows[-1].machine
    older = [row_name(*row.key) for row in rows if row.commit != commit]
    text = f"{facts['cpu']}, {facts['cores']} cores, {max(row.day for row in rows)}, commit {commit}."
    return f"{text} Measured at older commits: {'; '.join(older)}." if older else text


def _tuned(
    tuned: Sequence[Record], plain: dict[tuple[str, str], Record], counts: Sequence[int], words: str
) -> str:
    rivals = _measured(tuned, counts)
    columns = ["model", f"ours ms, {words} threads", "untuned ms"]
    columns += [f"{TITLES[rival]} / ours" for rival in rivals]
    lines = []
    for row in tuned:
        before = plain.get((row.model, AS_IS))
        untuned = "-" if before is None else " / ".join(ours_ms(before, count) for count in counts)
        times = " / ".join(ours_ms(row, count) for count in counts)
        cells = [_ratios(row, rival, counts) for rival in rivals]
        lines.append([MODELS[row.model].title, times, untuned, *cells])
    means = [" / ".join(mean_text(_all(tuned, rival, count)) for count in counts) for rival in rivals]
    lines.append(["**geometric mean**", "", "", *means])
    return markdown_table(columns, lines)


def _measured(rows: Sequence[Record], counts: Sequence[int]) -> list[str]:
    """Rivals that some row has a time of."""
    return [
        rival for rival in RIVALS if any(row.ratio(rival, count, "warm") for row in rows for count in counts)
    ]


def _ratios(row: Record | None, rival: str, counts: Sequence[int]) -> str:
    if row is None:
        return "-"
    found = [row.ratio(rival, count, "warm") for count in counts]
    if not any(found):
        return "failed" if any(row.trouble(rival, count) for count in counts) else "-"
    # Who is faster shows without reading the number.
    return " / ".join(
        "-" if each is None else f"**{each:.2f}**" if each < 1 else f"{each:.2f}" for each in found
    )


def _all(rows: Iterable[Record], rival: str, count: int, variant: str | None = None) -> list[float]:
    found = [row.ratio(rival, count, "warm") for row in rows if variant in (None, row.variant)]
    return [each for each in found if each is not None]


def _least(rows: Sequence[Record], rivals: Sequence[str], counts: Sequence[int]) -> str:
    """How often each rival is ahead, and where most."""
    parts = []
    for rival in rivals:
        found = [
            (ratio, f"{row_name(*row.key)}, {count} thread{'s' if count > 1 else ''}")
            for row in rows
            for count in counts
            if (ratio := row.ratio(rival, count, "warm")) is not None
        ]
        if found:
            behind = sum(ratio < 1 for ratio, _ in found)
            least = min(found)
            parts.append(
                f"{TITLES[rival]} is ahead in {behind} of {len(found)}; least {least[0]:.2f} ({least[1]})"
            )
    return "Above 1 we are faster; bold where we are not. " + ". ".join(parts) + "."
