"""The last row of the table (the compiled model), latencies, and the report files of an artifact."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from .console import plain, print_line, print_table
from .measure import measure_interleaved
from .passes_report import did_lines
from .steps import Step, StepRecorder, StepTable

if TYPE_CHECKING:
    import onnx_ir as ir

    from ..backends.executable import Executable


_BATCH_SECONDS = 0.5
"""Time for the runs of each batch size."""


def complete_table(
    recorder: StepRecorder,
    original: ir.Model,
    executable: Executable,
    feeds: Mapping[str, np.ndarray] | None,
    *,
    threads: int | None,
) -> None:
    """Add the row of the compiled model, and timings of it and of the original on ONNX Runtime.

    Args:
        recorder: holds the table; changed.
        original: the model before the passes.
        executable: the compiled model.
        feeds: inputs to run on; None if the compiled model is not to be run.
        threads: threads to time with; None for no timing.
    """
    report = executable.report
    assert report is not None
    steps = recorder.table.steps
    last = steps[-1]
    compiled = Step(
        f"compiled ({executable.backend}, {executable.target.name})",
        last.nodes,
        last.parameters,
        last.macs,
        last.file_bytes,
        report.library_bytes + report.weight_bytes,
        lossless=all(step.lossless is not False for step in steps),
        seconds=sum(
            seconds for step, seconds in report.steps.items() if step not in ("read", "optimize", "check")
        ),
    )
    steps.append(compiled)
    if feeds is None or not executable.target.runs_here:
        return
    compiled.comparison = recorder.compare_outputs(executable.run(feeds))
    if threads is None:
        return
    from ..backends.onnxruntime import OnnxRuntimeExecutable

    rival = OnnxRuntimeExecutable(original, threads=threads)
    timings = measure_interleaved(
        {"ours": executable, "original": rival}, feeds, threads=threads, seconds=1.0
    )
    steps[0].latency[_column("onnxruntime", threads)] = timings["original"]
    compiled.latency[_column(executable.backend, threads)] = timings["ours"]


def time_batches(executable: Executable, threads: int) -> None:
    """Latency of each batch size, where there are several and the target runs here."""
    report = executable.report
    if report is None or report.batches is None or not executable.target.runs_here:
        return
    for row in report.batches.rows:
        feeds = executable.random_feeds(batch=row.size)
        row.timing = executable.benchmark(feeds, threads=threads, seconds=_BATCH_SECONDS)


def print_batches(executable: Executable) -> None:
    """The batch sizes of a library, where there are several, and what becomes of others."""
    report = executable.report
    if report is None or report.batches is None:
        return
    print_table(None, *report.batches.cells())
    print_line(report.batches.others)


def report_files(executable: Executable, table: StepTable) -> dict[str, str]:
    """`report.json` and `report.md` of an artifact: the compiler's own report with the table of steps."""
    report = executable.report
    assert report is not None
    data = plain({**report.to_json(), "table": table.to_json()})
    title, _, rest = report.to_markdown().partition("\n")
    did = [
        f"  - {line.strip()}" if line.startswith(" ") else f"- {line}" for line in did_lines(report.passes)
    ]
    parts = [title, "## Original and each step", table.to_markdown(), rest.strip()]
    if did:
        parts += ["## What the passes did", "\n".join(did)]
    return {
        "report.json": json.dumps(data, indent=2) + "\n",
        "report.md": "\n\n".join(parts) + "\n",
    }


def _column(backend: str, threads: int) -> str:
    return backend if threads == 1 else f"{backend} x{threads}"
