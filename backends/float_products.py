"""How exactly float32 is multiplied where the CPU has tile registers, decided model by model.

"bf16x3" takes three products of bfloat16, as exact as Winograd's convolution and the quickest. "bf16x6" takes
six, which is as exact as float32 itself. What is lost in the first layers is amplified by all that follow,
so a model for which three are not enough gets six there first, then everywhere. Vectors of float32 remain for
what even that does not bring close to the reference.
"""

from __future__ import annotations

import math
import re
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

_SHARES = (25, 60)
"""Percent of the layers that take six products, one after the other."""
_FAR = 20.0
"""Errors this many times the bound leave nothing to try but six products everywhere."""


def splits_floats(kernels: Sequence[Mapping[str, Any]]) -> bool:
    """Whether one of the kernels multiplies float32 in parts."""
    return any(_DOT in kernel["note"] for kernel in kernels)


def products_of(target: Target, kernels: Sequence[Mapping[str, Any]]) -> str:
    """How a compiled model multiplies float32, in a word: "3", "6 in 25 %, 3", "6", or "vectors"."""
    if not splits_floats(kernels):
        return "vectors"
    if target.float_parts == 3:
        return "6"
    return f"6 in {target.exact_share} %, 3" if target.exact_share else "3"


def next_target(target: Target, error: float = math.inf) -> Target | None:
    """The target with more exact products of float32, or None where they are float32's own.

    Args:
        target: what was not exact enough.
        error: the relative error it came to.
    """
    if not target.has(SPLIT_FEATURE):
        return None
    name = re.sub(r",\+bf16x[36](:\d+)?", "", target.name)
    plain = replace(target, float_parts=0, exact_share=0, name=name)
    if target.float_parts == 3:
        return with_features(plain, [f"-{SPLIT_FEATURE}"])
    larger = [share for share in _SHARES if share > target.exact_share]
    if target.float_parts == 2 or error > _FAR * MAX_RELATIVE_ERROR or not larger:
        return with_features(plain, ["+bf16x6"])
    return with_features(plain, [f"+bf16x6:{larger[0]}"])


def first_target(target: Target, is_checked: bool) -> Target:
    """The target to begin with: nothing that has to be tried is used where nothing is compared."""
    if is_checked or target.float_parts or target.exact_share or not target.has(SPLIT_FEATURE):
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
