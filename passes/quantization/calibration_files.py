"""Calibration arrays in files, read some samples at a time; whatever is wrong is a line that names the file.

A `.npz` file is a zip archive of `.npy` members. `np.load` reads a member whole; here its header is read when
the file is opened, checked against what the archive says it holds, and the samples are taken from the
unpacking stream as they are asked for, front to back.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import tokenize
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np
import onnx_ir as ir

from ...ir.contiguous import bytes_of
from ...ir.errors import PassError

_CHUNK = 1 << 20
_READING = (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError)


class Member:
    """One array of an archive: what its header says, and its samples in order.

    Attributes:
        shape: its shape.
        dtype: its type.
        ndim: how many axes it has.
    """

    def __init__(self, path: Path, name: str):
        self._path, self._name = path, name
        self._stream: IO[bytes] | None = None
        self._next = 0
        self._last: np.ndarray | None = None
        with _reading(path):
            archive = zipfile.ZipFile(path)
            with archive, archive.open(name) as stream:
                self.shape, self._columns, self.dtype = _header(stream)
                promised = math.prod(self.shape) * self.dtype.itemsize
                held = archive.getinfo(name).file_size - stream.tell()
        if self.dtype.hasobject:
            raise PassError(f"cannot read calibration file '{path}': '{self.key}' holds Python objects")
        if promised != held:
            raise PassError(
                f"cannot read calibration file '{path}': '{self.key}' needs {promised} bytes, but has {held}"
            )
        self.ndim = len(self.shape)

    def __len__(self) -> int:
        return self.shape[0]

    @property
    def key(self) -> str:
        """The array's name."""
        return self._name.removesuffix(".npy")

    def __getitem__(self, index: int | slice) -> np.ndarray:
        """One sample, or a run of them; going back further than the last run starts over.

        Raises:
            PassError: the file cannot be read any more.
        """
        if isinstance(index, int):
            return self._rows(index, index + 1)[0]
        start, stop, _ = index.indices(len(self))
        return self._rows(start, stop)

    def _rows(self, start: int, stop: int) -> np.ndarray:
        if self._columns and self.ndim > 1:
            return self._whole()[start:stop]
        held = 0 if self._last is None else len(self._last)
        if self._stream is None or start < self._next - held:
            self._open()
            held = 0
        before = self._next - start
        with _reading(self._path):
            if before <= 0:
                self._skip(-before)
                self._last = self._take(stop - start)
                return self._last
            # The last batch of a fixed size is filled up with samples that came before it.
            assert self._last is not None
            known = self._last[held - before :]
            if stop <= self._next:
                return known[: stop - start]
            self._last = np.concatenate([known, self._take(stop - self._next)])
            return self._last

    def _open(self) -> None:
        self.close()
        with _reading(self._path):
            self._stream = zipfile.ZipFile(self._path).open(self._name)  # noqa: SIM115 - closed by close()
            _header(self._stream)

    def _skip(self, rows: int) -> None:
        """Let samples go by that nobody asked for."""
        assert self._stream is not None
        left = rows * math.prod(self.shape[1:]) * self.dtype.itemsize
        while left:
            piece = len(self._stream.read(min(left, _CHUNK)))
            if not piece:
                raise EOFError(f"'{self.key}' is cut short")
            left -= piece
        self._next += rows

    def _take(self, rows: int) -> np.ndarray:
        """The next samples."""
        assert self._stream is not None
        array = np.empty((rows, *self.shape[1:]), self.dtype)
        view = memoryview(bytes_of(array))
        while view:
            count = self._stream.readinto(view)  # type: ignore[attr-defined]
            if not count:
                raise EOFError(f"'{self.key}' is cut short")
            view = view[count:]
        self._next += rows
        if self._next == len(self):
            # The checksum is looked at where the stream ends.
            self._stream.read(1)
        return array

    def _whole(self) -> np.ndarray:
        """Columns lie one behind the other: no sample is there before the last byte."""
        if self._last is None:
            archive = zipfile.ZipFile(self._path)
            with _reading(self._path), archive, archive.open(self._name) as stream:
                self._last = np.lib.format.read_array(stream, allow_pickle=False)
        return self._last

    def digest(self, digest: Any) -> None:
        """Feeds type, shape and content to a digest, without holding more than a piece."""
        digest.update(repr((str(self.dtype), self.shape, self._columns)).encode())
        archive = zipfile.ZipFile(self._path)
        with _reading(self._path), archive, archive.open(self._name) as stream:
            while piece := stream.read(_CHUNK):
                digest.update(piece)

    def close(self) -> None:
        """Forget where the stream stood."""
        if self._stream is not None:
            self._stream.close()
        self._stream, self._next, self._last = None, 0, None


def open_npz(path: Path) -> dict[str, Member]:
    """The arrays of a `.npz` file by name; nothing but their headers is read.

    Raises:
        PassError: the file is no such archive, or a header does not fit what is held.
    """
    with _reading(path):
        if not zipfile.is_zipfile(path):
            # Says why, where there is no such file or it must not be read.
            with path.open("rb"):
                pass
            raise ValueError("it is not a .npz archive, as numpy.savez writes it")
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    members = [Member(path, name) for name in names if name.endswith(".npy")]
    return {member.key: member for member in members}


def open_npy(path: Path, inputs: Mapping[str, ir.Value]) -> dict[str, np.ndarray]:
    """The array of a `.npy` file, mapped into memory, for a model with one input."""
    if len(inputs) != 1:
        raise PassError(
            f"calibration file '{path.name}' names no input, but the model has {len(inputs)} inputs; use .npz"
        )
    with _reading(path):
        return {next(iter(inputs)): np.load(path, mmap_mode="r", allow_pickle=False)}


def digest_of(arrays: Mapping[str, np.ndarray | Member]) -> str:
    """What tells arrays from others: names, types, shapes and contents."""
    digest = hashlib.blake2b(digest_size=16)
    for name, array in sorted(arrays.items()):
        digest.update(repr(name).encode())
        if isinstance(array, Member):
            array.digest(digest)
        else:
            digest.update(repr((str(array.dtype), array.shape)).encode())
            digest.update(bytes_of(array).data)
    return digest.hexdigest()


def _header(stream: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Shape, whether columns lie one behind the other, and type."""
    version = np.lib.format.read_magic(stream)
    try:
        if version == (1, 0):
            return np.lib.format.read_array_header_1_0(stream)
        if version in ((2, 0), (3, 0)):
            return np.lib.format.read_array_header_2_0(stream)
    except (SyntaxError, ValueError, tokenize.TokenError):
        raise ValueError("the header of an array is damaged or too long") from None
    raise ValueError(f"version {version[0]}.{version[1]} of the .npy format is not known")


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except _READING as error:
        line = (str(error).splitlines() or [""])[0] or type(error).__name__
        raise PassError(f"cannot read calibration file '{path}': {line}") from None
