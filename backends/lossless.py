"""Constants that a file holds in fewer bits, exactly: what repeats once, numbers as offsets in their range.

Expanded position biases and masks repeat a few vectors over and over; biases in int32 fill half of their
bits, scales in float32 have much the same exponents. Restoring gives the same bits back, whatever they mean:
here all numbers are unsigned words of the tensor's width, little-endian.

A payload is a part, and parts nest::

    uint8 0, uint8 bits, uint8 shift, uint8 rotated; uint64 start; `bits` of each word, lowest first, in bytes
        word = start + (offset << shift), modulo the width; rotated right by one bit if `rotated`, so that the
        sign of a float comes from the lowest
    uint8 1, 3 bytes 0; uint32 kept; uint64 outer, size, inner; a part of kept * size words; a part of
        outer * inner uint32 words, the places
        word[o, s, i] = kept[place[o, i], s]
"""

from __future__ import annotations

import itertools
import math
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..ir.contiguous import bytes_of
from .bit_packing import packed, packed_size, unpacked
from .coding import CodedArray, coding_of

RANGE, DISTINCT = 0, 1
_DEEPEST = 4
_LARGE = 1 << 15
"""Bytes from which a tensor is better read in place, from pages that processes share, unless it shrinks to
half."""
_NARROWEST, _MOST_WORDS = 4, 1 << 23
"""Bytes of words that are searched for what repeats, and how many words of a tensor at most."""
_SAMPLE, _ALL_DIFFERENT = 4096, 0.995
_FREE, _GROWTH = 1 << 22, 1024
"""Bytes that any payload may stand for, and how many times its own length beyond them."""


@dataclass(frozen=True)
class Lossless:
    """The payload of a tensor of any type."""

    data: bytes

    def to_bytes(self) -> bytes:
        """The payload, see above."""
        return self.data


def shrunk(tensors: Sequence[np.ndarray]) -> list[np.ndarray]:
    """The tensors, those that a file can hold in clearly fewer bits with how it does."""
    return [_with_coding(np.asanyarray(tensor)) for tensor in tensors]


def _with_coding(tensor: np.ndarray) -> np.ndarray:
    if coding_of(tensor) is not None or not tensor.size or tensor.dtype.itemsize > 8:
        return tensor
    if tensor.dtype.kind not in "biufV" or not tensor.dtype.isnative:
        return tensor
    payload = encode(tensor)
    return tensor if payload is None else CodedArray.of(tensor, Lossless(payload))


def encode(tensor: np.ndarray) -> bytes | None:
    """The payload of a tensor; None where it would not be much shorter."""
    words = bytes_of(tensor).view(f"<u{tensor.dtype.itemsize}")
    # Whatever lies in place begins on a cache line.
    room = -(-tensor.nbytes // 64) * 64
    limit = tensor.nbytes // 2 if tensor.nbytes >= _LARGE else room * 9 // 10
    if tensor.nbytes >= _LARGE and not _promises(words):
        return None
    payload = _part(words, tensor.shape, tensor.dtype.kind in "fV", _DEEPEST)
    if len(payload) > limit or tensor.nbytes > _most(len(payload)):
        return None
    restored = restore(payload, words.size, tensor.dtype.itemsize)
    return payload if np.array_equal(restored, words) else None


def restore(data: Any, count: int, itemsize: int) -> np.ndarray:
    """`count` unsigned words of `itemsize` bytes.

    Raises:
        ValueError: the payload contradicts itself, or stands for more than any tensor's would.
        struct.error: it is truncated.
    """
    if count * itemsize > _most(len(data)):
        raise ValueError("a packed tensor stands for more than its payload can hold")
    reader = _Reader(memoryview(data))
    words = reader.part(count, itemsize, _DEEPEST)
    reader.end()
    return words


def write_part(array: np.ndarray) -> bytes:
    """The shortest part found for the words of an array."""
    words = bytes_of(array).view(f"<u{array.dtype.itemsize}")
    return _part(words, array.shape, array.dtype.kind in "fV", _DEEPEST)


def read_part(data: Any, count: int, itemsize: int) -> tuple[np.ndarray, int]:
    """`count` unsigned words of `itemsize` bytes, and the bytes that their part took.

    Raises:
        ValueError: it contradicts itself, or stands for more than any tensor's would.
        struct.error: it is truncated.
    """
    if not 0 < count * itemsize <= _most(len(data)):
        raise ValueError("a packed tensor stands for more than its payload can hold")
    reader = _Reader(memoryview(data))
    return reader.part(count, itemsize, _DEEPEST), reader.used


def _most(payload: int) -> int:
    return _FREE + _GROWTH * payload


def _promises(words: np.ndarray) -> bool:
    """Whether a sample of words leaves hope that they shrink to half."""
    sample = _sample(words)
    spread = int(sample.max()) - int(sample.min())
    return _repeats(words) or spread.bit_length() <= 4 * words.itemsize


def _sample(words: np.ndarray) -> np.ndarray:
    if words.size <= _SAMPLE:
        return words
    step = words.size // _SAMPLE
    # One of every run, so that no word is seen twice, and at random, so that no period is met.
    return words[np.arange(_SAMPLE) * step + np.random.default_rng(0).integers(0, step, _SAMPLE)]


def _repeats(words: np.ndarray) -> bool:
    """Whether vectors of words may repeat, by a sample; zeros, which fill weights up, say nothing."""
    if words.itemsize < _NARROWEST or words.size > _MOST_WORDS:
        return False
    sample = _sample(words)
    others = sample[sample != 0]
    return len(np.unique(others)) < _ALL_DIFFERENT * len(others) or not others.size


def _part(words: np.ndarray, shape: tuple[int, ...], is_float: bool, deep: int) -> bytes:
    """The shortest part found for flat words."""
    found = _range(words, is_float)
    if not deep or len(found) < 64 or not _repeats(words):
        return found
    other = _distinct(words, shape, is_float, deep, len(found))
    return other if other is not None and len(other) < len(found) else found


def _range(words: np.ndarray, is_float: bool) -> bytes:
    width = 8 * words.itemsize
    signed = words.view(f"<i{words.itemsize}")
    turned = (words << 1) | (words >> (width - 1))
    forms = [(words, int(words.min()), 0), (words, int(signed.min()), 0)]
    forms += [(turned, int(turned.min()), 1)] if is_float else []
    best: tuple[int, int, int, int, np.ndarray] | None = None
    for numbers, start, rotated in forms:
        start %= 1 << width
        offsets = numbers - words.dtype.type(start)
        every = int(np.bitwise_or.reduce(offsets))
        shift = (every & -every).bit_length() - 1 if every else 0
        bits = (every >> shift).bit_length()
        if best is None or bits < best[0]:
            best = bits, shift, rotated, start, offsets >> words.dtype.type(shift)
    assert best is not None
    bits, shift, rotated, start, offsets = best
    return struct.pack("<4BQ", RANGE, bits, shift, rotated, start) + packed(offsets, bits)


def _distinct(
    words: np.ndarray, shape: tuple[int, ...], is_float: bool, deep: int, most: int
) -> bytes | None:
    """Vectors along some axes, each kept once, and the places of all; None where nothing is saved."""
    best: tuple[float, tuple[int, int, int], tuple[int, int]] | None = None
    bits = words.itemsize * 8
    axes = tuple(size for size in shape if size > 1)
    for begin, end in _runs(len(axes)):
        outer, size, inner = (math.prod(part) for part in (axes[:begin], axes[begin:end], axes[end:]))
        count = len(np.unique(_hashes(words.reshape(outer, size, inner))))
        cost = (count * size * bits + outer * inner * max(count - 1, 1).bit_length()) / 8
        if best is None or cost < best[0]:
            best = cost, (outer, size, inner), (begin, end)
    if best is None or best[0] > most:
        return None
    _, (outer, size, inner), (begin, end) = best
    view = words.reshape(outer, size, inner)
    _, first, places = np.unique(_hashes(view), return_index=True, return_inverse=True)
    kept = np.ascontiguousarray(view.transpose(0, 2, 1).reshape(-1, size)[first])
    table = _part(kept.reshape(-1), (len(kept), *axes[begin:end]), is_float, deep - 1)
    index = _part(places.reshape(-1).astype("<u4"), (*axes[:begin], *axes[end:]), False, deep - 1)
    head = struct.pack("<4BI3Q", DISTINCT, 0, 0, 0, len(kept), outer, size, inner)
    return head + table + index


def _runs(rank: int) -> Iterator[tuple[int, int]]:
    """Where vectors may begin and end: along some neighbouring axes, not all, or along none."""
    yield 0, 0
    for begin, end in itertools.combinations(range(rank + 1), 2):
        if end - begin < rank:
            yield begin, end


def _hashes(view: np.ndarray) -> np.ndarray:
    """A number for every vector of (outer, size, inner); equal vectors have equal ones."""
    if view.shape[1] == 1:
        return view.reshape(-1)
    factors = np.random.default_rng(1).integers(1, 1 << 63, view.shape[1], np.uint64) | np.uint64(1)
    total = np.zeros((view.shape[0], view.shape[2]), np.uint64)
    for number, factor in enumerate(factors):
        total += (view[:, number].astype(np.uint64) + np.uint64(1)) * factor
    return total.reshape(-1)


class _Reader:
    def __init__(self, data: memoryview):
        self._data, self._at = data, 0

    def part(self, count: int, itemsize: int, deep: int) -> np.ndarray:
        """The words of the part that comes next, which must be `count`."""
        kind, bits, shift, rotated = struct.unpack_from("<4B", self._data, self._at)
        self._at += 4
        if kind == RANGE:
            return self._range(count, itemsize, bits, shift, rotated)
        if kind != DISTINCT or bits or shift or rotated or not deep or itemsize < _NARROWEST:
            raise ValueError("a packed tensor has a part of an unknown kind")
        kept, outer, size, inner = struct.unpack_from("<I3Q", self._data, self._at)
        self._at += 28
        if outer * size * inner != count or not size or not 1 <= kept <= outer * inner:
            raise ValueError("a packed tensor contradicts its own size")
        vectors = self.part(kept * size, itemsize, deep - 1).reshape(kept, size)
        places = self.part(outer * inner, 4, deep - 1)
        if int(places.max()) >= kept:
            raise ValueError("a packed tensor names a vector that it does not hold")
        found = vectors[places]
        if inner > 1 and size > 1:
            found = np.ascontiguousarray(found.reshape(outer, inner, size).transpose(0, 2, 1))
        return found.reshape(-1)

    def _range(self, count: int, itemsize: int, bits: int, shift: int, rotated: int) -> np.ndarray:
        width, dtype = 8 * itemsize, np.dtype(f"<u{itemsize}")
        (start,) = struct.unpack_from("<Q", self._data, self._at)
        self._at += 8
        if bits + shift > width or rotated > 1 or start >> width:
            raise ValueError("a packed tensor has offsets wider than its numbers")
        length = packed_size(count, bits)
        if length > len(self._data) - self._at:
            raise ValueError("a packed tensor is truncated")
        payload = self._data[self._at : self._at + length]
        self._at += length
        words = unpacked(payload, count, bits, dtype)
        if shift:
            words <<= dtype.type(shift)
        words += dtype.type(start)
        return (words >> 1) | (words << (width - 1)) if rotated else words

    @property
    def used(self) -> int:
        """Bytes that were read."""
        return self._at

    def end(self) -> None:
        """Raises ValueError where something is left."""
        if self._at != len(self._data):
            raise ValueError("a packed tensor is longer than it should be")
