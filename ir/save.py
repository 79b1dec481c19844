"""Models to files, all or nothing.

What is written first goes to temporary files beside the destination; only whole, synced files take its place.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from collections.abc import Iterator, MutableMapping
from pathlib import Path
from typing import TYPE_CHECKING

import onnx_ir as ir

from .bodies import all_graphs
from .clone import clone
from .errors import ModelError
from .provenance import STACK_TRACE_KEY
from .quiet import collected_warnings

if TYPE_CHECKING:
    import onnx

# Protobuf messages end at 2 GB; the margin leaves room for the graph itself.
_INLINE_LIMIT = 1_500_000_000
_HARD_LIMIT = 2**31 - 1
# Smaller tensors stay in the message, where shape inference of other tools can see them.
_EXTERNAL_ABOVE = 1024
_ALIGNMENT = 64


_SOURCE_FILE = re.compile(r"""[/\\][^\s"',:]*\.(?:py|pyx|ipynb|cc|cpp|cu|h|so)\b|[A-Za-z]:\\\w""")
_COMMON_ROOTS = re.compile(r"/(?:home|root|Users|tmp|usr|opt|mnt|var|srv|private|workspace)/")


def save(
    model: ir.Model,
    path: str | os.PathLike[str],
    *,
    external_data: bool | None = None,
    keep_paths: bool = False,
) -> None:
    """Writes a model as an ONNX file; an existing one is replaced only when the new one is complete.

    Args:
        model: any model; not changed.
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
    copy = _to_write(model, keep_paths)
    if external_data is None:
        external_data = _tensor_bytes(copy) > _INLINE_LIMIT
    try:
        if external_data:
            _save_external(copy, final)
        elif _tensor_bytes(copy) > _HARD_LIMIT:
            raise ModelError(f"cannot write '{path}': over 2 GB in one file; save it with external data")
        else:
            _save_inline(copy, final)
    except OSError as error:
        raise ModelError(f"cannot write '{path}': {error.strerror or error}") from error


def serialized_size(model: ir.Model) -> int:
    """Bytes that `save` writes for a model by default, external data included."""
    copy = _to_write(model, keep_paths=False)
    inline = _tensor_bytes(copy) <= _INLINE_LIMIT
    tensors = _externalize(copy, "model.onnx.data")
    with collected_warnings("onnx_ir"):
        proto = ir.to_proto(copy)
    if inline:
        return _inline_size(proto)
    return proto.ByteSize() + max((offset + tensor.nbytes for tensor, offset in tensors), default=0)


def _inline_size(proto: onnx.ModelProto) -> int:
    """The size of a message after its external tensors were put into it, without copying them."""
    growth = 0
    for tensor in proto.graph.initializer:
        if tensor.data_location != tensor.EXTERNAL:
            continue
        length = next(int(entry.value) for entry in tensor.external_data if entry.key == "length")
        tensor.ClearField("external_data")
        tensor.ClearField("data_location")
        growth += _growth(tensor.ByteSize(), 1 + _varint_size(length) + length)
    return proto.ByteSize() + _growth(proto.graph.ByteSize(), growth)


def _growth(size: int, added: int) -> int:
    """How much longer a nested message of `size` bytes makes its parent, its length prefix included."""
    return added + _varint_size(size + added) - _varint_size(size)


def _varint_size(number: int) -> int:
    """Bytes that protobuf spends on a length."""
    return max(1, -(-number.bit_length() // 7))


def _to_write(model: ir.Model, keep_paths: bool) -> ir.Model:
    copy = clone(model)
    if not keep_paths:
        drop_paths(copy)
    return copy


def drop_paths(model: ir.Model) -> None:
    """Removes metadata and doc strings that name files of this machine, in place."""
    local = re.compile("|".join(re.escape(folder) for folder in _own_folders()) or r"(?!)")

    def names_a_file(text: str | None) -> bool:
        return bool(text and (_SOURCE_FILE.search(text) or _COMMON_ROOTS.search(text) or local.search(text)))

    def clean(properties: MutableMapping[str, str]) -> None:
        for key in [key for key, text in properties.items() if key == STACK_TRACE_KEY or names_a_file(text)]:
            del properties[key]

    clean(model.metadata_props)
    if names_a_file(model.doc_string):
        model.doc_string = None
    for function in model.functions.values():
        clean(function.metadata_props)
        if names_a_file(function.doc_string):
            function.doc_string = None
    for graph in all_graphs(model):
        clean(graph.metadata_props)
        if names_a_file(graph.doc_string):
            graph.doc_string = None
        for value in (*graph.inputs, *graph.initializers.values()):
            clean(value.metadata_props)
        for node in graph:
            clean(node.metadata_props)
            if names_a_file(node.doc_string):
                node.doc_string = None
            for value in node.outputs:
                clean(value.metadata_props)


def _own_folders() -> list[str]:
    folders = {os.getcwd(), str(Path.home())}
    return [folder for folder in folders if len(folder) > 1]


def _tensor_bytes(model: ir.Model) -> int:
    return sum(
        value.const_value.nbytes
        for value in model.graph.initializers.values()
        if value.const_value is not None
    )


def _save_inline(model: ir.Model, final: Path) -> None:
    with _temporary(final) as temporary:
        _write(temporary, _message(model, final), final)
        os.replace(temporary, final)
    _sync_folder(final.parent)


def _save_external(model: ir.Model, final: Path) -> None:
    final_data = final.with_name(final.name + ".data")
    tensors = _externalize(model, final_data.name)
    message = _message(model, final)
    with _temporary(final_data) as data, _temporary(final) as temporary:
        with open(data, "xb") as file:
            for tensor, offset in tensors:
                file.write(b"\0" * (offset - file.tell()))
                file.write(tensor.tobytes())
            file.flush()
            os.fsync(file.fileno())
        _copy_mode(final_data, data)
        _write(temporary, message, final)
        _replace_both(data, final_data, temporary, final)
    _sync_folder(final.parent)


def _externalize(model: ir.Model, location: str) -> list[tuple[ir.TensorProtocol, int]]:
    """Points large initializers at an external file; returns what it must hold at which offset."""
    tensors: list[tuple[ir.TensorProtocol, int]] = []
    offset = 0
    for value in model.graph.initializers.values():
        tensor = value.const_value
        if tensor is None or tensor.dtype == ir.DataType.STRING or tensor.nbytes <= _EXTERNAL_ABOVE:
            continue
        offset = -(-offset // _ALIGNMENT) * _ALIGNMENT
        tensors.append((tensor, offset))
        value.const_value = ir.ExternalTensor(
            location,
            offset,
            tensor.nbytes,
            tensor.dtype,
            shape=ir.Shape(tensor.shape.numpy()),
            name=str(value.name),
        )
        offset += tensor.nbytes
    return tensors


def _message(model: ir.Model, final: Path) -> bytes:
    try:
        with collected_warnings("onnx_ir"):
            return ir.to_proto(model).SerializeToString()
    except Exception as error:
        lines = str(error).splitlines()
        raise ModelError(
            f"cannot serialize the model for '{final}': {lines[0] if lines else type(error).__name__}"
        ) from error


def _write(temporary: Path, message: bytes, final: Path) -> None:
    with open(temporary, "xb") as file:
        file.write(message)
        file.flush()
        os.fsync(file.fileno())
    _copy_mode(final, temporary)


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


def _sync_folder(folder: Path) -> None:
    # Not every file system can; the files themselves are synced already.
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
