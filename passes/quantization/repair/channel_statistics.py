"""What every channel of some values does over calibration data: extremes, mean and mean square."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from ....ir.clone import clone
from ....ir.reference import Reference
from ..calibration import Feeds
from .places import Place

_KINDS = ("ReduceMin", "ReduceMax", "ReduceSumSquare", "ReduceSum")


@dataclass
class ChannelStatistics:
    """Of one value, by channel, float64 `[channels]` each.

    Attributes:
        low: smallest number; not finite where a number was not.
        high: largest.
        square: mean of the squares.
        mean: of the numbers.
    """

    low: np.ndarray
    high: np.ndarray
    square: np.ndarray
    mean: np.ndarray

    @property
    def finite(self) -> bool:
        """Whether every number was."""
        return bool(np.isfinite(self.low + self.high + self.square).all())

    @property
    def magnitude(self) -> np.ndarray:
        """The largest magnitude."""
        return np.maximum(self.high, -self.low)


def channel_statistics(
    model: ir.Model, places: Sequence[tuple[ir.Value, Place]], batches: Sequence[Feeds]
) -> dict[str, ChannelStatistics]:
    """Runs the batches and reduces each value inside the graph to some numbers per channel.

    Args:
        model: Not changed.
        places: Float values of the main graph and where their channels lie.
        batches: The data, at least one.

    Raises:
        ModelError: The reference cannot run the model.
    """
    wanted = {str(value.name): place for value, place in places}
    if not wanted:
        return {}
    probe = clone(model)
    values = {str(value.name): value for node in probe.graph for value in node.outputs}
    values.update((str(value.name), value) for value in probe.graph.inputs)
    outputs = []
    for number, (name, place) in enumerate(wanted.items()):
        outputs += [_reduced(probe.graph, values[name], place, kind, number) for kind in _KINDS]
        outputs.append(_appended(probe.graph, "Size", [values[name]], {}, f"graphwright.size.{number}"))
    probe.graph.outputs[:] = outputs
    reference = Reference(probe)
    found: dict[str, ChannelStatistics] = {}
    for feeds in batches:
        results = iter(reference.run(feeds).values())
        for name, place in wanted.items():
            low, high, square, total = (_in_order(next(results), place) for _ in _KINDS)
            size = max(float(next(results)) / len(low), 1.0)
            # The sum carries a NaN that comparisons may drop.
            low = np.where(np.isfinite(total), low, np.nan)
            if name not in found:
                found[name] = ChannelStatistics(low, high, np.zeros(len(low)), np.zeros(len(low)))
            each = found[name]
            each.low, each.high = np.minimum(each.low, low), np.maximum(each.high, high)
            each.square = each.square + square / size / len(batches)
            each.mean = each.mean + total / size / len(batches)
    return found


def _in_order(reduced: np.ndarray, place: Place) -> np.ndarray:
    """Numbers by channel: reduction leaves the axes ascending, a place may have them in another order."""
    ranks = np.argsort(np.argsort(place.axes))
    return reduced.transpose(tuple(int(rank) for rank in ranks)).reshape(-1).astype(np.float64)


def _reduced(graph: ir.Graph, value: ir.Value, place: Place, kind: str, number: int) -> ir.Value:
    assert value.shape is not None
    others = np.array([i for i in range(len(value.shape)) if i not in place.axes], np.int64)
    name = f"graphwright.{kind}.{number}"
    inputs = [value]
    if others.size:
        axes = ir.Value(name=f"{name}.axes", shape=ir.Shape(others.shape))
        axes.type = ir.TensorType(ir.DataType.INT64)
        axes.const_value = ir.tensor(others, name=axes.name)
        graph.register_initializer(axes)
        inputs.append(axes)
    attributes = {"keepdims": 0} if others.size else {"keepdims": 1, "noop_with_empty_axes": 1}
    return _appended(graph, kind, inputs, attributes, name)


def _appended(
    graph: ir.Graph, op_type: str, inputs: list[ir.Value], attributes: dict[str, int], name: str
) -> ir.Value:
    node = ir.node(op_type, inputs, attributes, name=name)
    node.outputs[0].name = name
    graph.append(node)
    return node.outputs[0]
