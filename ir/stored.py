"""Tensors as they lie in a file: checked before anything is allocated, external ones mapped."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from .bodies import all_graphs
from .damage import PLAIN_KINDS
from .errors import ModelError
from .file_data import FileSpan, FileTensor, OpenFile
from .tensors import tensor_of

if TYPE_CHECKING:
    import onnx

# Where a TensorProto holds its numbers when not in `raw_data`; types that are not here use `int32_data`.
_TYPED_FIELDS = {
    ir.DataType.FLOAT: "float_data",
    ir.DataType.COMPLEX64: "float_data",
    ir.DataType.DOUBLE: "double_data",
    ir.DataType.COMPLEX128: "double_data",
    ir.DataType.INT64: "int64_data",
    ir.DataType.UINT32: "uint64_data",
    ir.DataType.UINT64: "uint64_data",
    ir.DataType.STRING: "string_data",
}

# Types whose `raw_data` is the array itself.
_PLAIN = {
    int(dtype): dtype.numpy().newbyteorder("<")
    for dtype in ir.DataType
    if dtype not in (ir.DataType.UNDEFINED, ir.DataType.STRING) and dtype.bitwidth >= 8
}

_TENSORS = (ir.AttributeType.TENSOR, ir.AttributeType.TENSORS)


def check_proto(model: onnx.ModelProto, folder: Path, data: Mapping[str, np.ndarray | FileSpan]) -> None:
    """Checks every tensor of a parsed model before anything is allocated for it.

    Args:
        model: as parsed from the file.
        folder: where it lies.
        data: bytes of initializers of the main graph that are not in the message, by name.

    Raises:
        ModelError: a tensor is incomplete, or its external data is missing, short or outside `folder`.
    """
    if model.graph.sparse_initializer:
        name = model.graph.sparse_initializer[0].values.name
        raise ModelError(f"initializer '{name}' is sparse, which is not supported; store it dense")
    for tensor in model.graph.initializer:
        if data and tensor.name in data:
            dtype = _dtype(tensor)
            _check_length(tensor, dtype, _element_count(tensor), data[tensor.name].size)
        else:
            _check_tensor(tensor, folder)
    for tensor in _other_tensors_of(model):
        _check_tensor(tensor, folder)


def _other_tensors_of(model: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """Every tensor but the initializers of the main graph: attributes, nested graphs and functions."""
    for node in model.graph.node:
        yield from _node_tensors(node)
    for function in model.functions:
        for node in function.node:
            yield from _node_tensors(node)


def _graph_tensors(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield sparse.values
        yield sparse.indices
    for node in graph.node:
        yield from _node_tensors(node)


def _node_tensors(node: onnx.NodeProto) -> Iterator[onnx.TensorProto]:
    for attribute in node.attribute:
        if attribute.type in PLAIN_KINDS:
            continue
        if attribute.type == attribute.TENSOR or attribute.HasField("t"):
            yield attribute.t
        yield from attribute.tensors
        if attribute.HasField("sparse_tensor"):
            yield attribute.sparse_tensor.values
            yield attribute.sparse_tensor.indices
        if attribute.HasField("g"):
            yield from _graph_tensors(attribute.g)
        for graph in attribute.graphs:
            yield from _graph_tensors(graph)


def _check_tensor(tensor: onnx.TensorProto, folder: Path) -> None:
    """Checks that a stored tensor is whole, without reading its data.

    Args:
        tensor: as parsed from the file.
        folder: where the model lies; external data must not be outside.

    Raises:
        ModelError: unknown type, negative or absurd dimensions, missing, short or escaping data.
    """
    dtype = _dtype(tensor)
    count = _element_count(tensor)
    if tensor.data_location == tensor.EXTERNAL:
        _check_external(tensor, folder, _byte_count(count, dtype))
        return
    if tensor.HasField("raw_data"):
        _check_length(tensor, dtype, count, len(tensor.raw_data))
        return
    have = len(getattr(tensor, _TYPED_FIELDS.get(dtype, "int32_data")))
    if have != _typed_count(count, dtype):
        raise ModelError(
            f"tensor '{tensor.name}' of shape {list(tensor.dims)} ({dtype.name}) needs "
            f"{_typed_count(count, dtype)} numbers, the file holds {have}"
        )


def _element_count(tensor: onnx.TensorProto) -> int:
    count = 1
    for dim in tensor.dims:
        if dim < 0:
            raise ModelError(f"tensor '{tensor.name}' has a negative dimension: {list(tensor.dims)}")
        count *= dim
    return count


def _check_length(tensor: onnx.TensorProto, dtype: ir.DataType, count: int, have: int) -> None:
    want = _byte_count(count, dtype)
    if have != want:
        raise ModelError(
            f"tensor '{tensor.name}' of shape {list(tensor.dims)} ({dtype.name}) needs {want} bytes, "
            f"the file holds {have}"
        )


def _dtype(tensor: onnx.TensorProto) -> ir.DataType:
    try:
        dtype = ir.DataType(tensor.data_type)
    except ValueError:
        dtype = ir.DataType.UNDEFINED
    if dtype == ir.DataType.UNDEFINED:
        raise ModelError(f"tensor '{tensor.name}' has the unknown type {tensor.data_type}")
    return dtype


def _byte_count(count: int, dtype: ir.DataType) -> int:
    if dtype == ir.DataType.STRING:
        raise ModelError("a tensor of strings cannot be stored as raw or external data")
    return -(-count * dtype.bitwidth // 8)


def _typed_count(count: int, dtype: ir.DataType) -> int:
    if dtype in (ir.DataType.COMPLEX64, ir.DataType.COMPLEX128):
        return 2 * count
    return -(-count * dtype.bitwidth // 8) if dtype != ir.DataType.STRING and dtype.bitwidth < 8 else count


def _check_external(tensor: onnx.TensorProto, folder: Path, want: int) -> None:
    entries = {entry.key: entry.value for entry in tensor.external_data}
    path = _contained(tensor.name, entries.get("location", ""), folder)
    offset = _number(tensor.name, "offset", entries.get("offset", "0"))
    try:
        available = path.stat().st_size
    except OSError as error:
        raise ModelError(f"tensor '{tensor.name}': cannot read its data file '{path}'") from error
    length = _number(tensor.name, "length", entries["length"]) if "length" in entries else want
    if length != want:
        raise ModelError(
            f"tensor '{tensor.name}' of shape {list(tensor.dims)} needs {want} bytes, "
            f"its external data is declared with {length}"
        )
    if offset + want > available:
        raise ModelError(
            f"tensor '{tensor.name}' needs bytes {offset} to {offset + want} of '{path.name}', "
            f"which has only {available}"
        )


def _contained(name: str, location: str, folder: Path) -> Path:
    if not location:
        raise ModelError(f"tensor '{name}' has external data without a file name")
    if os.path.isabs(location) or "\\" in location or "\0" in location or ".." in Path(location).parts:
        raise ModelError(f"tensor '{name}' has external data at '{location}', outside the model's folder")
    base = folder.resolve()
    path = (base / location).resolve()
    if not path.is_relative_to(base):
        raise ModelError(
            f"tensor '{name}' has external data at '{location}', which leads outside the model's folder"
        )
    if not path.is_file():
        raise ModelError(f"tensor '{name}': its data file '{path}' does not exist")
    return path


def _number(name: str, key: str, text: str) -> int:
    if not text.isdecimal():
        raise ModelError(f"tensor '{name}' has external data with the {key} '{text}', which is no number")
    return int(text)


class TensorReader:
    """Gives a fresh model tensors that do not depend on the parsed message or on repeated file look-ups.

    An external file is mapped once and stays valid when it is replaced, as saving over it does.
    """

    def __init__(self, folder: Path, data: Mapping[str, np.ndarray | FileSpan]):
        self._folder = folder.resolve()
        self._data = data
        self._files: dict[Path, tuple[OpenFile, np.ndarray]] = {}

    def of_message(self, tensor: onnx.TensorProto, outermost: bool) -> ir.TensorProtocol:
        """Checks a stored tensor and reads it.

        Args:
            tensor: as parsed from the file.
            outermost: whether it is an initializer of the main graph, whose data may lie outside the message.

        Raises:
            ModelError: what `check_proto` says of it.
        """
        name = tensor.name
        plain = _PLAIN.get(tensor.data_type)
        if outermost and name in self._data:
            dtype = _dtype(tensor)
            data = self._data[name]
            _check_length(tensor, dtype, _element_count(tensor), data.size)
            return _of_data(data, dtype, tuple(tensor.dims), name)
        if plain is None or not tensor.HasField("raw_data") or tensor.data_location == tensor.EXTERNAL:
            _check_tensor(tensor, self._folder)
            return self._read(ir.serde.deserialize_tensor(tensor))
        raw, dims = tensor.raw_data, tuple(tensor.dims)
        if len(raw) != _element_count(tensor) * plain.itemsize:
            _check_tensor(tensor, self._folder)
        return tensor_of(np.frombuffer(raw, plain).reshape(dims), name)

    def read_all(self, model: ir.Model) -> None:
        """Replaces every stored tensor of a model whose message passed `check_proto`."""
        for name, array in self._data.items():
            value = model.graph.initializers[name]
            tensor = value.const_value
            assert tensor is not None
            value.const_value = _of_data(array, tensor.dtype, tensor.shape.numpy(), str(tensor.name))
        for graph in all_graphs(model):
            for name, value in graph.initializers.items():
                if value.const_value is not None and not (graph is model.graph and name in self._data):
                    value.const_value = self._read(value.const_value)
            for node in graph:
                self._read_attributes(node)

    def _read_attributes(self, node: ir.Node) -> None:
        attributes = node.attributes.data
        stored = [a for a in attributes.values() if a.type in _TENSORS] if attributes else ()
        for attribute in stored:
            name = attribute.name
            if attribute.is_ref():
                continue
            if attribute.type == ir.AttributeType.TENSOR:
                node.attributes[name] = ir.AttrTensor(name, self._read(attribute.value))
            elif attribute.type == ir.AttributeType.TENSORS:
                tensors = [self._read(tensor) for tensor in attribute.value]
                node.attributes[name] = ir.AttrTensors(name, tensors)

    def _read(self, tensor: ir.TensorProtocol) -> ir.TensorProtocol:
        dtype = tensor.dtype
        if isinstance(tensor, ir.ExternalTensor):
            return self._mapped(tensor)
        if dtype == ir.DataType.STRING or dtype.bitwidth < 8:
            return tensor
        return tensor_of(tensor.numpy(), tensor.name)

    def _mapped(self, tensor: ir.ExternalTensor) -> ir.TensorProtocol:
        size, shape, name = tensor.nbytes, tensor.shape.numpy(), tensor.name
        if size == 0:
            return _of_bytes(np.empty(0, np.uint8), tensor.dtype, shape, name)
        path = (self._folder / tensor.location).resolve()
        if path not in self._files:
            try:
                self._files[path] = OpenFile(path), np.memmap(path, dtype=np.uint8, mode="r")
            except OSError as error:
                raise ModelError(f"cannot map the data file '{path}': {error.strerror}") from error
        file, content = self._files[path]
        offset = tensor.offset or 0
        data, plain = content[offset : offset + size], _PLAIN.get(int(tensor.dtype))
        if plain is None or size != _byte_count(math.prod(shape), tensor.dtype):
            return _of_bytes(data, tensor.dtype, shape, name)
        return FileTensor(FileSpan(file, offset, size), plain, tuple(shape), name or "", data)


def _of_data(
    data: np.ndarray | FileSpan, dtype: ir.DataType, shape: Sequence[int], name: str
) -> ir.TensorProtocol:
    """A tensor of the main graph whose bytes were kept out of the message."""
    plain = _PLAIN.get(int(dtype))
    if isinstance(data, FileSpan):
        if plain is not None:
            return FileTensor(data, plain, tuple(shape), name)
        data = data.read()
    if plain is not None:
        return tensor_of(data.view(plain).reshape(shape), name)
    return _of_bytes(data, dtype, shape, name)


def _of_bytes(
    data: np.ndarray, dtype: ir.DataType, shape: Sequence[int], name: str | None
) -> ir.TensorProtocol:
    """A tensor around its bytes as they stand in a file."""
    if dtype.bitwidth < 8:
        return ir.PackedTensor(data, dtype, shape=ir.Shape(shape), name=name)
    return ir.Tensor(data.view(dtype.numpy()).reshape(shape), dtype=dtype, name=name)
