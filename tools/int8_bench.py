"""int8 on TVM beside float on TVM and ONNX Runtime on the same QDQ file: latency, size, agreement.

    python -m graphwright.tools.int8_bench [--only REGEX] [--threads 1,2] [--trials N] [-o FILE.md]

Every contender of a model is timed in turns. Weights and calibration data are random: compared are speed,
size, and how far the compiled library is from ONNX Runtime with its optimizations off on the same file.
Sizes are those of library and weights, beside the same for float; int4 is weight-only. Every model is
measured in a process of its own and leaves a record, so that an interrupted run goes on where it was.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated

import typer

from ..backends.target import resolve_target
from ..ir.errors import GraphwrightError, ToolError
from .bench import current_commit
from .console import print_line, progress
from .int8_measure import MODELS, Row, Settings, known_models
from .int8_report import markdown, summary
from .options import parse_threads
from .processes import StepFailed, run_step


def main(
    only: Annotated[str | None, typer.Option("--only", help="Regular expression; models to measure.")] = None,
    threads: Annotated[str, typer.Option("--threads", help="Thread counts, separated by commas.")] = "1,2",
    seconds: Annotated[float, typer.Option("--seconds", min=0.1, help="Time for each contender.")] = 1.0,
    target: Annotated[
        str, typer.Option("--target", "-t", help="CPU to compile for; it must run here.")
    ] = "x86",
    table: Annotated[
        str, typer.Option("--table", help="What insert-qdq quantizes for; its table decides.")
    ] = "x86-vnni",
    trials: Annotated[int, typer.Option("--trials", min=0, help="Tuning trials for int8 and for float.")] = 0,
    limit: Annotated[float, typer.Option("--limit", min=1, help="Seconds that one model may take.")] = 600.0,
    records: Annotated[Path, typer.Option("--records", help="Folder of records.")] = Path("demo-out/int8"),
    commit: Annotated[str | None, typer.Option(help="File records under this instead of git's.")] = None,
    again: Annotated[bool, typer.Option("--again", help="Measure what failed once more.")] = False,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Also write the table to this Markdown file.")
    ] = None,
    short: Annotated[
        Path | None, typer.Option("--summary", help="Also write a table of ratios, for the README.")
    ] = None,
) -> None:
    """Quantize, compile, time in turns, and print the table."""
    try:
        names = list(MODELS) if only is None else [name for name in known_models() if re.search(only, name)]
        if not names:
            raise ToolError(f"--only {only!r} matches no model; there are: {', '.join(known_models())}")
        settings = Settings(tuple(parse_threads(threads)), seconds, target, table, trials)
        resolved = resolve_target(target)
        if reason := resolved.why_not_here():
            raise ToolError(f"code for {resolved.name} cannot be timed here: {reason}")
        folder = place_of(records, commit or current_commit(), settings)

        def report(rows: Sequence[Row]) -> None:
            if output is not None:
                output.parent.mkdir(parents=True, exist_ok=True)
                output.write_text(markdown(rows, settings.threads, trials) + "\n", encoding="utf-8")
            if short is not None:
                short.parent.mkdir(parents=True, exist_ok=True)
                short.write_text(summary(rows, settings.threads) + "\n", encoding="utf-8")

        rows = run(names, settings, folder, limit=limit, again=again, report=report)
    except (GraphwrightError, OSError, re.error) as error:
        print(f"int8-bench: error: {error}", file=sys.stderr)
        raise typer.Exit(2) from None
    print_line(markdown(rows, settings.threads, trials))


def place_of(records: Path, commit: str, settings: Settings) -> Path:
    """Where records of this commit and these settings are kept."""
    text = json.dumps(dataclasses.asdict(settings), sort_keys=True)
    return records / f"{commit}.{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def run(
    names: Sequence[str],
    settings: Settings,
    folder: Path,
    *,
    limit: float,
    again: bool = False,
    report: Callable[[Sequence[Row]], None] = lambda rows: None,
) -> list[Row]:
    """Measure the models that have no record yet; the rows of all.

    Args:
        names: of `known_models`.
        settings: how.
        folder: of the records.
        limit: seconds for one model.
        again: what failed is measured once more.
        report: called after every model with the rows so far.

    Raises:
        ToolError: a record cannot be read.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rows: list[Row] = []
    for name in names:
        file = folder / f"{name}.json"
        row = _read(file) if file.exists() else None
        if row is None or (again and row.failure):
            with progress(name):
                row = _measure(name, settings, limit)
            row.commit, row.day = folder.name.rpartition(".")[0], time.strftime("%Y-%m-%d")
            temporary = file.with_suffix(".tmp")
            temporary.write_text(json.dumps(dataclasses.asdict(row), indent=1), encoding="utf-8")
            temporary.replace(file)
        rows.append(row)
        report(rows)
    return rows


def _measure(name: str, settings: Settings, limit: float) -> Row:
    arguments = [name, json.dumps(dataclasses.asdict(settings))]
    try:
        most = max(settings.threads)
        return Row.from_json(run_step("int8_measure", arguments, timeout=limit, threads=most))
    except StepFailed as error:
        return Row(name, failure=str(error))


def _read(file: Path) -> Row:
    try:
        return Row.from_json(json.loads(file.read_text(encoding="utf-8")))
    except (ValueError, TypeError, AttributeError, ToolError) as error:
        raise ToolError(f"'{file}' is no record of this benchmark: {error}") from error


if __name__ == "__main__":
    typer.run(main)
