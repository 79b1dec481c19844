"""Shapes and constants as plain Python values, where they are known."""

from __future__ import annotations

import onnx_ir as ir

from .constants import constant_array
from .uses import use_count


def static_shape(value: ir.Value | None) -> tuple[int, ...] | None:
    """Return the dimensions of `value`, or None where one of them is not known."""
    if value is None or value.shape is None:
        return None
    dims = value.shape.dims
    for dim in dims:
        if type(dim) is not int:
            return None
    return dims  # type: ignore[return-value]


def known_equal(a: ir.Shape | None, b: ir.Shape | None) -> bool:
    """Whether two shapes are known to be the same: equal numbers, or the same symbol, in every place."""
    if a is None or b is None or len(a) != len(b):
        return False
    return all(same_dim(x, y) for x, y in zip(a.dims, b.dims, strict=True))


def same_dim(a: int | ir.SymbolicDim, b: int | ir.SymbolicDim) -> bool:
    """Whether two dimensions are known to be the same; unnamed ones never are."""
    if type(a) is int or type(b) is int:
        return type(a) is type(b) and a == b
    return a.value is not None and a.value == b.value  # type: ignore[union-attr]


def rank_of(value: ir.Value | None) -> int | None:
    """Return the number of dimensions of `value`, or None where it is not known."""
    return None if value is None or value.shape is None else len(value.shape)


def constant_ints(value: ir.Value | None) -> list[int] | None:
    """Return a small integer constant (a shape, axes, pads) as a list, or None where it is none."""
    array = constant_array(value, 1024)
    if array is None or array.dtype.kind not in "iu" or array.ndim > 1:
        return None
    return array.reshape(-1).tolist()


def input_of(node: ir.Node, index: int) -> ir.Value | None:
    """Return input `index` of `node`, or None where it is absent."""
    return node.inputs[index] if index < len(node.inputs) else None


def producer_of(value: ir.Value | None, *op_types: str) -> ir.Node | None:
    """Return the node whose first output is `value` if it is of one of `op_types` (default domain)."""
    node = value.producer() if value is not None else None
    if node is None or node.domain not in ("", "ai.onnx") or node.op_type not in op_types:
        return None
    return node if value is node.outputs[0] else None


def only_reader(value: ir.Value) -> bool:
    """Whether exactly one node input reads `value` and it is no graph output."""
    return use_count(value) == 1 and not value.is_graph_output()
