"""Numeric equivalence of two models on the reference (ONNX Runtime, graph optimizations off)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import onnx_ir as ir

from ..ir.compare import Comparison, compare
from ..ir.errors import ModelError
from ..ir.fitting_inputs import fitted
from ..ir.inputs import edge_inputs, input_shapes, random_inputs
from ..ir.reference import Reference
from ..ir.static import static_shape
from .bounds import Bound

LOSSLESS = Bound("max_rel", 1e-4)
"""Bound of lossless passes on max|a-b| / max|a|, per output, for models that compute in float32 or wider."""

_ROUNDINGS = 8

_SEEDS = 3

_OTHER_SIZES = (1, 5)
"""Sizes that symbolic dimensions are also tried at, where the model runs with them."""

Progress = Callable[[int, int | None, str], None]


@dataclass(frozen=True)
class Equivalence:
    """Worst comparison over all inputs tried.

    Attributes:
        worst: The comparison that is worst by the metric of `bound`.
        output: Output that it belongs to.
        inputs: Label of the inputs that it belongs to.
        tried: Number of input sets.
        passed: Whether every output kept `bound` on every input set.
        bound: The bound that was asked for.
        feeds: The inputs that `inputs` names.
    """

    worst: Comparison
    output: str
    inputs: str
    tried: int
    passed: bool
    bound: Bound = LOSSLESS
    feeds: dict[str, np.ndarray] = field(default_factory=dict, repr=False, compare=False)

    def __str__(self) -> str:
        return (
            f"output '{self.output}' on {self.inputs}: max difference {self.worst.max_abs:.3g}, "
            f"relative {self.worst.max_rel:.3g}, SQNR {self.worst.sqnr_db:.1f} dB (bound {self.bound})"
        )

    def to_json(self) -> dict[str, Any]:
        """Return the numbers as JSON-able data."""
        return {
            "output": self.output,
            "inputs": self.inputs,
            "input_sets": self.tried,
            "passed": self.passed,
            "bound": str(self.bound),
            **self.worst.to_json(),
        }


class Expectation:
    """What a model computes on some inputs: run once, held against as many changed models as one likes.

    Args:
        model: The model to compare with; it must not change as long as this lives.
        inputs: Feeds to use; seeded random inputs, edge cases, and other sizes of symbolic dimensions where
            None.
        seed: First seed of the random inputs.
        progress: Called with (done, total, text) between runs.

    Raises:
        ModelError: The model does not run on the reference.
    """

    def __init__(
        self,
        model: ir.Model,
        *,
        inputs: Sequence[dict[str, Any]] | None = None,
        seed: int = 0,
        progress: Progress | None = None,
    ):
        self.bound = lossless_bound(model)
        self._progress = progress or (lambda done, total, text: None)
        reference = Reference(model)
        if inputs is None and not _runs_as_declared(model, reference):
            model = fitted(model, reference.run)
        labelled = _given(inputs) if inputs is not None else _made_up(model, seed)
        self._cases: list[tuple[str, dict[str, Any], dict[str, np.ndarray]]] = []
        for i, (label, feeds) in enumerate(labelled):
            self._progress(i, len(labelled), f"reference on {label}")
            if inputs is None and label == _LARGE and _overflows(model, reference, feeds):
                continue
            self._cases.append((label, feeds, reference.run(feeds)))
        for label, feeds in _resized(model, seed) if inputs is None else ():
            try:
                self._cases.append((label, feeds, reference.run(feeds)))
            except ModelError:
                # The model has sizes that it cannot take; those say nothing about a pass.
                continue
        if not self._cases or not model.graph.outputs:
            raise ValueError("there is nothing to compare: no inputs or no outputs")
        self._usual = _magnitudes([case[2] for case in self._cases if _EDGE not in case[0]])

    def compare(
        self, after: ir.Model, *, bound: Bound | None = None, first: bool = False, label: str | None = None
    ) -> Equivalence:
        """Run `after` on the same inputs and compare every output.

        Args:
            after: The changed model; same inputs and outputs.
            bound: What every output must keep; the lossless bound of the model where None.
            first: Stop at the first inputs that break the bound.
            label: Only the inputs of this label.

        Raises:
            ModelError: The model does not run on the reference.
        """
        bound = bound or self.bound
        actual = Reference(after)
        worst: tuple[Comparison, str, str, dict[str, Any]] | None = None
        cases = [case for case in self._cases if label is None or case[0] == label]
        for i, (name_of_inputs, feeds, expected) in enumerate(cases):
            self._progress(i, len(cases), f"comparing on {name_of_inputs}")
            results = actual.run(feeds)
            for name, value in expected.items():
                found = self._judged(name, value, compare(value, results[name]))
                if worst is None or bound.is_worse(found, worst[0]):
                    worst = (found, name, name_of_inputs, feeds)
            if first and worst is not None and not bound.holds(worst[0]):
                break
        assert worst is not None
        comparison, output, inputs, feeds = worst
        return Equivalence(comparison, output, inputs, len(cases), bound.holds(comparison), bound, feeds)

    def _judged(self, name: str, expected: np.ndarray, found: Comparison) -> Comparison:
        """The comparison; where only rounding is left of an output, relative to its usual size.

        A model that inverts itself gives zeros for zeros, up to rounding, of which no change keeps a digit.
        """
        if expected.dtype.kind != "f" or name not in self._usual:
            return found
        usual = self._usual[name]
        if found.max_abs > _ROUNDINGS * float(np.finfo(expected.dtype).eps) * usual:
            return found
        return replace(found, max_rel=min(found.max_rel, found.max_abs / usual))


def _magnitudes(results: Sequence[dict[str, np.ndarray]]) -> dict[str, float]:
    """The largest finite magnitude of every floating-point output, where it is not zero."""
    found: dict[str, float] = {}
    for outputs in results:
        for name, array in outputs.items():
            finite = np.abs(array[np.isfinite(array)]) if array.dtype.kind == "f" else np.zeros(0)
            largest = float(finite.max()) if finite.size else 0.0
            if largest > found.get(name, 0.0):
                found[name] = largest
    return found


def check_equivalent(
    before: ir.Model,
    after: ir.Model,
    *,
    inputs: Sequence[dict[str, Any]] | None = None,
    seed: int = 0,
    bound: Bound | None = None,
    progress: Progress | None = None,
) -> Equivalence:
    """Run both models on the same inputs and compare every output.

    Args:
        before: The model to compare with.
        after: The changed model; same inputs and outputs.
        inputs: Feeds to use; seeded random inputs, edge cases and other sizes of the symbolic dimensions of
            `before` where None.
        seed: First seed of the random inputs.
        bound: What every output must keep; `lossless_bound(before)` where None.
        progress: Called with (done, total, text) between runs.

    Raises:
        ModelError: A model does not run on the reference.
    """
    return Expectation(before, inputs=inputs, seed=seed, progress=progress).compare(after, bound=bound)


def lossless_bound(model: ir.Model) -> Bound:
    """What a lossless pass must keep on `model`.

    `LOSSLESS` where it computes in float32 or wider. A narrower type rounds every intermediate result, so
    there the bound is 8 of its machine epsilons: 7.8e-3 for float16, 6.3e-2 for bfloat16.
    """
    epsilons = {ir.DataType.FLOAT16: 2.0**-10, ir.DataType.BFLOAT16: 2.0**-7}
    types = {value.dtype for node in model.graph for value in node.outputs}
    coarsest = max((epsilons[t] for t in types if t in epsilons), default=0.0)
    return Bound("max_rel", max(LOSSLESS.limit, _ROUNDINGS * coarsest))


def _runs_as_declared(model: ir.Model, reference: Reference) -> bool:
    """Whether the model runs on inputs of the shapes that it declares, if it leaves any of them open."""
    stored = model.graph.initializers
    if all(static_shape(value) is not None or value.name in stored for value in model.graph.inputs):
        return True
    try:
        reference.run(random_inputs(model))
    except ModelError:
        return False
    return True


_EDGE = "edge-case inputs"
_LARGE = f"{_EDGE} 'large'"


def _overflows(model: ir.Model, reference: Reference, feeds: dict[str, Any]) -> bool:
    """Whether a result in between runs over in float16; what follows depends on the order of operations."""
    narrow = [
        str(value.name)
        for node in model.graph
        for value in node.outputs
        if value.name and value.dtype == ir.DataType.FLOAT16 and isinstance(value.type, ir.TensorType)
    ]
    if not narrow:
        return False
    return any(not np.isfinite(array).all() for array in reference.run_values(feeds, narrow).values())


def _given(inputs: Sequence[dict[str, Any]]) -> list[tuple[str, dict[str, Any]]]:
    return [(f"input set {i}", feeds) for i, feeds in enumerate(inputs)]


def _made_up(model: ir.Model, seed: int) -> list[tuple[str, dict[str, Any]]]:
    labelled = [
        (f"random inputs (seed {s})", random_inputs(model, seed=s)) for s in range(seed, seed + _SEEDS)
    ]
    return labelled + [(f"{_EDGE} '{label}'", feeds) for label, feeds in edge_inputs(model)]


def _resized(model: ir.Model, seed: int) -> list[tuple[str, dict[str, Any]]]:
    """Random inputs with every symbolic dimension at other sizes, as far as those fit each other."""
    names = sorted(
        {
            dim.value
            for value in model.graph.inputs
            for dim in value.shape or ()
            if not isinstance(dim, int) and dim.value is not None and dim.value.isidentifier()
        }
    )
    found = []
    for size in _OTHER_SIZES if names else ():
        dims = dict.fromkeys(names, size)
        try:
            input_shapes(model, dims)
        except ModelError:
            continue
        found.append(
            (f"random inputs with {', '.join(names)} = {size}", random_inputs(model, seed, dims=dims))
        )
    return found
