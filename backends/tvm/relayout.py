"""Groups that only turn axes: copies between layouts, and transposes nobody computes where they are read."""

from __future__ import annotations

from math import prod

from .emission import Emitted
from .loops import Machine, bits_of
from .spec import GroupSpec

_LEAST_ELEMENTS = 4096
"""Smaller ones take no time worth the code."""


def emit_transpose(spec: GroupSpec, machine: Machine) -> Emitted | None:
    """The function of a group that is one transpose of matrices in memory; None of any other."""
    turn = _turn(spec)
    if turn is None:
        return None
    from .kernels.relayout import as_matrices, side_of, transposed_matrices

    shape, perm = turn
    out_shape = spec.layout.stored_shape(spec.out_type.shape)
    matrices = as_matrices(shape, perm)
    side = side_of(*matrices[1:], machine.lanes("float32")) if matrices is not None else 0
    if matrices is None or not side:
        return None
    func = transposed_matrices(shape, out_shape, matrices, side, spec.out_type.dtype)
    return Emitted(func, (0,), "movement", 0, f"transpose {side}x{side}")


def _turn(spec: GroupSpec) -> tuple[tuple[int, ...], list[int]] | None:
    """The stored shape that is read, and for each stored axis of the output which axis of that it is."""
    if len(spec.members) != 1 or len(spec.externals) != 1:
        return None
    op, external = spec.members[0].op, spec.externals[0]
    if op.type not in ("Identity", "Transpose") or external.constant:
        return None
    dtype, size = spec.out_type.dtype, prod(spec.out_type.shape)
    if dtype not in ("float32", "int32") or bits_of(dtype) != 32 or size < _LEAST_ELEMENTS:
        return None
    rank = op.rank
    perm = op.attr("perm") or tuple(reversed(range(rank))) if op.type == "Transpose" else tuple(range(rank))
    # Axes that only storage has are of size one, wherever they lie.
    sources = external.layout.to_stored(tuple(range(rank)), one=-1)
    logical = spec.layout.to_stored(tuple(perm), one=-1)
    order = [sources.index(axis) for axis in logical if axis >= 0]
    return external.layout.stored_shape(external.type.shape), order
