"""Reads an ONNX file with the data of its large initializers apart: in arrays, or left in the file for now.

Protobuf copies a weight when it parses the message and again whenever its field is read. Here the message is
walked at its outermost levels only, large `raw_data` fields are cut out of it, and the rest, which is small,
is parsed as usual. Whatever looks unusual is left to protobuf.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx

from .collector import without_collector
from .file_data import FileSpan, OpenFile

_GRAPH, _INITIALIZER, _RAW_DATA = 7, 5, 9
_SPLIT_ABOVE = 1 << 20
_LARGE = 1 << 12
# What is larger stays in the file until it is asked for.
_HUGE = 1 << 18
_LENGTH_DELIMITED = 2
_BLOCK = 8 << 20
_ALIGNMENT = 64


class _UnusualError(Exception):
    """The file is not what was expected here; protobuf has the last word on it."""


Data = dict[str, np.ndarray | FileSpan]


@without_collector
def read_message(path: Path) -> tuple[onnx.ModelProto, Data]:
    """Parse a file.

    Returns:
        The model, and by name the bytes (uint8) of initializers that were taken out of it, or where in the
        file they are: those initializers have no data field of any kind.

    Raises:
        OSError: The file cannot be read.
        google.protobuf.message.DecodeError: It is no protobuf message.
    """
    with open(path, "rb") as file:
        if os.fstat(file.fileno()).st_size >= _SPLIT_ABOVE:
            try:
                return _split(file.fileno(), path)
            except _UnusualError:
                pass
        data = file.read()
    proto = onnx.ModelProto()
    proto.ParseFromString(data)
    return proto, {}


def _split(descriptor: int, path: Path) -> tuple[onnx.ModelProto, Data]:
    with mmap.mmap(descriptor, 0, access=mmap.ACCESS_READ) as data:
        outer = list(_fields(data, 0, len(data)))
        graphs = [field for field in outer if field[0] == _GRAPH]
        if len(graphs) != 1:
            raise _UnusualError
        _, _, begin, end = graphs[0]
        rest = onnx.ModelProto()
        rest.MergeFromString(
            b"".join(data[start:stop] for number, start, _, stop in outer if number != _GRAPH)
        )
        kept: list[bytes] = []
        large: list[tuple[int, int]] = []
        headers: list[bytes] = []
        done = begin
        for number, start, inside, stop in _fields(data, begin, end):
            if number != _INITIALIZER or stop - inside < _LARGE:
                continue
            found = [field for field in _fields(data, inside, stop) if field[0] == _RAW_DATA]
            if len(found) != 1 or found[0][3] - found[0][2] < _LARGE:
                continue
            _, field_start, data_start, data_stop = found[0]
            header = data[inside:field_start] + data[data_stop:stop]
            kept.append(data[done:start])
            kept.append(bytes([_INITIALIZER << 3 | _LENGTH_DELIMITED]) + _varint(len(header)) + header)
            headers.append(header)
            large.append((data_start, data_stop - data_start))
            done = stop
        kept.append(data[done:end])
        rest.graph.MergeFromString(b"".join(kept))
    parsed = [onnx.TensorProto.FromString(header) for header in headers]
    names = [tensor.name for tensor in parsed]
    known = {tensor.name for tensor in rest.graph.initializer}
    if len(known) < len(rest.graph.initializer) or not all(names):
        raise _UnusualError
    if any(tensor.data_location == onnx.TensorProto.EXTERNAL for tensor in parsed):
        raise _UnusualError
    apart: Data = {}
    arrays = iter(_room([length for _, length in large if length < _HUGE]))
    file = OpenFile(path) if any(length >= _HUGE for _, length in large) else None
    if file is not None and not os.path.sameopenfile(file.fileno(), descriptor):
        raise _UnusualError
    for name, (offset, length) in zip(names, large, strict=True):
        if file is not None and length >= _HUGE:
            apart[name] = FileSpan(file, offset, length)
        else:
            apart[name] = array = next(arrays)
            _read(descriptor, offset, array)
    return rest, apart


def _room(lengths: list[int]) -> list[np.ndarray]:
    """Arrays of bytes that small tensors share by the block: the system hands out large blocks faster.

    A block lives until the last tensor in it is gone, so it is kept small against a model.
    """
    arrays: list[np.ndarray] = []
    block, used = np.empty(0, np.uint8), 0
    left = sum(-(-length // _ALIGNMENT) * _ALIGNMENT for length in lengths)
    for length in lengths:
        needed = -(-length // _ALIGNMENT) * _ALIGNMENT
        if length >= _BLOCK // 2:
            arrays.append(np.empty(length, np.uint8))
        else:
            if used + needed > block.size:
                block, used = np.empty(min(_BLOCK, left), np.uint8), 0
            arrays.append(block[used : used + length])
            used += needed
        left -= needed
    return arrays


def _fields(data: mmap.mmap, position: int, end: int) -> Iterator[tuple[int, int, int, int]]:
    """Yield (number, start, start of the content, stop) of each field between two positions."""
    while position < end:
        start = position
        tag, position = _number(data, position, end)
        kind = tag & 7
        inside = position
        if kind == _LENGTH_DELIMITED:
            length, inside = _number(data, position, end)
            position = inside + length
        elif kind == 0:
            _, position = _number(data, position, end)
        elif kind == 1:
            position += 8
        elif kind == 5:
            position += 4
        else:
            raise _UnusualError
        if position > end:
            raise _UnusualError
        yield tag >> 3, start, inside, position


def _number(data: mmap.mmap, position: int, end: int) -> tuple[int, int]:
    if position >= end:
        raise _UnusualError
    byte = data[position]
    position += 1
    if byte < 0x80:
        return byte, position
    result, shift = byte & 0x7F, 7
    while True:
        if position >= end or shift > 63:
            raise _UnusualError
        byte = data[position]
        position += 1
        result |= (byte & 0x7F) << shift
        if byte < 0x80:
            return result, position
        shift += 7


def _varint(number: int) -> bytes:
    encoded = bytearray()
    while number > 0x7F:
        encoded.append(number & 0x7F | 0x80)
        number >>= 7
    encoded.append(number)
    return bytes(encoded)


def _read(descriptor: int, offset: int, array: np.ndarray) -> None:
    view, done = array.data, 0
    while done < array.size:
        count = os.preadv(descriptor, [view[done:]], offset + done)
        if count == 0:
            raise _UnusualError
        done += count
