"""Writes what contenders load: the graph, its inputs and the reference's outputs, and our compiled library.

Every step runs in a process of its own and prints a line of JSON:

    python -m graphwright.tools.runtimes.prepare export MODEL VARIANT FOLDER
    python -m graphwright.tools.runtimes.prepare compile FOLDER [TARGET]
    python -m graphwright.tools.runtimes.prepare tune FOLDER DATABASE THREADS TRIALS
    python -m graphwright.tools.runtimes.prepare compile-tuned FOLDER DATABASE THREADS...
"""

from __future__ import annotations

import json
import resource
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..processes import answers
from .contenders import ARTIFACT, ORIGINAL, SIMPLIFIED, read_arrays
from .models import MODELS, PRUNED, PRUNING

_SIMPLIFYING = "simplify,fold-batch-norm"


def export(name: str, variant: str, folder: Path) -> dict[str, Any]:
    """Trace a model, prune it where the variant says so, and run the reference.

    Returns:
        Parameters and multiply-adds, and what pruning left of them.
    """
    from ...ir.account import account
    from ...ir.reference import run_reference
    from ...ir.save import save
    from ...ir.trace import trace_with_inputs
    from ...passes.optimize import optimize

    folder.mkdir(parents=True, exist_ok=True)
    module, example = MODELS[name].build()
    model, feeds = trace_with_inputs(module, example, name=name)
    del module
    before = account(model)
    facts: dict[str, Any] = {"parameters": before.parameters, "macs": before.macs}
    if variant == PRUNED:
        model = optimize(model, PRUNING).model
        after = account(model)
        facts = {
            "parameters": after.parameters,
            "macs": after.macs,
            "parameters_kept": after.parameters / before.parameters,
            "macs_kept": after.macs / before.macs if before.macs and after.macs else None,
        }
    save(model, folder / ORIGINAL)
    save(optimize(model, _SIMPLIFYING).model, folder / SIMPLIFIED)
    np.savez(folder / "feeds.npz", **feeds)  # type: ignore[arg-type]
    np.savez(folder / "expected.npz", **run_reference(model, feeds))  # type: ignore[arg-type]
    return facts


def compile_ours(
    folder: Path,
    database: Path | None = None,
    threads: int = 1,
    artifact: str = ARTIFACT,
    target: str = "x86",
) -> dict[str, Any]:
    """Compile the exported file for this machine and write the artifact.

    Args:
        folder: prepared by `export`.
        database: tuning records; None for zero trials, where only those of the package count.
        threads: what the records are for.
        artifact: folder in it to write.
        target: what is compiled for.

    Returns:
        Seconds by the clock and of the processors (compilers started by us included), and sizes; of a tuned
        one how many kernels the records built, and "times_untuned", the speed of the untuned one that it was
        compared with and that it gives way to where that is faster.
    """
    from ...backends.compile import compile as compile_model
    from ...backends.float_products import products_of

    def build(records: Path | None) -> Any:
        return compile_model(folder / ORIGINAL, target, check_feeds=feeds, database=records, threads=threads)

    start = time.perf_counter()
    feeds = read_arrays(folder / "feeds.npz")
    executable = build(database)
    report = executable.report
    taken = time.perf_counter() - start
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    more: dict[str, Any] = {}
    if database is not None:
        from ...backends.tuning.step import in_turns

        untuned = build(None)
        _, ratio = in_turns(untuned, executable, feeds, threads)
        more = {
            "tuned_kernels": sum(bool(kernel["tuned"]) for kernel in report.kernels),
            "times_untuned": 1 / ratio,
            "is_tuned": ratio <= 1,
        }
        executable = executable if ratio <= 1 else untuned
    shutil.rmtree(folder / artifact, ignore_errors=True)
    executable.save(folder / artifact)
    return {
        "seconds": taken,
        "cpu_seconds": sum(each.ru_utime + each.ru_stime for each in used),
        "steps": report.to_json()["steps"],
        "kernels": len(report.kernels),
        "library_bytes": report.library_bytes,
        "weight_bytes": report.weight_bytes,
        "check": report.check.to_json(),
        "products": products_of(report.target, report.kernels),
        **more,
    }


def tune_ours(folder: Path, database: Path, threads: int, trials: int) -> dict[str, Any]:
    """Spend trials on the exported file; a kill loses only the one in flight.

    Returns:
        Trials that the database holds for the model, those made now, and the seconds.
    """
    from ...backends.tuning.api import tune

    start = time.perf_counter()
    found = tune(folder / ORIGINAL, "x86", trials=trials, database=database, threads=threads).report
    return {"trials": found.trials, "spent": found.spent, "seconds": time.perf_counter() - start}


def compile_tuned(folder: Path, database: Path, threads: Sequence[int]) -> dict[str, Any]:
    """One artifact for each number of threads; of all by number what `compile_ours` says."""
    found = {}
    for count in threads:
        artifact = ARTIFACT if count == threads[0] else f"{ARTIFACT}-{count}"
        found[str(count)] = compile_ours(folder, database, count, artifact)
    return {**found[str(threads[0])], "by_threads": found}


def main(step: str, *arguments: str) -> dict[str, Any]:
    """One step."""
    if step == "export":
        name, variant, folder = arguments
        return export(name, variant, Path(folder))
    place, *rest = arguments
    if step == "compile":
        return compile_ours(Path(place), target=rest[0] if rest else "x86")
    if step == "tune":
        return tune_ours(Path(place), Path(rest[0]), int(rest[1]), int(rest[2]))
    return compile_tuned(Path(place), Path(rest[0]), [int(each) for each in rest[1:]])


if __name__ == "__main__":
    with answers() as channel:
        print(json.dumps(main(*sys.argv[1:])), file=channel)
