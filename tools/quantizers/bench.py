"""What 8 bits cost, ours beside ONNX Runtime, NNCF and torchao: `make bench-quantization`.

    python -m graphwright.tools.quantizers.bench [MODELS]           int8 beside the rivals
    python -m graphwright.tools.quantizers.bench [MODELS] --weights weights alone in 4 and 8 bits
    python -m graphwright.tools.quantizers.bench MODELS --forms     every form of ours

Every cell runs in a process of its own with a time limit. Its record is kept, so that a run that was stopped
goes on where it was; rivals that are not installed, or refuse a model, are printed with their reason.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from ...ir.errors import GraphwrightError, ToolError
from ..console import print_json, print_line, print_table, progress
from ..processes import StepFailed, run_step
from .forms import FORMS, forms, task_of
from .report import markdown
from .rivals import PIPELINES, WAYS
from .subjects import MODELS
from .summary import summary
from .weight_report import weight_markdown
from .weight_rivals import PIPELINES as WEIGHT_PIPELINES
from .weight_rivals import WEIGHT_MODELS, WEIGHT_WAYS, settings_of

Say = Callable[[str], None]
Records = dict[str, dict[str, Any]]
_ENVIRONMENT = {"PYTHONWARNINGS": "ignore"}


@dataclass(frozen=True)
class Bench:
    """Where results are kept and how long a cell may take.

    Attributes:
        folder: of models and records.
        limit: seconds for one cell.
        weights: whether weights alone are quantized.
    """

    folder: Path
    limit: float = 1200.0
    weights: bool = False

    @property
    def file(self) -> Path:
        """The records."""
        return self.folder / "quantization" / ("weight-records.json" if self.weights else "records.json")

    def variants(self, name: str, way: str) -> list[str]:
        """What of a way is measured on a model."""
        if not self.weights:
            return list(WAYS[way])
        settings = [setting.name for setting in settings_of(name)]
        return [variant for variant in WEIGHT_WAYS[way] if variant in settings]

    def records(self) -> Records:
        """What was measured so far, by "model/way/variant".

        Raises:
            ToolError: the file is not what this benchmark writes.
        """
        if not self.file.is_file():
            return {}
        try:
            held = json.loads(self.file.read_text(encoding="utf-8"))
        except ValueError:
            held = None
        if not isinstance(held, dict):
            raise ToolError(f"'{self.file}' holds no records of this benchmark; remove it")
        return held

    def keep(self, key: str, record: dict[str, Any]) -> None:
        """Add a record; a kill leaves the old file or the new one."""
        records = {**self.records(), key: record}
        self.file.parent.mkdir(parents=True, exist_ok=True)
        temporary = self.file.with_name(f".records.{os.getpid()}")
        temporary.write_text(json.dumps(records, indent=1, sort_keys=True), encoding="utf-8")
        temporary.replace(self.file)

    def run(self, names: Sequence[str], ways: Sequence[str], again: Sequence[str], say: Say) -> Records:
        """Measure what is not known yet, and return the records of `names`."""
        for name in names:
            wanted = [(way, variant) for way in ways for variant in self.variants(name, way)]
            known = self.records()
            missing = [
                (way, variant)
                for way, variant in wanted
                if way in again or _is_open(known.get(f"{name}/{way}/{variant}"), way)
            ]
            if not missing:
                continue
            say(f"{name}: building")
            try:
                self._step("prepare", name, str(self.folder))
            except StepFailed as error:
                raise ToolError(f"{name} cannot be built: {error}") from None
            for way, variant in missing:
                say(f"{name}: {way}, {variant}")
                try:
                    record = self._step("cell", name, str(self.folder), way, variant)
                except StepFailed as error:
                    record = {"error": str(error)}
                self.keep(f"{name}/{way}/{variant}", record)
        return self.known(names)

    def known(self, names: Sequence[str]) -> Records:
        """The records of `names`, as far as there are any."""
        return {key: record for key, record in self.records().items() if key.split("/")[0] in names}

    def _step(self, *arguments: str) -> Any:
        return run_step("quantizers.worker", arguments, timeout=self.limit, variables=_ENVIRONMENT)


def _is_open(record: dict[str, Any] | None, way: str) -> bool:
    """Whether there is something to measure; what failed of ours, or lacks held-out data, is tried again."""
    if record is None:
        return True
    return way in (*PIPELINES, *WEIGHT_PIPELINES) if "error" in record else "held_out_db" not in record


def main(
    models: Annotated[
        list[str] | None, typer.Argument(help=f"Of {', '.join(MODELS)} and the zoo's torch models.")
    ] = None,
    compare_forms: Annotated[
        bool, typer.Option("--forms/--rivals", help="All forms of ours, or int8 beside the rivals.")
    ] = False,
    weights: Annotated[
        bool, typer.Option("--weights", help="Weights alone in 4 and 8 bits, beside the rivals.")
    ] = False,
    only: Annotated[str, typer.Option("--only", help="Forms whose name starts so, or ways by commas.")] = "",
    again: Annotated[
        str, typer.Option("--again", help="Ways to measure anew though there are records, by commas.")
    ] = "",
    report_only: Annotated[
        bool, typer.Option("--report-only", help="Measure nothing; tables of what there is.")
    ] = False,
    limit: Annotated[float, typer.Option("--limit", help="Seconds that one cell may take.")] = 1200.0,
    folder: Annotated[
        Path, typer.Option("--folder", help="Where trained networks, models and records are kept.")
    ] = Path("demo-out"),
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Also write the tables to this Markdown file.")
    ] = None,
    short: Annotated[
        Path | None, typer.Option("--summary", help="Also write one table of SQNR, for the README.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON document.")] = False,
) -> None:
    """Measure what quantization costs."""
    start = time.perf_counter()
    try:
        if compare_forms:
            _print_forms(models or list(MODELS[:2]), only, folder, as_json)
            return
        every = WEIGHT_WAYS if weights else WAYS
        ways = [way for way in every if not only or way in only.split(",")]
        repeat = [way.strip() for way in again.split(",") if way.strip()]
        unknown = [way for way in repeat if way not in every]
        if unknown or not ways:
            raise ToolError(f"there is no way {(unknown or [only])[0]!r}; ways: {', '.join(every)}")
        bench = Bench(folder, limit, weights)
        names = models or list(WEIGHT_MODELS if weights else MODELS)
        if report_only:
            records = bench.known(names)
        else:
            with progress("quantization", quiet=as_json) as say:
                records = bench.run(names, ways, repeat, say)
    except GraphwrightError as error:
        raise typer.BadParameter(str(error)) from None
    if as_json:
        print_json(records)
        return
    text = weight_markdown(records, names, ways) if weights else markdown(records, names, ways)
    print_line(text)
    print_line(f"{time.perf_counter() - start:.0f} s in all")
    if output is not None:
        output.write_text(text, encoding="utf-8")
    if short is not None and not weights:
        short.write_text(summary(records, names), encoding="utf-8")


def _print_forms(models: Sequence[str], only: str, folder: Path, as_json: bool) -> None:
    chosen = [name for name in FORMS if name.startswith(only)]
    if not chosen:
        raise ToolError(f"no form's name starts with {only!r}; forms: {', '.join(FORMS)}")
    scores = []
    for name in models:
        with progress(name, quiet=as_json) as say:
            scores += forms(task_of(name, folder), chosen, say)
    if as_json:
        print_json([vars(score) for score in scores])
        return
    title = "SQNR at the outputs (dB), accuracy, file size"
    print_table(title, ["model", "form", "SQNR", "accuracy", "size"], [s.cells() for s in scores], left=2)


if __name__ == "__main__":
    typer.run(main)
