"""16-bit numbers as bytes, and sums of products of bytes as sums of 16-bit numbers.

    a - z = 256 * (high(a) - high(z)) + low(a) - low(z)

`integer::Part(x)` takes a byte of every number of an int16 or uint16 tensor, or the whole number as int16.
Parts are stored as int8 or uint8, whichever instructions read: the other one lies 128 away, and so does its
zero point. `integer::Join(high, low)` is `256 * high + low` of int32 sums as float64, which holds it exactly.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .op import Op

WHOLE, LOW, HIGH = 0, 1, 2
"""Values of attribute `part`."""
BASE = 256


def part_of(number: int, part: int, source: np.dtype[Any], stored: np.dtype[Any]) -> int:
    """A part of one number of type `source`, stored as type `stored`: what `integer::Part` gives."""
    signed = source.kind == "i"
    own = {WHOLE: number, LOW: number % BASE, HIGH: number // BASE}[part]
    from_signed = signed and part != LOW
    if from_signed == (stored.kind == "i"):
        return own
    half = 1 << (8 * stored.itemsize - 1)
    return own + half if from_signed else own - half


def part(op: Op, x: Any) -> Any:
    """The expression of `integer::Part`."""
    from tvm import tirx

    own, source, stored = op.attr("part"), op.input(0).dtype, op.outputs[0].dtype
    wide = tirx.Cast("int32", x)
    if own == HIGH:
        wide = tirx.shift_right(wide, tirx.const(8, "int32"))
    from_signed = source == "int16" and own != LOW
    if from_signed != (stored[0] == "i"):
        # Both lie half of the range apart, which is their highest bit.
        bits = np.dtype(stored).itemsize * 8
        wide = tirx.bitwise_xor(wide, tirx.const(1 << (bits - 1), "int32"))
    return tirx.Cast(stored, wide)


def join(op: Op, *sums: Any) -> Any:
    """The expression of `integer::Join`."""
    from tvm import tirx

    total = tirx.Cast("float64", sums[0])
    for each in sums[1:]:
        total = total * tirx.const(BASE, "float64") + tirx.Cast("float64", each)
    return total
