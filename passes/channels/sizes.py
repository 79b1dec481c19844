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
SHAPED = {"Reshape": 1, "Expand": 1, "ConstantOfShape": 0, "Resize": 3}
"""Operators that take a shape, and at which input."""


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


def settle(value: ir.Value, tracer: Tracer, pin: int) -> None:
    """See to it that all readers of a vector of sizes still get what they need when axes shrink.

    Shape operands follow. Whatever computes with a size (1/sqrt(d), a count to divide by) goes on with the
    one it had: its operand becomes a constant. Sizes that are needed in a way that allows neither are pinned.
    """
    found = entries(value, tracer)
    labelled = labelled_sizes(found)
    if not labelled:
        return
    if value.is_graph_output():
        _pin_all(labelled, tracer, pin)
    for node, index in value.uses():
        if node.graph is not value.graph or node.domain not in ("", "ai.onnx"):
            _pin_all(labelled, tracer, pin)
        elif SHAPED.get(node.op_type) == index:
            continue
        elif node.op_type == "Concat" or (index == 0 and _is_followed(node)):
            # Not the Concat's other parts: they have readers' walks of their own.
            settle(node.outputs[0], tracer, pin)
        else:
            _freeze(node, index, value, found or [], tracer, pin)


def _pin_all(sizes: Sequence[Size], tracer: Tracer, pin: int) -> None:
    for size in sizes:
        tracer.labels.tie(pin, size.axis)


def _freeze(
    node: ir.Node, index: int, value: ir.Value, found: Sequence[Entry], tracer: Tracer, pin: int
) -> None:
    numbers = [entry.dim if isinstance(entry, Size) else entry for entry in found]
    dims = tracer.known_dims(value)
    if dims is None or value.dtype is None or not all(isinstance(number, int) for number in numbers):
        _pin_all(labelled_sizes(found), tracer, pin)
        return
    constant = np.array(numbers).astype(value.dtype.numpy()).reshape([] if not dims else -1)
    labelled = labelled_sizes(found)

    def edit(keep: Keep) -> Iterator[Edit]:
        if any(keep.count(size.axis, 1) != size.dim for size in labelled):
            yield Edit(node, index, constant)

    tracer.on_removal(edit)


def static_entries(value: ir.Value | None, tracer: Tracer) -> np.ndarray | None:
    """The numbers of a vector of sizes if all are static, stored or not; None otherwise."""
    stored = constant_array(value, 64)
    if stored is not None:
        return stored
    found = entries(value, tracer)
    if found is None:
        return None
    numbers = [entry.dim if isinstance(entry, Size) else entry for entry in found]
    return np.array(numbers, np.int64) if all(isinstance(number, int) for number in numbers) else None


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
    """What must be added to the computed shape operand of `node`."""
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
        yield Edit(node, SHAPED[node.op_type], Shift(missing))
