"""Measures the ranges of values by running the calibration data through the reference."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import onnx_ir as ir

from ...ir.clone import clone
from ...ir.reference import Reference
from .calibration import Calibration
from .calibrators import Calibrator

# Minimum and maximum may drop a NaN on the way (comparisons with it are false); a sum of magnitudes cannot.
_ALARM = "ReduceL1"

Progress = Callable[[int, int | None, str], None]


def measure_ranges(
    model: ir.Model,
    names: Sequence[str],
    calibration: Calibration,
    make_calibrator: Callable[[], Calibrator],
    progress: Progress | None = None,
) -> tuple[dict[str, tuple[float, float]], int]:
    """Runs all batches and returns the range of each value.

    The reductions are appended to a copy of the graph, so memory stays at one batch of activations.

    Args:
        model: the float model; not changed.
        names: values of the main graph, all float tensors.
        calibration: the data.
        make_calibrator: makes one calibrator per value.
        progress: called with (batches done, batches in total or None, text).

    Returns:
        (range by name, number of batches). A value that was NaN or infinite once has a range of NaN.

    Raises:
        PassError: the data does not suit the model.
        ModelError: the reference cannot run the model.
    """
    if not names:
        return {}, 0
    calibrators = {name: make_calibrator() for name in names}
    reductions = calibrators[names[0]].reductions
    reference = Reference(_with_reductions(model, names, (*reductions, _ALARM)))
    poisoned: set[str] = set()
    batches = 0
    for feeds in calibration.batches(model):
        results = [float(array) for array in reference.run(feeds).values()]
        width = len(reductions) + 1
        for index, name in enumerate(names):
            *statistics, alarm = results[index * width : (index + 1) * width]
            calibrators[name].observe(statistics)
            if not np.isfinite([*statistics, alarm]).all():
                poisoned.add(name)
        batches += 1
        if progress is not None:
            progress(batches, calibration.total, "calibrating")
    ranges = {name: calibrators[name].range() for name in names}
    return {name: (np.nan, np.nan) if name in poisoned else ranges[name] for name in names}, batches


def _with_reductions(model: ir.Model, names: Sequence[str], reductions: Sequence[str]) -> ir.Model:
    """A copy whose outputs are the reductions of the named values, value by value."""
    probe = clone(model)
    graph = probe.graph
    values = {str(value.name): value for node in graph for value in node.outputs}
    values.update((str(value.name), value) for value in graph.inputs)
    outputs = []
    for index, name in enumerate(names):
        for reduction in reductions:
            node = ir.node(
                reduction, [values[name]], {"keepdims": 0}, name=f"graphwright.probe.{index}.{reduction}"
            )
            output = node.outputs[0]
            output.name = node.name
            output.type, output.shape = ir.TensorType(ir.DataType.FLOAT), ir.Shape([])
            graph.append(node)
            outputs.append(output)
    graph.outputs[:] = outputs
    return probe
