"""Where commands write: results (tables or JSON) on standard output, progress on standard error."""

from __future__ import annotations

import contextlib
import io
import json
import math
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

WIDTH_OF_FILES = 180
"""Columns of output that does not go to a terminal."""


def console(*, stderr: bool = False) -> Console:
    """A console on standard output or standard error as they are now; wide where it is not a terminal."""
    stream = sys.stderr if stderr else sys.stdout
    width = None if stream.isatty() else WIDTH_OF_FILES
    return Console(file=stream, width=width, highlight=False, soft_wrap=False)


def print_json(data: Any) -> None:
    """One JSON document on standard output; numbers JSON cannot spell become strings ("inf", "nan")."""
    print(json.dumps(plain(data), indent=2))


def print_line(text: str = "") -> None:
    """A line on standard output exactly as it is: no markup, no wrapping."""
    print(text)


def print_table(
    title: str | None, columns: Sequence[str], rows: Sequence[Sequence[object]], *, left: int = 1
) -> None:
    """A table on standard output; the first `left` columns are text, the others are aligned to the right."""
    table = Table(title=title, title_justify="left", title_style="bold", header_style="bold")
    for index, column in enumerate(columns):
        table.add_column(column, justify="left" if index < left else "right", overflow="fold")
    for row in rows:
        table.add_row(*(_escaped(cell) for cell in row))
    console().print(table)


def print_any_text() -> None:
    """Let standard output take what its encoding lacks, escaped: names in a model may be of any script."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def seconds_between_lines() -> float:
    """How long progress is silent at least: on a terminal lines replace each other, in a log they stay."""
    return 0.1 if sys.stderr.isatty() else 5.0


@contextlib.contextmanager
def progress(text: str, *, quiet: bool = False) -> Iterator[Any]:
    """Shows that something is going on: a spinner on a terminal, a line elsewhere, nothing when quiet.

    Yields:
        A function that replaces the text.
    """
    screen = console(stderr=True)
    if quiet:
        yield lambda _: None
    elif screen.is_terminal:
        with screen.status(text) as status:
            yield status.update
    else:
        print(f"{text} ...", file=sys.stderr, flush=True)
        yield lambda changed: print(f"{changed} ...", file=sys.stderr, flush=True)


def plain(data: Any) -> Any:
    """The same data with nothing in it that JSON cannot hold."""
    if isinstance(data, dict):
        return {str(key): plain(value) for key, value in data.items()}
    if isinstance(data, list | tuple | set | frozenset):
        return [plain(value) for value in data]
    if isinstance(data, float) and not math.isfinite(data):
        return str(data)
    if data is None or isinstance(data, bool | int | float | str):
        return data
    if hasattr(data, "item") and getattr(data, "ndim", None) == 0:
        return plain(data.item())
    return plain(data.tolist()) if hasattr(data, "tolist") else str(data)


def human_bytes(count: float | None) -> str:
    """Bytes with a unit: `12.3 MB`."""
    if count is None:
        return "-"
    for unit in ("B", "kB", "MB"):
        if abs(count) < 1000:
            return f"{count:.0f} B" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.2f} GB"


def human_count(count: float | None) -> str:
    """A large number with a unit: `11.7 M`."""
    if count is None:
        return "-"
    for unit in ("", " k", " M"):
        if abs(count) < 1000:
            return f"{count:.0f}" if not unit else f"{count:.1f}{unit}"
        count /= 1000
    return f"{count:.2f} G"


def _escaped(cell: object) -> str:
    from rich.markup import escape

    return "-" if cell is None else escape(str(cell))
