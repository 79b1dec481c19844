"""Statistics of activations over calibration data, one number per channel, streamed batch by batch."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from ...ir.clone import clone
from ...ir.reference import Reference
from ..quantization.calibration import Calibration

Place = tuple[str, int]
"""A value by name, and one of its axes."""


@dataclass
class Moments:
    """Sums over everything but one axis.

    Attributes:
        count: Numbers seen per index of the axis.
        total, magnitude, square: Sums of x, |x| and x^2, float64 [indices].
        zeros: How many were zero, float64 [indices].
    """

    count: float = 0.0
    total: np.ndarray = field(default_factory=lambda: np.zeros(0))
    magnitude: np.ndarray = field(default_factory=lambda: np.zeros(0))
    square: np.ndarray = field(default_factory=lambda: np.zeros(0))
    zeros: np.ndarray = field(default_factory=lambda: np.zeros(0))

    @property
    def mean(self) -> np.ndarray:
        """Mean of x."""
        return self.total / max(self.count, 1.0)

    @property
    def mean_magnitude(self) -> np.ndarray:
        """Mean of |x|."""
        return self.magnitude / max(self.count, 1.0)

    @property
    def root_mean_square(self) -> np.ndarray:
        """Root of the mean of x^2."""
        return np.sqrt(self.square / max(self.count, 1.0))

    @property
    def share_of_zeros(self) -> np.ndarray:
        """Average percentage of zeros, 0 to 1."""
        return self.zeros / max(self.count, 1.0)

    def add(self, sums: Sequence[np.ndarray], count: float) -> None:
        """Add the sums (x, |x|, x^2, zeros) of one batch."""
        total, magnitude, square, zeros = (np.asarray(each, np.float64) for each in sums)
        if self.count == 0:
            self.total, self.magnitude, self.square, self.zeros = total, magnitude, square, zeros
        else:
            self.total = self.total + total
            self.magnitude = self.magnitude + magnitude
            self.square = self.square + square
            self.zeros = self.zeros + zeros
        self.count += count


def measure_moments(
    model: ir.Model, places: Iterable[Place], calibration: Calibration
) -> dict[Place, Moments]:
    """Run all batches through the reference and sum every place up.

    The sums are computed inside the graph, so that memory stays at one batch of activations.

    Args:
        model: Not changed.
        places: (value name, axis) of computed float values of the main graph.
        calibration: The data.

    Raises:
        PassError: The data does not suit the model.
        ModelError: The reference cannot run the model.
    """
    moments = {place: Moments() for place in dict.fromkeys(places)}
    if not moments:
        return {}
    probe = clone(model)
    outputs = _append_probes(probe, list(moments))
    reference = Reference(probe)
    for feeds in calibration.batches(model):
        results = reference.run(feeds)
        for place, names in outputs.items():
            *sums, size = (results[name] for name in names)
            moments[place].add(sums, float(size) / max(sums[0].size, 1))
    return moments


def _append_probes(model: ir.Model, places: list[Place]) -> dict[Place, list[str]]:
    """Replace the outputs of `model` by sums per place; returns their names."""
    graph = model.graph
    values = {str(value.name): value for value in graph.inputs}
    values.update((str(value.name), value) for node in graph for value in node.outputs)
    order = {name: index for index, name in enumerate(values)}
    outputs: list[ir.Value] = []
    names: dict[Place, list[str]] = {}
    # Late values first: ONNX Runtime works its way back from the last leaf and then frees early ones soonest.
    for number, (name, axis) in enumerate(sorted(places, key=lambda place: -order[place[0]])):
        value = values[name]
        prefix = f"graphwright.moments.{number}"
        rank = len(value.shape) if value.shape is not None else 0
        axes = ir.Value(
            name=f"{prefix}.axes",
            const_value=ir.tensor(
                np.array([i for i in range(rank) if i != axis], np.int64), name=f"{prefix}.axes"
            ),
        )
        axes.shape, axes.type = ir.Shape([rank - 1]), ir.TensorType(ir.DataType.INT64)
        graph.register_initializer(axes)
        made: list[ir.Value] = []

        def add(op_type: str, *inputs: ir.Value, prefix: str = prefix, **attributes: int) -> ir.Value:
            node = ir.node(op_type, list(inputs), attributes)
            node.name = node.outputs[0].name = f"{prefix}.{len(graph)}"
            graph.append(node)
            return node.outputs[0]

        wide = add("Cast", value, to=int(ir.DataType.FLOAT))
        nothing = add(
            "Cast", add("Not", add("Cast", wide, to=int(ir.DataType.BOOL))), to=int(ir.DataType.FLOAT)
        )
        squares = add("Mul", wide, wide)
        for what in (wide, add("Abs", wide), squares, nothing):
            # With one axis there is nothing to sum over, and no axes would mean all of them.
            made.append(add("ReduceSum", what, axes, keepdims=0) if rank > 1 else add("Identity", what))
        made.append(add("Size", value))
        names[name, axis] = [str(each.name) for each in made]
        outputs.extend(made)
    graph.outputs[:] = outputs
    return names
