"""Attributes of new nodes from plain Python values."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import onnx_ir as ir

_SCALARS = {int: ir.AttributeType.INT, float: ir.AttributeType.FLOAT, str: ir.AttributeType.STRING}
_LISTS = {int: ir.AttributeType.INTS, float: ir.AttributeType.FLOATS, str: ir.AttributeType.STRINGS}


def as_attribute(name: str, value: Any) -> ir.Attr:
    """An attribute from a number, text, a list of them, or whatever `onnx_ir` can convert."""
    if isinstance(value, ir.Attr):
        return value
    kind: Any = _SCALARS.get(type(value))
    if kind is None and type(value) in (list, tuple) and value and type(value[0]) in _LISTS:
        # The library asks `isinstance` of protocols for every item, which costs more than all the rest.
        kind = _LISTS[type(value[0])] if len(set(map(type, value))) == 1 else None
    if isinstance(value, ir.Tensor):
        return ir.AttrTensor(name, value)
    if kind is None:
        return ir.convenience.convert_attribute(name, value)
    return ir.Attr(name, kind, value)


def as_attributes(attributes: Mapping[str, Any] | None) -> list[ir.Attr]:
    """Attributes of a node; those whose value is None are left out."""
    if not attributes:
        return []
    return [as_attribute(name, value) for name, value in attributes.items() if value is not None]
