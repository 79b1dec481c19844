"""Look-ups in a table of 16 floats, in registers where the target permutes floats or bytes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from tvm import tirx

from . import emit
from .arithmetic import has_features, intrinsic

LEVELS = 16
"""Places of a table; what is not used is filled up."""


def has_look_up(target: Any) -> bool:
    """Whether a target looks up in registers; elsewhere each place would be read by itself."""
    return has_features(target, "avx2") or has_features(target, "neon")


def pack_levels(levels: np.ndarray) -> np.ndarray:
    """A table as `look_up` reads it."""
    return np.pad(np.asarray(levels, np.float32), (0, LEVELS - len(levels)))


def permuted(levels: Sequence[float], place: Any) -> Any:
    """Those of 16 numbers known now at 16 places, on AVX-512; of a place its lowest four bits count."""
    table = tirx.Shuffle([tirx.const(each, "float32") for each in levels], list(range(LEVELS)))
    return intrinsic("llvm.x86.avx512.permvar.sf.512", "float32x16", table, place)


def look_up(table: Any, place: Any, lanes: int, target: Any) -> Any:
    """The floats at some places.

    Args:
        table: buffer of `LEVELS` floats.
        place: int32, 0 to 15, of so many lanes; with AVX-512 higher bits do not matter.
        lanes: of the result.
        target: decides about the instruction.
    """
    if lanes == 16 and has_features(target, "avx512f"):
        return intrinsic("llvm.x86.avx512.permvar.sf.512", "float32x16", emit.load(table, [0], 16), place)
    if lanes == 8 and has_features(target, "avx2"):
        low, high = (emit.load(table, [at], 8) for at in (0, 8))
        if has_features(target, "avx512vl"):
            return intrinsic("llvm.x86.avx512.vpermi2var.ps.256", "float32x8", low, place, high)
        found = [intrinsic("llvm.x86.avx2.permps", "float32x8", half, place) for half in (low, high)]
        return tirx.Select(place > emit.constant(7, 8, "int32"), found[1], found[0])
    if lanes == 4 and has_features(target, "neon"):
        quarters = [tirx.reinterpret("int8x16", emit.load(table, [at], 4)) for at in (0, 4, 8, 12)]
        # The four bytes of the float at place i are 4 i ... 4 i + 3.
        bytes_ = place * emit.constant(0x04040404, 4, "int32") + emit.constant(0x03020100, 4, "int32")
        found_bytes = intrinsic(
            "llvm.aarch64.neon.tbl4.v16i8", "int8x16", *quarters, tirx.reinterpret("int8x16", bytes_)
        )
        return tirx.reinterpret("float32x4", found_bytes)
    return tirx.BufferLoad(table, [place])
