"""The largest part of some cuts that proves exact."""

from __future__ import annotations

from collections.abc import Callable

import onnx_ir as ir

from ...ir.errors import GraphwrightError
from ..channels import Dependencies
from ..channels.proof import Proof, prove
from .budget import plan
from .ranking import Cut


def proven(
    model: ir.Model,
    found: Dependencies,
    cuts: list[Cut],
    *,
    seed: int,
    tolerance: float,
    leave: Callable[[Cut, str], None],
) -> tuple[list[Cut], Proof | None]:
    """Compare the pruned model with the masked original, halving the cuts where they differ.

    Args:
        model: The model before pruning; not changed.
        found: Its analysis.
        cuts: What is to go.
        seed: Of the random inputs.
        tolerance: Largest difference, relative to the largest value of an output.
        leave: Told every cut that fails, and why.

    Returns:
        The cuts that hold together, and the proof of them.
    """
    proof, failure = _try(model, found, cuts, seed, tolerance)
    if failure is None:
        return cuts, proof
    if len(cuts) == 1:
        leave(cuts[0], f"the proof failed: {failure}")
        return [], None
    middle = len(cuts) // 2
    halves = [
        proven(model, found, half, seed=seed, tolerance=tolerance, leave=leave)
        for half in (cuts[:middle], cuts[middle:])
    ]
    good = [cut for half, _ in halves for cut in half]
    if not good:
        return [], None
    if len(good) == len(cuts):
        # Each half holds by itself but not both together: keep the first.
        for cut in halves[1][0]:
            leave(cut, f"the proof failed together with others: {failure}")
        return halves[0]
    return proven(model, found, good, seed=seed, tolerance=tolerance, leave=leave)


def _try(
    model: ir.Model, found: Dependencies, cuts: list[Cut], seed: int, tolerance: float
) -> tuple[Proof | None, str | None]:
    try:
        proof = prove(model, plan(found, cuts), seed)
    except GraphwrightError as error:
        return None, str(error)
    # Not "greater": NaN must fail.
    if not proof.error <= tolerance:
        return proof, f"output '{proof.output}' is off by {proof.error:.3g} from the masked original"
    return proof, None
