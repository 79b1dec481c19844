"""Numeric equivalence of two models on the reference (ONNX Runtime, graph optimizations off)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import onnx_ir as ir

from ..ir.compare import Comparison, compare
from ..ir.inputs import edge_inputs, random_inputs
from ..ir.reference import Reference

RELATIVE_TOLERANCE = 1e-4
"""Bound of lossless passes on max|a-b| / max|a|, per output."""

_SEEDS = 3


@dataclass(frozen=True)
class Equivalence:
    """Worst comparison over all inputs tried.

    Attributes:
        worst: The comparison with the largest relative error.
        output: Output that it belongs to.
        inputs: Label of the inputs that it belongs to.
        tried: Number of input sets.
        passed: Whether every output stayed within `RELATIVE_TOLERANCE` on every input set.
    """

    worst: Comparison
    output: str
    inputs: str
    tried: int
    passed: bool

    def __str__(self) -> str:
        return (
            f"output '{self.output}' on {self.inputs}: max difference {self.worst.max_abs:.3g}, "
            f"relative {self.worst.max_rel:.3g} (bound {RELATIVE_TOLERANCE:g})"
        )

    def to_json(self) -> dict[str, Any]:
        """Return the numbers as JSON-able data."""
        return {
            "output": self.output,
            "inputs": self.inputs,
            "input_sets": self.tried,
            "passed": self.passed,
            "max_abs": float(self.worst.max_abs),
            "max_rel": float(self.worst.max_rel),
            "sqnr_db": float(self.worst.sqnr_db),
            "cosine": float(self.worst.cosine),
        }


def check_equivalent(
    before: ir.Model, after: ir.Model, *, inputs: Sequence[dict[str, Any]] | None = None, seed: int = 0
) -> Equivalence:
    """Run both models on the same inputs and compare every output.

    Args:
        before: The model to compare with.
        after: The changed model; same inputs and outputs.
        inputs: Feeds to use; seeded random inputs and edge cases of `before` where None.
        seed: First seed of the random inputs.

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
    expected, actual = Reference(before), Reference(after)
    worst: tuple[Comparison, str, str] | None = None
    for label, feeds in labelled:
        reference, results = expected.run(feeds), actual.run(feeds)
        for name, value in reference.items():
            found = compare(value, results[name])
            # NaN as the error must win over any number.
            if worst is None or not found.max_rel <= worst[0].max_rel:
                worst = (found, name, label)
    if worst is None:
        raise ValueError("there is nothing to compare: no inputs or no outputs")
    return Equivalence(*worst, tried=len(labelled), passed=bool(worst[0].max_rel <= RELATIVE_TOLERANCE))
