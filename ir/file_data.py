"""Weights that stay in the file they came from until somebody looks at them.

Most passes leave most weights alone. Such a weight never comes into the memory of the process: `save` has the
system copy it from one file to the other.
"""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from .errors import ModelError
from .shape_memo import as_shape

_STEP = 1 << 20


class OpenFile:
    """A file that is kept open: the same one even when another takes its name, or it is removed."""

    def __init__(self, path: str | os.PathLike[str]):
        self._path = os.fspath(path)
        self._descriptor = os.open(self._path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
        self._state = self._now()

    def __del__(self) -> None:
        with contextlib.suppress(AttributeError, OSError):
            os.close(self._descriptor)

    def __deepcopy__(self, memo: dict[int, Any]) -> OpenFile:
        return self

    @property
    def size(self) -> int:
        """Bytes of the file when it was opened."""
        return self._state[0]

    def fileno(self) -> int:
        """The descriptor, whose position nobody relies on."""
        return self._descriptor

    def check(self) -> None:
        """Make sure that nobody wrote into the file since it was opened.

        Raises:
            ModelError: Somebody did.
        """
        if self._now() != self._state:
            raise ModelError(
                f"'{self._path}' was written to after the model was loaded from it; load it again"
            )

    def read(self, offset: int, array: np.ndarray) -> None:
        """Fill an array of bytes (uint8) from the file.

        Raises:
            ModelError: The file changed, or cannot be read.
        """
        view, done = array.data, 0
        while done < array.size:
            try:
                count = os.preadv(self._descriptor, [view[done:]], offset + done)
            except OSError as error:
                raise ModelError(f"cannot read '{self._path}': {error.strerror}") from error
            if count == 0:
                break
            done += count
        self.check()

    def copy(self, offset: int, length: int, target: int) -> None:
        """Copy bytes to where `target`, a file descriptor, stands.

        Raises:
            ModelError: The file changed, or cannot be read.
            OSError: The other one cannot be written.
        """
        done = self._copied_by_system(offset, length, target)
        if done < length:
            block = np.empty(min(_STEP, length - done), np.uint8)
            while done < length:
                part = block[: length - done]
                self.read(offset + done, part)
                written = 0
                while written < part.size:
                    written += os.write(target, part.data[written:])
                done += part.size
        self.check()

    def _copied_by_system(self, offset: int, length: int, target: int) -> int:
        """Bytes that the system copied by itself: 0 where it cannot, between these files or at all."""
        done = 0
        if not hasattr(os, "copy_file_range"):
            return done
        with contextlib.suppress(OSError):
            while done < length:
                count = os.copy_file_range(self._descriptor, target, length - done, offset + done)
                if count == 0:
                    break
                done += count
        return done

    def _now(self) -> tuple[int, int]:
        found = os.fstat(self._descriptor)
        return found.st_size, found.st_mtime_ns


@dataclass(frozen=True)
class FileSpan:
    """A stretch of a file: where it starts and how many bytes it has."""

    file: OpenFile
    offset: int
    size: int

    def read(self) -> np.ndarray:
        """The bytes (uint8), in memory of their own.

        Raises:
            ModelError: The file changed, or cannot be read.
        """
        array = np.empty(self.size, np.uint8)
        self.file.read(self.offset, array)
        return array

    def copy(self, target: int) -> None:
        """Copy the bytes to where `target`, a file descriptor, stands; raises what `OpenFile.copy` does."""
        self.file.copy(self.offset, self.size, target)


class FileTensor(ir.Tensor):
    """A tensor whose data is read when it is first asked for.

    Args:
        span: Where the data lies, as little-endian numbers of 8 bits or more.
        dtype: Element type, as numpy knows it.
        shape: Sizes of the dimensions; they agree with the length of `span`.
        name: Name.
        mapped: The same bytes where they are mapped into memory already; they are not read again.
    """

    __slots__ = ("_array", "_plain", "span")

    def __init__(
        self,
        span: FileSpan,
        dtype: np.dtype,
        shape: tuple[int, ...],
        name: str,
        mapped: np.ndarray | None = None,
    ):
        ir.Tensor.__mro__[1].__init__(self, name)  # type: ignore[misc]
        self.span = span
        self._plain = dtype
        self._dtype = ir.DataType.from_numpy(dtype)
        self._shape = as_shape(shape)
        self._array = None if mapped is None else mapped.view(dtype).reshape(shape)

    @property
    def _raw(self) -> np.ndarray:  # type: ignore[override]
        """The numbers; what `ir.Tensor` has as a field.

        Raises:
            ModelError: The file changed, or cannot be read.
        """
        if self._array is None:
            self._array = self.span.read().view(self._plain).reshape(self._shape.numpy())
        return self._array

    @property
    def to_copy(self) -> FileSpan | None:
        """Where the data can be copied from; None if it is in memory, where somebody may change it."""
        array = self._array
        return self.span if array is None or not array.flags.writeable else None

    def fresh(self) -> np.ndarray | None:
        """The numbers in memory that nobody else sees, to be written over; None where they were read before.

        Raises:
            ModelError: The file changed, or cannot be read.
        """
        if self._array is not None:
            return None
        return self.span.read().view(self._plain).reshape(self._shape.numpy())

    def __repr__(self) -> str:
        return f"{self._repr_base()}(name={self.name!r})"

    def __copy__(self) -> FileTensor:
        made = FileTensor(self.span, self._plain, self._shape.numpy(), self.name or "", self._array)
        made.doc_string = self.doc_string
        made._metadata_props = dict(self._metadata_props) if self._metadata_props else None
        return made

    def __reduce__(self) -> tuple[Any, ...]:
        return ir.Tensor, (self._raw,), (None, {"_name": self.name, "_doc_string": self.doc_string})
