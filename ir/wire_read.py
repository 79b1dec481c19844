"""A model out of its protobuf message, in one sweep: ordinary nodes, values and tensors.

`onnx_ir.from_proto` asks each message for each of its fields, one call into protobuf at a time. A network has
few distinct types and attributes, though: here those are told apart by their bytes, and read once. Whatever
is rare (functions, quantization annotations, ...) or looks damaged is left to the library, and to the checks
that name the damage.
"""

from __future__ import annotations

import copy
from typing import Any

import onnx
import onnx_ir as ir
from onnx_ir import serde

from .damage import NEWEST_THINKABLE, PLAIN_KINDS
from .shape_memo import as_shape
from .stored import TensorReader

_KINDS = {int(kind): kind for kind in ir.AttributeType}
_TENSOR, _GRAPH, _GRAPHS = (
    int(kind) for kind in (ir.AttributeType.TENSOR, ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)
)
# Name, type and content: an attribute with more fields set than these may hold something unchecked.
_FIELDS = 3
_CONTENT = {_TENSOR: "t", _GRAPH: "g", _GRAPHS: "graphs"}
_HAS_DEVICES = "device_configurations" in onnx.NodeProto.DESCRIPTOR.fields_by_name

Scopes = list[dict[str, ir.Value]]


class _UnusualError(Exception):
    """The message is not what was expected here; the library has the last word on it."""


def read_model(proto: onnx.ModelProto, tensors: TensorReader) -> ir.Model | None:
    """Read a message whose tensors and names were not checked yet; nothing is allocated before they are.

    Args:
        proto: as parsed from the file.
        tensors: checks and reads the tensors in it.

    Returns:
        The model, its tensors independent of the message; None where something in the message is rare or
        wrong: then nothing was done.
    """
    try:
        return _Reader(tensors).model(proto)
    except Exception:
        # Whoever is asked next says what is wrong in the words of its own checks.
        return None


class _Reader:
    def __init__(self, tensors: TensorReader):
        self._tensors = tensors
        self._texts: list[object] = []
        self._attributes: dict[bytes, ir.Attr] = {}
        self._types: dict[bytes, tuple[ir.TypeProtocol | None, ir.Shape | None]] = {}

    def model(self, proto: onnx.ModelProto) -> ir.Model:
        if proto.functions or getattr(proto, "configuration", ()):
            raise _UnusualError
        if not all(0 < imported.version <= NEWEST_THINKABLE for imported in proto.opset_import):
            raise _UnusualError
        graph = self._graph(proto.graph, [])
        imports = serde.deserialize_opset_import(proto.opset_import)
        self._texts += imports
        if set(map(type, self._texts)) - {str}:
            raise _UnusualError
        graph.opset_imports.update(imports)
        return ir.Model(
            graph,
            ir_version=proto.ir_version,
            producer_name=_optional(proto, "producer_name"),
            producer_version=_optional(proto, "producer_version"),
            domain=_optional(proto, "domain"),
            model_version=_optional(proto, "model_version"),
            doc_string=_optional(proto, "doc_string"),
            metadata_props=serde.deserialize_metadata_props(proto.metadata_props),
        )

    def _graph(self, proto: onnx.GraphProto, scopes: Scopes) -> ir.Graph:
        if proto.quantization_annotation or proto.sparse_initializer:
            raise _UnusualError
        inputs = [self._describe(ir.Value(name=info.name), info) for info in proto.input]
        values = {str(value.name): value for value in inputs}
        described = {info.name: info for info in proto.value_info}
        self._texts += values
        self._texts += described
        initializers = [
            self._initializer(tensor, values, described, outermost=not scopes) for tensor in proto.initializer
        ]
        nodes = list(proto.node)
        made = [self._outputs(node, values, described) for node in nodes]
        inner = [*scopes, values]
        read = [self._node(node, outputs, inner) for node, outputs in zip(nodes, made, strict=True)]
        outputs = [self._describe(values[info.name], info) for info in proto.output]
        name = _optional(proto, "name")
        self._texts.append(name or "")
        return ir.Graph(
            inputs,
            outputs,
            nodes=read,
            initializers=initializers,
            doc_string=_optional(proto, "doc_string"),
            name=name,
            metadata_props=serde.deserialize_metadata_props(proto.metadata_props),
        )

    def _initializer(
        self,
        proto: onnx.TensorProto,
        values: dict[str, ir.Value],
        described: dict[str, onnx.ValueInfoProto],
        *,
        outermost: bool,
    ) -> ir.Value:
        tensor = self._tensors.of_message(proto, outermost)
        name = proto.name
        self._texts.append(name)
        value = values.get(name)
        if value is not None:
            if value.const_value is not None:
                raise _UnusualError
            value.const_value = tensor
            return value
        if not name:
            raise _UnusualError
        kind = ir.TensorType(tensor.dtype)
        value = ir.Value(name=name, type=kind, shape=as_shape(tensor.shape.numpy()), const_value=tensor)
        values[name] = value
        return self._describe(value, described[name]) if name in described else value

    def _outputs(
        self,
        node: onnx.NodeProto,
        values: dict[str, ir.Value],
        described: dict[str, onnx.ValueInfoProto],
    ) -> list[ir.Value]:
        made = []
        for name in node.output:
            value = ir.Value(name=name)
            made.append(value)
            if not name:
                continue
            if name in values:
                raise _UnusualError
            values[name] = value
            info = described.get(name)
            if info is not None:
                self._describe(value, info)
            else:
                self._texts.append(name)
        return made

    def _node(self, proto: onnx.NodeProto, outputs: list[ir.Value], scopes: Scopes) -> ir.Node:
        if _HAS_DEVICES and proto.device_configurations:
            raise _UnusualError
        values = scopes[-1]
        inputs: list[ir.Value | None] = []
        for name in proto.input:
            value = None
            if name:
                value = values.get(name) or _outer(name, scopes)
            inputs.append(value)
        domain, op_type, name, overload = proto.domain, proto.op_type, proto.name, proto.overload
        self._texts += (domain, op_type, name, overload)
        properties = proto.metadata_props
        node = ir.Node(
            domain,
            op_type,
            inputs,
            overload=overload,
            outputs=outputs,
            name=name,
            doc_string=_optional(proto, "doc_string"),
            metadata_props={entry.key: entry.value for entry in properties} if properties else None,
        )
        attributes = proto.attribute
        if attributes:
            known = node.attributes.data
            for attribute in attributes:
                read = self._attribute(attribute, scopes)
                known[read.name] = read
        return node

    def _attribute(self, proto: onnx.AttributeProto, scopes: Scopes) -> ir.Attr:
        kind = proto.type
        if kind in PLAIN_KINDS:
            key = proto.SerializeToString()
            found = self._attributes.get(key)
            if found is None:
                found = self._attributes[key] = serde.deserialize_attribute(proto)
                self._texts += (found.name, found.ref_attr_name or "")
            return found
        fields = proto.ListFields()
        if kind not in _CONTENT or len(fields) != _FIELDS or fields[1][0].name != _CONTENT[kind]:
            raise _UnusualError
        name = proto.name
        self._texts.append(name)
        if kind == _TENSOR:
            return ir.Attr(name, _KINDS[kind], self._tensors.of_message(proto.t, False))
        if kind == _GRAPH:
            return ir.Attr(name, _KINDS[kind], self._graph(proto.g, scopes))
        return ir.Attr(name, _KINDS[kind], [self._graph(graph, scopes) for graph in proto.graphs])

    def _describe(self, value: ir.Value, info: onnx.ValueInfoProto) -> ir.Value:
        """Give a value the type and shape that a message says it has."""
        key = info.type.SerializeToString()
        known = self._types.get(key)
        if known is None:
            known = self._types[key] = self._type(info.type)
        kind, shape = known
        # A type may be changed in place, so each value gets its own; a frozen shape may not.
        if type(kind) is ir.TensorType:
            value._type = ir.TensorType(kind._dtype, denotation=kind.denotation)
        else:
            value.type = copy.deepcopy(kind)
        value._shape = shape
        properties = info.metadata_props
        if properties:
            value.metadata_props.update({entry.key: entry.value for entry in properties})
        if info.HasField("doc_string"):
            value.doc_string = info.doc_string
        return value

    def _type(self, proto: onnx.TypeProto) -> tuple[ir.TypeProtocol | None, ir.Shape | None]:
        shape = serde.deserialize_type_proto_for_shape(proto)
        if shape is not None:
            self._texts += [
                dim.value for dim in shape if type(dim) is ir.SymbolicDim and dim.value is not None
            ]
        return serde.deserialize_type_proto_for_type(proto), shape


def _outer(name: str, scopes: Scopes) -> ir.Value:
    for scope in reversed(scopes):
        if name in scope:
            return scope[name]
    raise _UnusualError


def _optional(proto: Any, field: str) -> Any:
    return getattr(proto, field) if proto.HasField(field) else None
