"""Numeric equivalence of two models on the reference (ONNX Runtime, graph optimizations off)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import onnx_ir as ir

from ..ir.compare import Comparison, compare
from ..ir.inputs import edge_inputs, random_inputs
from ..ir.reference import Reference
from .bounds import Bound

LOSSLESS = Bound("max_rel", 1e-4)
"""Bound of lossless passes on max|a-b| / max|a|, per output, for models that compute in float32 or wider."""

_ROUNDINGS = 8

_SEEDS = 3


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
    """

    worst: Comparison
    output: str
    inputs: str
    tried: int
    passed: bool
    bound: Bound = LOSSLESS

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


def check_equivalent(
    before: ir.Model,
    after: ir.Model,
    *,
    inputs: Sequence[dict[str, Any]] | None = None,
    seed: int = 0,
    bound: Bound | None = None,
) -> Equivalence:
    """Run both models on the same inputs and compare every output.

    Args:
        before: The model to compare with.
        after: The changed model; same inputs and outputs.
        inputs: Feeds to use; seeded random inputs and edge cases of `before` where None.
        seed: First seed of the random inputs.
        bound: What every output must keep; `lossless_bound(before)` where None.

    Raises:
        ModelError: A model does not run on the reference.
    """
    if inputs is not None:
        labelled = [(f"input set {i}", feeds) for i, feeds in enumerate(inputs)]
    else:
        labelled = [
            (f"random inputs (seed {s})", random_inputs(before, seed=s)) for s in range(seed, seed + _SEEDS)
        ]
        labelled += [(f"edge-case inputs '{label}'", feeds) for label, feeds in edge_inputs(before)]
    bound = bound or lossless_bound(before)
    expected, actual = Reference(before), Reference(after)
    worst: tuple[Comparison, str, str] | None = None
    for label, feeds in labelled:
        reference, results = expected.run(feeds), actual.run(feeds)
        for name, value in reference.items():
            found = compare(value, results[name])
            if worst is None or bound.is_worse(found, worst[0]):
                worst = (found, name, label)
    if worst is None:
        raise ValueError("there is nothing to compare: no inputs or no outputs")
    return Equivalence(*worst, tried=len(labelled), passed=bound.holds(worst[0]), bound=bound)


def lossless_bound(model: ir.Model) -> Bound:
    """What a lossless pass must keep on `model`.

    `LOSSLESS` where it computes in float32 or wider. A narrower type rounds every intermediate result, so
    there the bound is 8 of its machine epsilons: 7.8e-3 for float16, 6.3e-2 for bfloat16.
    """
    epsilons = {ir.DataType.FLOAT16: 2.0**-10, ir.DataType.BFLOAT16: 2.0**-7}
    types = {value.dtype for node in model.graph for value in node.outputs}
    coarsest = max((epsilons[t] for t in types if t in epsilons), default=0.0)
    return Bound("max_rel", max(LOSSLESS.limit, _ROUNDINGS * coarsest))
