"""What the rewriting engine itself costs: a sweep in which nothing matches, and one rewrite.

`python -m graphwright.tools.engine_bench` prints both over graphs of growing size; the rules are those that
`simplify` drives to a fixpoint.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
import typer

from ..ir.collector import collector_paused
from ..ir.shapes import infer_shapes
from ..passes.base import Pass, PassContext
from ..passes.pipeline import parse_pipeline
from ..passes.rules import Rule
from .console import print_line, print_table
from .zoo.synthetic import build_synthetic

SIZES = (1000, 3000, 10000, 30000)


@dataclass(frozen=True)
class EngineCost:
    """Cost of the engine on one graph.

    Attributes:
        nodes: Nodes of the graph.
        rules: Rules that were driven.
        sweep: Microseconds per node of a sweep in which nothing matches.
        rewrites: Rewrites of the sweep that rewrites.
        rewrite: Microseconds per rewrite of that sweep, shapes brought up to date, folding not counted.
    """

    nodes: int
    rules: int
    sweep: float
    rewrites: int
    rewrite: float

    def to_json(self) -> dict[str, Any]:
        """A JSON-able dictionary."""
        return dict(vars(self))


def simplifying_rules() -> tuple[Pass, tuple[Rule, ...]]:
    """The pass `stabilize` and the rules it drives side by side."""
    (stabilize,) = parse_pipeline("stabilize")
    members = parse_pipeline(stabilize.passes)  # type: ignore[attr-defined]
    return stabilize, tuple(rule for member in members for rule in member.rules())


def measure_engine(nodes: int, repeat: int = 3) -> EngineCost:
    """Measure the engine on synthetic graphs of about `nodes` nodes; medians of CPU time over `repeat`."""
    stabilize, rules = simplifying_rules()
    sweeps, rewrites = [], []
    count = size = 0
    for _ in range(repeat):
        idle = build_synthetic(nodes, idle=True)
        infer_shapes(idle)
        size = len(idle.graph)
        context = PassContext(active=stabilize)
        seconds = _timed(context, idle, rules)
        if context.firings:
            raise AssertionError(f"the idle graph is not: {context.firings[0]}")
        sweeps.append(seconds / size * 1e6)

        busy = build_synthetic(nodes)
        infer_shapes(busy)
        (fold,) = parse_pipeline("fold-constants")
        fold.apply(busy, PassContext(active=fold))
        context = PassContext(active=stabilize)
        seconds = _timed(context, busy, rules)
        count = len(context.firings)
        rewrites.append(seconds / count * 1e6)
    return EngineCost(size, len(rules), statistics.median(sweeps), count, statistics.median(rewrites))


def growth(costs: Sequence[EngineCost]) -> tuple[float, float]:
    """Exponents b of time = a * nodes^b: of the idle sweep, and of the one that rewrites."""
    if len(costs) < 2:
        return math.nan, math.nan
    nodes = np.log([cost.nodes for cost in costs])
    totals = ([c.sweep * c.nodes for c in costs], [c.rewrite * c.rewrites for c in costs])
    idle, busy = (float(np.polyfit(nodes, np.log(total), 1)[0]) for total in totals)
    return idle, busy


def _timed(context: PassContext, model: Any, rules: Sequence[Rule]) -> float:
    with collector_paused():
        start = time.process_time()
        context.rewrite(model, *rules)
        context.update_shapes(model)
        return time.process_time() - start


def main(
    sizes: Annotated[str, typer.Option(help="Numbers of nodes, comma-separated.")] = ",".join(
        map(str, SIZES)
    ),
    repeat: Annotated[int, typer.Option(help="Measured runs; medians are printed.")] = 3,
) -> None:
    """Measure sweeps and rewrites of the engine."""
    costs = [measure_engine(int(size), repeat) for size in sizes.split(",")]
    rows = [[str(c.nodes), f"{c.sweep:.1f}", str(c.rewrites), f"{c.rewrite:.0f}"] for c in costs]
    head = ["nodes", "idle sweep us/node", "rewrites", "us/rewrite"]
    print_table(f"rewriting engine, {costs[0].rules} rules", head, rows)
    if len(costs) > 1:
        idle, busy = growth(costs)
        print_line(f"growth exponents: {idle:.2f} idle, {busy:.2f} rewriting")


if __name__ == "__main__":
    typer.run(main)
