"""Measures the ranges of values by running the calibration data through the reference."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from ...ir.clone import clone
from ...ir.errors import PassError
from ...ir.reference import Reference
from .calibration import Calibration, NoRanges
from .calibrators import Method
from .extremes import Calibrator, Range
from .range_cache import RangeCache

Progress = Callable[[int, int | None, str], None]
TEXT = "calibrating"


def measure_ranges(
    model: ir.Model,
    names: Sequence[str],
    calibration: Calibration,
    make_calibrator: Callable[[], Calibrator] | Method,
    progress: Progress | None = None,
) -> tuple[dict[str, Range], int]:
    """Runs all batches and returns the range of each value.

    The calibrators' probes are appended to a copy of the graph, so memory stays at one batch of activations.

    Args:
        model: the float model; not changed.
        names: values of the main graph, all float tensors.
        calibration: the data.
        make_calibrator: makes one calibrator per value.
        progress: called with (batches done, batches in total or None, text).

    Returns:
        (range by name, number of batches). A value that was NaN or infinite once has a range of NaN.

    Where the calibration names a cache, ranges found there are not measured again, and a measurement that
    was interrupted goes on where it was.

    Raises:
        PassError: the data does not suit the model, or cannot be read as often as the calibrator wants; or
            the cache cannot be read or written.
        ModelError: the reference cannot run the model.
    """
    if not names:
        return {}, 0
    cache = None
    if calibration.cache is not None:
        method = make_calibrator.key if isinstance(make_calibrator, Method) else repr(make_calibrator)
        cache = RangeCache(calibration.cache, model, method)
    known, batches = (
        ({}, 0) if cache is None else cache.find(calibration.identity, any_data=not calibration.has_data)
    )
    missing = [name for name in names if name not in known]
    if missing and not calibration.has_data:
        raise NoRanges(
            f"there is no calibration data, and '{calibration.cache}' holds no ranges for this model and "
            "method"
        )
    if missing:
        found, batches = _measure(model, missing, calibration, make_calibrator, cache, progress)
        known.update(found)
    return {name: known[name] for name in names}, batches


def _measure(
    model: ir.Model,
    names: Sequence[str],
    calibration: Calibration,
    make_calibrator: Callable[[], Calibrator] | Method,
    cache: RangeCache | None,
    progress: Progress | None,
) -> tuple[dict[str, Range], int]:
    run = _Run(
        {
            name: make_calibrator.of(name) if isinstance(make_calibrator, Method) else make_calibrator()
            for name in names
        }
    )
    rounds = max(calibrator.rounds for calibrator in run.calibrators.values())
    if rounds > 1 and not calibration.repeatable:
        raise PassError(
            f"this calibration goes through the data {rounds} times, but an {calibration.source} can be read "
            "once only; give a list, or a function that returns a new iterator"
        )
    identity = calibration.identity
    first, skipped, done = 0, 0, 0
    if cache is not None:
        first, skipped, done = cache.load_partial(run.calibrators, run.poisoned, identity)
    count = calibration.count(model)
    total = None if count is None else count * rounds
    batches = 0
    for round_index in range(first, rounds):
        probe = _Probe(model, run.sound, round_index)
        batches = 0
        for feeds in calibration.batches(model):
            batches += 1
            if batches <= skipped:
                continue
            done += 1
            run.take(probe.run(feeds), round_index)
            if cache is not None:
                cache.save_partial(run.calibrators, run.poisoned, (round_index, batches, done), identity)
            if progress is not None:
                progress(done, total, TEXT)
        skipped = 0
    ranges = run.ranges()
    if cache is not None:
        cache.store(ranges, batches, identity)
    return ranges, batches


class _Run:
    """The calibrators of all values, and which values turned out not to be finite."""

    def __init__(self, calibrators: dict[str, Calibrator]):
        self.calibrators = calibrators
        self.poisoned: set[str] = set()

    @property
    def sound(self) -> dict[str, Calibrator]:
        """Calibrators of values that were finite so far."""
        return {name: each for name, each in self.calibrators.items() if name not in self.poisoned}

    def take(self, results: Mapping[str, tuple[float, list[np.ndarray]]], round_index: int) -> None:
        for name, (alarm, probed) in results.items():
            if name in self.poisoned:
                continue
            if not np.isfinite(alarm):
                self.poisoned.add(name)
            else:
                self.calibrators[name].observe(probed, round_index)

    def ranges(self) -> dict[str, Range]:
        missing = (float("nan"), float("nan"))
        return {
            name: missing if name in self.poisoned else calibrator.range()
            for name, calibrator in self.calibrators.items()
        }


class _Probe:
    """A copy of the model whose outputs are the probes of the values."""

    def __init__(self, model: ir.Model, calibrators: Mapping[str, Calibrator], round_index: int):
        self._model = clone(model)
        self._nodes = 0
        graph = self._model.graph
        values = {str(value.name): value for value in graph.inputs}
        values.update((str(value.name), value) for node in graph for value in node.outputs)
        self._outputs: dict[str, list[str]] = {}
        outputs = []
        # ONNX Runtime works its way back from the last leaf: with the probes of the earliest values there, a
        # value is reduced and freed as soon as it is computed, instead of all being kept to the end.
        for name in [name for name in reversed(values) if name in calibrators]:
            # Minimum and maximum may drop a NaN (comparisons with it are false); a sum of magnitudes cannot.
            alarm = self.op("ReduceL1", [values[name]], {"keepdims": 0})
            probes = [alarm, *calibrators[name].probe(self, values[name], round_index)]
            self._outputs[name] = [str(value.name) for value in probes]
            outputs.extend(probes)
        graph.outputs[:] = outputs
        self._reference = Reference(self._model) if outputs else None

    def op(self, op_type: str, inputs: Sequence[ir.Value], attributes: Mapping[str, Any]) -> ir.Value:
        """Appends a node and returns its output."""
        self._nodes += 1
        node = ir.node(op_type, list(inputs), dict(attributes), name=f"graphwright.probe.{self._nodes}")
        node.outputs[0].name = node.name
        self._model.graph.append(node)
        return node.outputs[0]

    def constant(self, array: np.ndarray) -> ir.Value:
        """Adds a constant."""
        self._nodes += 1
        name = f"graphwright.constant.{self._nodes}"
        tensor = ir.tensor(array, name=name)
        value = ir.Value(
            name=name, shape=ir.Shape(array.shape), type=ir.TensorType(tensor.dtype), const_value=tensor
        )
        self._model.graph.register_initializer(value)
        return value

    def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, tuple[float, list[np.ndarray]]]:
        """By value: the sum of magnitudes, and the probes' results."""
        results = self._reference.run(feeds) if self._reference is not None else {}
        found = {}
        for name, outputs in self._outputs.items():
            alarm, *probed = (results[output] for output in outputs)
            found[name] = (float(alarm), probed)
        return found
