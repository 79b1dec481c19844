"""A graph diff for people: terminal text, Markdown, and one self-contained HTML page.

Everything shown comes from model files that nobody has vouched for: text is escaped where it enters a page.
"""

from __future__ import annotations

import html
from collections.abc import Callable, Iterable
from typing import Any

from .diff import GraphDiff, NodeEntry, Total

_NO_DIFFERENCES = "no differences"
_MOST_OPEN_ROWS = 200


def as_text(diff: GraphDiff, limit: int | None = None) -> str:
    """The diff in the manner of `diff -u`: `-` gone, `+` new, `~` different.

    Args:
        diff: what to show.
        limit: longest length of a list; the rest is counted.
    """
    lines = [f"--- {diff.before_name}", f"+++ {diff.after_name}"]
    if not diff.changed:
        return _joined([*lines, _NO_DIFFERENCES, *_renamed_lines(diff)])
    lines += ["", f"{'':<18}{'before':>18}{'after':>18}{'change':>10}"]
    lines += [
        f"{t.label:<18}{_number(t.before):>18}{_number(t.after):>18}{_change(t):>10}" for t in diff.totals
    ]
    if diff.operators:
        lines += ["", "operators:"]
        lines += [f"  {op}: {before} -> {after}" for op, (before, after) in diff.operators.items()]
    lines += _section("interface", [[f"~ {line}"] for line in diff.interface], limit)
    lines += _section("nodes removed", [[f"- {_entry(e)}"] for e in diff.removed], limit)
    lines += _section("nodes added", [[f"+ {_entry(e)}"] for e in diff.added], limit)
    changed = [
        [f"~ {change.scope}{change.name} ({change.op_type})", *(f"    {d}" for d in change.details)]
        for change in diff.modified
    ]
    lines += _section("nodes changed", changed, limit)
    marks = {"added": "+", "removed": "-"}
    weights = [[f"{marks.get(w.kind, '~')} {w.name} {w.kind}: {w.detail}"] for w in diff.weights]
    lines += _section("weights", weights, limit)
    return _joined([*lines, *_renamed_lines(diff)])


def as_markdown(diff: GraphDiff) -> str:
    """The diff as Markdown: tables for numbers, fenced text for graphs."""
    title = f"# Graph diff: {_cell(diff.before_name)} → {_cell(diff.after_name)}"
    if not diff.changed:
        return f"{title}\n\nThe graphs are equal: {_NO_DIFFERENCES}.\n"
    parts = [title, "", "| | before | after | change |", "|---|--:|--:|--:|"]
    for t in diff.totals:
        parts.append(f"| {t.label} | {_cell(_number(t.before))} | {_cell(_number(t.after))} | {_change(t)} |")
    if diff.operators:
        parts += ["", "| operator | before | after |", "|---|--:|--:|"]
        parts += [f"| {_cell(op)} | {b} | {a} |" for op, (b, a) in diff.operators.items()]
    body = as_text(diff).split("\n\n", 2)[-1].replace("```", "'''")
    return "\n".join([*parts, "", "```diff", body.rstrip(), "```", ""])


def _joined(lines: list[str]) -> str:
    return "\n".join(_clean(line).rstrip() for line in lines) + "\n"


def _section(title: str, items: list[list[str]], limit: int | None) -> list[str]:
    if not items:
        return []
    shown = items if limit is None else items[:limit]
    lines = [f"  {line}" for item in shown for line in item]
    if len(shown) < len(items):
        lines.append(f"  ... and {len(items) - len(shown)} more")
    return ["", f"{title} ({len(items)}):", *lines]


def _renamed_lines(diff: GraphDiff) -> list[str]:
    if not diff.renamed:
        return []
    shown = ", ".join(f"{a} -> {b}" for a, b in diff.renamed[:3])
    more = ", ..." if len(diff.renamed) > 3 else ""
    return ["", f"renamed without any other difference ({len(diff.renamed)}): {shown}{more}"]


def _entry(entry: NodeEntry) -> str:
    origin = f"  # {entry.origin}" if entry.origin else ""
    return f"{entry.scope}{entry.name}: {entry.text}{origin}"


def _number(value: int | str | None) -> str:
    if value is None:
        return "?"
    return f"{value:,}" if isinstance(value, int) else value


def _change(total: Total) -> str:
    if not isinstance(total.before, int) or not isinstance(total.after, int) or total.before == total.after:
        return ""
    if total.before == 0:
        return "new"
    percent = (total.after / total.before - 1) * 100
    return f"{percent:+.1f} %" if abs(percent) >= 0.05 else f"{'+' if percent > 0 else '-'}<0.1 %"


def _clean(text: str) -> str:
    return "".join(c if c.isprintable() else "?" for c in text)


def _cell(text: str) -> str:
    return _clean(text).replace("|", "\\|").replace("`", "'").replace("<", "&lt;")


_STYLE = """
:root { color-scheme: light dark; --line: #8884; --minus: #d33; --plus: #2a2; --soft: #8881; }
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 82rem; padding: 0 1rem; }
h1 { font-size: 1.4rem; } h2 { font-size: 1.1rem; margin-top: 2rem; }
table { border-collapse: collapse; } td, th { padding: .25rem .8rem; border-bottom: 1px solid var(--line); }
td.n, th.n { text-align: right; font-variant-numeric: tabular-nums; }
th { text-align: left; font-weight: 600; }
code, li { font: 13px/1.5 ui-monospace, monospace; overflow-wrap: anywhere; }
.pair { display: grid; grid-template-columns: 1fr 1fr; gap: 1.5rem; } .pair > * { min-width: 0; }
ul { list-style: none; padding: 0; margin: 0; }
li { padding: .15rem .5rem; border-left: 3px solid var(--line); }
.minus li, li.minus { border-color: var(--minus); } .plus li, li.plus { border-color: var(--plus); }
.muted { opacity: .65; } details { background: var(--soft); padding: .3rem .6rem; margin: .3rem 0; }
summary { cursor: pointer; font: 13px/1.5 ui-monospace, monospace; }
"""


def as_html(diff: GraphDiff) -> str:
    """The diff as one page without scripts or anything loaded from elsewhere."""
    e = _html
    title = f"{e(diff.before_name)} → {e(diff.after_name)}"
    parts = [
        "<!doctype html>",
        '<html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>Graph diff: {title}</title><style>{_STYLE}</style></head><body>",
        f"<h1>Graph diff: {title}</h1>",
        "" if diff.changed else f"<p>{_NO_DIFFERENCES}</p>",
        _html_table(
            ("", "before", "after", "change"),
            [(t.label, _number(t.before), _number(t.after), _change(t)) for t in diff.totals],
        ),
    ]
    if diff.operators:
        rows = [(op, str(b), str(a), f"{a - b:+d}") for op, (b, a) in diff.operators.items()]
        parts += ["<h2>Operators</h2>", _html_table(("operator", "before", "after", "change"), rows)]
    parts += _html_list("Interface", diff.interface, lambda line: f"<li>{e(line)}</li>")
    if diff.removed or diff.added:
        parts += [
            '<div class="pair"><section class="minus">',
            *(_html_list("Removed", diff.removed, _html_entry, always=True)),
            '</section><section class="plus">',
            *(_html_list("Added", diff.added, _html_entry, always=True)),
            "</section></div>",
        ]
    if diff.modified:
        parts.append(f"<h2>Changed ({len(diff.modified)})</h2>")
    for change in diff.modified:
        parts += [
            f"<details><summary>{e(change.scope)}<b>{e(change.name)}</b> ({e(change.op_type)}): "
            f"{e('; '.join(change.details))}</summary>",
            f'<div class="pair"><ul class="minus"><li>{e(change.before)}</li></ul>'
            f'<ul class="plus"><li>{e(change.after)}</li></ul></div></details>',
        ]
    marks = {"added": "plus", "removed": "minus"}
    parts += _html_list(
        "Weights",
        diff.weights,
        lambda w: f'<li class="{marks.get(w.kind, "")}"><b>{e(w.name)}</b> {e(w.kind)}: {e(w.detail)}</li>',
    )
    parts += _html_list(
        "Renamed, otherwise equal", diff.renamed, lambda pair: f"<li>{e(pair[0])} → {e(pair[1])}</li>"
    )
    return "\n".join([*parts, "</body></html>", ""])


def _html(text: str) -> str:
    return html.escape(_clean(text), quote=True)


def _html_entry(entry: NodeEntry) -> str:
    origin = f'<br><span class="muted">{_html(entry.origin)}</span>' if entry.origin else ""
    return f"<li><b>{_html(entry.scope + entry.name)}</b><br>{_html(entry.text)}{origin}</li>"


def _html_list(
    title: str, items: Iterable[Any], render: Callable[[Any], str], *, always: bool = False
) -> list[str]:
    rows = [render(item) for item in items]
    if not rows and not always:
        return []
    listed = ["<ul>", *rows, "</ul>"]
    if len(rows) > _MOST_OPEN_ROWS:
        listed = [f"<details><summary>show all {len(rows)}</summary>", *listed, "</details>"]
    return [f"<h2>{title} ({len(rows)})</h2>", *listed]


def _html_table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    def cells(tag: str, row: tuple[str, ...]) -> str:
        return "".join(
            f"<{tag}{' class=n' if index else ''}>{_html(cell)}</{tag}>" for index, cell in enumerate(row)
        )

    body = "".join(f"<tr>{cells('td', row)}</tr>" for row in rows)
    return f"<table><tr>{cells('th', head)}</tr>{body}</table>"
