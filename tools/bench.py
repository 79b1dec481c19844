"""Latency tables: one model beside its rivals, or the whole zoo beside ONNX Runtime."""

from __future__ import annotations

import gc
import platform
import re
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..ir.errors import GraphwrightError, ToolError
from .console import print_json, print_line, print_table, progress
from .measure import measure_interleaved, timing_text
from .steps import markdown_table

if TYPE_CHECKING:
    import onnx_ir as ir

    from ..backends.executable import Executable
    from ..backends.timing import Timing

OURS = "graphwright"
RIVAL = "onnxruntime"


@dataclass(frozen=True)
class Row:
    """One contender's latency with one number of threads; `ratio` is its median over ours."""

    contender: str
    timing: Timing
    ratio: float

    def to_json(self) -> dict[str, Any]:
        """A JSON-able dictionary."""
        return {"contender": self.contender, "ratio": self.ratio, **self.timing.to_json()}


def from_artifact(directory: Path, rivals: Sequence[str]) -> dict[str, Executable]:
    """What `compile` wrote and, as rivals, the optimized graph in it.

    Raises:
        ToolError: the folder is no artifact, or holds no graph for a rival to run.
    """
    from ..backends.artifact import GRAPH, load_executable
    from ..backends.onnxruntime import OnnxRuntimeExecutable
    from ..ir.load import load

    contenders: dict[str, Executable] = {OURS: load_executable(directory)}
    if rivals:
        if not (directory / GRAPH).is_file():
            raise ToolError(f"'{directory}' holds no {GRAPH} that a rival could run")
        contenders[RIVAL] = OnnxRuntimeExecutable(load(directory / GRAPH))
    return contenders


def from_model(
    model: ir.Model, rivals: Sequence[str], *, target: str = "x86", pipeline: str | None = None
) -> dict[str, Executable]:
    """The model compiled and checked, and, as rivals, the graph that it was compiled from.

    A rival gets the graph after our passes: a raw export keeps it from fusing, which would flatter us.

    Raises:
        TargetError: code for the target does not run here.
    """
    from ..backends.compile import compile as compile_graph
    from ..backends.onnxruntime import OnnxRuntimeExecutable
    from ..backends.target import resolve_target
    from ..ir.errors import TargetError

    resolved = resolve_target(target)
    reason = resolved.why_not_here()
    if reason:
        raise TargetError(f"code for {resolved.name} cannot be timed here: {reason}")
    ours = compile_graph(model, resolved, pipeline=pipeline)
    contenders: dict[str, Executable] = {OURS: ours}
    if rivals:
        contenders[RIVAL] = OnnxRuntimeExecutable(ours.model if ours.model is not None else model)
    return contenders


def measure_all(
    contenders: Mapping[str, Executable], threads: Sequence[int], *, repeats: int | None, seconds: float
) -> list[Row]:
    """A row per batch size, where there are several, number of threads and contender, ours first."""
    first = next(iter(contenders.values()))
    sizes: Sequence[int | None] = first.batches.sizes if first.batches is not None else (None,)
    rows = []
    for size in sizes:
        feeds = first.random_feeds(batch=size)
        mark = "" if size is None else f", batch {size}"
        for count in threads:
            timings = measure_interleaved(contenders, feeds, threads=count, repeats=repeats, seconds=seconds)
            ours = timings[OURS].median_ms
            rows += [Row(name + mark, timing, timing.median_ms / ours) for name, timing in timings.items()]
    return rows


def print_rows(title: str, rows: Sequence[Row]) -> None:
    """The rows as a table on standard output."""
    cells = [
        (
            row.contender,
            str(row.timing.threads),
            f"{row.timing.median_ms:.3f}",
            f"{row.timing.p10:.3f} - {row.timing.p90:.3f}",
            str(row.timing.samples),
            f"{row.ratio:.2f}",
        )
        for row in rows
    ]
    columns = ["contender", "threads", "median ms", "p10 - p90", "runs", "median / ours"]
    print_table(title, columns, cells)


@dataclass
class ZooRow:
    """Everything measured about one model of the zoo.

    Attributes:
        name: the model.
        compile_seconds: from graph to a checked executable.
        max_rel: largest error of the compiled model against the unoptimized graph on ONNX Runtime with its
            optimizations off, relative to the largest output.
        timings: by (contender, threads).
        failure: why there is nothing else.
    """

    name: str
    compile_seconds: float | None = None
    max_rel: float | None = None
    timings: dict[tuple[str, int], Timing] = field(default_factory=dict)
    failure: str | None = None

    def ratio(self, threads: int) -> float:
        """Our median over ONNX Runtime's: below 1 is faster."""
        return self.timings[OURS, threads].median_ms / self.timings[RIVAL, threads].median_ms

    def to_json(self) -> dict[str, Any]:
        """A JSON-able dictionary."""
        return {
            "name": self.name,
            "compile_seconds": self.compile_seconds,
            "max_relative_error": self.max_rel,
            "timings": [
                {"contender": name, **timing.to_json()} for (name, _), timing in self.timings.items()
            ],
            "failure": self.failure,
        }


def run_zoo(
    *, only: str | None, threads: Sequence[int], seconds: float, as_json: bool, output: Path | None = None
) -> None:
    """Measure the models of the zoo one after another and print the table.

    Raises:
        ToolError: `only` is no regular expression or matches nothing; or, at the end, a model failed.
    """
    from .zoo import MODEL_NAMES, SMALL_NAMES

    try:
        names = [name for name in (*MODEL_NAMES, *SMALL_NAMES) if only and re.search(only, name)]
    except re.error as error:
        raise ToolError(f"--only takes a regular expression, not {only!r}: {error}") from error
    if only and not names:
        raise ToolError(f"--only {only!r} matches no model; there are: {', '.join(MODEL_NAMES)}")
    rows = []
    for name in names or MODEL_NAMES:
        with progress(f"{name}", quiet=as_json):
            rows.append(_measure_model(name, threads, seconds))
        gc.collect()
    if as_json:
        print_json({"machine": machine(), "models": [row.to_json() for row in rows]})
    else:
        print_line(zoo_markdown(rows, threads))
    if output is not None:
        output.write_text(zoo_markdown(rows, threads) + "\n", encoding="utf-8")
    failed = [row.name for row in rows if row.failure]
    if failed:
        raise ToolError(f"{len(failed)} of {len(rows)} models failed: {', '.join(failed)}")


def _measure_model(name: str, threads: Sequence[int], seconds: float) -> ZooRow:
    from ..ir.compare import compare
    from ..ir.inputs import random_inputs
    from ..ir.reference import run_reference
    from .zoo import zoo_model

    row = ZooRow(name)
    try:
        model = zoo_model(name)
        start = time.perf_counter()
        contenders = from_model(model, [RIVAL])
        report = contenders[OURS].report
        row.compile_seconds = report.seconds if report else time.perf_counter() - start
        feeds = random_inputs(model, seed=1)
        row.max_rel = compare(run_reference(model, feeds), contenders[OURS].run(feeds)).max_rel
        for count in threads:
            timings = measure_interleaved(contenders, feeds, threads=count, seconds=seconds)
            row.timings.update({(contender, count): timing for contender, timing in timings.items()})
    except GraphwrightError as error:
        row.failure = str(error)
    return row


def zoo_markdown(rows: Sequence[ZooRow], threads: Sequence[int]) -> str:
    """The table of the zoo, with what it was measured on."""
    columns = ["model", "compile s", "max rel. error"]
    for count in threads:
        plural = "thread" if count == 1 else "threads"
        columns += [f"ours ms, {count} {plural}", f"ONNX Runtime ms, {count} {plural}", "ours / ORT"]
    table = markdown_table(columns, [_zoo_cells(row, threads) for row in rows])
    failures = [f"\n{row.name} failed: {row.failure}" for row in rows if row.failure]
    facts = machine()
    header = (
        f"{facts['cpu']}, {facts['cores']} cores; TVM {facts['apache-tvm']}, ONNX Runtime "
        f"{facts['onnxruntime']}; medians (10th-90th percentile), zero tuning trials, "
        "both on the same optimized graph.\n"
    )
    return "\n".join([header, table, *failures])


def _zoo_cells(row: ZooRow, threads: Sequence[int]) -> list[str]:
    cells = [
        row.name,
        "-" if row.compile_seconds is None else f"{row.compile_seconds:.1f}",
        "-" if row.max_rel is None else f"{row.max_rel:.1e}",
    ]
    for count in threads:
        if (OURS, count) not in row.timings:
            cells += ["-", "-", "-"]
            continue
        cells += [timing_text(row.timings[name, count]) for name in (OURS, RIVAL)]
        cells.append(f"{row.ratio(count):.2f}")
    return cells


def machine() -> dict[str, Any]:
    """What the numbers were measured on."""
    from ..backends.compile_report import versions
    from ..backends.target import host_target

    return {
        "cpu": _cpu_name(),
        "cores": host_target().cores,
        "python": platform.python_version(),
        **versions(),
    }


def _cpu_name() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in text.splitlines() if line.startswith("model name")]
    return names[0] if names else platform.machine()


if __name__ == "__main__":
    from .cli import main

    sys.exit(main(["bench", "--zoo", *sys.argv[1:]]))


def current_commit() -> str:
    """The commit of the sources, marked where they differ from it; "unknown" outside of a repository."""
    here = Path(__file__).parents[1]

    def git(*arguments: str) -> str:
        done = subprocess.run(
            ["git", "-C", str(here), *arguments], capture_output=True, text=True, timeout=60, check=False
        )
        return done.stdout.strip() if done.returncode == 0 else ""

    commit = git("rev-parse", "--short=9", "HEAD")
    changed = git("status", "--porcelain", "--untracked-files=no", "--", "ir", "passes", "backends")
    return f"{commit}-changed" if commit and changed else commit or "unknown"
