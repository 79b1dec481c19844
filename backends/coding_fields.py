"""The fields of a coded tensor as a payload holds them: plainly, or in few bytes (`coding.py`).

Compact integers are those of `varints.py`, bit 0 the sign (zigzag); compact scales are a part of
`lossless.py`, compact codes those of `prefix_codes.py`.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable

import numpy as np

from ..passes.quantization.weight_forms import byte_table, codes_per_byte, pack
from .prefix_codes import MOST_LEVELS, read_codes, write_codes
from .varints import read_varint, write_varints


class PlainReader:
    """Reads fields off a payload, one behind the other; raises ValueError or struct.error at its end."""

    def __init__(self, data: memoryview, at: int):
        self._data, self._at = data, at

    def integers(self, count: int) -> tuple[int, ...]:
        """Signed integers of 64 bits."""
        found = struct.unpack_from(f"<{count}q", self._data, self._at)
        self._at += 8 * count
        return found

    def array(self, dtype: str, count: int) -> np.ndarray:
        """Numbers as they are."""
        size = np.dtype(dtype).itemsize * count
        if count < 0 or self._at + size > len(self._data):
            raise ValueError("a coded tensor is truncated")
        found = np.frombuffer(self._data, dtype, count, self._at)
        self._at += size
        return found

    def scales(self, count: int) -> np.ndarray:
        """float32 numbers."""
        return self.array("<f4", count)

    def codes(self, count: int, levels: int) -> np.ndarray:
        """Codes, as many in a byte as `codes_per_byte` says."""
        return self.array("u1", -(-count // codes_per_byte(levels)))


class CompactReader(PlainReader):
    """Reads compact fields."""

    def integers(self, count: int) -> tuple[int, ...]:
        """Signed integers of 64 bits, as varints."""
        return tuple(self._integer() for _ in range(count))

    def _integer(self) -> int:
        number, self._at = read_varint(self._data, self._at)
        return number >> 1 if number & 1 == 0 else -(number >> 1) - 1

    def scales(self, count: int) -> np.ndarray:
        """float32 numbers, from their part."""
        from .lossless import read_part

        if not count:
            return np.empty(0, np.float32)
        words, used = read_part(self._data[self._at :], count, 4)
        self._at += used
        return words.view("<f4")

    def codes(self, count: int, levels: int) -> np.ndarray:
        """Codes, packed as the plain ones are."""
        found, used = read_codes(self._data[self._at :], count, levels)
        self._at += used
        return pack(found, levels)


def compact_integers(numbers: Iterable[int]) -> bytes:
    """What `CompactReader.integers` reads."""
    return write_varints(number << 1 if number >= 0 else (-number - 1) << 1 | 1 for number in numbers)


def compact_scales(scales: np.ndarray) -> bytes:
    """What `CompactReader.scales` reads."""
    from .lossless import write_part

    return write_part(scales) if scales.size else b""


def compact_codes(codes: np.ndarray, count: int, levels: int) -> bytes:
    """What `CompactReader.codes` reads, of `count` packed codes."""
    digits = byte_table(np.arange(levels, dtype=np.uint8))[codes].reshape(-1)
    return write_codes(digits[:count], levels)


def can_be_compact(levels: int) -> bool:
    """Whether codes of so many levels have a compact form."""
    return 1 <= levels <= MOST_LEVELS
