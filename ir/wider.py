"""Models in float16, bfloat16 or double, seen or run in float32.

ONNX Runtime has no CPU kernels for most operators in bfloat16, and for convolutions in double: such nodes run
between casts, as it does itself with float16. And what is to be proven about the algebra of a graph is proven
in float32, where rounding does not hide it.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
import onnx_ir as ir

from .bodies import all_graphs

_FLOAT = ir.DataType.FLOAT
_OTHERS = frozenset({ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.DOUBLE})
# What ONNX Runtime may lack kernels for; it casts float16 itself.
_WITHOUT_KERNELS = frozenset({ir.DataType.BFLOAT16, ir.DataType.DOUBLE})
# Attributes that name the type of a result.
_TYPE_ATTRIBUTES = ("to", "dtype", "output_dtype", "softmax_precision")
ALL = "*"
"""Stands for all operators, except those that only hold other nodes, or types."""
_KEPT = frozenset({"Cast", "Constant", "If", "Loop", "Scan"})


def has_other_floats(model: ir.Model) -> bool:
    """Whether a model computes in another float type than float32."""
    return any(
        value.dtype in _OTHERS
        for graph in all_graphs(model)
        for values in (graph.inputs, *(node.outputs for node in graph))
        for value in values
    )


def to_float32(model: ir.Model) -> None:
    """Change every float16, bfloat16 and double of a model to float32, inputs and outputs included."""
    for graph in all_graphs(model):
        for value in graph.inputs:
            _retype(value)
        for value in graph.initializers.values():
            _retype(value)
            if value.const_value is not None and value.const_value.dtype in _OTHERS:
                value.const_value = _as_float32(value.const_value)
        for node in graph:
            for value in node.outputs:
                _retype(value)
            for attribute in list(node.attributes.values()):
                _retype_attribute(node, attribute)


def feeds_to_float32(feeds: Mapping[str, Any]) -> dict[str, Any]:
    """The same inputs for a model that `to_float32` changed."""
    return {name: _cast(array) if isinstance(array, np.ndarray) else array for name, array in feeds.items()}


def run_between_casts(model: ir.Model, op_types: Collection[str]) -> bool:
    """Have nodes of these types (or `ALL`) compute in float32; what they read and return keeps its type.

    Functions are inlined, as types are not known in them.

    Returns:
        Whether there was any such node in a type that ONNX Runtime may lack kernels for.
    """
    if model.functions:
        _inline(model)
    found = False
    for graph in all_graphs(model):
        for node in list(graph):
            asked = node.op_type in op_types or (ALL in op_types and node.op_type not in _KEPT)
            if asked and node.domain in ("", "ai.onnx"):
                found |= _between_casts(graph, node)
    return found


def _inline(model: ir.Model) -> None:
    from onnx_ir.passes.common import InlinePass

    from .shapes import infer_shapes

    InlinePass()(model)
    infer_shapes(model)


def _between_casts(graph: ir.Graph | ir.Function, node: ir.Node) -> bool:
    read = [v for v in dict.fromkeys(node.inputs) if v is not None and v.dtype in _WITHOUT_KERNELS]
    made = [v for v in node.outputs if v.name and v.dtype in _WITHOUT_KERNELS]
    if not read and not made:
        return False
    for number, value in enumerate(read):
        cast = ir.node("Cast", [value], {"to": int(_FLOAT)})
        cast.outputs[0].name = cast.name = f"{node.outputs[0].name}.operand{number}"
        cast.outputs[0].type, cast.outputs[0].shape = ir.TensorType(_FLOAT), value.shape
        graph.insert_before(node, cast)
        for index, each in enumerate(node.inputs):
            if each is value:
                node.replace_input_with(index, cast.outputs[0])
    for attribute in list(node.attributes.values()):
        _retype_attribute(node, attribute)
    for value in made:
        # The result keeps its name: readers, bodies and outputs need not be told.
        dtype = value.dtype
        back = ir.node("Cast", [value], {"to": int(dtype or _FLOAT)}, name=f"{value.name}.cast")
        result = back.outputs[0]
        name, result.type, result.shape = value.name, ir.TensorType(dtype or _FLOAT), value.shape
        value.replace_all_uses_with(result, replace_graph_outputs=True)
        back.replace_input_with(0, value)
        value.type = ir.TensorType(_FLOAT)
        value.name, result.name = f"{name}.float32", name
        graph.insert_after(node, back)
    return True


def _retype(value: ir.Value) -> None:
    if value.type is not None:
        value.type = _wide(value.type)


def _wide(given: ir.TypeProtocol) -> ir.TypeProtocol:
    if isinstance(given, ir.TensorType):
        return ir.TensorType(_FLOAT, denotation=given.denotation) if given.dtype in _OTHERS else given
    if isinstance(given, ir.SequenceType | ir.OptionalType):
        return type(given)(_wide(given.elem_type))
    return given


def _retype_attribute(node: ir.Node, attribute: ir.Attr) -> None:
    if attribute.is_ref():
        return
    name, value = attribute.name, attribute.value
    if attribute.type == ir.AttributeType.TENSOR and value.dtype in _OTHERS:
        node.attributes[name] = ir.AttrTensor(name, _as_float32(value))
    elif attribute.type == ir.AttributeType.INT and name in _TYPE_ATTRIBUTES and value in _OTHERS:
        node.attributes[name] = ir.AttrInt64(name, int(_FLOAT))


def _as_float32(tensor: ir.TensorProtocol) -> ir.TensorProtocol:
    return ir.tensor(_cast(tensor.numpy()), name=tensor.name)


def _cast(array: np.ndarray) -> np.ndarray:
    dtypes = {dtype.numpy() for dtype in _OTHERS}
    # What is beyond float32 becomes infinite, as in a run in float32.
    with np.errstate(over="ignore"):
        return array.astype(np.float32) if array.dtype in dtypes else array
