"""Headers of tensors in `weights.bin` that no file can keep: what both readers must refuse."""

from __future__ import annotations

import struct

from graphwright.backends.varints import write_varints

_HEADER = struct.Struct("<BBHIQQ")

PROMISES = (
    (2, 32, 1, 2, 64, 2**64 - 64, 2**31, 2**31),
    (2, 32, 1, 2, 64, 0, 2**62, 0),
    (2, 32, 1, 2, 64, 4, -1, -1),
    (2, 32, 1, 2**32 - 1, 64, 4),
    (2, 32, 1, 1, 2**64 - 64, 4, 1),
    (9, 32, 1, 1, 64, 4, 1),
    (2, 33, 1, 1, 64, 4, 1),
    (2, 32, 7, 1, 64, 4, 1),
    (192, 32, 1, 1, 64, 64, 2**40),
    (192, 32, 1, 2, 64, 64, 2**32, 2**32),
)
"""Type code, bits, lanes, rank, offset and bytes, then the sizes."""


def promising(header: tuple[int, ...]) -> bytes:
    """A file of one tensor with that header."""
    numbers = _HEADER.pack(*header[:6]) + struct.pack(f"<{len(header) - 6}q", *header[6:])
    return (b"GWW1" + struct.pack("<I", 1) + numbers).ljust(64, b"\0") + bytes(64)


def promising_compactly(header: tuple[int, ...]) -> bytes:
    """The same in few bytes; lanes other than one are a type that there is not."""
    code, bits, lanes, *rest = (number % 2**64 for number in header)
    numbers = write_varints((code if lanes == 1 else 300, bits, *rest))
    return (b"GWW2" + struct.pack("<I", 1) + numbers).ljust(64, b"\0") + bytes(64)
