"""Rules of `merge-transposes` for operators that name axes: cuts, paddings, picks, new and dropped axes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir

from ..ir.static import constant_ints, input_of, only_reader, producer_of, rank_of, static_shape
from .permutations import order_left, permutation, permuted_shape, transposed
from .rewriter import Rewriter
from .rules import Rule


def transpose_before(node: ir.Node) -> tuple[ir.Node, list[int]] | None:
    """The Transpose that makes the first input of `node` for it alone, with its permutation."""
    transpose = producer_of(node.inputs[0], "Transpose")
    if transpose is None or not only_reader(transpose.outputs[0]):
        return None
    perm = permutation(transpose)
    return None if perm is None or transpose.inputs[0] is None else (transpose, perm)


def _sink(
    node: ir.Node,
    transpose: ir.Node,
    operands: Sequence[ir.Value | None],
    attributes: dict[str, Any],
    perm: Sequence[int],
    rewriter: Rewriter,
) -> bool:
    """Apply the operator to the source of the transpose, then transpose its result by `perm`."""
    (inner,) = rewriter.insert_before(node, node.op_type, [transpose.inputs[0], *operands], attributes)
    inner.type = node.outputs[0].type
    order = [list(perm).index(axis) for axis in range(len(perm))]
    if rank_of(node.outputs[0]) == len(perm):
        inner.shape = permuted_shape(node.outputs[0].shape, order)
    rewriter.replace(node, [transposed(inner, perm, node, rewriter)])
    rewriter.erase_unread(transpose)
    return True


class SinkThroughSlice(Rule):
    """Slice(P(x), axes) = P(Slice(x, p[axes])), whatever the bounds."""

    op_types: ClassVar[tuple[str, ...]] = ("Slice",)

    def match_and_rewrite(self, node: ir.Node, rewriter: Rewriter) -> bool | str:
        """Cut the axes where they were before."""
        found = transpose_before(node)
        if found is None:
            return False
        transpose, perm = found
        given, count = input_of(node, 3), static_shape(input_of(node, 1))
        axes = constant_ints(given) if given is not None else list(range(count[0])) if count else None
        if axes is None:
            return "its axes are not constant"
        there = np.array([perm[axis % len(perm)] for axis in axes], np.int64)
        operands = [
            node.inputs[1],
            node.inputs[2],
            rewriter.constant_before(node, f"{node.name}/axes", there),
        ]
        operands += [node.inputs[4]] if input_of(node, 4) is not None else []
        return _sink(node, transpose, operands, {}, perm, rewriter)


class SinkThroughPad(Rule):
    """Pad(P(x), pads) = P(Pad(x, pads in the order of x))."""

    op_types: ClassVar[tuple[str, ...]] = ("Pad",)

    def match_and_rewrite(self, node: ir.Node, rewriter: Rewriter) -> bool | str:
        """Pad the axes where they were before."""
        found = transpose_before(node)
        if found is None:
            return False
        transpose, perm = found
        given, pads = input_of(node, 3), constant_ints(node.inputs[1])
        axes = constant_ints(given) if given is not None else list(range(len(perm)))
        if axes is None or pads is None or len(pads) != 2 * len(axes):
            return "its pads or axes are not constant"
        there = np.zeros((2, len(perm)), np.int64)
        for place, axis in enumerate(axes):
            there[:, perm[axis % len(perm)]] = pads[place], pads[place + len(axes)]
        operands = [rewriter.constant_before(node, f"{node.name}/pads", there.reshape(-1)), input_of(node, 2)]
        return _sink(node, transpose, operands, dict(node.attributes), perm, rewriter)


class SinkThroughSqueeze(Rule):
    """Squeeze(P(x), axes) = P'(Squeeze(x, p[axes]))."""

    op_types: ClassVar[tuple[str, ...]] = ("Squeeze",)

    def match_and_rewrite(self, node: ir.Node, rewriter: Rewriter) -> bool | str:
        """Drop the axes where they were before."""
        found, axes = transpose_before(node), constant_ints(input_of(node, 1))
        if found is None:
            return False
        if not axes:
            return "its axes are not constant"
        transpose, perm = found
        gone = [axis % len(perm) for axis in axes]
        there = np.array(sorted(perm[axis] for axis in gone), np.int64)
        operands = [rewriter.constant_before(node, f"{node.name}/axes", there)]
        return _sink(node, transpose, operands, {}, order_left(perm, gone), rewriter)


class SinkThroughUnsqueeze(Rule):
    """Unsqueeze(P(x), axes) = P'(Unsqueeze(x, axes)), where P' keeps the new axes in place."""

    op_types: ClassVar[tuple[str, ...]] = ("Unsqueeze",)

    def match_and_rewrite(self, node: ir.Node, rewriter: Rewriter) -> bool | str:
        """Add the axes first."""
        found, axes = transpose_before(node), constant_ints(input_of(node, 1))
        if found is None:
            return False
        if not axes:
            return "its axes are not constant"
        transpose, perm = found
        rank = len(perm) + len(axes)
        new = {axis % rank for axis in axes}
        old = [place for place in range(rank) if place not in new]
        order = list(range(rank))
        for place, axis in zip(old, perm, strict=True):
            order[place] = old[axis]
        return _sink(node, transpose, [node.inputs[1]], {}, order, rewriter)


class SinkThroughGather(Rule):
    """P(x)[.., i, ..] = P'(x[.., i, ..]) along the axis where it was before, for i a number or a vector.

    Not where the vector is longer than the axis: more data would be moved.
    """

    op_types: ClassVar[tuple[str, ...]] = ("Gather",)

    def match_and_rewrite(self, node: ir.Node, rewriter: Rewriter) -> bool | str:
        """Pick before transposing."""
        found, indices = transpose_before(node), rank_of(node.inputs[1])
        if found is None:
            return False
        transpose, perm = found
        place = node.attributes.get_int("axis", 0) % len(perm)
        axis = perm[place]
        if indices == 0:
            order = order_left(perm, [place])
        elif indices == 1 and self._picks_few(node, place):
            order = perm
        else:
            return "its indices may be many"
        return _sink(node, transpose, [node.inputs[1]], {"axis": axis}, order, rewriter)

    @staticmethod
    def _picks_few(node: ir.Node, place: int) -> bool:
        count, shape = (
            static_shape(node.inputs[1]),
            node.inputs[0].shape if node.inputs[0] is not None else None,
        )
        size = shape[place] if shape is not None else None
        return count is not None and (count[0] <= 1 or (isinstance(size, int) and count[0] <= size))


class SinkThroughArgMax(Rule):
    """ArgMax(P(x), axis) = P'(ArgMax(x, p[axis])); ArgMin alike."""

    op_types: ClassVar[tuple[str, ...]] = ("ArgMax", "ArgMin")

    def match_and_rewrite(self, node: ir.Node, rewriter: Rewriter) -> bool | str:
        """Look along the axis where it was before."""
        found = transpose_before(node)
        if found is None:
            return False
        transpose, perm = found
        place = node.attributes.get_int("axis", 0) % len(perm)
        kept = node.attributes.get_int("keepdims", 1)
        order = perm if kept else order_left(perm, [place])
        return _sink(node, transpose, [], {**node.attributes, "axis": perm[place]}, order, rewriter)


class SinkThroughCumSum(Rule):
    """CumSum(P(x), axis) = P(CumSum(x, p[axis]))."""

    op_types: ClassVar[tuple[str, ...]] = ("CumSum",)

    def match_and_rewrite(self, node: ir.Node, rewriter: Rewriter) -> bool | str:
        """Add up along the axis where it was before."""
        found, axes = transpose_before(node), constant_ints(node.inputs[1])
        if found is None:
            return False
        if axes is None or len(axes) != 1:
            return "its axis is not constant"
        transpose, perm = found
        there = rewriter.constant_before(
            node, f"{node.name}/axis", np.array(perm[axes[0] % len(perm)], np.int64)
        )
        return _sink(node, transpose, [there], dict(node.attributes), perm, rewriter)
