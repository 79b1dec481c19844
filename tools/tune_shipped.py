"""Makes the tuning records that the package ships.

    python -m graphwright.tools.tune_shipped --target znver3 --work avx2.jsonl
    python -m graphwright.tools.tune_shipped --target host --work host.jsonl

Kernels of the models of the runtime benchmark are tuned as `graphwright tune` does it, into a file of all
records, by which an interrupted run goes on. What was found faster is then built and compared with the
analytic choice once more, by a process of its own; only what saves at least 5 % both times is shipped, and
only where the whole model is no slower with it. The file keeps the records of other models and numbers of
threads, but not those of kernels whose analytic choice is now as good; it is written anew after each model.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import onnx_ir as ir

from ..backends.compile import DEFAULT_PIPELINE
from ..backends.compile import compile as compile_graph
from ..backends.functions import without_functions
from ..backends.target import Target, resolve_target
from ..backends.tuning.client import CandidateError, Worker
from ..backends.tuning.database import FORMAT, VERSION, Database
from ..backends.tuning.measure import compare
from ..backends.tuning.record import Key, Record
from ..backends.tuning.session import tasks_of, tune_graph, why_not_tunable
from ..backends.tuning.shipped_records import FOLDER
from ..backends.tuning.step import in_turns
from ..backends.tuning.tuner import Task
from ..backends.versions import version_of
from ..ir.errors import GraphwrightError, ToolError
from ..passes.optimize import optimize
from .runtimes.models import MODELS as MODEL_ENTRIES
from .runtimes.models import chosen_models

MODELS = (
    "resnet18",
    "resnet50",
    "mobilenet_v2",
    "mobilenet_v3",
    "efficientnet_b0",
    "vit_s16",
    "bert_base",
)
LEAST_GAIN = 0.05
"""What a shipped schedule must save, since another machine will run it."""
_SUFFIXES = {512: "avx512", 256: "avx2", 128: "sse42"}


def main(arguments: Sequence[str] | None = None) -> int:
    """Tune, compare again, and write the file; the exit code."""
    parser = argparse.ArgumentParser(prog="tune_shipped", description=__doc__)
    parser.add_argument("--target", required=True, help="a CPU that this machine can be, such as znver3")
    parser.add_argument("--models", default=",".join(MODELS), help="models, separated by commas")
    parser.add_argument("--trials", type=int, default=128, help="trials for each model")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--work", type=Path, required=True, help="all records; goes on from what is in it")
    parser.add_argument("-o", "--output", type=Path, help="the file to ship; by instruction set if not given")
    options = parser.parse_args(arguments)
    try:
        target = resolve_target(options.target)
        if reason := why_not_tunable(target):
            raise ToolError(reason)
        output = options.output or FOLDER / f"{target.arch}-{_SUFFIXES[target.vector_bits]}.jsonl"
        kept = {record.key: record for record in newest(Database.open(output))}
        for name in chosen_models(options.models):
            found = tune_model(name, target, options.threads, options.trials, options.work)
            for key, record in found.items():
                if record is not None:
                    kept[key] = record
                else:
                    kept.pop(key, None)
            write(output, kept.values(), target)
    except GraphwrightError as error:
        print(f"tune_shipped: error: {error}", file=sys.stderr)
        return 2
    return 0


def tune_model(name: str, target: Target, threads: int, trials: int, work: Path) -> dict[Key, Record | None]:
    """What to ship for one model's kernels: a record, or None where the analytic choice is as good."""
    program = without_functions(optimize(_graph(name), DEFAULT_PIPELINE, target=target).model)
    programs, database = {"main": program}, Database.open(work)
    tune_graph(
        programs, target, database, trials, threads=threads, say=lambda progress: _say(name, str(progress))
    )
    found: dict[Key, Record | None] = {}
    with Worker(target, threads) as worker:
        for task in tasks_of(programs, target, threads):
            verdict = database.verdict(task.key, target.cpu)
            again = measured_again(worker, task, verdict) if verdict is not None and _gains(verdict) else None
            found[task.key] = again if again is not None and _gains(again) else None
    records = [record for record in found.values() if record is not None]
    _say(name, f"{len(records)} kernels save {LEAST_GAIN:.0%} or more twice")
    if records and not pays(program, records, target, threads):
        _say(name, "the model is no faster with them: none is kept")
        return {}
    return found


def _graph(name: str) -> ir.Model:
    from ..ir.trace import trace

    module, example = MODEL_ENTRIES[name].build()
    return trace(module, example, name=name)


def pays(model: ir.Model, records: Sequence[Record], target: Target, threads: int) -> bool:
    """Whether the whole model is no slower with the records, in turns with the analytic choices."""
    with tempfile.TemporaryDirectory(prefix="graphwright-") as folder:
        path = Path(folder, "records.jsonl")
        for record in records:
            Database.open(path).add(record)
        # Checked, as users compile: unchecked products of float32 are other kernels.
        analytic = compile_graph(model, target, pipeline="", database=False)
        better = compile_graph(model, target, pipeline="", database=path, threads=threads)
        ratio = in_turns(analytic, better, analytic.random_feeds(), threads)[1]
    return ratio <= 1


def measured_again(worker: Worker, task: Task, verdict: Record) -> Record | None:
    """The verdict with the gain that another process measures; None where it fails."""
    try:
        worker.open(task.spec)
        worker.build("analytic", {})
        worker.build("tuned", dict(verdict.schedule))
        ratio = compare(worker, "tuned", "analytic").ratio
    except CandidateError:
        return None
    assert verdict.analytic is not None
    return replace(verdict, microseconds=round(verdict.analytic * ratio, 3))


def newest(database: Database) -> list[Record]:
    """The last record of every workload, in a fixed order."""
    last = {record.key: record for record in database.records()}
    return sorted(last.values(), key=_order)


def _order(record: Record) -> tuple[str, str, int]:
    return record.key.workload, record.key.isa, record.key.threads


def write(path: Path, records: Iterable[Record], target: Target) -> None:
    """Write the file anew: header, then a line per record, in a fixed order."""
    records = sorted(records, key=_order)
    header = {
        "format": FORMAT,
        "version": VERSION,
        "target": target.name,
        "threads": sorted({record.key.threads for record in records}),
        "apache-tvm": version_of("apache-tvm"),
        "made by": "python -m graphwright.tools.tune_shipped",
    }
    lines = [header, *(record.to_json() for record in records)]
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(
        "".join(json.dumps(line, separators=(",", ":")) + "\n" for line in lines), encoding="utf-8"
    )
    partial.replace(path)


def _gains(record: Record) -> bool:
    if not record.schedule or record.microseconds is None or record.analytic is None:
        return False
    return record.microseconds <= (1 - LEAST_GAIN) * record.analytic


def _say(name: str, text: str) -> None:
    print(f"{name}: {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
