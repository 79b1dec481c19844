"""Models to files, all or nothing.

What is written first goes to temporary files beside the destination; only whole files take its place. They
are not synced to the disk: whoever needs them to outlive a power cut does that.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from io import FileIO
from pathlib import Path

import onnx_ir as ir

from .clone import clone
from .collector import without_collector
from .errors import ModelError
from .file_data import FileSpan
from .local_paths import PathFilter
from .quiet import collected_warnings
from .runtime_gaps import is_runnable, make_runnable
from .tensors import byte_count
from .wire import ExternalPlace, Message, Piece, message, tensor_piece

# Protobuf messages end at 2 GB; the margin leaves room for the graph itself.
_INLINE_LIMIT = 1_500_000_000
_HARD_LIMIT = 2**31 - 1
# Smaller tensors stay in the message, where shape inference of other tools can see them.
_EXTERNAL_ABOVE = 1024
_ALIGNMENT = 64
# Pages of large tensors are copied and mapped whole where they start with one.
_PAGE, _PAGED_ABOVE = 1 << 12, 1 << 20
# Pieces up to this many bytes are gathered before they are written.
_BUFFERED = 1 << 18


@without_collector
def save(
    model: ir.Model,
    path: str | os.PathLike[str],
    *,
    external_data: bool | None = None,
    keep_paths: bool = False,
) -> None:
    """Writes a model as an ONNX file; an existing one is replaced only when the new one is complete.

    Args:
        model: any model; not changed. The file imports an earlier opset where ONNX Runtime needs that.
        path: the file to write. Its folder must exist.
        external_data: put tensors above 1 kB into `<path>.data`; by default when they exceed 1.5 GB.
        keep_paths: keep metadata that names files of this machine, as the stack traces of traced nodes do.

    Raises:
        ModelError: the file cannot be written (folder missing, disk full, ...); nothing is left behind.
    """
    final = Path(os.path.realpath(path))
    if final.is_dir():
        raise ModelError(f"cannot write '{path}': it is a folder")
    if not final.parent.is_dir():
        raise ModelError(f"cannot write '{path}': there is no folder '{final.parent}'")
    if external_data is None:
        external_data = _tensor_bytes(model) > _INLINE_LIMIT
    if not is_runnable(model):
        model = clone(model)
        make_runnable(model)
    paths = PathFilter(keep_paths)
    try:
        if external_data:
            _save_external(model, final, paths)
        elif _tensor_bytes(model) > _HARD_LIMIT:
            raise ModelError(f"cannot write '{path}': over 2 GB in one file; save it with external data")
        else:
            _save_inline(model, final, paths)
    except OSError as error:
        raise ModelError(f"cannot write '{path}': {error.strerror or error}") from error


def serialized_size(model: ir.Model) -> int:
    """Bytes that `save` writes for a model by default, external data included."""
    external = _tensor_bytes(model) > _INLINE_LIMIT
    places = _places(model, "model.onnx.data") if external else {}
    whole = message(model, PathFilter(), places)
    return whole.size + max((place.offset + place.length for place in places.values()), default=0)


def _tensor_bytes(model: ir.Model) -> int:
    return sum(
        byte_count(value.const_value)
        for value in model.graph.initializers.values()
        if value.const_value is not None
    )


def _save_inline(model: ir.Model, final: Path, paths: PathFilter) -> None:
    whole = _message(model, final, paths, {})
    if whole.size > _HARD_LIMIT:
        raise ModelError(f"cannot write '{final}': over 2 GB in one file; save it with external data")
    with _temporary(final) as temporary:
        _write(temporary, whole.pieces(), final)
        os.replace(temporary, final)


def _save_external(model: ir.Model, final: Path, paths: PathFilter) -> None:
    final_data = final.with_name(final.name + ".data")
    places = _places(model, final_data.name)
    whole = _message(model, final, paths, places)
    with _temporary(final_data) as data, _temporary(final) as temporary:
        _write(data, _data_pieces(model, places), final_data)
        _write(temporary, whole.pieces(), final)
        _replace_both(data, final_data, temporary, final)


def _places(model: ir.Model, location: str) -> dict[str, ExternalPlace]:
    """Where large initializers go in an external file, by name."""
    places: dict[str, ExternalPlace] = {}
    end = 0
    for name, value in model.graph.initializers.items():
        tensor = value.const_value
        if tensor is None or tensor.dtype == ir.DataType.STRING or tensor.nbytes <= _EXTERNAL_ABOVE:
            continue
        unit = _PAGE if tensor.nbytes >= _PAGED_ABOVE else _ALIGNMENT
        offset = -(-end // unit) * unit
        places[name] = ExternalPlace(location, offset, tensor.nbytes)
        end = offset + tensor.nbytes
    return places


def _data_pieces(model: ir.Model, places: Mapping[str, ExternalPlace]) -> Iterator[Piece]:
    end = 0
    for name, place in places.items():
        tensor = model.graph.initializers[name].const_value
        assert tensor is not None
        yield b"\0" * (place.offset - end)
        yield tensor_piece(tensor)
        end = place.offset + place.length


def _message(model: ir.Model, final: Path, paths: PathFilter, places: dict[str, ExternalPlace]) -> Message:
    try:
        with collected_warnings("onnx_ir"):
            return message(model, paths, places)
    except Exception as error:
        lines = str(error).splitlines()
        raise ModelError(
            f"cannot serialize the model for '{final}': {lines[0] if lines else type(error).__name__}"
        ) from error


def _write(temporary: Path, pieces: Iterable[Piece], final: Path) -> None:
    with open(temporary, "xb", buffering=0) as file:
        small = bytearray()
        for piece in pieces:
            if isinstance(piece, FileSpan) or len(piece) >= _BUFFERED:
                _write_all(file, small)
                small = bytearray()
                if isinstance(piece, FileSpan):
                    piece.copy(file.fileno())
                else:
                    _write_all(file, piece)
            else:
                small += piece
                if len(small) >= _BUFFERED:
                    _write_all(file, small)
                    small = bytearray()
        _write_all(file, small)
    _copy_mode(final, temporary)


def _write_all(file: FileIO, data: bytes | bytearray | memoryview) -> None:
    # The system takes no more than 2 GB at once.
    view = memoryview(data)
    done = 0
    while done < len(view):
        done += file.write(view[done:])


def _copy_mode(old: Path, new: Path) -> None:
    with contextlib.suppress(FileNotFoundError):
        shutil.copymode(old, new)


@contextlib.contextmanager
def _temporary(final: Path) -> Iterator[Path]:
    """A name beside `final` that is gone afterwards, whatever happens."""
    temporary = final.with_name(f".{final.name}.{os.getpid()}.{os.urandom(4).hex()}.tmp")
    try:
        yield temporary
    finally:
        temporary.unlink(missing_ok=True)


def _replace_both(data: Path, final_data: Path, message: Path, final: Path) -> None:
    """Puts both files in place, or neither: the old data returns if the message cannot follow."""
    with _temporary(final_data) as old_data:
        had_data = final_data.exists()
        if had_data:
            os.replace(final_data, old_data)
        try:
            os.replace(data, final_data)
            os.replace(message, final)
        except BaseException:
            if had_data:
                os.replace(old_data, final_data)
            else:
                final_data.unlink(missing_ok=True)
            raise
