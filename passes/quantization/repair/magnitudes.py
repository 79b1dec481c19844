"""The largest and the mean magnitude of every channel of some values over the calibration data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from ....ir.clone import clone
from ....ir.reference import Reference
from ..calibration import Feeds


@dataclass
class Magnitudes:
    """Of one value, by index of its last axis: float64 `[channels]`.

    Attributes:
        largest: The largest magnitude; not finite where a number was not.
        total: Sum over batches of mean magnitudes.
        batches: How many there were.
    """

    largest: np.ndarray = field(default_factory=lambda: np.zeros(0))
    total: np.ndarray = field(default_factory=lambda: np.zeros(0))
    batches: int = 0

    @property
    def mean(self) -> np.ndarray:
        """The mean magnitude."""
        return self.total / max(self.batches, 1)

    def add(self, largest: np.ndarray, mean: np.ndarray) -> None:
        """Take in one batch."""
        if not self.batches:
            self.largest, self.total = np.zeros(len(largest)), np.zeros(len(mean))
        # Unlike the function named so, NaN goes through both.
        self.largest = np.maximum(self.largest, largest.astype(np.float64))
        self.total = self.total + mean
        self.batches += 1


def measure_magnitudes(
    model: ir.Model, names: Sequence[str], batches: Sequence[Feeds]
) -> dict[str, Magnitudes]:
    """Run the batches and reduce each value inside the graph to two numbers per channel.

    Args:
        model: Not changed.
        names: Float values of the main graph with known ranks; their channels lie along the last axis.
        batches: The data.
    """
    found = {name: Magnitudes() for name in dict.fromkeys(names)}
    if not found:
        return found
    probe = clone(model)
    graph = probe.graph
    values = {str(value.name): value for node in graph for value in node.outputs}
    values.update((str(value.name), value) for value in graph.inputs)
    outputs: list[ir.Value] = []
    for number, name in enumerate(found):
        value = values[name]
        assert value.shape is not None
        axes = ir.Value(name=f"graphwright.axes.{number}")
        array = np.arange(len(value.shape) - 1, dtype=np.int64)
        axes.const_value = ir.tensor(array, name=axes.name)
        axes.shape, axes.type = ir.Shape(array.shape), ir.TensorType(ir.DataType.INT64)
        graph.register_initializer(axes)
        magnitude = _append(graph, "Abs", [value], f"graphwright.magnitude.{number}", {})
        for op_type in ("ReduceMax", "ReduceMean"):
            reduced = [magnitude, axes] if array.size else [magnitude]
            kind = op_type if array.size else "Identity"
            attributes = {"keepdims": 0} if array.size else {}
            outputs.append(_append(graph, kind, reduced, f"graphwright.{op_type}.{number}", attributes))
    graph.outputs[:] = outputs
    reference = Reference(probe)
    for feeds in batches:
        results = reference.run(feeds)
        for number, name in enumerate(found):
            largest, mean = (results[f"graphwright.{kind}.{number}"] for kind in ("ReduceMax", "ReduceMean"))
            found[name].add(largest, mean)
    return found


def _append(
    graph: ir.Graph, op_type: str, inputs: list[ir.Value], name: str, attributes: dict[str, int]
) -> ir.Value:
    node = ir.node(op_type, inputs, attributes, name=name)
    node.outputs[0].name = name
    graph.append(node)
    return node.outputs[0]
