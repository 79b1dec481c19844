"""How exactly float32 is multiplied where the CPU has tile registers, decided model by model.

"bf16x3" takes three products of bfloat16, as exact as Winograd's convolution and the quickest; errors of
many layers add up, and random weights amplify them. "bf16x6" takes six, which is as exact as float32 itself.
Vectors of float32 remain for what even that does not bring close to the reference.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from .check import Check
from .checking import MAX_RELATIVE_ERROR
from .features import with_features
from .target import Target

SPLIT_FEATURE = "amx-bf16"
_DOT = "tdpbf16ps"
_MARGIN = 0.5
"""Share of the bound that three products may take up, since other inputs come out worse."""


def splits_floats(kernels: Sequence[Mapping[str, Any]]) -> bool:
    """Whether one of the kernels multiplies float32 in parts."""
    return any(_DOT in kernel["note"] for kernel in kernels)


def next_target(target: Target) -> Target | None:
    """The target with more exact products of float32, or None where they are float32's own."""
    if not target.has(SPLIT_FEATURE):
        return None
    if target.float_parts == 0:
        return with_features(target, ["+bf16x6"])
    plain = replace(target, float_parts=0, name=target.name.replace(",+bf16x6", "").replace(",+bf16x3", ""))
    return with_features(plain, [f"-{SPLIT_FEATURE}"])


def first_target(target: Target, is_checked: bool) -> Target:
    """The target to begin with: nothing that has to be tried is used where nothing is compared."""
    if is_checked or target.float_parts or not target.has(SPLIT_FEATURE):
        return target
    return with_features(target, ["+bf16x6"])


def too_near_the_bound(target: Target, check: Check) -> str:
    """Why three products are not enough although the check passed; "" if they are."""
    if target.float_parts or not check.checked or check.comparison is None or "SQNR" in check.bound:
        return ""
    error = check.comparison.max_rel
    if error <= _MARGIN * MAX_RELATIVE_ERROR:
        return ""
    return f"relative error {error:.1e}, with inputs of which others may come out worse"
