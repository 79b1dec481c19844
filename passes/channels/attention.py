"""Labels through the standard's attention and rotary embedding, over three or four axes.

Either the sizes of heads shrink (the same positions within every head) or heads go, a key-value head together
with the query heads that read it. The larger number of choices is tried first.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from .contractions import by_group, tie_broadcast
from .labels import Axis
from .tracer import Edit, Keep, Tracer, traces


@dataclass(frozen=True)
class _Heads:
    """One operand of an attention.

    Attributes:
        value: [batch, heads, length, size], or [batch, length, heads * size].
        count: Number of heads.
        size: Size of one head.
        heads: Labels of the heads.
        dims: Labels of the positions within a head.
    """

    value: ir.Value
    count: int
    size: int
    heads: Axis
    dims: Axis


@traces("Attention")
def _attention(node: ir.Node, tracer: Tracer) -> str | None:
    values = [value for value in node.inputs[:3] if value is not None]
    ranks = {len(tracer.dims(value)) for value in values}
    if len(values) != 3 or not ranks <= {3, 4}:
        return "an operand is missing or has an unusual rank"
    counts = _counts(node, tracer, values)
    if counts is None:
        return "its heads are not static"
    by_head = False
    if any(len(tracer.dims(value)) == 3 for value in values):
        # One flat axis holds heads and their positions: only one of the two can shrink.
        size = counts[0][1]
        by_head = by_group(node, tracer, counts[1][0], size)
    query, key, value = (
        _heads(node, tracer, v, count, size, by_head) for v, (count, size) in zip(values, counts, strict=True)
    )
    shared = query.count // key.count
    _tie_heads(node, tracer, query, key, value)
    tracer.labels.tie(query.dims, key.dims)
    # The flat axis of a query that loses whole heads is no sum.
    if len(tracer.dims(query.value)) == 4:
        tracer.contract(node, 0, 3)
    elif not by_head:
        tracer.contract(node, 0, 2)
    if "scale" not in node.attributes:
        tracer.on_removal(lambda keep: _explicit_scale(node, keep, query))
    tracer.on_removal(lambda keep: _head_counts(node, keep, query, key))
    length = tracer.labels.new_pin(node, "attention is normalized over this axis")
    batch = tracer.axis(query.value, 0)
    for operand in (query, key, value):
        rank = len(tracer.dims(operand.value))
        tracer.tie(batch, operand.value, 0)
        tracer.tie(length, operand.value, rank - 2)
    for past, operand in zip(node.inputs[4:6], (key, value), strict=False):
        if past is not None:
            for axis, labels in enumerate((batch, operand.heads, length, operand.dims)):
                tracer.tie(labels, past, axis)
    mask = node.inputs[3] if len(node.inputs) > 3 else None
    if mask is not None:
        tie_broadcast(tracer, [batch, query.heads, length, length], mask)
    for lengths in node.inputs[6:]:
        if lengths is not None:
            tracer.tie(batch, lengths, 0)
    _set_outputs(node, tracer, (query, key, value), batch, length, shared)
    return None


def _counts(node: ir.Node, tracer: Tracer, values: Sequence[ir.Value]) -> list[tuple[int, int]] | None:
    names = ("q_num_heads", "kv_num_heads", "kv_num_heads")
    counts = []
    for value, name in zip(values, names, strict=True):
        dims = tracer.dims(value)
        heads = dims[1] if len(dims) == 4 else node.attributes.get_int(name, 0)
        size = dims[-1]
        if not isinstance(heads, int) or not isinstance(size, int) or heads < 1:
            return None
        counts.append((heads, size if len(dims) == 4 else size // heads))
    return counts


def _heads(node: ir.Node, tracer: Tracer, value: ir.Value, count: int, size: int, by_head: bool) -> _Heads:
    if len(tracer.dims(value)) == 4:
        return _Heads(value, count, size, tracer.axis(value, 1), tracer.axis(value, 3))
    heads, dims = split_heads(node, tracer, tracer.axis(value, 2), (count, size), by_head)
    return _Heads(value, count, size, heads, dims)


def split_heads(
    node: ir.Node, tracer: Tracer, axis: Axis, sizes: tuple[int, int], by_head: bool
) -> tuple[Axis, Axis]:
    """Labels of heads and of positions in them, on a flat axis of `sizes` (heads, size); one is a pin."""
    what = "positions within its heads" if by_head else "its heads"
    pin = tracer.labels.new_pin(node, f"{node.op_type} keeps {what}")
    if isinstance(axis, int):
        return axis, axis
    grid = axis.reshape(sizes)
    if not by_head:
        grid = grid.T
    tracer.labels.tie(grid[:, :1], grid)
    labels: Axis = np.ascontiguousarray(grid[:, 0])
    if len(grid) == 1:
        tracer.labels.tie(tracer.unit, labels)
        labels = tracer.unit
    return (labels, pin) if by_head else (pin, labels)


def _tie_heads(node: ir.Node, tracer: Tracer, query: _Heads, key: _Heads, value: _Heads) -> None:
    """Tie key and value heads, and query heads to the key heads they read."""
    tracer.labels.tie(key.heads, value.heads)
    shared = query.count // key.count
    if shared == 1:
        tracer.labels.tie(query.heads, key.heads)
        return
    if isinstance(query.heads, int):
        tracer.labels.tie(query.heads, key.heads)
        return
    grid = query.heads.reshape(key.count, shared)
    if isinstance(key.heads, int) or not by_group(node, tracer, key.count, shared if key.count == 1 else 1):
        # As many query heads go in every group, and all key heads stay.
        tracer.labels.tie(grid[:1], grid)
        pin = tracer.labels.new_pin(node, "query heads share it")
        tracer.labels.tie(pin, key.heads)
        return
    tracer.labels.tie(grid[:, :1], grid)
    tracer.labels.tie(grid[:, 0], key.heads)


def _explicit_scale(node: ir.Node, keep: Keep, query: _Heads) -> Iterator[Edit]:
    # The default depends on the head size; the function must not change with it.
    if keep.count(query.dims, query.size) != query.size:
        yield Edit(node, "scale", 1.0 / math.sqrt(query.size))


def _head_counts(node: ir.Node, keep: Keep, query: _Heads, key: _Heads) -> Iterator[Edit]:
    for name, operand in (("q_num_heads", query), ("kv_num_heads", key)):
        if name in node.attributes:
            yield Edit(node, name, keep.count(operand.heads, operand.count))


def _set_outputs(
    node: ir.Node,
    tracer: Tracer,
    operands: tuple[_Heads, _Heads, _Heads],
    batch: Axis,
    length: int,
    shared: int,
) -> None:
    query, key, value = operands
    outputs = [*node.outputs]
    if len(tracer.dims(outputs[0])) == 4:
        tracer.set(outputs[0], [batch, query.heads, length, value.dims])
    else:
        tracer.set(outputs[0], [batch, length, _flat(query.heads, value.dims, query.count, value.size)])
    for output, operand in zip(outputs[1:3], (key, value), strict=False):
        if output.name != "":
            tracer.set(output, [batch, operand.heads, length, operand.dims])
    if len(outputs) > 3 and outputs[3].name != "":
        tracer.set(outputs[3], [batch, query.heads, length, length])


def _flat(heads: Axis, dims: Axis, count: int, size: int) -> Axis:
    """Labels of the joined axis of heads and positions, of which at most one is labelled."""
    if isinstance(heads, np.ndarray) and not isinstance(dims, np.ndarray):
        return np.repeat(heads, size)
    if isinstance(dims, np.ndarray):
        return np.tile(dims, count)
    return heads


@traces("RotaryEmbedding")
def _rotary(node: ir.Node, tracer: Tracer) -> str | None:
    data = node.inputs[0]
    if data is None:
        return "its first input is missing"
    dims = tracer.dims(data)
    flat = len(dims) == 3
    count = node.attributes.get_int("num_heads", 0) if flat else dims[1]
    size = (
        dims[-1] // count
        if flat and isinstance(dims[-1], int) and isinstance(count, int) and count
        else dims[-1]
    )
    if not isinstance(count, int) or not isinstance(size, int) or (flat and count < 1):
        return "its heads are not static"
    by_head = flat and by_group(node, tracer, count, size)
    if flat:
        _, positions = split_heads(node, tracer, tracer.axis(data, 2), (count, size), by_head)
    else:
        positions = tracer.axis(data, 3)
    rotated = node.attributes.get_int("rotary_embedding_dim", 0) or size
    if isinstance(positions, np.ndarray):
        turned = positions[:rotated]
        pairs = (
            turned.reshape(-1, 2).T if node.attributes.get_int("interleaved", 0) else turned.reshape(2, -1)
        )
        tracer.labels.tie(pairs[0], pairs[1])
        for cache in node.inputs[1:3]:
            if cache is not None:
                tracer.tie(np.ascontiguousarray(pairs[0]), cache, -1)
        if "rotary_embedding_dim" in node.attributes and rotated != size:
            tracer.on_removal(lambda keep: _rotated(node, keep, turned))
    else:
        for cache in node.inputs[1:3]:
            if cache is not None:
                tracer.tie(positions, cache, -1)
    if flat:
        labels = tracer.axis(data, 2)
        tracer.on_removal(lambda keep: _rotary_heads(node, keep, labels, count, size, by_head))
    pin = tracer.keep(data, 1 if flat else 2, node, "RotaryEmbedding numbers the positions on this axis")
    axes = tracer.all_axes(data)
    axes[1 if flat else 2] = pin
    tracer.set(node.outputs[0], axes)
    return None


def _rotated(node: ir.Node, keep: Keep, turned: np.ndarray) -> Iterator[Edit]:
    yield Edit(node, "rotary_embedding_dim", int(np.count_nonzero(keep.mask(turned, len(turned)))))


def _rotary_heads(
    node: ir.Node, keep: Keep, labels: Axis, count: int, size: int, by_head: bool
) -> Iterator[Edit]:
    if by_head:
        yield Edit(node, "num_heads", keep.count(labels, count * size) // size)
