"""Simplifiers side by side: time, memory, what is left, and whether it still computes the same.

`python -m graphwright.tools.simplify_bench` (or `make bench-simplify`) exports the models, runs every tool on
every model in a process of its own with its threads pinned, and prints one table and a list of everything
that crashed, changed outputs or beat us. The rivals are the extra `rivals`; those not installed are named.
"""

from __future__ import annotations

import importlib.util
import json
import math
import os
import re
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from ..ir.errors import GraphwrightError
from .console import print_line, print_table, progress
from .simplify_models import MODELS, build_model

OURS = "graphwright"
RIVALS = ("onnxsim", "onnxslim", "onnxscript", "onnxruntime")
TOLERANCE = 1e-4
GROWTH = 1.05
TIMEOUT = 600


@dataclass(frozen=True)
class Outcome:
    """What one tool made of one model; `error` says why there is no result, or what is wrong with it."""

    model: str
    tool: str
    nodes_before: int
    bytes_before: int
    wall: float = math.nan
    cpu: float = math.nan
    memory: int = 0
    nodes: int = 0
    constant_bytes: int = 0
    difference: float = math.nan
    error: str = ""

    def to_json(self) -> dict[str, Any]:
        """A JSON-able dictionary."""
        return {name: None if value != value else value for name, value in vars(self).items()}


def run_tool(tool: str, name: str, source: Path, *, repeat: int, core: int) -> Outcome:
    """Simplify `source` with `tool` in a process of its own and look at the result."""
    nodes, size = _account(source)
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder, "out.onnx")
        command = [sys.executable, "-m", "graphwright.tools.simplify_worker", tool, str(source), str(target)]
        try:
            done = subprocess.run(
                [*command, str(repeat)],
                env={**os.environ, "OMP_NUM_THREADS": "1"},
                preexec_fn=lambda: os.sched_setaffinity(0, {core}),
                capture_output=True,
                text=True,
                timeout=TIMEOUT,
            )
        except subprocess.TimeoutExpired:
            return Outcome(name, tool, nodes, size, error=f"not done after {TIMEOUT} s")
        if done.returncode:
            last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
            return Outcome(name, tool, nodes, size, error=f"crashes: {last[:160]}")
        measured = json.loads(done.stdout.splitlines()[-1])
        found, problem = _difference(source, target)
        after = _account(target)
        return Outcome(
            *(name, tool, nodes, size),
            wall=statistics.median(measured["wall"]),
            cpu=statistics.median(measured["cpu"]),
            memory=measured["peak"] - measured["baseline"],
            nodes=after[0],
            constant_bytes=after[1],
            difference=found,
            error=problem,
        )


def _account(path: Path) -> tuple[int, int]:
    """Nodes in all graphs, constants lifted out of nodes not counted, and bytes of the constants."""
    import onnx_ir as ir

    model = ir.load(path)
    nodes = size = 0
    scopes = [*model.graphs(), *model.functions.values()]
    for graph in scopes:
        for node in graph:
            attribute = node.attributes.get("value") if node.op_type == "Constant" else None
            nodes += node.op_type != "Constant"
            size += attribute.value.nbytes if attribute is not None else 0
        if isinstance(graph, ir.Graph):
            size += sum(v.const_value.nbytes for v in graph.initializers.values() if v.const_value)
    return nodes, size


def _difference(source: Path, target: Path) -> tuple[float, str]:
    """Largest relative difference of the outputs over three seeds, and what is wrong with the result."""
    import onnx

    from ..ir.compare import compare
    from ..ir.inputs import random_inputs
    from ..ir.load import load

    try:
        onnx.checker.check_model(str(target))
    except Exception as error:
        return math.nan, f"the checker refuses it: {str(error).splitlines()[0][:120]}"
    original = load(source)
    worst = 0.0
    try:
        sessions = [_session(path) for path in (source, target)]
        for seed in range(3):
            feeds = random_inputs(original, seed=seed, dims=_sizes(original))
            results = [
                dict(zip((o.name for o in s.get_outputs()), s.run(None, feeds), strict=True))
                for s in sessions
            ]
            worst = max(worst, compare(*results).max_rel)
    except GraphwrightError as error:
        return math.nan, f"outputs cannot be compared: {error}"
    except Exception as error:
        return math.nan, f"ONNX Runtime refuses it: {str(error).splitlines()[0][:120]}"
    if not worst <= TOLERANCE:
        return worst, f"outputs differ by {worst:.2g}"
    return worst, ""


def _session(path: Path) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def _sizes(model: Any) -> dict[str, int]:
    from ..ir.symbols import input_symbols

    return dict.fromkeys(input_symbols(model), 3)


def findings(outcomes: Sequence[Outcome]) -> list[str]:
    """Where a rival wins, crashes or changes outputs, and where we miss what we promise; one line each."""
    lines = [f"{o.model}: {o.tool} {o.error}" for o in outcomes if o.error]
    for ours in (o for o in outcomes if o.tool == OURS):
        good = [o for o in outcomes if o.model == ours.model and o.tool != OURS and not o.error]
        for rival in good:
            if rival.nodes < ours.nodes:
                lines.append(f"{ours.model}: {rival.tool} leaves {rival.nodes} nodes, we {ours.nodes}")
            if rival.wall < ours.wall:
                lines.append(
                    f"{ours.model}: {rival.tool} takes {rival.wall * 1e3:.0f} ms, we {ours.wall * 1e3:.0f}"
                )
        if ours.constant_bytes > GROWTH * ours.bytes_before + 65536:
            lines.append(
                f"{ours.model}: our constants grew from {ours.bytes_before} to {ours.constant_bytes}"
            )
    return lines


def growth_exponent(outcomes: Sequence[Outcome], tool: str) -> float:
    """Exponent b of time = a * nodes^b over the synthetic graphs; NaN with fewer than two."""
    points = [
        (o.nodes_before, o.wall) for o in outcomes if o.tool == tool and o.model.startswith("synthetic")
    ]
    points = [(n, t) for n, t in points if t == t]
    if len(points) < 2:
        return math.nan
    nodes, seconds = np.log(np.array(points)).T
    return float(np.polyfit(nodes, seconds, 1)[0])


def installed() -> list[str]:
    """Our tool and the rivals that can be imported."""
    return [OURS, *(tool for tool in RIVALS if importlib.util.find_spec(tool) is not None)]


def main(
    only: Annotated[str, typer.Option(help="Models whose name this regular expression matches.")] = "",
    tools: Annotated[str, typer.Option(help="Comma-separated tools; all installed by default.")] = "",
    repeat: Annotated[int, typer.Option(help="Measured runs; medians are printed.")] = 5,
    core: Annotated[int, typer.Option(help="CPU that every tool is pinned to.")] = 0,
    models: Annotated[Path | None, typer.Option(help="Folder in which exported models are kept.")] = None,
    json_out: Annotated[Path | None, typer.Option("--json", help="Write all numbers here too.")] = None,
) -> None:
    """Compare simplifiers on the models of the zoo."""
    chosen = [name for name in tools.split(",") if name] or installed()
    names = [name for name in MODELS if re.search(only, name)]
    missing = [name for name in RIVALS if name not in installed()]
    if missing:
        print_line(f"not installed: {', '.join(missing)} (pip install 'graphwright[rivals]')")
    outcomes: list[Outcome] = []
    with tempfile.TemporaryDirectory() as scratch:
        folder = models or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        with progress("simplifiers") as say:
            for name in names:
                say(f"building {name}")
                source = build_model(name, folder)
                for tool in chosen:
                    say(f"{name} with {tool}")
                    outcomes.append(run_tool(tool, name, source, repeat=repeat, core=core))
    report(outcomes, chosen)
    if json_out is not None:
        json_out.write_text(json.dumps([outcome.to_json() for outcome in outcomes], indent=1))


def report(outcomes: Sequence[Outcome], tools: Sequence[str]) -> None:
    """Print the table, the sums over the models on which all tools succeed, and the findings."""
    rows = [
        [
            o.model,
            o.tool,
            f"{o.nodes_before} -> {o.nodes or '-'}",
            f"{o.wall * 1e3:.1f}",
            f"{o.cpu * 1e3:.1f}",
            f"{o.memory / 2**20:.0f}",
            f"{o.constant_bytes / max(o.bytes_before, 1):.2f}",
            f"{o.difference:.1g}" if o.difference == o.difference else "-",
        ]
        for o in outcomes
    ]
    head = ["model", "tool", "nodes", "wall ms", "CPU ms", "memory MiB", "constants", "difference"]
    print_table("simplifiers", head, rows, left=2)
    failed = {o.model for o in outcomes if o.wall != o.wall}
    for tool in tools:
        total = sum(o.wall for o in outcomes if o.tool == tool and o.model not in failed)
        exponent = growth_exponent(outcomes, tool)
        grows = f", growth exponent {exponent:.2f}" if exponent == exponent else ""
        print_line(f"{tool}: {total * 1e3:.0f} ms on the models that every tool takes{grows}")
    for line in findings(outcomes):
        print_line(line)


if __name__ == "__main__":
    typer.run(main)
