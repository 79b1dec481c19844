"""`graphwright coverage`: prune and prove the architectures of torchvision, timm and transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ...ir.errors import ToolError
from ..console import print_json, print_line, print_table, progress
from ..coverage.records import OURS, RIVAL, STATUSES, WRONG
from ..coverage.report import summary, to_markdown
from ..coverage.suites import SUITES, Settings, has_rival, list_architectures, run_coverage
from ..options import JsonOption

EXIT_WRONG = 1


def coverage(
    suite: Annotated[
        str, typer.Option("--suite", help="torchvision, timm, transformers (several with commas) or all.")
    ] = "all",
    only: Annotated[
        str,
        typer.Option(
            "--only", metavar="REGEX", help="Architectures to run, as in 'timm/.*vit'.", show_default=False
        ),
    ] = "",
    ratio: Annotated[
        float, typer.Option("--ratio", help="Share of the channels to remove.", min=0.0, max=0.99)
    ] = 0.5,
    allow_statistical: Annotated[
        bool,
        typer.Option(
            "--allow-statistical/--no-statistical",
            help="Also remove channels that a normalization takes statistics over.",
        ),
    ] = True,
    rival: Annotated[
        bool, typer.Option("--rival", help="Run Torch-Pruning too, as it comes; it must be installed.")
    ] = False,
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", metavar="FILE", help="Markdown page to write.", show_default=False),
    ] = None,
    results: Annotated[
        Path | None,
        typer.Option(
            "--results",
            metavar="FILE",
            help="JSON lines, one added per architecture; those it has are not run again.",
            show_default=False,
        ),
    ] = None,
    again: Annotated[bool, typer.Option("--again", help="Run what the results already have.")] = False,
    time_limit: Annotated[
        float, typer.Option("--time-limit", metavar="S", help="Seconds for one architecture.", min=1)
    ] = 600.0,
    memory_limit: Annotated[
        float, typer.Option("--memory-limit", metavar="GIB", help="Memory for one architecture.", min=1)
    ] = 16.0,
    jobs: Annotated[int, typer.Option("--jobs", help="Architectures at a time.", min=1)] = 1,
    report_only: Annotated[
        bool, typer.Option("--report-only", help="Run nothing; report what the results have.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Prune published architectures with random weights and prove each against its masked original.

    Exit code 1 says that some numbers were wrong. `make coverage` installs what this needs.
    """
    if output is not None and not output.resolve().parent.is_dir():
        raise ToolError(f"-o {output}: there is no such folder")
    if results is not None and not results.resolve().parent.is_dir():
        raise ToolError(f"--results {results}: there is no such folder")
    if report_only and results is None:
        raise ToolError("--report-only reports what --results FILE has; give that file")
    suites = SUITES if suite == "all" else tuple(dict.fromkeys(suite.split(",")))
    if rival and not has_rival():
        raise ToolError("torch-pruning is not installed here; `make coverage` has an environment that has it")
    settings = Settings(ratio, allow_statistical, time_limit, memory_limit, jobs, again)
    architectures = list_architectures(suites, only)
    tools = [OURS, RIVAL] if rival else [OURS]
    with progress(f"{len(architectures)} architectures", quiet=as_json) as say:
        outcomes = run_coverage(
            architectures, settings, tools=tools, results=results, say=say, run=not report_only
        )
    asked = {name: sum(1 for each in architectures if each[0] == name) for name in suites}
    if output is not None:
        output.write_text(to_markdown(outcomes, asked), encoding="utf-8")
    counts = summary(outcomes)
    if as_json:
        print_json({"summary": counts, "outcomes": [each.to_json() for each in outcomes]})
    else:
        rows = [[name, *(str(row[status]) for status in STATUSES)] for name, row in counts.items()]
        print_table("architectures pruned and proven", ["suite", *STATUSES], rows)
        for each in outcomes:
            if each.cause and each.tool == OURS:
                print_line(f"{each.suite}/{each.name}: {each.status()}: {each.cause}")
        if output is not None:
            print_line(f"wrote {output}")
    if any(row[WRONG] for row in counts.values()):
        raise typer.Exit(EXIT_WRONG)
