"""Turning a square of vectors: rows become columns in registers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tvm import tirx

from . import emit
from .emit import Statements


def transpose(rows: Sequence[Any], name: str = "t", dtype: str = "float32") -> tuple[list[Any], Statements]:
    """The columns of a square of vectors, as variables, and the statements that bind them.

    In step s the halves of pairs of vectors that are s apart change places, for s = 1, 2, 4, ...; the number
    of rows, which is that of lanes, is a power of two.
    """
    lanes = len(rows)
    current, statements = list(rows), []
    step = 1
    while step < lanes:
        low = [j if not j & step else lanes + j - step for j in range(lanes)]
        high = [j + step if not j & step else lanes + j for j in range(lanes)]
        following = list(current)
        for i in range(lanes):
            if i & step:
                continue
            pair = [current[i], current[i + step]]
            for place, picks in ((i, low), (i + step, high)):
                mixed = tirx.Shuffle(pair, [tirx.const(pick, "int32") for pick in picks])
                following[place], bound = emit.hold(f"{name}{step}_{place}", mixed, lanes, dtype)
                statements.append(bound)
        current, step = following, 2 * step
    return current, statements
