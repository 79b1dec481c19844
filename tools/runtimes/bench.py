"""Ours, ONNX Runtime, OpenVINO and torch.compile on the same models, in turns.

    python -m graphwright.tools.runtimes.bench [--models A,B] [--variants as-is,pruned,tuned,vectors]
        [--rivals A,B] [--threads 1,2] [--minutes M] [-o FILE.md] [--summary FILE.md] [--report-only]

Every contender runs in a process of its own, pinned to as many cores as it may use threads; within a model
they take turns. Each model and variant leaves a record, so that an interrupted benchmark goes on where it
was; records of another commit are measured anew but stay in the report until then.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import shlex
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from ...backends.interleave import measure_interleaved
from ...backends.timing import Timing
from ...ir.errors import GraphwrightError, ToolError
from ..bench import current_commit, machine
from ..console import print_line
from ..options import parse_threads
from ..processes import StepFailed, run_step
from .contenders import ORIGINAL, ORT, OURS, RIVALS, TORCH
from .goals import COMPILE_MODEL
from .models import TUNED, VECTORS, VECTORS_TARGET, chosen_models, chosen_variants, rows_of
from .process import Runs, Server, cores_for, quiet_machine
from .records import Record, read_records, write_record
from .report import table_rows, write_report
from .startup import MODULE as STARTUP_MODULE
from .summary import summary_table
from .tuning import STEP, check_database, tune_and_compile

_COLD_RUNS = (8, 40)
_STARTUP_TURNS = 5
_HOLD_SECONDS = 300.0


@dataclass(frozen=True)
class Settings:
    """How to measure.

    Attributes:
        commit: what the records are filed under.
        rivals: contenders beside ours.
        threads: thread counts.
        database: tuning records of the variant "tuned".
        cache: what torch.compile and Python compile is kept here, for the next rows and runs.
        seconds: warm runs of each contender.
        timeout: seconds that any one step may take.
        compile_limit: seconds that torch.compile may take.
        trials: tuning trials for each model and number of threads, those in the database included; None to
            spend nothing, or to stop by the clock alone.
        tune_minutes: what tuning a model may take; None for no limit.
        exclusive: command that holds the machine; see `quiet_machine`.
        keep: folder in which exported models and artifacts stay; what is there is not made again (artifacts:
            unless they are of another commit).
    """

    commit: str
    rivals: tuple[str, ...]
    threads: tuple[int, ...]
    database: Path
    cache: Path
    seconds: float = 1.5
    timeout: float = 900.0
    compile_limit: float = 240.0
    trials: int | None = None
    tune_minutes: float | None = None
    exclusive: str | None = None
    keep: Path | None = None


def measure_model(name: str, variant: str, settings: Settings, known: Record | None = None) -> Record:
    """Everything about one model and variant that is not `known`; what fails is said in the record."""
    facts = {**machine(), **{rival: importlib.metadata.version(rival) for rival in settings.rivals}}
    record = Record(settings.commit, name, variant, time.strftime("%Y-%m-%d"), facts)
    with tempfile.TemporaryDirectory() as scratch:
        folder = (settings.keep or Path(scratch)).resolve() / f"{name}.{variant}"
        try:
            _prepare(record, folder, settings)
            _time(record, folder, settings, known.startup if known is not None else {})
        except ToolError as error:
            record.failure = str(error)
        finally:
            if settings.keep is None:
                shutil.rmtree(folder, ignore_errors=True)
    return record


def _prepare(record: Record, folder: Path, settings: Settings) -> None:
    def step(name: str, *arguments: str) -> dict[str, Any]:
        """What a step finds; what it found before where that was kept."""
        note = folder / f"{name}.json"
        mark = settings.commit if name == "compile" else ""
        if note.exists() and (kept := json.loads(note.read_text(encoding="utf-8")))["commit"] == mark:
            return kept["found"]
        threads = max(settings.threads)
        # One goal is a time of compiling; it deserves a quiet machine.
        judged = name == "compile" and record.model == COMPILE_MODEL
        try:
            found = run_step(
                STEP,
                [name, *arguments],
                timeout=settings.timeout,
                threads=threads,
                cores=cores_for(threads),
                prefix=shlex.split(settings.exclusive or "") if judged else (),
            )
        except StepFailed as error:
            raise ToolError(f"{name}: {error}") from None
        note.write_text(json.dumps({"commit": mark, "found": found}), encoding="utf-8")
        return found

    record.facts = step("export", record.model, record.variant, str(folder))
    if record.variant == TUNED:
        record.compiled = tune_and_compile(
            folder,
            settings.database,
            settings.threads,
            trials=settings.trials,
            minutes=settings.tune_minutes,
            timeout=settings.timeout,
        )
    else:
        targets = [VECTORS_TARGET] if record.variant == VECTORS else []
        record.compiled = step("compile", str(folder), *targets)


def _time(record: Record, folder: Path, settings: Settings, started: Mapping[str, Any]) -> None:
    """Latency of all contenders, our profile, and start-up for what is not in `started`; one quiet time."""
    servers: dict[int, dict[str, Server]] = {threads: {} for threads in settings.threads}
    try:
        for name in (OURS, *settings.rivals):
            _load(name, record, folder, servers, settings)
        for threads, each in servers.items():
            if each[OURS].failure:
                raise ToolError(f"the compiled library does not run: {each[OURS].failure}")
            for name, server in each.items():
                record.add_contender(name, threads, server.ready, server.failure)
        wanted = [threads for threads in settings.threads if str(threads) not in started]
        start = _start_command(record, folder, wanted, settings.cache) if wanted else []
        limit = min(settings.timeout, _HOLD_SECONDS)
        with quiet_machine(settings.exclusive, limit, start, timeout=settings.timeout) as lines:
            for threads, each in servers.items():
                _clock(record, each, threads, settings)
                for server in each.values():
                    server.close()
    finally:
        for each in servers.values():
            for server in each.values():
                server.close()
    if wanted:
        _note_start(record, lines)


def _load(
    name: str, record: Record, folder: Path, servers: dict[int, dict[str, Server]], settings: Settings
) -> None:
    """One contender for all numbers of threads; several at once would only take turns on the same cores."""
    for threads, each in servers.items():
        cache = {"TORCHINDUCTOR_CACHE_DIR": str((settings.cache / "inductor").resolve())}
        each[name] = Server([name, str(folder), record.model, record.variant], threads, cache)
    for each in servers.values():
        each[name].wait_until_ready(settings.compile_limit if name == TORCH else settings.timeout)
        if each[name].failure:
            # It may be at it still, on cores that others are to be timed on.
            each[name].close()


def _clock(record: Record, servers: dict[str, Server], threads: int, settings: Settings) -> None:
    able = {name: server for name, server in servers.items() if not server.failure}
    warm = _turns(able, threads, settings, cold=False)
    record.add_timings("warm", threads, warm)
    record.add_timings("cold", threads, _turns(able, threads, settings, cold=True, warm=warm))
    record.profiles[str(threads)] = able[OURS].profile(settings.timeout)


def _turns(
    servers: dict[str, Server],
    threads: int,
    settings: Settings,
    *,
    cold: bool,
    warm: dict[str, Timing] | None = None,
) -> dict[str, Timing]:
    repeats = None
    if warm is not None:
        slowest = max(timing.median_ms for timing in warm.values())
        repeats = int(np.clip(settings.seconds * 500 / slowest, *_COLD_RUNS))
    runs = {name: Runs(server, cold=cold, timeout=settings.timeout) for name, server in servers.items()}
    return measure_interleaved(runs, {}, threads=threads, repeats=repeats, seconds=settings.seconds)


def _start_command(record: Record, folder: Path, threads: Sequence[int], cache: Path) -> list[str]:
    """Measures start-up and memory; ONNX Runtime loads the file that it was fastest with."""
    bytecode = f"PYTHONPYCACHEPREFIX={(cache / 'bytecode').resolve()}"
    files = [f"{count}:{record.choice(ORT, count) or ORIGINAL}" for count in threads]
    return ["env", bytecode, sys.executable, "-m", STARTUP_MODULE, str(folder), str(_STARTUP_TURNS), *files]


def _note_start(record: Record, lines: Sequence[str]) -> None:
    try:
        found = json.loads(lines[-1])
    except (IndexError, ValueError):
        # What was timed stays.
        record.notes.append("start-up and memory: the process that measures them failed")
        return
    if "failure" in found:
        record.notes.append(f"start-up and memory: {found['failure']}")
    else:
        record.startup = found


def installed_rivals(text: str | None) -> tuple[str, ...]:
    """Rivals out of a comma-separated list; all where None.

    Raises:
        ToolError: there is no such rival, or it is not installed.
    """
    wanted = [word.strip() for word in text.split(",") if word.strip()] if text is not None else RIVALS
    for name in wanted:
        if name not in RIVALS:
            raise ToolError(f"no rival {name!r}; there are: {', '.join(RIVALS)}")
        if importlib.util.find_spec(name) is None:
            raise ToolError(
                f"{name} is not installed here; run `make bench-runtimes`, or leave it out of --rivals"
            )
    return tuple(name for name in RIVALS if name in wanted)


def run(
    rows: Sequence[tuple[str, str]],
    settings: Settings,
    records: Path,
    *,
    minutes: float | None = None,
    again: bool = False,
    report: Callable[[], None] = lambda: None,
) -> None:
    """Measure what has no record yet.

    Args:
        rows: models and variants.
        settings: how.
        records: folder of records.
        minutes: begin no row later than that.
        again: measure rivals, and rows, that failed.
        report: called after every row.

    Raises:
        ToolError: a record cannot be read or written.
    """
    start = time.monotonic()
    for name, variant in rows:
        kept = read_records(records, settings.commit)
        known = next((record for record in kept if record.key == (name, variant)), None)
        if known is not None and known.failure and again:
            known = None
        missing = (
            settings.rivals
            if known is None
            else known.missing(settings.threads, settings.rivals, failures=again)
        )
        if missing is None:
            continue
        if minutes is not None and time.monotonic() - start > minutes * 60:
            print_line(f"{minutes:g} minutes are over; the same command goes on with {name}, {variant}")
            return
        print_line(f"{time.strftime('%H:%M:%S')} {name}, {variant}")
        record = measure_model(name, variant, replace(settings, rivals=tuple(missing)), known)
        if known is not None and not record.failure:
            known.merge(record)
            record = known
        print_line(f"{time.strftime('%H:%M:%S')} {record.line()}")
        write_record(records, record)
        report()


def main(
    models: Annotated[str | None, typer.Option(help="Names, separated by commas; all if left out.")] = None,
    variants: Annotated[
        str | None, typer.Option(help="as-is, pruned, tuned, vectors; the first two if left out.")
    ] = None,
    rivals: Annotated[
        str | None, typer.Option(help=f"{', '.join(RIVALS)}; all if left out, '' for none.")
    ] = None,
    threads: Annotated[str, typer.Option(help="Thread counts, separated by commas.")] = "1,2",
    seconds: Annotated[float, typer.Option(min=0.05, help="Warm runs of each contender.")] = 0.6,
    minutes: Annotated[float | None, typer.Option(help="Begin no further row after so many.")] = None,
    timeout: Annotated[float, typer.Option(min=10, help="Seconds that any one step may take.")] = 900.0,
    compile_limit: Annotated[
        float, typer.Option(min=1, help="Seconds that torch.compile may take for a row.")
    ] = 240.0,
    tuned: Annotated[
        bool, typer.Option("--tuned", help="The variant tuned as well, after the rest.")
    ] = False,
    database: Annotated[
        Path | None, typer.Option(help="Tuning records; runtimes-tuning.jsonl beside the folder of records.")
    ] = None,
    trials: Annotated[
        int | None, typer.Option(min=1, help="Tuning trials first, for each model and number of threads.")
    ] = None,
    tune_minutes: Annotated[
        float | None, typer.Option(min=0.1, help="Tune each model first, for so long at most.")
    ] = None,
    again: Annotated[bool, typer.Option("--again", help="Measure what failed once more.")] = False,
    records: Annotated[Path, typer.Option(help="Folder of records.")] = Path("demo-out/runtimes"),
    commit: Annotated[str | None, typer.Option(help="File records under this instead of git's.")] = None,
    exclusive: Annotated[
        str | None, typer.Option(help="Command to run timings under, as in 'flock FILE'.")
    ] = None,
    keep: Annotated[
        Path | None, typer.Option(help="Keep exported models and artifacts here and use them again.")
    ] = None,
    report_only: Annotated[bool, typer.Option("--report-only", help="Only write the report.")] = False,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Markdown to write; JSON goes beside it.")
    ] = None,
    summary: Annotated[
        Path | None, typer.Option(help="Also write all ratios as one table, for the README.")
    ] = None,
) -> None:
    """Compare runtimes on full-size models."""

    def report() -> None:
        found = read_records(records)
        if not found:
            raise ToolError(f"there are no records in {records}")
        if output is not None:
            write_report(found, chosen, output)
        if summary is not None:
            summary.parent.mkdir(parents=True, exist_ok=True)
            summary.write_text(summary_table(table_rows(found, chosen), chosen), encoding="utf-8")

    try:
        chosen = commit or current_commit()
        if not report_only:
            wanted = chosen_variants(variants)
            rows = rows_of(
                chosen_models(models), [*wanted, TUNED] if tuned and TUNED not in wanted else wanted
            )
            beside = records.absolute().parent
            settings = Settings(
                chosen,
                installed_rivals(rivals),
                tuple(parse_threads(threads)),
                database or beside / "runtimes-tuning.jsonl",
                beside / "runtimes-cache",
                seconds,
                timeout,
                compile_limit,
                trials,
                tune_minutes,
                exclusive,
                keep,
            )
            if any(variant == TUNED for _, variant in rows):
                check_database(settings.database, trials, tune_minutes)
            run(rows, settings, records, minutes=minutes, again=again, report=report)
        report()
    except (GraphwrightError, OSError) as error:
        print(f"runtime-bench: error: {error}", file=sys.stderr)
        raise typer.Exit(2) from None


if __name__ == "__main__":
    typer.run(main)
