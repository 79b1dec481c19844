"""`weights.bin`: the packed weights of an artifact, readable in place from Python and C++.

Little-endian throughout::

    char[4]  "GWW1"
    uint32   number of tensors
    per tensor:
        uint8 type code, uint8 bits, uint16 lanes     (DLPack's DLDataType, but for the codes below)
        uint32 rank
        uint64 offset of the payload in the file, a multiple of 64 unless the code is 208 or more
        uint64 bytes of the payload
        int64  sizes[rank]
    payloads, C order

Artifacts have "GWW2" instead, where what stands for a tensor is in as few bytes as it needs: type code, bits,
rank, offset, bytes and sizes as integers of `varints.py`. Offsets count from the first multiple of 64 behind
all of that.

Tensors of type code 192 are float32 numbers, or uint16 if they have 16 bits, whose payload is a code of them,
see `coding.py`. Writing and reading take and give `CodedArray`. Those of type code 193 are int8 numbers of at
most 16 levels, see `narrow_integers.py`; writing finds them. Type codes from 208 on are DLPack's plus 208:
numbers that a payload of `lossless.py` holds in fewer bits, given and taken as `CodedArray`.

The file is mapped read-only, so that several processes share the pages and loading costs no copy. Reading
believes nothing: every size is held against the file's before memory is taken for it.
"""

from __future__ import annotations

import math
import mmap
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ..ir.contiguous import bytes_of
from ..ir.errors import ToolError
from .narrow_integers import narrow_bytes, read_narrow
from .varints import read_varint, write_varints

MAGIC, COMPACT_MAGIC = b"GWW1", b"GWW2"
CHECK_FUNCTION = "check_weights"
"""Function of a library that raises unless it is called with a shape of one size: `layout_number`."""
ALIGNMENT = 64
_MAX_RANK = 32
_LEAST = 5
"""Bytes of the entry of a tensor in a compact file."""

_INT, _UINT, _FLOAT, _BFLOAT, _BOOL, _CODED, _NARROW, _PACKED = 0, 1, 2, 4, 6, 192, 193, 208
_DTYPES: dict[tuple[int, int], np.dtype[Any]] = {
    **{(_INT, 8 * size): np.dtype(f"<i{size}") for size in (1, 2, 4, 8)},
    **{(_UINT, 8 * size): np.dtype(f"<u{size}") for size in (1, 2, 4, 8)},
    **{(_FLOAT, 8 * size): np.dtype(f"<f{size}") for size in (2, 4, 8)},
    (_BOOL, 8): np.dtype(bool),
}
_CODES = {dtype.name: code for code, dtype in _DTYPES.items()} | {"bfloat16": (_BFLOAT, 16)}


def write_weights(path: str | Path, tensors: Sequence[np.ndarray], *, compact: bool = False) -> int:
    """Write tensors to a file and return its size in bytes.

    Args:
        path: of the file.
        tensors: what to write.
        compact: describe them in few bytes, as artifacts do.

    Raises:
        ToolError: an element type has no place in the format.
    """
    stored = [_stored(index, tensor) for index, tensor in enumerate(tensors)]
    described, payloads = [kind for kind, _ in stored], [payload for _, payload in stored]
    # What is not read in place follows the rest, without gaps.
    order = sorted(range(len(tensors)), key=lambda index: described[index][0] >= _PACKED)
    start = 0 if compact else 8 + sum(24 + 8 * tensor.ndim for tensor in tensors)
    offsets, end = [0] * len(tensors), start
    for index in order:
        offsets[index] = end if described[index][0] >= _PACKED else _aligned(end)
        end = offsets[index] + len(payloads[index])
    header = bytearray((COMPACT_MAGIC if compact else MAGIC) + struct.pack("<I", len(tensors)))
    for tensor, payload, offset, (code, bits) in zip(tensors, payloads, offsets, described, strict=True):
        if compact:
            header += write_varints((code, bits, tensor.ndim, offset, len(payload), *tensor.shape))
            continue
        header += struct.pack("<BBHIQQ", code, bits, 1, tensor.ndim, offset, len(payload))
        header += struct.pack(f"<{tensor.ndim}q", *tensor.shape)
    base = _aligned(len(header)) if compact else 0
    with open(path, "wb") as file:
        file.write(header)
        for index in order:
            file.write(bytes(base + offsets[index] - file.tell()))
            file.write(payloads[index])
        file.write(bytes(base + _aligned(end) - file.tell()))
    return base + _aligned(end)


def read_weights(path: str | Path) -> list[np.ndarray]:
    """Tensors of a file, mapped: pages are read when touched, and cannot be written.

    Raises:
        ToolError: the file is missing, truncated or no weights file.
    """
    return parse_weights(map_file(path), Path(path).name)


def map_file(path: str | Path) -> mmap.mmap:
    """A file in memory, read-only.

    Raises:
        ToolError: it is missing or empty.
    """
    try:
        with open(path, "rb") as file:
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except (OSError, ValueError) as error:
        raise ToolError(f"cannot read weights file {Path(path).name}: {error}") from None


def parse_weights(data: mmap.mmap, name: str) -> list[np.ndarray]:
    """Tensors that lie in a mapped file; `name` is for messages.

    Raises:
        ToolError: it is truncated or no weights file.
    """
    try:
        return _parse(data)
    except (struct.error, ValueError, KeyError, OverflowError) as error:
        raise ToolError(f"weights file {name} is damaged: {error}") from None


@dataclass(frozen=True)
class _Entry:
    """What stands in a file for a tensor; `offset` is from the beginning."""

    code: int
    bits: int
    shape: tuple[int, ...]
    offset: int
    size: int


def _entries(data: mmap.mmap, count: int) -> tuple[list[_Entry], int]:
    """The entries of a plain file, and where they end."""
    position, entries = 8, []
    for index in range(count):
        code, bits, lanes, rank, offset, size = struct.unpack_from("<BBHIQQ", data, position)
        if lanes != 1 or rank > _MAX_RANK:
            raise ValueError(f"tensor {index} has an unknown type or rank")
        shape = struct.unpack_from(f"<{rank}q", data, position + 24)
        position += 24 + 8 * rank
        entries.append(_Entry(code, bits, shape, offset, size))
    return entries, position


def _compact_entries(data: mmap.mmap, count: int) -> tuple[list[_Entry], int]:
    """The entries of a compact file, and where they end."""
    position, entries = 8, []

    def integers(count: int) -> Iterator[int]:
        nonlocal position
        for _ in range(count):
            number, position = read_varint(data, position)
            yield number

    for index in range(count):
        code, bits, rank, offset, size = integers(5)
        if rank > _MAX_RANK:
            raise ValueError(f"tensor {index} has an unknown type or rank")
        entries.append(_Entry(code, bits, tuple(integers(rank)), offset, size))
    base = _aligned(position)
    return [replace(entry, offset=base + entry.offset) for entry in entries], position


def _parse(data: mmap.mmap) -> list[np.ndarray]:
    compact = data[:4] == COMPACT_MAGIC
    if not compact and data[:4] != MAGIC:
        raise ValueError("it does not start with GWW1 or GWW2")
    (count,) = struct.unpack_from("<I", data, 4)
    if count * (_LEAST if compact else 24) > len(data):
        raise ValueError(f"it is too short for {count} tensors")
    entries, header = (_compact_entries if compact else _entries)(data, count)
    tensors = []
    for index, entry in enumerate(entries):
        code, bits, shape, offset, size = entry.code, entry.bits, entry.shape, entry.offset, entry.size
        if min(shape, default=0) < 0 or max(shape, default=0) >> 63:
            raise ValueError(f"tensor {index} contradicts its own size")
        gap = 0 if code >= _PACKED else offset % ALIGNMENT
        if gap or offset < header or offset + size > len(data):
            raise ValueError(f"tensor {index} lies outside of the file, which may be truncated")
        if code == _CODED and bits in (16, 32):
            tensors.append(_restored(index, data[offset : offset + size], shape, bits))
            continue
        if code == _NARROW and bits == 8:
            numbers = read_narrow(data[offset : offset + size], math.prod(shape))
            tensors.append(_aligned_copy(numbers).reshape(shape))
            continue
        if code >= _PACKED:
            packed = data[offset : offset + size]
            tensors.append(_unpacked(packed, _dtype(index, code - _PACKED, bits), shape))
            continue
        dtype, elements = _dtype(index, code, bits), math.prod(shape)
        if elements * dtype.itemsize != size:
            raise ValueError(f"tensor {index} contradicts its own size")
        tensors.append(np.frombuffer(data, dtype, elements, offset).reshape(shape))
    return tensors


def _dtype(index: int, code: int, bits: int) -> np.dtype[Any]:
    if (code, bits) == (_BFLOAT, 16):
        import ml_dtypes

        return np.dtype(ml_dtypes.bfloat16)
    if (code, bits) not in _DTYPES:
        raise ValueError(f"tensor {index} has an unknown type or rank")
    return _DTYPES[code, bits]


def layout_number(tensors: Sequence[np.ndarray]) -> int:
    """A number below 2^63 for types and shapes: half of FNV-1a over the little-endian bytes of each tensor's
    type code, bits, rank (uint32) and sizes (int64).

    A library is compiled with that of its weights, so that it refuses others.
    """
    number = 0xCBF29CE484222325
    for index, tensor in enumerate(tensors):
        code, bits = _type_of(index, tensor)
        for byte in struct.pack(f"<BBI{tensor.ndim}q", code, bits, tensor.ndim, *tensor.shape):
            number = (number ^ byte) * 0x100000001B3 & 0xFFFFFFFFFFFFFFFF
    return number >> 1


def stored_bytes(tensor: np.ndarray) -> int:
    """Bytes that a tensor takes in a file."""
    return len(_stored(0, tensor)[1])


def _stored(index: int, tensor: np.ndarray) -> tuple[tuple[int, int], memoryview | bytes]:
    """Type code and bits, and the payload."""
    from .coding import coding_of
    from .lossless import Lossless

    coding = coding_of(tensor)
    if isinstance(coding, Lossless):
        code, bits = _type_of(index, tensor)
        return (_PACKED + code, bits), coding.data
    if coding is not None:
        return (_CODED, 8 * tensor.itemsize), coding.to_bytes()
    narrow = narrow_bytes(tensor)
    if narrow is not None:
        return (_NARROW, 8), narrow
    native = tensor if tensor.dtype.isnative else tensor.astype(tensor.dtype.newbyteorder())
    return _type_of(index, tensor), bytes_of(native).data


def _restored(index: int, payload: bytes, shape: tuple[int, ...], bits: int) -> np.ndarray:
    from .coding import CodedArray, read_coding
    from .split_coding import Split

    coding = read_coding(payload, math.prod(shape))
    if isinstance(coding, Split) != (bits == 16):
        raise ValueError(f"tensor {index} contradicts its own type")
    return CodedArray.of(_aligned_copy(coding.restore()).reshape(shape), coding)


def _unpacked(payload: bytes, dtype: np.dtype[Any], shape: tuple[int, ...]) -> np.ndarray:
    from .coding import CodedArray
    from .lossless import Lossless, restore

    words = restore(payload, math.prod(shape), dtype.itemsize)
    if dtype.kind == "b" and words.size and int(words.max()) > 1:
        raise ValueError("a packed tensor has truth values that are none")
    return CodedArray.of(_aligned_copy(words).view(dtype).reshape(shape), Lossless(payload))


def _aligned_copy(array: np.ndarray) -> np.ndarray:
    """In memory that programs read in place."""
    memory = np.empty(array.nbytes + ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % ALIGNMENT
    made = memory[start : start + array.nbytes].view(array.dtype)
    made[...] = array.reshape(-1)
    return made


def _type_of(index: int, tensor: np.ndarray) -> tuple[int, int]:
    """Type code and bits."""
    name = tensor.dtype.name
    if name not in _CODES:
        raise ToolError(
            f"packed weight {index} has element type {tensor.dtype}, which weights.bin cannot hold"
        )
    return _CODES[name]


def _aligned(offset: int) -> int:
    return -(-offset // ALIGNMENT) * ALIGNMENT
