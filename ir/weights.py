"""Which constant tensors of a graph are its parameters, and who reads them first.

Three kinds of tensors can be parameters: initializers, Constant nodes, and tensors that a ConstantOfShape or
random generator makes out of a constant shape (models shipped without their weights are built like that).
A stored tensor counts by its element type; a generated one only if it reaches the weight operand of a layer,
or an element-wise operator together with an activation, through nothing but reshapes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

import onnx_ir as ir

from .bodies import nodes_of

Role = Literal["parameter", "encoding", "none"]
"""What a constant is to the operand that reads it: a weight, a statistic or scale of one, or neither."""

_FLOATS = frozenset(
    dtype
    for dtype in ir.DataType
    if dtype.name.startswith(("FLOAT", "BFLOAT")) or dtype == ir.DataType.DOUBLE
)
_QUANTIZED = frozenset(
    getattr(ir.DataType, name) for name in ("INT8", "UINT8", "INT4", "UINT4", "INT2", "UINT2")
)

_ENCODINGS = {
    "BatchNormalization": (3, 4),
    "QuantizeLinear": (1, 2),
    "DequantizeLinear": (1, 2),
    "QLinearConv": (1, 2, 4, 5, 6, 7),
    "QLinearMatMul": (1, 2, 4, 5, 6, 7),
    "ConvInteger": (2, 3),
    "MatMulInteger": (2, 3),
}
"""Operands that hold statistics, scales and zero points."""

_SETTINGS = {"Resize": (1, 2, 3), "Upsample": (1,), "Pad": (1, 2, 3), "Clip": (1, 2), "Range": (0, 1, 2)}
"""Operands that are floating-point settings of an operator rather than weights."""

_ACCUMULATORS = {"DequantizeLinear": (0,), "QLinearConv": (8,)}
"""Operands where an INT32 tensor is a quantized bias."""

_WEIGHT_OPERANDS = {
    "Conv": (1, 2),
    "ConvTranspose": (1, 2),
    "DeformConv": (1, 3),
    "Gemm": (1, 2),
    "MatMul": (0, 1),
    "BatchNormalization": (1, 2, 3, 4),
    "InstanceNormalization": (1, 2),
    "GroupNormalization": (1, 2),
    "LayerNormalization": (1, 2),
    "RMSNormalization": (1,),
    "PRelu": (1,),
    "LSTM": (1, 2, 3),
    "GRU": (1, 2, 3),
    "RNN": (1, 2, 3),
    "Gather": (0,),
    **dict.fromkeys(("Add", "Sub", "Mul", "Div"), (0, 1)),
}
"""Operands at which a generated tensor is a weight."""

_GENERATORS = frozenset({"ConstantOfShape", "RandomNormal", "RandomUniform"})
_CARRIERS = frozenset(
    {"Identity", "Cast", "CastLike", "Transpose", "Reshape", "Squeeze", "Unsqueeze", "Flatten", "Expand"}
    | {"Concat", "Split", "Slice", "DequantizeLinear", "QuantizeLinear"}
)
"""Operators that pass a constant on without using it up: its reader is the next node."""


@dataclass(eq=False)
class _Tensor:
    """A constant tensor and what has been found out about it."""

    elements: int
    bytes: int
    dtype: ir.DataType
    rank: int
    stored: bool
    role: Role = "none"
    reader: ir.Node | None = None


@dataclass(frozen=True)
class Weights:
    """The parameters of a graph.

    Attributes:
        parameters: number of elements.
        bytes: of the parameters with their statistics, scales and zero points.
        by_node: parameters by the first node that computes with them.
        values: the values that hold parameters.
    """

    parameters: int
    bytes: int
    by_node: dict[ir.Node, int]
    values: tuple[ir.Value, ...] = field(default=())


def weigh(graph: ir.Graph) -> Weights:
    """Find the parameters of `graph` and its subgraphs."""
    tensors: dict[ir.Value, _Tensor] = {}
    carried: dict[ir.Value, tuple[_Tensor, ...]] = {}
    for value in _initializers(graph):
        if value.const_value is not None:
            tensors[value] = _stored(value.const_value)
            carried[value] = (tensors[value],)
    for node in nodes_of(graph):
        made = _made_by(node)
        if made is not None:
            tensors[node.outputs[0]] = made
            carried[node.outputs[0]] = (made,)
        else:
            _read(node, carried)
    found = {value: t for value, t in tensors.items() if t.role != "none"}
    by_node: dict[ir.Node, int] = {}
    for tensor in found.values():
        if tensor.role == "parameter" and tensor.reader is not None:
            by_node[tensor.reader] = by_node.get(tensor.reader, 0) + tensor.elements
    return Weights(
        parameters=sum(t.elements for t in found.values() if t.role == "parameter"),
        bytes=sum(t.bytes for t in found.values()),
        by_node=by_node,
        values=tuple(value for value, t in found.items() if t.role == "parameter"),
    )


def _initializers(graph: ir.Graph) -> Iterator[ir.Value]:
    for scope in (graph, *graph.subgraphs()):
        yield from scope.initializers.values()


def _stored(tensor: ir.TensorProtocol) -> _Tensor:
    return _Tensor(tensor.size, tensor.nbytes, tensor.dtype, len(tensor.shape), stored=True)


def _made_by(node: ir.Node) -> _Tensor | None:
    """The tensor that a Constant node or a generator makes; None for other nodes and unknown shapes."""
    if node.domain:
        return None
    if node.op_type == "Constant":
        tensor = _constant(node)
        return None if tensor is None or tensor.dtype == ir.DataType.STRING else _stored(tensor)
    if node.op_type not in _GENERATORS:
        return None
    output = node.outputs[0]
    if output.shape is None or output.dtype is None or not output.shape.is_static():
        return None
    elements = 1
    for dim in output.shape.numpy():
        elements *= dim
    size = int(elements * output.dtype.itemsize)
    return _Tensor(elements, size, output.dtype, len(output.shape), stored=False)


def _constant(node: ir.Node) -> ir.TensorProtocol | None:
    try:
        return ir.convenience.get_const_tensor(node.outputs[0])
    except (TypeError, ValueError):  # no attribute, or one of another type: the verifier's business
        return None


def _read(node: ir.Node, carried: dict[ir.Value, tuple[_Tensor, ...]]) -> None:
    """Note what `node` takes its constant inputs for; a mere carrier hands them on to its outputs."""
    hands_on = node.op_type in _CARRIERS and all(
        value is None or value in carried or value.is_initializer() for value in node.inputs
    )
    passed: list[_Tensor] = []
    for index, value in enumerate(node.inputs):
        for tensor in carried.get(value, ()) if value is not None else ():
            role = _role(node, index, tensor)
            if hands_on and role != "encoding":
                passed.append(tensor)
            if tensor.stored or not hands_on:
                _claim(tensor, role, None if hands_on else node)
    if hands_on:
        for value in node.outputs:
            carried[value] = tuple(dict.fromkeys(passed))


def _claim(tensor: _Tensor, role: Role, reader: ir.Node | None) -> None:
    if role == "none" and tensor.role == "none":
        return
    if role == "parameter" or tensor.role == "none":
        tensor.role = role
    if tensor.reader is None:
        tensor.reader = reader


def _role(node: ir.Node, index: int, tensor: _Tensor) -> Role:
    op_type = node.op_type
    if index in _ENCODINGS.get(op_type, ()):
        return "encoding"
    if index in _SETTINGS.get(op_type, ()):
        return "none"
    if not tensor.stored and op_type not in _CARRIERS and index not in _WEIGHT_OPERANDS.get(op_type, ()):
        return "none"
    if tensor.dtype in _FLOATS:
        return "parameter" if tensor.rank > 0 else "none"
    if tensor.dtype in _QUANTIZED:
        return "parameter" if tensor.rank > 0 else "none"
    if tensor.dtype == ir.DataType.INT32 and index in _ACCUMULATORS.get(op_type, ()):
        return "parameter"
    return "none"
