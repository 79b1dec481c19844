"""Proof by execution: the pruned model equals the masked original on the reference."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from ...ir.clone import clone
from ...ir.collector import without_collector
from ...ir.compare import compare
from ...ir.inputs import random_inputs
from ...ir.reference import Reference
from ...ir.wider import feeds_to_float32, has_other_floats, to_float32
from ..rewriter import Rewriter
from .removal import Removal, apply_removal, cut_values, masked_model


@dataclass(frozen=True)
class Proof:
    """How far a pruned model is from the masked original.

    Attributes:
        error: Largest absolute difference over all outputs, relative to the largest value of that output.
        output: The output where it occurs.
        vacuous: Whether every output is zero or not finite, so that agreement says nothing.
        effect: How far the masked original is from the original, likewise, if that was asked for. An error
            far below this is telling; where this is 0, what was removed did nothing on these inputs.
    """

    error: float
    output: str
    vacuous: bool
    effect: float | None = None


@without_collector
def prove(original: ir.Model, removal: Removal, seed: int = 0, *, measure_effect: bool = False) -> Proof:
    """Prune a copy of `original` and compare it with the masked original on random inputs, in float32.

    Raises:
        ModelError: The reference cannot run the model.
    """
    feeds = random_inputs(original, seed=seed)
    if has_other_floats(original):
        # Rounding to 16 bits would hide what there is to prove.
        original, feeds = clone(original), feeds_to_float32(feeds)
        to_float32(original)
    pruned = clone(original)
    apply_removal(pruned, removal, Rewriter(pruned))
    masked = Reference(masked_model(original, removal), consume=True)
    expected = cut_values(masked.run(feeds), removal.outputs)
    actual = Reference(pruned, consume=True).run(removal.feeds(feeds))
    worst = compare(expected, actual)
    telling = any(
        np.any(np.isfinite(array) & (array != 0)) for array in expected.values() if array.dtype.kind in "fiu"
    )
    effect = None
    if measure_effect:
        effect = compare(cut_values(Reference(original).run(feeds), removal.outputs), expected).max_rel
    return Proof(worst.max_rel, worst.worst, not telling, effect)
