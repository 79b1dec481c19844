"""Rules of `merge-slices` for cuts with steps along any axes, Splits, and empty operands of Concat."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import onnx_ir as ir

from ..ir.static import constant_ints, input_of, known_equal, only_reader, producer_of, rank_of, same_dim
from .leftovers import hand_on, supersede
from .rewriter import Rewriter
from .rules import Rule

_BEFORE_FIRST = np.iinfo(np.int64).min


def axis_size(value: ir.Value | None, axis: int) -> int | None:
    """The size of `value` along `axis` where it is known."""
    if value is None or value.shape is None or not 0 <= axis < len(value.shape):
        return None
    size = value.shape[axis]
    return size if isinstance(size, int) else None


def spans_of(node: ir.Node) -> dict[int, range] | None:
    """The indices that a Slice takes, by axis; None where a bound is computed or a size not known."""
    source, rank = node.inputs[0], rank_of(node.inputs[0])
    starts, ends = constant_ints(input_of(node, 1)), constant_ints(input_of(node, 2))
    if rank is None or starts is None or ends is None:
        return None
    axes = list(range(len(starts))) if input_of(node, 3) is None else constant_ints(input_of(node, 3))
    steps = [1] * len(starts) if input_of(node, 4) is None else constant_ints(input_of(node, 4))
    if axes is None or steps is None or not len(starts) == len(ends) == len(axes) == len(steps):
        return None
    spans: dict[int, range] = {}
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        size = axis_size(source, axis % rank)
        if size is None or step == 0 or axis % rank in spans:
            return None
        spans[axis % rank] = range(size)[slice(start, end, step)]
    return spans


class SliceOnce(Rule):
    """x[a:b:s][c:d:t] = x[a + s c : .. : s t], along any number of axes."""

    op_types: ClassVar[tuple[str, ...]] = ("Slice",)
    benefit: ClassVar[int] = 0

    def match_and_rewrite(self, node: ir.Node, rewriter: Rewriter) -> bool | str:
        """Cut once, along the axes of both."""
        inner = producer_of(node.inputs[0], "Slice")
        if inner is None or not only_reader(inner.outputs[0]):
            return False
        first, second = spans_of(inner), spans_of(node)
        if first is None or second is None:
            return "a bound is computed, or a size is not known"
        spans = dict(first)
        for axis, span in second.items():
            if axis not in spans:
                spans[axis] = span
                continue
            indices = spans[axis]
            spans[axis] = indices[span.start : _stop(span) : span.step] if len(span) else range(0)
        if any(len(span) == 0 for span in spans.values()):
            return "nothing is left"
        bounds = np.array([_bounds(axis, span) for axis, span in sorted(spans.items())], np.int64)
        operands = [
            rewriter.constant_before(node, f"{node.name}/{name}", bounds[:, column].copy())
            for column, name in enumerate(("starts", "ends", "axes", "steps"))
        ]
        return supersede(node, "Slice", [inner.inputs[0], *operands], rewriter)


class SplitOfConcat(Rule):
    """Split(Concat(a, b)) = a, b where it cuts at the seams."""

    op_types: ClassVar[tuple[str, ...]] = ("Split",)

    def match_and_rewrite(self, node: ir.Node, rewriter: Rewriter) -> bool | str:
        """Hand the operands on."""
        concat = producer_of(node.inputs[0], "Concat")
        if concat is None or len(concat.inputs) != len(node.outputs) or _split_axis(node) is None:
            return False
        axis = _split_axis(node)
        rank = rank_of(concat.outputs[0])
        if rank is None or axis is None or concat.attributes.get_int("axis", 0) % rank != axis:
            return False
        for operand, output in zip(concat.inputs, node.outputs, strict=True):
            size = axis_size(output, axis)
            if operand is None or size is None or size != axis_size(operand, axis):
                return "it does not cut where the Concat joins"
        if any(output.is_graph_output() for output in node.outputs):
            return "it gives a graph output its name"
        rewriter.replace(node, list(concat.inputs))
        rewriter.erase_unread(concat)
        return True


class SplitOfSplit(Rule):
    """Split(Split(x)[i]) = Split(x), cut finer, along one axis."""

    op_types: ClassVar[tuple[str, ...]] = ("Split",)

    def match_and_rewrite(self, node: ir.Node, rewriter: Rewriter) -> bool | str:
        """Cut into all pieces at once."""
        value = node.inputs[0]
        inner = value.producer() if value is not None else None
        if inner is None or value is None or inner.op_type != "Split" or not only_reader(value):
            return False
        axis = _split_axis(node)
        if axis is None or _split_axis(inner) != axis or inner.graph is not node.graph:
            return False
        pieces = [
            each for output in inner.outputs for each in (node.outputs if output is value else [output])
        ]
        sizes = [axis_size(piece, axis) for piece in pieces]
        if None in sizes:
            return "the size of a piece is not known"
        if any(piece.is_graph_output() for piece in pieces):
            return "it gives a graph output its name"
        operand = rewriter.constant_before(inner, f"{node.name}/split", np.array(sizes, np.int64))
        cut = rewriter.insert_before(
            inner, "Split", [inner.inputs[0], operand], {"axis": axis}, num_outputs=len(sizes)
        )
        for piece, new in zip(pieces, cut, strict=True):
            new.shape, new.type = piece.shape, piece.type
            rewriter.replace_uses(piece, new)
        rewriter.erase(node)
        rewriter.erase_unread(inner)
        return True


class EmptyOperand(Rule):
    """Concat(x, nothing) = x."""

    op_types: ClassVar[tuple[str, ...]] = ("Concat",)
    benefit: ClassVar[int] = 3

    def match_and_rewrite(self, node: ir.Node, rewriter: Rewriter) -> bool | str:
        """Leave out the operands of size zero, where one remains."""
        rank = rank_of(node.outputs[0])
        if not rank or len(node.inputs) < 2:
            return False
        axis = node.attributes.get_int("axis", 0) % rank
        kept = [value for value in node.inputs if axis_size(value, axis) != 0]
        if len(kept) == len(node.inputs) or not kept:
            return False
        if len(kept) == 1 and kept[0] is not None:
            return hand_on(node, kept[0], rewriter) if _shape_stays(node, kept[0], axis) else False
        return supersede(node, "Concat", kept, rewriter, {"axis": axis})


def _shape_stays(node: ir.Node, value: ir.Value, axis: int) -> bool:
    if known_equal(value.shape, node.outputs[0].shape):
        return True
    # The size along the axis may be known by different names before and behind.
    before, after = value.shape, node.outputs[0].shape
    if before is None or after is None or len(before) != len(after):
        return False
    return all(
        same_dim(b, a) for i, (b, a) in enumerate(zip(before.dims, after.dims, strict=True)) if i != axis
    )


def _split_axis(node: ir.Node) -> int | None:
    rank = rank_of(node.inputs[0])
    return node.attributes.get_int("axis", 0) % rank if rank else None


def _stop(span: range) -> int | None:
    return None if span.stop < 0 else span.stop


def _bounds(axis: int, span: range) -> tuple[int, int, int, int]:
    """(start, end, axis, step) of a Slice that takes the indices of `span`."""
    end = span[-1] + (1 if span.step > 0 else -1)
    return span[0], end if end >= 0 else int(_BEFORE_FIRST), axis, span.step
