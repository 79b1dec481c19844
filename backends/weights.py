"""`weights.bin`: the packed weights of an artifact, readable in place from Python and C++.

Little-endian throughout::

    char[4]  "GWW1"
    uint32   number of tensors
    per tensor:
        uint8 type code, uint8 bits, uint16 lanes     (DLPack's DLDataType; code 192: float32, see below)
        uint32 rank
        uint64 offset of the payload in the file, a multiple of 64
        uint64 bytes of the payload
        int64  sizes[rank]
    payloads, C order

Tensors of type code 192 are float32 numbers whose payload is a code of them, see `coding.py`. Writing and
reading take and give `CodedArray`.

The file is mapped copy-on-write, so that several processes share the pages and loading costs no copy.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from ..ir.contiguous import bytes_of
from ..ir.errors import ToolError

MAGIC = b"GWW1"
ALIGNMENT = 64
_MAX_RANK = 32

_INT, _UINT, _FLOAT, _BFLOAT, _BOOL, _CODED = 0, 1, 2, 4, 6, 192
_DTYPES: dict[tuple[int, int], np.dtype[Any]] = {
    **{(_INT, 8 * size): np.dtype(f"<i{size}") for size in (1, 2, 4, 8)},
    **{(_UINT, 8 * size): np.dtype(f"<u{size}") for size in (1, 2, 4, 8)},
    **{(_FLOAT, 8 * size): np.dtype(f"<f{size}") for size in (2, 4, 8)},
    (_BFLOAT, 16): np.dtype(ml_dtypes.bfloat16),
    (_BOOL, 8): np.dtype(bool),
}
_CODES = {dtype: code for code, dtype in _DTYPES.items()}


def write_weights(path: str | Path, tensors: Sequence[np.ndarray]) -> int:
    """Write tensors to a file and return its size in bytes.

    Raises:
        ToolError: an element type has no place in the format.
    """
    described = [_describe(index, tensor) for index, tensor in enumerate(tensors)]
    payloads = [_payload(tensor) for tensor in tensors]
    header_bytes = 8 + sum(24 + 8 * tensor.ndim for tensor in tensors)
    offset = _aligned(header_bytes)
    header = bytearray(MAGIC + struct.pack("<I", len(tensors)))
    offsets = []
    for tensor, payload, (code, bits) in zip(tensors, payloads, described, strict=True):
        header += struct.pack("<BBHIQQ", code, bits, 1, tensor.ndim, offset, len(payload))
        header += struct.pack(f"<{tensor.ndim}q", *tensor.shape)
        offsets.append(offset)
        offset = _aligned(offset + len(payload))
    with open(path, "wb") as file:
        file.write(header)
        for payload, start in zip(payloads, offsets, strict=True):
            file.write(bytes(start - file.tell()))
            file.write(payload)
        file.write(bytes(offset - file.tell()))
    return offset


def read_weights(path: str | Path) -> list[np.ndarray]:
    """Tensors of a file, mapped: pages are read when touched, writes stay private to the process.

    Raises:
        ToolError: the file is missing, truncated or no weights file.
    """
    name = Path(path).name
    try:
        with open(path, "rb") as file:
            data: Any = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    except (OSError, ValueError) as error:
        raise ToolError(f"cannot read weights file {name}: {error}") from None
    try:
        return _parse(data)
    except (struct.error, ValueError, KeyError) as error:
        raise ToolError(f"weights file {name} is damaged: {error}") from None


def _parse(data: mmap.mmap) -> list[np.ndarray]:
    if data[:4] != MAGIC:
        raise ValueError("it does not start with GWW1")
    (count,) = struct.unpack_from("<I", data, 4)
    if count * 24 > len(data):
        raise ValueError(f"it is too short for {count} tensors")
    position, tensors = 8, []
    for index in range(count):
        code, bits, lanes, rank, offset, size = struct.unpack_from("<BBHIQQ", data, position)
        if code == _CODED and bits == 32 and lanes == 1 and rank <= _MAX_RANK:
            shape = struct.unpack_from(f"<{rank}q", data, position + 24)
            position += 24 + 8 * rank
            _check_place(index, offset, size, position, len(data))
            tensors.append(_restored(index, data[offset : offset + size], shape))
            continue
        if (code, bits) not in _DTYPES or lanes != 1 or rank > _MAX_RANK:
            raise ValueError(f"tensor {index} has an unknown type or rank")
        shape = struct.unpack_from(f"<{rank}q", data, position + 24)
        position += 24 + 8 * rank
        dtype = _DTYPES[code, bits]
        elements = int(np.prod(shape, dtype=object)) if rank else 1
        if min(shape, default=0) < 0 or elements * dtype.itemsize != size:
            raise ValueError(f"tensor {index} contradicts its own size")
        _check_place(index, offset, size, position, len(data))
        tensors.append(np.frombuffer(data, dtype, elements, offset).reshape(shape))
    return tensors


def stored_bytes(tensor: np.ndarray) -> int:
    """Bytes that a tensor takes in a file."""
    return len(_payload(tensor))


def _payload(tensor: np.ndarray) -> memoryview | bytes:
    from .coding import coding_of

    coding = coding_of(tensor)
    return bytes_of(tensor).data if coding is None else coding.to_bytes()


def _restored(index: int, payload: bytes, shape: tuple[int, ...]) -> np.ndarray:
    from .coding import CodedArray, read_coding

    coding = read_coding(payload)
    array = coding.restore()
    if array.size != int(np.prod(shape, dtype=object)):
        raise ValueError(f"tensor {index} contradicts its own size")
    return CodedArray.of(_aligned_copy(array).reshape(shape), coding)


def _aligned_copy(array: np.ndarray) -> np.ndarray:
    """In memory that programs read in place."""
    memory = np.empty(array.nbytes + ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % ALIGNMENT
    made = memory[start : start + array.nbytes].view(array.dtype)
    made[...] = array.reshape(-1)
    return made


def _check_place(index: int, offset: int, size: int, position: int, end: int) -> None:
    if offset % ALIGNMENT or offset < position or offset + size > end:
        raise ValueError(f"tensor {index} lies outside of the file, which may be truncated")


def _describe(index: int, tensor: np.ndarray) -> tuple[int, int]:
    from .coding import coding_of

    if coding_of(tensor) is not None:
        return _CODED, 32
    dtype = tensor.dtype.newbyteorder("<") if tensor.dtype.isbuiltin == 1 else tensor.dtype
    if dtype not in _CODES:
        raise ToolError(
            f"packed weight {index} has element type {tensor.dtype}, which weights.bin cannot hold"
        )
    return _CODES[dtype]


def _aligned(offset: int) -> int:
    return -(-offset // ALIGNMENT) * ALIGNMENT
