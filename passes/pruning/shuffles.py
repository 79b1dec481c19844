"""Channel shuffles as Gathers, where they would tie channels that nothing else ties.

A shuffle that is spelled out, Reshape [n, c, ...] to [n, g, c/g, ...], Transpose, Reshape back, works on
equal groups only, so every channel can go only together with those at its position in the other groups. A
stage of ShuffleNet V2 that shuffles again and again ends with all of its channels in one class. As a Gather
with constant positions the same permutation ties nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from ...ir.clone import clone
from ...ir.static import only_reader, producer_of
from ..base import PassContext
from ..channels import Dependencies
from ..channels.analysis import freedom
from ..channels.reshapes import Run, match_runs
from ..channels.tracer import Dim
from ..rewriter import Rewriter
from ..rules import Rule


def open_shuffles(model: ir.Model, context: PassContext, analyse: Callable[[ir.Model], Dependencies]) -> bool:
    """Turn channel shuffles into Gathers if more channels can go then; returns whether they were turned.

    Args:
        model: The model, shapes inferred.
        context: Of the pass that prunes.
        analyse: Dependency analysis as that pass wants it.
    """
    if not any(_shuffle(node) for node in model.graph if node.op_type == "Transpose"):
        return False
    trial = clone(model)
    PassContext().rewrite(trial, ShuffleToGather())
    if freedom(analyse(trial)) <= freedom(analyse(model)):
        return False
    return context.rewrite(model, ShuffleToGather())


class ShuffleToGather(Rule):
    """Reshape(Transpose(Reshape(x)))  =>  Gather(x, order), where one axis of x is permuted in itself."""

    op_types: ClassVar[tuple[str, ...]] = ("Transpose",)
    label: ClassVar[str] = "channel shuffles opened"

    def match_and_rewrite(self, node: ir.Node, rewriter: Rewriter) -> bool | str:
        """Put the Gather in the place of the last Reshape."""
        found = _shuffle(node)
        if found is None:
            return False
        data, last, axis, order = found
        picked = rewriter.initializer(f"{last.name or 'shuffle'}.order", order)
        (made,) = rewriter.insert_before(last, "Gather", [data, picked], {"axis": axis})
        made.type, made.shape = last.outputs[0].type, last.outputs[0].shape
        shuffled = last.inputs[0]
        rewriter.replace(last, [made])
        rewriter.erase_unread(shuffled.producer() if shuffled is not None else None)
        return True


def _shuffle(node: ir.Node) -> tuple[ir.Value, ir.Node, int, np.ndarray] | None:
    """What is shuffled, the last node of the shuffle, the axis, and which index comes where."""
    first, last = producer_of(_uncopied(node.inputs[0]), "Reshape"), _reader(node.outputs[0])
    data = first.inputs[0] if first is not None else None
    if data is None or last is None or producer_of(last.outputs[0], "Reshape") is None:
        return None
    before, middle, after = _dims(data), _dims(node.inputs[0]), _dims(last.outputs[0])
    if before is None or middle is None or before != after:
        return None
    perm = node.attributes.get_ints("perm", tuple(reversed(range(len(middle)))))
    moved = [index for index in perm if middle[index] != 1]
    ordered = sorted(moved)
    touched = [place for place, index in enumerate(moved) if ordered[place] != index]
    if not touched:
        return None
    parts = set(ordered[touched[0] : touched[-1] + 1])
    for run in match_runs(before, middle):
        if len(run.inputs) == 1 and parts <= set(run.outputs):
            order = _order(run, moved, middle)
            return (data, last, run.inputs[0], order) if order is not None else None
    return None


def _uncopied(value: ir.Value | None) -> ir.Value | None:
    while (copy := producer_of(value, "Identity")) is not None:
        value = copy.inputs[0]
    return value


def _reader(value: ir.Value) -> ir.Node | None:
    """The only node that reads a value, also through copies of it (`contiguous`)."""
    while only_reader(value):
        ((reader, place),) = value.uses()
        if place or producer_of(reader.outputs[0], "Identity") is None:
            return reader if place == 0 else None
        value = reader.outputs[0]
    return None


def _order(run: Run, moved: Sequence[int], middle: Sequence[Dim]) -> np.ndarray | None:
    """Indices of the one axis that a run splits, in the order in which its parts lie afterwards."""
    sizes = [size for size in (middle[index] for index in run.outputs) if isinstance(size, int)]
    if len(sizes) != len(run.outputs):
        return None
    grid = np.arange(math.prod(sizes), dtype=np.int64).reshape(sizes)
    places = [run.outputs.index(index) for index in moved if index in run.outputs]
    return np.ascontiguousarray(grid.transpose(places)).ravel()


def _dims(value: ir.Value | None) -> list[Dim] | None:
    if value is None or value.shape is None:
        return None
    dims: list[Dim] = [dim if isinstance(dim, int) else dim.value for dim in value.shape]
    return None if None in dims else dims
