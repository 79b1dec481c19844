"""Unsigned integers of up to 64 bits in few bytes, as DWARF and Protocol Buffers have them (LEB128).

Every byte holds seven bits, the lowest first, and says with the eighth that more follow.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

_LONGEST = 10


def write_varints(numbers: Iterable[int]) -> bytes:
    """The bytes of some integers, one behind the other."""
    made = bytearray()
    for number in numbers:
        while number > 0x7F:
            made.append(number & 0x7F | 0x80)
            number >>= 7
        made.append(number)
    return bytes(made)


def read_varint(data: Any, at: int) -> tuple[int, int]:
    """The integer that begins at a place of a buffer, and the place behind it.

    Raises:
        ValueError: it is truncated, or has more than 64 bits.
    """
    number = 0
    for place in range(_LONGEST):
        if at >= len(data):
            raise ValueError("an integer is truncated")
        byte = data[at]
        at += 1
        number |= (byte & 0x7F) << 7 * place
        if byte < 0x80:
            break
    else:
        raise ValueError("an integer has more than 64 bits")
    if number >> 64:
        raise ValueError("an integer has more than 64 bits")
    return number, at
