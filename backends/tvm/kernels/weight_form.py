"""Codes of weights of few bits, and how they become floats in registers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tvm import tirx

from . import emit
from .arithmetic import cast, has_features
from .tables import LEVELS, look_up, permuted
from .tile import TargetNumbers


@dataclass(frozen=True)
class WeightForm:
    """How weights are stored.

    Attributes:
        bits: 8, or 4, 2 or 1 for several per byte, which are not negative.
        group: rows of the reduction that share scale and offset.
        has_scale: whether scales are applied here; otherwise they belong to the epilogue.
        has_offset: the same for offsets; only beside scales.
        zero: what stands for 0 in all groups.
        has_levels: whether codes are places in a table; then without offsets.
    """

    bits: int
    group: int
    has_scale: bool
    has_offset: bool
    zero: float = 0.0
    has_levels: bool = False


def decoded(wide: Any, part: int, form: WeightForm, levels: Any, lanes: int, target: TargetNumbers) -> Any:
    """The numbers of one of the rows whose codes lie in int32 lanes, before scale and offset."""
    if part:
        wide = tirx.shift_right(wide, emit.constant(part * form.bits, lanes, "int32"))
    # One permutation takes the place of masking, conversion and subtraction, and reads four bits only.
    permutes = form.bits < 8 and lanes == LEVELS and has_features(target, "avx512f")
    if part < 8 // form.bits - 1 and not (permutes and form.bits == 4):
        wide = tirx.bitwise_and(wide, emit.constant((1 << form.bits) - 1, lanes, "int32"))
    if levels is not None:
        return look_up(levels, wide, lanes, target)
    if permutes:
        return permuted([code - form.zero for code in range(LEVELS)], wide)
    value = cast(wide, "float32", lanes)
    return value - emit.constant(form.zero, lanes, "float32") if form.zero else value
