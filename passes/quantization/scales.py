"""Which values share one scale, and what it is.

Nodes that only move numbers (pooling by maximum, reshape, transpose, concat) need one scale on both sides, so
that they can run on the integers as they are. A concat's inputs share too, unless sharing would stretch the
range of a value beyond what its fused Relu or Clip lets through: then the kernel could no longer drop the
activation, and a requantization at the concat is the lesser cost.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from .arithmetic import Grid, activation_parameters, widen_to_zero
from .groups import Groups
from .mixing import Mixture
from .placement import Plan

Range = tuple[float, float]


@dataclass(frozen=True)
class Scale:
    """Grid, scale, zero point and range of a group of values; equal groups are one object."""

    grid: Grid
    scale: np.float32
    zero_point: int
    low: float
    high: float


@dataclass(frozen=True)
class Scales:
    """The scales of a plan.

    Attributes:
        of: scale of every value.
        extra: scales of values that some nodes read on another grid.
    """

    of: Mapping[ir.Value, Scale]
    extra: Mapping[tuple[ir.Value, Grid], Scale]

    def read_by(self, node: ir.Node, value: ir.Value, mixture: Mixture) -> Scale:
        """The scale with which a node reads a value."""
        return self.extra.get((value, mixture.read_by(node, value)), self.of[value])


def assign_scales(plan: Plan, ranges: Mapping[str, Range], mixture: Mixture) -> Scales:
    """Computes the scale of every value in the plan.

    Args:
        plan: what is quantized.
        ranges: measured range by value name, all quantizable.
        mixture: the grids of values.
    """
    grids = mixture.grids
    hard: list[tuple[ir.Value, ir.Value]] = []
    soft: list[tuple[ir.Value, ir.Value]] = []
    for follower in plan.followers:
        if not follower.shares:
            continue
        links = [(value, result) for value in follower.inputs for result in follower.results]
        (soft if follower.node.op_type == "Concat" else hard).extend(links)
    bounds = {value: limit for value, limit in plan.bounds().items() if not _is_symmetric(grids.get(value))}
    while True:
        groups = Groups(plan.values, [*hard, *soft])
        spans = _spans(groups, plan, ranges)
        torn = {
            groups.of(v)
            for v, limit in bounds.items()
            if v in plan.values and _exceeds(spans[groups.of(v)], limit)
        }
        if not torn or not soft:
            break
        tight = Groups(plan.values, hard)
        bad = {
            tight.of(v)
            for v, limit in bounds.items()
            if v in plan.values and _exceeds(spans[groups.of(v)], limit)
        }
        kept = [link for link in soft if tight.of(link[0]) not in bad]
        if len(kept) == len(soft):
            break
        soft = kept
    limits: dict[ir.Value, Range] = {}
    for value, (low, high) in bounds.items():
        if value in plan.values and not _exceeds(spans[groups.of(value)], (low, high)):
            old_low, old_high = limits.get(groups.of(value), (-np.inf, np.inf))
            limits[groups.of(value)] = (max(low, old_low), min(high, old_high))
    made = {root: _scale(span, limits.get(root), grids[root]) for root, span in spans.items()}
    extra = {(value, grid): _scale(spans[groups.of(value)], None, grid) for value, grid in mixture.extras}
    return Scales({value: made[groups.of(value)] for value in plan.values}, extra)


def _is_symmetric(grid: Grid | None) -> bool:
    return grid is not None and grid.symmetric


def _scale(span: Range, limit: Range | None, grid: Grid) -> Scale:
    scale, zero_point = activation_parameters(*span, grid)
    if limit is not None and not any(span) and not grid.symmetric:
        # Nothing but zeros was seen, so the range says nothing about the grid; the bound does.
        zero_point = grid.low if limit[0] >= 0 else grid.high if limit[1] <= 0 else zero_point
    elif limit is not None:
        # Rounding the zero point may move the grid half a step past a bound of the fused activation, which a
        # kernel that drops the activation would let through.
        below, above = zero_point - grid.low, grid.high - zero_point
        most = min(-limit[0] / below if below else np.inf, limit[1] / above if above else np.inf)
        while float(scale) > most:
            shrunk = np.float32(most)
            scale = shrunk if shrunk < scale else np.nextafter(scale, np.float32(0.0))
    return Scale(grid, scale, zero_point, *span)


def _exceeds(span: Range, limit: Range) -> bool:
    return span[0] < limit[0] or span[1] > limit[1]


def _spans(groups: Groups, plan: Plan, ranges: Mapping[str, Range]) -> dict[ir.Value, Range]:
    """The joint range of each group, zero included, by representative."""
    spans: dict[ir.Value, Range] = {}
    for value in plan.values:
        low, high = widen_to_zero(*ranges[str(value.name)])
        old_low, old_high = spans.get(groups.of(value), (0.0, 0.0))
        spans[groups.of(value)] = (min(low, old_low), max(high, old_high))
    return spans
