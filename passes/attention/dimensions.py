"""Shapes whose dimensions are partly known only when the model runs."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from ...ir.static import same_dim
from ..rewriter import Rewriter

Dim = int | ir.SymbolicDim


def dims_of(value: ir.Value | None) -> tuple[Dim, ...] | None:
    """The dimensions of a value, or None where its rank is not known."""
    return None if value is None or value.shape is None else tuple(_plain(dim) for dim in value.shape.dims)


def _plain(dim: Dim) -> Dim:
    """A dimension that was inferred as an expression without symbols, as a number."""
    if isinstance(dim, int) or dim.value is None or not str(dim.value).isdigit():
        return dim
    return int(dim.value)


def same_dims(a: Sequence[Dim], b: Sequence[Dim]) -> bool:
    """Whether two lists of dimensions are known to be the same."""
    return len(a) == len(b) and all(same_dim(x, y) for x, y in zip(a, b, strict=True))


def shape_vector(
    rewriter: Rewriter, anchor: ir.Node, entries: Sequence[int | tuple[ir.Value, int]]
) -> ir.Value:
    """A shape as a value, int64 [len(entries)].

    Args:
        rewriter: what changes the graph.
        anchor: the node before which it is computed.
        entries: numbers, or (value, axis) for the dimension of a value along an axis.
    """
    known = [entry if isinstance(entry, int) else _static(*entry) for entry in entries]
    if all(dim is not None for dim in known):
        return rewriter.initializer(f"{anchor.name}/shape", np.array(known, np.int64))
    parts: list[ir.Value] = []
    for entry, dim in zip(entries, known, strict=True):
        if dim is not None:
            parts.append(rewriter.initializer(f"{anchor.name}/dim", np.array([dim], np.int64)))
        else:
            assert isinstance(entry, tuple)
            parts.append(_measured(rewriter, anchor, *entry))
    if len(parts) == 1:
        return parts[0]
    return rewriter.insert_before(anchor, "Concat", parts, {"axis": 0})[0]


def reshaped(
    rewriter: Rewriter, anchor: ir.Node, value: ir.Value, entries: Sequence[int | tuple[ir.Value, int]]
) -> ir.Value:
    """`value` in another shape; entries as for `shape_vector`, one of them may be -1."""
    shape = shape_vector(rewriter, anchor, entries)
    return rewriter.insert_before(anchor, "Reshape", [value, shape], {"allowzero": 0})[0]


def _static(value: ir.Value, axis: int) -> int | None:
    assert value.shape is not None
    dim = _plain(value.shape[axis])
    return dim if isinstance(dim, int) else None


def _measured(rewriter: Rewriter, anchor: ir.Node, value: ir.Value, axis: int) -> ir.Value:
    """One dimension as int64 [1]; read off a graph input where one has it, so that layers share it."""
    assert value.shape is not None
    dim, axis = value.shape[axis], axis % len(value.shape)
    if anchor.graph is rewriter.model.graph:
        for candidate in rewriter.model.graph.inputs:
            for place, other in enumerate(dims_of(candidate) or ()):
                if same_dim(dim, other):
                    value, axis = candidate, place
                    break
            else:
                continue
            break
    return rewriter.insert_before(anchor, "Shape", [value], {"start": axis, "end": axis + 1})[0]
