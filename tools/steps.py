"""The table that sets the original model beside each step of its way: size, work, accuracy, distance,
latency.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from ..ir.account import account
from ..ir.clone import clone
from ..ir.save import serialized_size
from ..ir.shapes import infer_shapes
from ..passes.manager import Observer
from .console import WIDTH_OF_FILES, console, human_bytes, human_count, plain, print_table
from .measure import timing_text

if TYPE_CHECKING:
    import onnx_ir as ir

    from ..backends.timing import Timing
    from ..ir.compare import Comparison
    from ..passes.base import Pass
    from ..passes.manager import PassRecord


@dataclass
class Step:
    """One row: the model after one step.

    Attributes:
        name: "original", a pass as pipeline text, or what else was done.
        nodes: nodes of the graph.
        parameters: elements of its weights.
        macs: multiply-accumulates of one run; None where a shape is not fixed.
        file_bytes: size as an ONNX file.
        library_bytes: size of the compiled library with its packed weights, where the step was compiled.
        lossless: whether the step promises equal outputs; None for the original.
        seconds: what the step took.
        metric: the task's metric, where one was given.
        comparison: outputs against those of the original on the same inputs.
        latency: timings by contender.
    """

    name: str
    nodes: int
    parameters: int
    macs: int | None
    file_bytes: int
    library_bytes: int | None = None
    lossless: bool | None = None
    seconds: float | None = None
    metric: float | None = None
    comparison: Comparison | None = None
    latency: dict[str, Timing] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """A JSON-able dictionary."""
        return {
            "name": self.name,
            "nodes": self.nodes,
            "parameters": self.parameters,
            "macs": self.macs,
            "file_bytes": self.file_bytes,
            "library_bytes": self.library_bytes,
            "lossless": self.lossless,
            "seconds": self.seconds,
            "metric": self.metric,
            "comparison": self.comparison.to_json() if self.comparison else None,
            "latency": {name: timing.to_json() for name, timing in self.latency.items()},
        }


@dataclass
class StepTable:
    """Rows of steps, the original first.

    Attributes:
        steps: the rows.
        metric: name of the task's metric, where one was given.
    """

    steps: list[Step] = field(default_factory=list)
    metric: str | None = None

    def to_json(self) -> dict[str, Any]:
        """A JSON-able dictionary."""
        return plain({"metric": self.metric, "steps": [step.to_json() for step in self.steps]})

    def cells(self, *, spread: bool = True) -> tuple[list[str], list[list[str]]]:
        """Column names and rows of text; columns that hold nothing are left out.

        Args:
            spread: show the 10th to 90th percentile of latencies beside the median.
        """
        contenders = list(dict.fromkeys(name for step in self.steps for name in step.latency))
        columns: dict[str, Callable[[Step], str | None]] = {
            "step": lambda s: s.name,
            self.metric or "metric": lambda s: None if s.metric is None else f"{s.metric:.2%}",
            "nodes": lambda s: str(s.nodes),
            "parameters": lambda s: human_count(s.parameters),
            "MACs": lambda s: None if s.macs is None else human_count(s.macs),
            "file": lambda s: human_bytes(s.file_bytes),
            "library": lambda s: None if s.library_bytes is None else human_bytes(s.library_bytes),
            "max diff": lambda s: _max_difference(s),
            "SQNR": lambda s: _sqnr(s),
            "seconds": lambda s: None if s.seconds is None else f"{s.seconds:.2f}",
        }
        for name in contenders:
            columns[f"{name} ms"] = _latency_cell(name, spread)
        table = {column: [cell(step) for step in self.steps] for column, cell in columns.items()}
        filled = {column: cells for column, cells in table.items() if any(cell is not None for cell in cells)}
        rows = [[cells[i] or "-" for cells in filled.values()] for i in range(len(self.steps))]
        return list(filled), rows

    def to_markdown(self) -> str:
        """The table as Markdown."""
        columns, rows = self.cells()
        return markdown_table(columns, rows)

    def print(self, title: str | None = None) -> None:
        """The table on standard output; latencies with their spread where there is room."""
        columns, rows = self.cells(spread=console().width >= WIDTH_OF_FILES)
        print_table(title, columns, rows)


def markdown_table(columns: Sequence[str], rows: Sequence[Sequence[str]], *, left: int = 1) -> str:
    """A Markdown table; the first `left` columns are aligned to the left, the others to the right."""
    rule = ["---" if index < left else "---:" for index in range(len(columns))]
    lines = [columns, rule, *([cell.replace("|", "\\|") for cell in row] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def measured_step(name: str, model: ir.Model, **facts: Any) -> Step:
    """A row whose size and work are those of `model`, shapes known; `facts` are further fields of `Step`."""
    counted = account(model)
    return Step(name, counted.nodes, counted.parameters, counted.macs, serialized_size(model), **facts)


class StepRecorder(Observer):
    """Watches a pipeline and keeps one row per pass.

    Args:
        original: the model that the pipeline starts from.
        feeds: inputs on which outputs are compared with the original's; no comparison where None.
    """

    def __init__(self, original: ir.Model, feeds: Mapping[str, np.ndarray] | None = None):
        self.feeds = feeds
        self.expected: dict[str, np.ndarray] | None = None
        if feeds is not None:
            from ..ir.reference import run_reference

            self.expected = run_reference(original, dict(feeds))
        shaped = clone(original)
        infer_shapes(shaped)
        self.table = StepTable([measured_step("original", shaped)])

    def after_pass(self, instance: Pass, model: ir.Model, record: PassRecord) -> None:
        """Add the row of this pass."""
        previous = self.table.steps[-1]
        step = Step(
            record.text,
            previous.nodes,
            previous.parameters,
            previous.macs,
            previous.file_bytes,
            comparison=previous.comparison,
        )
        if record.changed:
            step = measured_step(record.text, model, comparison=self.compare_with_original(model))
        step.lossless, step.seconds = record.lossless, record.seconds
        self.table.steps.append(step)

    def compare_with_original(self, model: ir.Model) -> Comparison | None:
        """Outputs of `model` on the reference against the original's."""
        if self.feeds is None:
            return None
        from ..ir.reference import run_reference

        return self.compare_outputs(run_reference(clone(model), dict(self.feeds)))

    def compare_outputs(self, outputs: Mapping[str, np.ndarray]) -> Comparison | None:
        """Outputs made elsewhere against the original's; None where no inputs were given."""
        if self.expected is None:
            return None
        from ..ir.compare import compare

        return compare(self.expected, dict(outputs))


def _max_difference(step: Step) -> str | None:
    if step.comparison is None or not step.lossless:
        return None
    return "0" if step.comparison.max_abs == 0 else f"{step.comparison.max_abs:.1e}"


def _sqnr(step: Step) -> str | None:
    if step.comparison is None:
        return None
    decibels = step.comparison.sqnr_db
    return "exact" if decibels == float("inf") else f"{decibels:.1f} dB"


def _latency_cell(name: str, spread: bool) -> Callable[[Step], str | None]:
    def cell(step: Step) -> str | None:
        text = timing_text(step.latency.get(name))
        return None if text == "-" else text if spread else text.partition(" ")[0]

    return cell
