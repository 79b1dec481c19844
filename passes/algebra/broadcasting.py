"""Constants beside a tensor: when they leave its shape as it is."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from ...ir.constants import constant_array
from ...ir.static import static_shape

_LIMIT = 1 << 16


def leaves_shape(source: ir.Value | None, other: Sequence[int]) -> bool:
    """Whether broadcasting `source` against a constant of shape `other` is known to keep its shape."""
    if source is None or source.shape is None or len(other) > len(source.shape):
        return False
    tail = source.shape.dims[len(source.shape) - len(other) :]
    return all(
        theirs == 1 or (type(ours) is int and theirs == ours)
        for ours, theirs in zip(tail, other, strict=True)
    )


def tensor_and_constant(node: ir.Node) -> tuple[int, np.ndarray] | None:
    """Of a node with two inputs: the place of the computed one and the contents of the constant one.

    None where not exactly one is a stored constant (of moderate size), or where the constant broadcasts the
    other input to a larger shape.
    """
    if len(node.inputs) != 2:
        return None
    arrays = [constant_array(value, _LIMIT) for value in node.inputs]
    if (arrays[0] is None) == (arrays[1] is None):
        return None
    place = 0 if arrays[0] is None else 1
    array = arrays[1 - place]
    assert array is not None
    source = node.inputs[place]
    return (place, array) if array.size and leaves_shape(source, array.shape) else None


def scalar(value: ir.Value | None) -> np.ndarray | None:
    """A stored constant with one element, as an array without axes; None for anything else."""
    array = constant_array(value, 1)
    return array.reshape(()) if array is not None and array.size == 1 else None


def fits_without_broadcast(source: ir.Value | None, constant: ir.Value | None) -> bool:
    """Whether a stored constant beside `source` keeps the shape of `source`."""
    shape = static_shape(constant)
    return shape is not None and leaves_shape(source, shape)
