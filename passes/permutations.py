"""Orders of axes: reading them from Transpose nodes, inverting and applying them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from ..ir.constants import constant_array
from ..ir.static import rank_of, static_shape
from .rewriter import Rewriter

_CONSTANT_LIMIT = 1 << 20


def permutation(node: ir.Node) -> list[int] | None:
    """Return the permutation of a Transpose (the reversal where not given), or None where it is not known."""
    given = node.attributes.get("perm")
    if given is not None and given.is_ref():
        return None
    perm = node.attributes.get_ints("perm", ())
    if perm:
        return list(perm)
    rank = rank_of(node.inputs[0])
    return None if rank is None else list(range(rank))[::-1]


def inverse(perm: Sequence[int]) -> list[int]:
    """Return the permutation that undoes `perm`."""
    return [perm.index(axis) for axis in range(len(perm))]


def transposed(value: ir.Value, perm: Sequence[int], node: ir.Node, rewriter: Rewriter) -> ir.Value:
    """Return `value` with its axes in the order `perm`, in front of `node`; itself for the identity."""
    if list(perm) == sorted(perm):
        return value
    return rewriter.insert_before(node, "Transpose", [value], {"perm": list(perm)})[0]


def permuted_shape(shape: ir.Shape | None, perm: Sequence[int]) -> ir.Shape | None:
    """Return the shape behind a Transpose by `perm`."""
    return None if shape is None else ir.Shape([shape[axis] for axis in perm])


def order_left(perm: Sequence[int], gone: Sequence[int]) -> list[int]:
    """Return the permutation that remains of `perm` where the axes at the places `gone` vanish."""
    kept = [perm[place] for place in range(len(perm)) if place not in gone]
    return [sorted(kept).index(axis) for axis in kept]


def unpermuted(value: ir.Value, perm: Sequence[int]) -> np.ndarray | None:
    """The constant that, transposed by `perm`, broadcasts like the constant `value`; None for no constant."""
    array = constant_array(value, _CONSTANT_LIMIT)
    if array is None or array.ndim > len(perm):
        return None
    full = array.reshape((1,) * (len(perm) - array.ndim) + array.shape)
    return np.ascontiguousarray(full.transpose(inverse(perm)))


def is_one_number(value: ir.Value, rank: int) -> bool:
    """Whether `value` is a single number that looks the same in any order of up to `rank` axes."""
    shape = static_shape(value)
    return shape is not None and len(shape) <= rank and all(dim == 1 for dim in shape)
