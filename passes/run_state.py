"""What a run of a pipeline knows while it goes on, and who watches it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import onnx_ir as ir

from ..ir.bodies import graphs_of
from .analyses import Analyses
from .base import Pass
from .equivalence import Expectation
from .records import PassRecord
from .shape_loss import Known
from .timings import Stopwatch


class Observer:
    """Watches a pipeline run; override what is of interest."""

    def before_pass(self, instance: Pass, model: ir.Model, index: int, total: int) -> None:
        """Called before pass `index` (from 0) of `total` runs."""

    def after_pass(self, instance: Pass, model: ir.Model, record: PassRecord) -> None:
        """Called after a pass ran and the graph was verified; `model` must not be changed."""


@dataclass
class RunState:
    """The state of one run: the model at hand, and what is needed to go back."""

    model: ir.Model
    known: Known
    analyses: Analyses
    stopwatch: Stopwatch
    saved: tuple[int, Callable[[], ir.Model]]
    nodes: int
    expected: Expectation | None = None
    records: list[PassRecord] = field(default_factory=list)


def costs_of(run: RunState) -> dict[str, Any]:
    """Multiply-accumulates and bytes moved of the model as it is now."""
    from .analyses_values import Costs

    costs = run.analyses.get(Costs)
    macs = costs.macs()
    return {
        "macs": macs if macs is None or isinstance(macs, int) else str(macs),
        "bytes_moved": costs.moved(),
    }


def count_nodes(model: ir.Model) -> int:
    """Number of nodes in all graphs, subgraphs and functions."""
    nodes = sum(len(graph) for graph in graphs_of(model))
    return nodes + sum(sum(1 for _ in function.all_nodes()) for function in model.functions.values())
