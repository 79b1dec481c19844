"""Shape operands: what each of their entries says, and how they follow when axes shrink.

A shape operand often is computed: pieces of `Shape(x)`, cut out and joined with constants. Each of its
entries is followed back to a constant or to the size of an axis. When axes shrink, a size that was read
follows by itself and a constant does not; what is then missing is added to the operand as a constant vector.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from ...ir.constants import constant_array
from .labels import Axis
from .tracer import Dim, Edit, Keep, Shift, Tracer


@dataclass(frozen=True)
class Size:
    """An entry that is the size of an axis."""

    axis: Axis
    dim: Dim


Entry = int | Size | None
"""A constant, the size of an axis, or None where it cannot be followed."""

_HANDED_ON = ("Cast", "Identity", "Squeeze", "Unsqueeze", "Reshape")
_SHAPED = {"Reshape": 1, "Expand": 1}


def entries(value: ir.Value | None, tracer: Tracer) -> list[Entry] | None:
    """Follow the entries of a vector (or scalar) of sizes; None where not even their number is known."""
    if value is None:
        return None
    stored = constant_array(value, 64)
    if stored is not None:
        return [int(entry) for entry in stored.ravel()]
    dims, node = tracer.known_dims(value), value.producer()
    unknown: list[Entry] | None = None
    if dims is not None and len(dims) <= 1 and all(isinstance(dim, int) for dim in dims):
        unknown = [None] * (int(dims[0]) if dims else 1)  # type: ignore[arg-type]
    if node is None or node.domain not in ("", "ai.onnx"):
        return unknown
    if node.op_type == "Shape" and node.inputs[0] is not None:
        return list(_read(node, tracer))
    if node.op_type == "Concat":
        parts = [entries(part, tracer) for part in node.inputs]
        return unknown if any(part is None for part in parts) else [e for part in parts for e in part or ()]
    if not _is_followed(node):
        return unknown
    source = entries(node.inputs[0], tracer)
    return unknown if source is None else _cut(node, source)


def _read(node: ir.Node, tracer: Tracer) -> list[Entry]:
    data = node.inputs[0]
    assert data is not None
    dims = tracer.dims(data)
    read: list[Entry] = [Size(axis, dim) for axis, dim in zip(tracer.all_axes(data), dims, strict=True)]
    return read[slice(node.attributes.get_int("start", 0), node.attributes.get_int("end", len(read)))]


def _is_followed(node: ir.Node) -> bool:
    """Whether a node hands on or cuts out entries of its first input in a way that is known."""
    if node.op_type in ("Gather", "Slice"):
        indices = node.inputs[1:]
        return all(value is None or constant_array(value, 64) is not None for value in indices)
    return node.op_type in _HANDED_ON


def _cut(node: ir.Node, source: list[Entry]) -> list[Entry]:
    operands = [constant_array(value, 64) if value is not None else None for value in node.inputs[1:]]
    if node.op_type == "Gather" and operands[0] is not None:
        return [source[int(index)] for index in operands[0].ravel()]
    if node.op_type == "Slice" and operands[0] is not None and operands[1] is not None:
        step = operands[3] if len(operands) > 3 else None
        bounds = (operands[0], operands[1], np.ones(1, np.int64) if step is None else step)
        return source[slice(*(int(bound.ravel()[0]) for bound in bounds))]
    return source


def feeds_only_shapes(value: ir.Value) -> bool:
    """Whether everything that is made of a `Shape` ends, in ways that are followed, as a shape operand."""
    if value.is_graph_output():
        return False
    for node, index in value.uses():
        if node.graph is not value.graph or node.domain not in ("", "ai.onnx"):
            return False
        if _SHAPED.get(node.op_type) == index:
            continue
        if node.op_type != "Concat" and (index != 0 or not _is_followed(node)):
            return False
        if not feeds_only_shapes(node.outputs[0]):
            return False
    return True


def labelled_sizes(found: Sequence[Entry] | None) -> list[Size]:
    """Entries that are sizes of axes that may shrink."""
    return [entry for entry in found or () if isinstance(entry, Size) and isinstance(entry.axis, np.ndarray)]


def can_follow(found: Sequence[Entry] | None, result: Sequence[Axis], after: Sequence[Dim]) -> bool:
    """Whether a computed shape operand can be corrected for axes that shrink."""
    if found is None or len(found) != len(result):
        return False
    return all(
        entry is not None or not isinstance(axis, np.ndarray) or not isinstance(dim, int)
        for entry, axis, dim in zip(found, result, after, strict=True)
    )


def shift(
    node: ir.Node, keep: Keep, found: Sequence[Entry], after: Sequence[Dim], result: Sequence[Axis]
) -> Iterator[Edit]:
    """What must be added to a computed shape operand (input 1 of `node`)."""
    missing = np.zeros(len(found), np.int64)
    for index, (entry, axis, dim) in enumerate(zip(found, result, after, strict=True)):
        if not isinstance(dim, int) or entry is None:
            continue
        if isinstance(entry, int):
            # 0 copies, -1 infers, 1 repeats nothing: these follow by themselves.
            missing[index] = keep.count(axis, dim) - entry if entry > 1 else 0
        elif isinstance(entry.dim, int):
            missing[index] = keep.count(axis, dim) - keep.count(entry.axis, entry.dim)
    if missing.any():
        yield Edit(node, 1, Shift(missing))
