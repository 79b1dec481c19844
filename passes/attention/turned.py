"""Writes the standard RotaryEmbedding: where the heads stand, and tables in the form it takes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from ...ir.static import same_dim
from ..available import lacks
from ..rewriter import Rewriter
from .dimensions import Dim, dims_of, reshaped, shape_vector

_TYPES = (ir.DataType.FLOAT, ir.DataType.FLOAT16)


@dataclass(frozen=True)
class Places:
    """Where batch, length and heads of x stand, and what the tables look like.

    Attributes:
        heads: Axis of the heads, None for one head.
        length: Axis of the length.
    """

    heads: int | None
    length: int


def placement(x: ir.Value, tables: Sequence[ir.Value], rewriter: Rewriter) -> Places | str:
    """Where heads and length of x stand so that the tables fit, or why they do not."""
    absent = lacks(rewriter.model, "RotaryEmbedding")
    if absent is not None:
        return absent
    dims = dims_of(x)
    if x.dtype not in _TYPES:
        return "it is neither float nor float16"
    if dims is None or len(dims) not in (3, 4) or not isinstance(dims[-1], int) or dims[-1] % 2:
        return "heads of a known even size are needed, in three or four dimensions"
    shapes = [_padded(table, len(dims)) for table in tables]
    if any(shape is None for shape in shapes):
        return "the tables of angles have unknown or more dimensions"
    if len(dims) == 3:
        fits = all(_is_batch(shape[0], dims[0]) for shape in shapes if shape is not None)
        return Places(None, 1) if fits else "the tables of angles do not fit"
    for heads, length in ((1, 2), (2, 1)):
        if all(
            shape is not None
            and shape[heads] == 1
            and (shape[length] == 1 or same_dim(shape[length], dims[length]))
            and _is_batch(shape[0], dims[0])
            for shape in shapes
        ):
            if heads == 2 and not isinstance(dims[2], int):
                return "the number of heads is not known"
            return Places(heads, length)
    return "angles differ between heads, or dimensions are not known"


def _is_batch(dim: Dim, batch: Dim) -> bool:
    return dim == 1 or same_dim(dim, batch)


def _padded(table: ir.Value, rank: int) -> tuple[Dim, ...] | None:
    dims = dims_of(table)
    return None if dims is None or len(dims) > rank else (*[1] * (rank - len(dims)), *dims)


def emit_rotary(
    node: ir.Node,
    x: ir.Value,
    tables: Sequence[ir.Value],
    places: Places,
    paired: bool,
    form: int,
    rewriter: Rewriter,
) -> None:
    """Replace `node` by the operator; `form` 1: tables hold angles once, else twice (2: as neighbours)."""
    dims = dims_of(x)
    assert dims is not None and isinstance(dims[-1], int)
    caches = [_cache(table, x, places, form, node, rewriter) for table in tables]
    attributes: dict[str, int] = {"interleaved": 1} if paired else {}
    flat = places.heads != 1
    value = x
    if flat:
        heads = 1 if places.heads is None else int(str(dims[2]))
        attributes["num_heads"] = heads
        if places.heads is not None:
            value = reshaped(rewriter, node, x, [0, 0, heads * dims[-1]])
    (y,) = rewriter.insert_before(node, "RotaryEmbedding", [value, *caches], attributes)
    if places.heads == 2:
        y = reshaped(rewriter, node, y, [0, 0, int(str(dims[2])), dims[-1]])
    operands = [each.producer() for each in node.inputs if each is not None]
    rewriter.replace(node, [y])
    for producer in operands:
        rewriter.erase_unread(producer)


def _cache(
    table: ir.Value, x: ir.Value, places: Places, form: int, node: ir.Node, rewriter: Rewriter
) -> ir.Value:
    """A table as [batch, length, size / 2], each angle once."""
    dims, whole = _padded(table, len(dims_of(x) or ())), dims_of(x)
    assert dims is not None and whole is not None and isinstance(whole[-1], int)
    half, value = whole[-1] // 2, table
    if form != 1:
        bounds = [[0], [half] if form == 0 else [whole[-1]], [-1], [1] if form == 0 else [2]]
        cuts = [rewriter.initializer(f"{node.name}/cut", np.array(each, np.int64)) for each in bounds]
        (value,) = rewriter.insert_before(node, "Slice", [value, *cuts])
    batch, length = dims[0], dims[places.length]
    own = dims_of(table) or ()
    if not (len(own) == 3 and places.heads is None):
        entries: list[int | tuple[ir.Value, int]] = []
        for dim, axis in ((batch, 0), (length, places.length)):
            entries.append(dim if isinstance(dim, int) else (x, axis))
        value = reshaped(rewriter, node, value, [*entries, half])
    if not same_dim(batch, whole[0]) or not same_dim(length, whole[places.length]):
        wide = shape_vector(rewriter, node, [(x, 0), (x, places.length), half])
        (value,) = rewriter.insert_before(node, "Expand", [value, wide])
    return value
