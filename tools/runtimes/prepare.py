"""Writes what contenders load: the graph, its inputs and the reference's outputs, and our compiled library.

Both steps run in processes of their own: `python -m graphwright.tools.runtimes.prepare export MODEL VARIANT
FOLDER` and `... compile FOLDER` each print a line of JSON.
"""

from __future__ import annotations

import json
import resource
import sys
import time
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


def compile_ours(folder: Path) -> dict[str, Any]:
    """Compile the exported file for this machine with zero trials and write the artifact.

    Returns:
        Seconds by the clock and of the processors (compilers started by us included), and sizes.
    """
    from ...backends.compile import compile as compile_model

    start = time.perf_counter()
    feeds = read_arrays(folder / "feeds.npz")
    executable = compile_model(folder / ORIGINAL, "x86", check_feeds=feeds)
    report = executable.report
    assert report is not None
    taken = time.perf_counter() - start
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    executable.save(folder / ARTIFACT)
    return {
        "seconds": taken,
        "cpu_seconds": sum(each.ru_utime + each.ru_stime for each in used),
        "steps": report.to_json()["steps"],
        "kernels": len(report.kernels),
        "library_bytes": report.library_bytes,
        "weight_bytes": report.weight_bytes,
        "check": report.check.to_json(),
    }


def main(step: str, *arguments: str) -> dict[str, Any]:
    """One step."""
    if step == "export":
        name, variant, folder = arguments
        return export(name, variant, Path(folder))
    return compile_ours(Path(arguments[0]))


if __name__ == "__main__":
    with answers() as channel:
        print(json.dumps(main(*sys.argv[1:])), file=channel)
