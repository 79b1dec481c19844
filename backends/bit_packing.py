"""Unsigned words of a few bits each, one behind the other, the lowest bit first (bit packing)."""

from __future__ import annotations

from typing import Any

import numpy as np

_CHUNK = 1 << 16
"""Words that are packed at once; a multiple of 8."""


def packed_size(count: int, bits: int) -> int:
    """Bytes of so many words."""
    return -(-count * bits // 8)


def packed(words: np.ndarray, bits: int) -> bytes:
    """Words of any unsigned type, one axis, each below 2^bits; the last byte is filled up with zeros."""
    if bits == 8 * words.itemsize:
        return words.tobytes()
    parts = []
    for start in range(0, words.size, _CHUNK):
        chunk = np.ascontiguousarray(words[start : start + _CHUNK])
        if bits <= 8:
            parts.append(_packed_narrow(chunk, bits))
            continue
        each = np.unpackbits(chunk.view(np.uint8).reshape(len(chunk), -1), axis=1, bitorder="little")
        parts.append(np.packbits(each[:, :bits], bitorder="little").tobytes())
    return b"".join(parts)


def unpacked(payload: Any, count: int, bits: int, dtype: np.dtype[Any]) -> np.ndarray:
    """`count` words of an unsigned type, writable; `payload` holds `packed_size` bytes or more."""
    if bits == 0:
        return np.zeros(count, dtype)
    if bits == 8 * dtype.itemsize:
        return np.frombuffer(payload, dtype, count).copy()
    words = np.empty(count, dtype)
    for start in range(0, count, _CHUNK):
        here = min(count - start, _CHUNK)
        chunk = np.frombuffer(payload, np.uint8, packed_size(here, bits), start * bits // 8)
        if bits <= 8:
            words[start : start + here] = _unpacked_narrow(chunk, here, bits)
            continue
        each = np.zeros((here, 8 * dtype.itemsize), np.uint8)
        each[:, :bits] = np.unpackbits(chunk, count=here * bits, bitorder="little").reshape(here, bits)
        words[start : start + here] = np.packbits(each.reshape(-1), bitorder="little").view(dtype)
    return words


def _packed_narrow(words: np.ndarray, bits: int) -> bytes:
    """Eight words at a time make `bits` whole bytes."""
    groups = np.zeros(-(-words.size // 8) * 8, np.uint64)
    groups[: words.size] = words
    joined = np.zeros(len(groups) // 8, "<u8")
    for place in range(8):
        joined |= groups[place::8] << np.uint64(place * bits)
    made = joined.view(np.uint8).reshape(-1, 8)[:, :bits]
    return made.tobytes()[: packed_size(words.size, bits)]


def _unpacked_narrow(payload: np.ndarray, count: int, bits: int) -> np.ndarray:
    """uint8 words, eight at a time."""
    held = np.zeros(-(-count // 8) * bits, np.uint8)
    held[: payload.size] = payload
    joined = np.zeros((len(held) // bits, 8), np.uint8)
    joined[:, :bits] = held.reshape(-1, bits)
    groups = joined.view("<u8")[:, 0]
    words = np.empty((len(groups), 8), np.uint8)
    for place in range(8):
        words[:, place] = (groups >> np.uint64(place * bits)).astype(np.uint8) & np.uint8((1 << bits) - 1)
    return words.reshape(-1)[:count]
