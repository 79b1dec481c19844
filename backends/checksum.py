"""A checksum that runs at the speed of memory, for damage by accident.

Fletcher's checksum over blocks of 4 KiB instead of bytes: with s[i] the sum of the little-endian 64-bit words
of block i (the last one filled up with zeros), it is the sum of all s[i] and that of all (i + 1) * s[i],
modulo 2^64, as 16 hexadecimal digits each. It finds every flipped bit, and blocks that are lost, moved or
overwritten. Against intent it is no help, nor is a SHA-256 beside the file: who changes one changes both.
"""

from __future__ import annotations

import mmap
from pathlib import Path

import numpy as np

_WORDS = 512
_BYTES = 8 * _WORDS
_CHUNK = 16 << 20
_MODULUS = 1 << 64


def checksum(data: bytes | mmap.mmap, *, release: bool = False) -> str:
    """The checksum of what lies in memory or is mapped there, 32 hexadecimal digits.

    Args:
        data: the bytes.
        release: forget the pages of a mapped file again, which count as the process's memory while it has
            them.
    """
    first = second = 0
    for start in range(0, len(data) or 1, _CHUNK):
        size = min(_CHUNK, len(data) - start)
        whole = size // _BYTES
        words = np.frombuffer(data, "<u8", whole * _WORDS, start).reshape(whole, _WORDS)
        rest = bytes(data[start + whole * _BYTES : start + size])
        last = np.frombuffer(rest.ljust(_BYTES, b"\0"), "<u8")
        sums = np.append(words.sum(axis=1, dtype=np.uint64), last.sum(dtype=np.uint64))
        places = np.arange(1, whole + 2, dtype=np.uint64) + np.uint64(start // _BYTES)
        first += int(sums.sum(dtype=np.uint64))
        second += int((sums * places).sum(dtype=np.uint64))
        if release and isinstance(data, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
            data.madvise(mmap.MADV_DONTNEED, start, size)
    return f"{first % _MODULUS:016x}{second % _MODULUS:016x}"


def checksum_of(path: Path) -> str:
    """The checksum of a file."""
    with path.open("rb") as file:
        if not path.stat().st_size:
            return checksum(b"")
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return checksum(data)


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file."""
    import hashlib

    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
