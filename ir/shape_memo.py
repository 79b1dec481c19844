"""Shapes of operators met before: a deep network has few distinct layers.

Where every input has a fixed shape, what an operator makes follows from its type, its attributes, the types
and shapes of its inputs and the elements of its small integer inputs. What the rule of the operator found for
one such combination holds for the next node with the same one.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import onnx_ir as ir

_MOST_ELEMENTS = 64
_MOST_ENTRIES = 1 << 14
# Looked up by equality: Python computes the hash of an enumeration's member slowly.
_PLAIN_ATTRIBUTES = (
    ir.AttributeType.INT,
    ir.AttributeType.INTS,
    ir.AttributeType.FLOAT,
    ir.AttributeType.STRING,
    ir.AttributeType.FLOATS,
)
# Their contents never matter.
_FLOATS = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.DOUBLE)
# Operators whose shapes depend on the contents of floating-point inputs, on more than their inputs, or on
# nothing that is a tensor.
_LEFT_OUT = frozenset(
    {"Constant", "Resize", "Upsample", "Range", "OneHot", "If", "Loop", "Scan", "SequenceMap", "NonZero"}
)

Key = tuple[Any, ...]


def as_shape(shape: ir.Shape | Sequence[int]) -> ir.Shape:
    """A shape of numbers that may be shared: one that cannot be changed in place."""
    if isinstance(shape, ir.Shape):
        return shape if shape.frozen else ir.Shape(shape.dims, frozen=True)
    return _frozen(tuple(shape))


@functools.lru_cache(maxsize=4096)
def _frozen(dims: tuple[int, ...]) -> ir.Shape:
    return ir.Shape(dims, frozen=True)


@dataclass(frozen=True, slots=True)
class _Output:
    """Shape and element type of one output, and its elements where they are known."""

    shape: ir.Shape
    dtype: ir.DataType
    elements: tuple[int, ...] | None


_known: dict[Key, tuple[_Output, ...]] = {}


def key_of(node: ir.Node, context: Any) -> Key | None:
    """What the shapes of the outputs of `node` follow from; None where that cannot be told so simply."""
    op_type, outputs = node._op_type, node._outputs
    if node._domain or op_type in _LEFT_OUT or not outputs:
        return None
    parts: list[Any] = [op_type, context.opset_imports.get(""), len(outputs)]
    for value in node._inputs:
        if value is None:
            parts.append(None)
            continue
        kind, shape = value._type, value._shape
        if shape is None or type(kind) is not ir.TensorType:
            return None
        dims = shape.dims
        for dim in dims:
            if type(dim) is not int:
                return None
        dtype = kind._dtype
        parts += (dtype._value_, dims)
        if dtype not in _FLOATS and len(dims) < 2:
            elements = _elements(value, dtype, dims, context)
            if elements is False:
                return None
            parts.append(elements)
    for name, attribute in node._attributes.data.items():
        if attribute._type not in _PLAIN_ATTRIBUTES or attribute._ref_attr_name is not None:
            return None
        content = attribute._value
        parts.append(name)
        parts.append(content if type(content) in (int, float, str, bytes, tuple) else tuple(content))
    return tuple(parts)


def _elements(
    value: ir.Value, dtype: ir.DataType, dims: tuple[Any, ...], context: Any
) -> tuple[int, ...] | bool | None:
    """Known elements of a small tensor, None where they are unknown, False where they are symbolic."""
    if dims and dims[0] > _MOST_ELEMENTS:
        # Rules look at long constants too, but hardly ever.
        return False if value.const_value is not None else None
    return context.plain_elements(value)


def recall(key: Key, node: ir.Node, context: Any) -> bool:
    """Give the outputs of `node` what is known for `key`; False where nothing is."""
    found = _known.get(key)
    if found is None:
        return False
    for value, output in zip(node._outputs, found, strict=True):
        shape, found_shape = value._shape, output.shape
        if shape is not found_shape and (shape is None or shape.dims != found_shape.dims):
            value.shape = found_shape
        kind = value._type
        if type(kind) is not ir.TensorType or kind._dtype is not output.dtype:
            value.type = ir.TensorType(output.dtype)
        if output.elements is not None:
            context.set_symbolic_value(value, list(output.elements))
    return True


def remember(key: Key, node: ir.Node, context: Any) -> None:
    """Note what a rule found for `key`, unless it depends on something unknown."""
    outputs: list[_Output] = []
    for value in node.outputs:
        shape, kind = value.shape, value.type
        if shape is None or type(kind) is not ir.TensorType or not shape.is_static():
            return
        elements = context.noted(value)
        if elements is not None and not all(type(element) is int for element in elements):
            return
        outputs.append(
            _Output(
                ir.Shape(shape.dims, frozen=True), kind.dtype, None if elements is None else tuple(elements)
            )
        )
    if len(_known) >= _MOST_ENTRIES:
        _known.clear()
    _known[key] = tuple(outputs)
