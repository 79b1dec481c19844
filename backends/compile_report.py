"""What compiling did: steps and their times, passes, kernels, sizes, the check against the reference."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from .check import Check
from .choice import Choice
from .target import Target
from .versions import versions

if TYPE_CHECKING:
    from .batch_report import BatchReport
    from .tuning.step import Outcome


@dataclass
class CompileReport:
    """Filled in step by step while a model is compiled.

    Attributes:
        name: the model's name.
        target: what it was compiled for.
        backend: "tvm" or "onnxruntime".
        pipeline: the passes that ran, presets expanded.
        source: name and SHA-256 of what was compiled.
        trials: tuning trials spent.
        steps: seconds by step, in order.
        passes: the pass records of the optimizer, as JSON.
        sizes: nodes, parameters, bytes and MACs "before" and "after" the passes.
        kernels: one entry per function of the library; "from" names the model functions that it stood in.
        library_bytes: size of the shared library.
        weight_bytes: size of the packed weights.
        check: the comparison with the reference.
        tuning: trials and what they gained, where any were to be spent.
        choice: how the backend was chosen, where it was left to measurement.
        batches: what the library holds for each batch size, where there are several.
        fallback: why the target has lost features on the way; "" where it has not.
        notes: what else the reader should know.
    """

    name: str
    target: Target
    backend: str
    pipeline: str = ""
    source: dict[str, str] = field(default_factory=dict)
    trials: int = 0
    steps: dict[str, float] = field(default_factory=dict)
    passes: list[dict[str, Any]] = field(default_factory=list)
    sizes: dict[str, dict[str, Any]] = field(default_factory=dict)
    kernels: list[dict[str, Any]] = field(default_factory=list)
    library_bytes: int = 0
    weight_bytes: int = 0
    check: Check = field(default_factory=lambda: Check(False, reason="it was not asked for"))
    tuning: Outcome | None = None
    choice: Choice | None = None
    batches: BatchReport | None = None
    fallback: str = ""
    notes: list[str] = field(default_factory=list)

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Time what happens inside as one step."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.steps[name] = self.steps.get(name, 0.0) + time.perf_counter() - start

    @property
    def seconds(self) -> float:
        """Time of all steps together."""
        return sum(self.steps.values())

    def to_json(self) -> dict[str, Any]:
        """A JSON-able dictionary."""
        return {
            "name": self.name,
            "target": self.target.to_json(),
            "backend": self.backend,
            "pipeline": self.pipeline,
            "source": dict(self.source),
            "trials": self.trials,
            "steps": {name: round(seconds, 4) for name, seconds in self.steps.items()},
            "passes": self.passes,
            "sizes": self.sizes,
            "kernels": self.kernels,
            "library_bytes": self.library_bytes,
            "weight_bytes": self.weight_bytes,
            "check": self.check.to_json(),
            "tuning": self.tuning.to_json() if self.tuning else None,
            "choice": self.choice.to_json() if self.choice else None,
            "batches": self.batches.to_json() if self.batches else None,
            "fallback": self.fallback,
            "notes": list(self.notes),
            "versions": versions(),
        }

    def to_markdown(self) -> str:
        """The report for people."""
        lines = [f"# {self.name}", ""]
        lines += _table(
            ["", ""],
            [
                ["target", str(self.target)],
                ["backend", self.backend],
                ["pipeline", f"`{self.pipeline}`" if self.pipeline else "none"],
                ["check", str(self.check)],
                ["library", _bytes(self.library_bytes)],
                ["packed weights", _bytes(self.weight_bytes)],
            ],
        )
        if self.batches:
            lines += ["", "## Batch sizes", "", *_table(*self.batches.cells()), "", f"{self.batches.others}."]
        if self.sizes:
            columns = list(self.sizes)
            keys = list(self.sizes[columns[0]])
            lines += ["", "## Size", ""]
            lines += _table(
                ["", *columns], [[key, *(_count(self.sizes[c][key]) for c in columns)] for key in keys]
            )
        if self.passes:
            rows = [
                [
                    f"`{record['text']}`",
                    f"{record['nodes_before']} -> {record['nodes_after']}",
                    f"{record['seconds'] * 1e3:.1f}",
                    sum(entry["count"] for entry in record["left_alone"]),
                ]
                for record in self.passes
            ]
            lines += ["", "## Passes", "", *_table(["pass", "nodes", "ms", "left alone"], rows)]
        lines += ["", "## Time", ""]
        lines += _table(["step", "seconds"], [[name, f"{value:.2f}"] for name, value in self.steps.items()])
        if self.kernels:
            rows = [
                [k["name"], k["kind"], k["calls"], _count(k["flops"]), ", ".join(k["from"]), k["note"]]
                for k in self.kernels
            ]
            head = ["function", "kind", "calls", "FLOPs", "from", "note"]
            lines += ["", "## Kernels", "", *_table(head, rows)]
        said = [str(each) for each in (self.tuning, self.choice) if each is not None]
        notes = [*filter(None, [self.fallback]), *said, *self.notes, *self.check.notes]
        if notes:
            lines += ["", "## Notes", "", *(f"- {note}" for note in notes)]
        return "\n".join(lines) + "\n"


def _table(head: list[Any], rows: list[list[Any]]) -> list[str]:
    return ["| " + " | ".join(map(str, cells)) + " |" for cells in (head, ["---"] * len(head), *rows)]


def _bytes(count: int) -> str:
    return f"{count / 1e6:.2f} MB"


def _count(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) else "unknown" if value is None else str(value)
