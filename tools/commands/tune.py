"""`graphwright tune MODEL --target T`: measure kernels on this machine and keep what was found."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ...ir.errors import ToolError
from ..console import print_json, print_line, print_table, progress, seconds_between_lines
from ..options import (
    CalibrationOption,
    DimOption,
    JsonOption,
    ModelArgument,
    PipelineOption,
    PluginOption,
    RandomCalibrationOption,
    SeedOption,
    load_model,
    load_plugins,
    parse_threads,
    pipeline_text,
)

if TYPE_CHECKING:
    from ...backends.tuning.session import KernelRow
    from ...backends.tuning.step import Outcome

DatabaseOption = Annotated[
    Path | None,
    typer.Option(
        "--database",
        metavar="FILE",
        help="Tuning records, one JSON line each; $GRAPHWRIGHT_TUNING or the user's cache if not given.",
        show_default=False,
    ),
]
_DEFAULT_TRIALS = 256


def tune(
    model: ModelArgument,
    target: Annotated[
        str, typer.Option("--target", "-t", help="A CPU that this machine can be; see `graphwright targets`.")
    ] = "x86",
    trials: Annotated[
        int,
        typer.Option(
            "--trials", min=1, help="Candidates to measure; those that the database has of them count."
        ),
    ] = _DEFAULT_TRIALS,
    database: DatabaseOption = None,
    threads: Annotated[str, typer.Option("--threads", help="Threads that the model will run on.")] = "1",
    pipeline: PipelineOption = None,
    preset: Annotated[
        str | None, typer.Option("--preset", metavar="NAME", help="A named pipeline.", show_default=False)
    ] = None,
    dim: DimOption = None,
    calibration: CalibrationOption = None,
    calibrate_random: RandomCalibrationOption = 0,
    seed: SeedOption = 0,
    plugin: PluginOption = None,
    as_json: JsonOption = False,
) -> None:
    """Find the fastest schedules for a model's kernels by measuring; `compile --database FILE` uses them.

    The schedule of the analytic model always competes. Ctrl-C keeps what was measured; the same command goes
    on from there.
    """
    load_plugins(plugin)
    text = pipeline_text(pipeline, preset)
    count = parse_threads(threads)[0]
    from ...backends.compile import compile as compile_graph
    from ...backends.target import resolve_target
    from ...backends.tuning.database import default_path

    resolved = resolve_target(target)
    file = database or default_path()
    start = time.perf_counter()
    with progress(f"reading {model}", quiet=as_json) as say:
        loaded = load_model(model, dim)
        try:
            executable = compile_graph(
                loaded.model,
                resolved,
                pipeline=text,
                trials=trials,
                database=file,
                threads=count,
                calibration=_feeds(loaded.model, calibration, calibrate_random, seed),
                source=model,
                seed=seed,
                progress=sparing(say, f"{model} for {resolved.name}: "),
            )
        except KeyboardInterrupt:
            if not as_json:
                print_line(
                    f"interrupted; what was measured is in {file}, the same command goes on from there"
                )
            raise
    assert executable.report is not None and executable.report.tuning is not None
    outcome = executable.report.tuning
    if as_json:
        fallback = executable.report.fallback
        print_json({"seconds": time.perf_counter() - start, "fallback": fallback, **outcome.to_json()})
        return
    if executable.report.fallback:
        print_line(executable.report.fallback)
    _print(outcome, time.perf_counter() - start)


def sparing(say: Callable[[str], None], prefix: str) -> Callable[[str], None]:
    """A teller that says the first line of trials and then one now and again, other steps always."""
    last = -math.inf

    def tell(step: str) -> None:
        nonlocal last
        if step.startswith("trial "):
            now = time.monotonic()
            if now - last < seconds_between_lines():
                return
            last = now
        say(prefix + step)

    return tell


def existing_database(database: Path | None, trials: int) -> Path | None:
    """The file whose records `compile` uses: the one given, else the default one where there is one.

    Raises:
        ToolError: the file that was given does not exist and nothing is to be tuned.
    """
    from ...backends.tuning.database import default_path

    if database is not None:
        if not trials and not database.exists():
            raise ToolError(f"there is no tuning database {database}; `graphwright tune` makes one")
        return database
    path = default_path()
    return path if trials or path.exists() else None


def _feeds(model: Any, calibration: Path | None, random: int, seed: int) -> Any:
    from ..feeds import calibration_feeds

    return calibration_feeds(model, calibration, random, seed)


def _print(outcome: Outcome, seconds: float) -> None:
    rows = sorted(outcome.report.kernels, key=lambda row: -row.calls * row.analytic)
    print_table(
        None,
        ["kernel", "calls", "trials", "analytic us", "best us", "gain", "schedule"],
        [_cells(row) for row in rows],
    )
    for line in outcome.report.skipped:
        print_line(line)
    print_line(str(outcome))
    print_line(f"took {seconds:.0f} s; records are in {outcome.report.database}")


def _cells(row: KernelRow) -> list[str]:
    if row.error:
        return [row.workload, str(row.calls), str(row.trials), "-", "-", "-", row.error]
    schedule = ", ".join(f"{name} {_text(value)}" for name, value in row.schedule.items())
    return [
        row.workload,
        str(row.calls),
        str(row.trials),
        f"{row.analytic:.1f}",
        f"{row.best:.1f}",
        f"{row.analytic / row.best:.2f}",
        schedule or "analytic",
    ]


def _text(value: Any) -> str:
    return "x".join(map(str, value)) if isinstance(value, tuple) else str(value)
