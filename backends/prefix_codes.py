"""Codes of weights whose frequent ones are short and announce the others by an escape.

Weights crowd around zero: of sixteen levels the seven in the middle hold three quarters of them. Those take
three bits, whose eighth value says that the code is one of the rest and stands in the next list, in as many
bits as the rest needs, and so on. Unlike Huffman's codes, whole lists can be read at once; they come within
a few percent of the entropy. Layout, little-endian::

    uint8 lists, uint8 bits[lists], uint8 order[levels]     codes by how often they occur
    per list: words of its bits, lowest bit first, in whole bytes
        word < 2^bits - 1, or the list is the last one:  code = order[first of the list + word]
        word = 2^bits - 1:  the code is the next one of the list that follows

The first list has a word for every code, each of the others one for every escape of the list before.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence

import numpy as np

from .bit_packing import packed, packed_size, unpacked

MOST_LEVELS = 256


def write_codes(codes: np.ndarray, levels: int) -> bytes:
    """The payload of uint8 codes below `levels`, one axis."""
    counts = np.bincount(codes, minlength=levels)
    order = np.argsort(-counts, kind="stable").astype(np.uint8)
    bits = _best_bits(counts[order].tolist())
    rank = np.empty(levels, np.uint8)
    rank[order] = np.arange(levels, dtype=np.uint8)
    parts = [bytes([len(bits), *bits]), order.tobytes()]
    rest = rank[codes]
    for width in bits[:-1]:
        escape = np.uint8((1 << width) - 1)
        parts.append(packed(np.minimum(rest, escape), width))
        rest = rest[rest >= escape] - escape
    parts.append(packed(rest, bits[-1]))
    return b"".join(parts)


def read_codes(data: memoryview, count: int, levels: int) -> tuple[np.ndarray, int]:
    """`count` uint8 codes below `levels`, and the bytes that they took.

    Raises:
        ValueError: the payload contradicts itself or is truncated.
    """
    head = bytes(data[: 1 + MOST_LEVELS])
    bits = list(head[1 : 1 + head[0]]) if head else []
    at = 1 + len(bits) + levels
    if not 1 <= levels <= MOST_LEVELS or not bits or len(bits) != head[0] or at > len(data):
        raise ValueError("a coded tensor is truncated")
    firsts = list(itertools.accumulate(((1 << width) - 1 for width in bits[:-1]), initial=0))
    if min(bits) < 1 or max(bits) > 8 or firsts[-1] >= levels:
        raise ValueError("a coded tensor has codes of impossible lengths")
    order = np.frombuffer(data, np.uint8, levels, 1 + len(bits))
    if order.max() >= levels:
        raise ValueError("a coded tensor has codes beyond its levels")
    lists, escapes = [], []
    for width in bits:
        size = packed_size(count, width)
        if size > len(data) - at:
            raise ValueError("a coded tensor is truncated")
        words = unpacked(data[at : at + size], count, width, np.dtype(np.uint8))
        lists.append(words)
        at += size
        escapes.append(words == (1 << width) - 1)
        count = int(np.count_nonzero(escapes[-1]))
    if lists[-1].size and int(lists[-1].max()) >= levels - firsts[-1]:
        raise ValueError("a coded tensor has codes beyond its levels")
    found = _translated(lists[-1], order[firsts[-1] :])
    for words, escaped, first in zip(lists[-2::-1], escapes[-2::-1], firsts[-2::-1], strict=True):
        own = _translated(words, order[first:])
        own[escaped] = found
        found = own
    return found, at


def _translated(words: np.ndarray, order: np.ndarray) -> np.ndarray:
    """`order[word]` of uint8 words, whatever of those that it does not have."""
    table = order.tobytes().ljust(MOST_LEVELS, b"\0")
    return np.frombuffer(bytearray(words.tobytes().translate(table)), np.uint8)


def _best_bits(counts: Sequence[int]) -> list[int]:
    """Bits of the lists that make codes the shortest; `counts` is how often each occurs, in falling order."""
    left = list(itertools.accumulate(reversed(counts)))[::-1]

    @functools.cache
    def best(first: int) -> tuple[int, tuple[int, ...]]:
        levels = len(counts) - first
        whole = max((levels - 1).bit_length(), 1)
        found: tuple[int, tuple[int, ...]] = whole * left[first], (whole,)
        for width in range(1, whole):
            bits, others = best(first + (1 << width) - 1)
            other = width * left[first] + bits, (width, *others)
            found = min(found, other, key=lambda form: (form[0], len(form[1])))
        return found

    return list(best(0)[1])
