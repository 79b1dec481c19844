"""Operators whose indices are data."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .lazy import Index, Lazy, bound, equal
from .op import Op


def _gather(op: Op, x: Lazy, indices: Lazy) -> list[Lazy]:
    axis = op.axis()
    rank = len(indices.shape)

    def read(index: Index) -> Any:
        chosen = _wrapped(indices.read(index[axis : axis + rank]), x.shape[axis])
        return x.read((*index[:axis], chosen, *index[axis + rank :]))

    return [Lazy(op.outputs[0].shape, x.dtype, read)]


def _gather_elements(op: Op, x: Lazy, indices: Lazy) -> list[Lazy]:
    axis = op.axis()

    def read(index: Index) -> Any:
        chosen = _wrapped(indices.read(index), x.shape[axis])
        return x.read((*index[:axis], chosen, *index[axis + 1 :]))

    return [Lazy(op.outputs[0].shape, x.dtype, read)]


def _gather_nd(op: Op, x: Lazy, indices: Lazy) -> list[Lazy]:
    batch = op.attr("batch_dims", 0)
    depth = indices.shape[-1]
    outer = len(indices.shape) - 1

    def read(index: Index) -> Any:
        chosen = [
            _wrapped(indices.read((*index[:outer], _at(position))), x.shape[batch + position])
            for position in range(depth)
        ]
        return x.read((*index[:batch], *chosen, *index[outer:]))

    return [Lazy(op.outputs[0].shape, x.dtype, read)]


def _at(position: int) -> Any:
    from tvm import tirx

    return tirx.const(position, "int64")


def _wrapped(position: Any, size: int) -> Any:
    """An index that may count from the end, kept within bounds so that bad data cannot reach other memory."""
    from tvm import tirx

    position = tirx.Cast("int64", position) if str(position.ty.dtype) != "int64" else position
    if isinstance(position, tirx.IntImm):
        return int(position.value) % size if size else position
    position = bound(position)
    forward = tirx.Select(position < 0, position + size, position)
    return bound(tirx.max(tirx.min(forward, _at(size - 1)), _at(0)))


def _one_hot(op: Op, indices: Lazy, depth: Lazy, values: Lazy) -> list[Lazy]:
    from tvm import tirx

    shape = op.outputs[0].shape
    axis = op.axis(default=-1, rank=len(shape))
    size = shape[axis]

    def read(index: Index) -> Any:
        chosen = tirx.Cast("int64", indices.read((*index[:axis], *index[axis + 1 :])))
        chosen = bound(chosen)
        # An index outside -size .. size-1 sets nothing.
        position = bound(tirx.Select(chosen < 0, chosen + size, chosen))
        return tirx.Select(equal(position, index[axis]), values.read((_at(1),)), values.read((_at(0),)))

    return [Lazy(shape, values.dtype, read)]


INDEXING: dict[str, Callable[..., list[Lazy]]] = {
    "Gather": _gather,
    "GatherElements": _gather_elements,
    "GatherND": _gather_nd,
    "OneHot": _one_hot,
}
