"""Where layers of different precision meet: which grid a value lies on, and who reads it on another.

A value has one grid: the finest that its readers ask for, or its writer's where nobody reads it on integers.
Values that only move (pooling, reshape, concat) share it. A reader that wants a coarser one gets a second
pair behind the first.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import onnx_ir as ir

from .arithmetic import Grid
from .groups import Groups
from .placement import Follower, Plan
from .precisions import Formats


@dataclass
class Mixture:
    """Grids of values.

    Attributes:
        grids: the grid of every value in the plan.
        extras: nodes that read a value on another grid.
    """

    grids: dict[ir.Value, Grid] = field(default_factory=dict)
    extras: dict[tuple[ir.Value, Grid], list[ir.Node]] = field(default_factory=dict)

    def read_by(self, node: ir.Node, value: ir.Value) -> Grid:
        """The grid on which a node reads a value."""
        for (extra, grid), nodes in self.extras.items():
            if extra is value and node in nodes:
                return grid
        return self.grids[value]


def mix(plan: Plan, formats: Formats) -> Mixture:
    """Settles the grid of every value in a plan."""
    links = [
        (value, result)
        for follower in plan.followers
        if follower.shares
        for value in follower.inputs
        for result in follower.results
    ]
    groups = Groups(plan.values, links)
    reads: dict[ir.Value, dict[ir.Node, Grid]] = {value: {} for value in plan.values}
    wanted: dict[ir.Value, list[Grid]] = {}
    written: dict[ir.Value, list[Grid]] = {}
    for node, inputs, results in _kernels(plan):
        grid = formats.activations(node)
        for value in inputs:
            reads[value][node] = grid
            wanted.setdefault(groups.of(value), []).append(grid)
        for value in results:
            if value in plan.values:
                written.setdefault(groups.of(value), []).append(grid)
    mixture = Mixture()
    for value in plan.values:
        root = groups.of(value)
        grid = max(wanted.get(root) or written[root], key=lambda each: each.width)
        mixture.grids[value] = grid
        for node, other in reads[value].items():
            if other != grid:
                mixture.extras.setdefault((value, other), []).append(node)
    return mixture


def _kernels(plan: Plan) -> list[tuple[ir.Node, tuple[ir.Value, ...], tuple[ir.Value, ...]]]:
    """Nodes that compute on integers, with what they read and write."""
    weighted = [(part.node, (part.data,), (part.result,)) for part in plan.weighted]
    computed: list[Follower] = [part for part in plan.followers if not part.shares]
    return [*weighted, *((part.node, part.inputs, part.results) for part in computed)]


def grids_by_steps(mixture: Mixture) -> Mapping[tuple[int, bool, bool], list[str]]:
    """Names of values by what calibrators need to know of their grid: (steps, symmetric, of floats)."""
    found: dict[tuple[int, bool, bool], list[str]] = {}
    for value, grid in mixture.grids.items():
        found.setdefault((grid.steps, grid.symmetric, grid.is_float), []).append(str(value.name))
    return found
