"""A model as the bytes of its ONNX file, piece by piece: weights go from where they lie to the file.

`onnx_ir.to_proto` copies each tensor twice and asks `isinstance` of protocols at every value. Here ordinary
nodes, values and tensors are written directly; what is rare (sequence types, multi-device annotations,
quantization annotations, ...) is left to the library.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import onnx
import onnx_ir as ir
from onnx_ir import serde

from .contiguous import bytes_of
from .file_data import FileSpan, FileTensor
from .local_paths import PathFilter
from .tensors import byte_count

Piece = bytes | memoryview | FileSpan

_GRAPH_FIELD, _INITIALIZER_FIELD, _RAW_DATA_FIELD = 7, 5, 9
_QUANTIZATION_KEY = "quant_parameter_tensor_names"
_KIND = ir.AttributeType


@dataclass(frozen=True)
class ExternalPlace:
    """Where the data of a tensor is put outside the message: file name, offset and length in bytes."""

    location: str
    offset: int
    length: int


@dataclass(frozen=True)
class StoredTensor:
    """One initializer.

    Attributes:
        header: the `TensorProto` without its data.
        tensor: what holds the data; None where the header says all, or says where the data is.
        length: bytes of the data that follow the header.
    """

    header: bytes
    tensor: ir.TensorProtocol | None = None
    length: int = 0

    @property
    def size(self) -> int:
        """Bytes of the whole `TensorProto`."""
        if self.tensor is None:
            return len(self.header)
        return len(self.header) + _prefix_size(_RAW_DATA_FIELD, self.length) + self.length


@dataclass(frozen=True)
class Message:
    """A serialized `ModelProto`, its large parts not yet fetched.

    Attributes:
        head: the model without its graph.
        graph: the main graph without its initializers.
        tensors: the initializers.
    """

    head: bytes
    graph: bytes
    tensors: tuple[StoredTensor, ...]

    @property
    def size(self) -> int:
        """Bytes of the whole message."""
        inside = self._graph_size()
        return len(self.head) + _prefix_size(_GRAPH_FIELD, inside) + inside

    def pieces(self) -> Iterator[Piece]:
        """The message in order; each piece may be dropped before the next one is asked for.

        What nobody looked at yet is no bytes but the place in the file where it lies.
        """
        yield self.head
        yield _prefix(_GRAPH_FIELD, self._graph_size())
        yield self.graph
        for stored in self.tensors:
            yield _prefix(_INITIALIZER_FIELD, stored.size) + stored.header
            if stored.tensor is not None:
                yield _prefix(_RAW_DATA_FIELD, stored.length)
                yield tensor_piece(stored.tensor)

    def _graph_size(self) -> int:
        sizes = [stored.size for stored in self.tensors]
        return len(self.graph) + sum(_prefix_size(_INITIALIZER_FIELD, size) + size for size in sizes)


def message(model: ir.Model, paths: PathFilter, places: dict[str, ExternalPlace]) -> Message:
    """Serialize `model`, which stays as it is.

    Args:
        model: any model.
        paths: which metadata and doc strings are left out.
        places: initializers of the main graph whose data goes elsewhere, by name.
    """
    writer = _Writer(paths, model.ir_version)
    head = writer.head(model)
    graph = onnx.GraphProto()
    writer.graph(graph, model.graph, ())
    initializers = model.graph.initializers
    tensors = [writer.initializer(value, places.get(name)) for name, value in initializers.items()]
    return Message(
        head.SerializeToString(),
        graph.SerializeToString(),
        tuple(stored for stored in tensors if stored is not None),
    )


def tensor_piece(tensor: ir.TensorProtocol) -> Piece:
    """The data of a tensor as it stands in a file, or where in a file it lies."""
    place = tensor.to_copy if isinstance(tensor, FileTensor) else None
    return place if place is not None else tensor_bytes(tensor)


def tensor_bytes(tensor: ir.TensorProtocol) -> bytes | memoryview:
    """The data of a tensor as it stands in a file, without a copy where memory holds it so."""
    array = getattr(tensor, "raw", None)
    if not isinstance(array, np.ndarray) or tensor.dtype.bitwidth < 8 or array.dtype.byteorder == ">":
        return tensor.tobytes()
    if array.nbytes != tensor.nbytes:
        return tensor.tobytes()
    return bytes_of(array).data


class _Writer:
    def __init__(self, paths: PathFilter, ir_version: int):
        self._paths = paths
        self._ir_version = ir_version
        self._types: dict[tuple[object, tuple[object, ...]], onnx.TypeProto] = {}

    def head(self, model: ir.Model) -> onnx.ModelProto:
        proto = serde.serialize_model(cast(Any, _Shell(model)))
        proto.ClearField("graph")
        if self._paths.drops(model.doc_string):
            proto.ClearField("doc_string")
        self._properties(proto, model.metadata_props)
        for function in model.functions.values():
            self._function(proto.functions.add(), function)
        return proto

    def graph(self, proto: onnx.GraphProto, graph: ir.Graph, initializers: Iterable[ir.Value]) -> None:
        if graph.name:
            proto.name = graph.name
        self._doc(proto, graph.doc_string)
        self._properties(proto, graph.metadata_props)
        for value in graph.inputs:
            self._value(proto.input.add(), value)
            self._annotation(proto, value)
        for value in graph.initializers.values():
            if not value.is_graph_input():
                self._annotation(proto, value)
                # Type and shape stand with the tensor.
                if value.doc_string or value._metadata_props:
                    self._value(proto.value_info.add(), value)
        for value in initializers:
            stored = self.initializer(value, None)
            if stored is not None:
                tensor = proto.initializer.add()
                tensor.MergeFromString(stored.header)
                if stored.tensor is not None:
                    tensor.raw_data = bytes(tensor_bytes(stored.tensor))
        for node in graph:
            self._node(proto.node.add(), node)
            for output in node.outputs:
                if not output.is_graph_output():
                    self._annotation(proto, output)
                    if output.name and _says_something(output):
                        self._value(proto.value_info.add(), output)
        for value in graph.outputs:
            self._value(proto.output.add(), value)
            self._annotation(proto, value)

    def initializer(self, value: ir.Value, place: ExternalPlace | None) -> StoredTensor | None:
        """An initializer as it is stored; None where it has no data."""
        tensor = value.const_value
        if tensor is None:
            return None
        if tensor.dtype == ir.DataType.STRING:
            proto = serde.serialize_tensor(tensor)
            proto.name = str(value.name)
            return StoredTensor(proto.SerializeToString())
        proto = onnx.TensorProto(name=value.name, data_type=int(tensor.dtype), dims=tensor.shape.numpy())
        if tensor.doc_string:
            proto.doc_string = tensor.doc_string
        if tensor.metadata_props:
            self._properties(proto, tensor.metadata_props)
        if place is None:
            return StoredTensor(proto.SerializeToString(), tensor, byte_count(tensor))
        proto.data_location = onnx.TensorProto.EXTERNAL
        for key in ("location", "offset", "length"):
            proto.external_data.add(key=key, value=str(getattr(place, key)))
        return StoredTensor(proto.SerializeToString())

    def _function(self, proto: onnx.FunctionProto, function: ir.Function) -> None:
        serde.serialize_function_into(
            proto,
            cast(Any, _Shell(function)),
            create_value_info=False,
            model_ir_version=self._ir_version,
        )
        if self._paths.drops(function.doc_string):
            proto.ClearField("doc_string")
        self._properties(proto, function.metadata_props)
        described = self._ir_version >= 10
        for value in function.inputs if described else ():
            if _says_something(value):
                self._value(proto.value_info.add(), value)
        for node in function:
            self._node(proto.node.add(), node)
            for output in node.outputs if described else ():
                if output.name and _says_something(output):
                    self._value(proto.value_info.add(), output)

    def _node(self, proto: onnx.NodeProto, node: ir.Node) -> None:
        proto.op_type = node.op_type
        if node.name:
            proto.name = node.name
        if node.domain:
            proto.domain = node.domain
        if node.overload:
            proto.overload = node.overload
        self._doc(proto, node.doc_string)
        if node.metadata_props:
            self._properties(proto, node.metadata_props)
        proto.input.extend(["" if value is None else value.name for value in node.inputs])
        names = [value.name or "" for value in node.outputs]
        while names and not names[-1]:
            names.pop()
        proto.output.extend(names)
        for attribute in node.attributes.data.values():
            self._attribute(proto.attribute.add(), attribute)
        if node.device_configurations:
            serde._serialize_node_multi_device_into(proto, node, model_ir_version=self._ir_version)

    def _attribute(self, proto: Any, attribute: ir.Attr) -> None:
        kind = attribute.type
        if attribute.ref_attr_name is not None:
            serde.serialize_reference_attribute_into(proto, attribute)
        elif kind == _KIND.INT:
            proto.name, proto.i, proto.type = attribute.name, attribute.value, kind
        elif kind == _KIND.INTS:
            proto.name, proto.type = attribute.name, kind
            proto.ints.extend(attribute.value)
        elif kind == _KIND.GRAPH:
            proto.name, proto.type = attribute.name, kind
            self.graph(proto.g, attribute.value, attribute.value.initializers.values())
        elif kind == _KIND.GRAPHS:
            proto.name, proto.type = attribute.name, kind
            for body in attribute.value:
                self.graph(proto.graphs.add(), body, body.initializers.values())
        else:
            serde.serialize_attribute_into(proto, attribute)
            return
        if attribute.doc_string:
            proto.doc_string = attribute.doc_string

    def _value(self, proto: Any, value: ir.Value) -> None:
        proto.name = value.name
        kind, shape = value.type, value.shape
        if type(kind) is ir.TensorType and not kind.denotation and shape is not None:
            dims = tuple([dim if type(dim) is int else dim.value for dim in shape.dims])  # type: ignore[union-attr]
            key = (kind.dtype, dims)
            known = self._types.get(key)
            if known is None and not any(shape.get_denotation(i) for i in range(len(dims))):
                known = self._types[key] = serde.serialize_value(value).type
            if known is not None:
                proto.type.CopyFrom(known)
            else:
                serde.serialize_value_into(proto, value)
        else:
            serde.serialize_value_into(proto, value)
        if value.doc_string:
            proto.doc_string = value.doc_string
        if value.metadata_props:
            self._properties(proto, value.metadata_props)

    @staticmethod
    def _annotation(proto: onnx.GraphProto, value: ir.Value) -> None:
        found = value.meta.get(_QUANTIZATION_KEY) if value._metadata is not None else None
        if found:
            serde._serialize_tensor_annotation_into(
                proto.quantization_annotation.add(), str(value.name), found
            )

    def _doc(self, proto: onnx.GraphProto | onnx.NodeProto, text: str | None) -> None:
        if text and not self._paths.drops(text):
            proto.doc_string = text

    def _properties(self, proto: onnx.ModelProto | onnx.NodeProto, properties: Mapping[str, str]) -> None:
        proto.ClearField("metadata_props")
        for key, text in self._paths.kept(properties):
            proto.metadata_props.add(key=key, value=text)


class _Shell:
    """A model or function as the library's serializer sees it, without graph, functions or nodes."""

    def __init__(self, whole: ir.Model | ir.Function):
        self._whole = whole
        self.graph = ir.Graph([], [], nodes=[])
        self.functions: dict[object, ir.Function] = {}

    def __getattr__(self, name: str) -> object:
        return getattr(self._whole, name)

    def __iter__(self) -> Iterator[ir.Node]:
        return iter(())


def _says_something(value: ir.Value) -> bool:
    return bool(value.type is not None or value.shape is not None or value.doc_string or value.metadata_props)


def _prefix(field: int, length: int) -> bytes:
    """Tag and length in front of a length-delimited field of protobuf's wire format."""
    encoded = bytearray([field << 3 | 2])
    while length > 0x7F:
        encoded.append(length & 0x7F | 0x80)
        length >>= 7
    encoded.append(length)
    return bytes(encoded)


def _prefix_size(field: int, length: int) -> int:
    assert field < 16
    return 1 + max(1, -(-length.bit_length() // 7))
