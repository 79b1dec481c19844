"""Integer weights of few levels, as `weights.bin` holds them: int8 numbers of which at most 16 differ.

    weight = level[code]

Weights that a model stores in four bits or fewer are int8 to the instructions that multiply them. In the file
several codes share a byte, as many as `codes_per_byte` says, the first in the lowest digit, or they are those
of `prefix_codes.py` if that is shorter. They become int8 once, when the file is read. Payload::

    uint8  number of levels, 2 to 16
    uint8  1 for prefix codes, else 0
    uint16 0
    int8   levels[16]       filled up with zeros
    codes
"""

from __future__ import annotations

import struct

import numpy as np

from ..passes.quantization.weight_forms import byte_table, codes_per_byte, pack
from .prefix_codes import read_codes, write_codes

MOST_LEVELS = 16
_FEWEST = 1024
_SAMPLE = 4096
_HEAD = struct.Struct("<BBH16s")


def narrow_bytes(array: np.ndarray) -> bytes | None:
    """The payload of an int8 array; None where it is too small, of another type, or has too many levels."""
    if array.dtype != np.int8 or array.size < _FEWEST:
        return None
    flat = np.ascontiguousarray(array).reshape(-1)
    for part in (flat[:_SAMPLE], flat):
        held = np.zeros(256, bool)
        held[part.view(np.uint8)] = True
        if held.sum() > MOST_LEVELS:
            return None
    levels = np.flatnonzero(held).astype(np.uint8)
    if len(levels) < 2:
        levels = np.array([levels[0], 0 if levels[0] else 1], np.uint8)
    places = np.zeros(256, np.uint8)
    places[levels] = np.arange(len(levels), dtype=np.uint8)
    numbers = places[flat.view(np.uint8)]
    forms = pack(numbers, len(levels)).tobytes(), write_codes(numbers, len(levels))
    is_prefix = len(forms[1]) < len(forms[0])
    return _HEAD.pack(len(levels), is_prefix, 0, levels.tobytes()) + forms[is_prefix]


def read_narrow(payload: bytes, size: int) -> np.ndarray:
    """The int8 numbers, on one axis.

    Args:
        payload: what `narrow_bytes` made.
        size: how many it must stand for.

    Raises:
        ValueError: the payload contradicts itself or `size`.
        struct.error: it is truncated.
    """
    count, form, zero, table = _HEAD.unpack_from(payload, 0)
    if not 2 <= count <= MOST_LEVELS or form > 1 or zero:
        raise ValueError("a narrow tensor has an impossible number of levels")
    if form:
        numbers, used = read_codes(memoryview(payload)[_HEAD.size :], size, count)
        if used != len(payload) - _HEAD.size:
            raise ValueError("a narrow tensor contradicts its own size")
        return np.frombuffer(table, np.int8)[numbers]
    if len(payload) - _HEAD.size != -(-size // codes_per_byte(count)):
        raise ValueError("a narrow tensor contradicts its own size")
    codes = np.frombuffer(payload, np.uint8, offset=_HEAD.size)
    decoded = byte_table(np.frombuffer(table, np.int8)[:count])
    if codes.size and codes.max() >= len(decoded):
        raise ValueError("a narrow tensor has codes beyond its levels")
    return decoded[codes].reshape(-1)[:size]
