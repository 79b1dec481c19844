"""Rules of `merge-slices` for Gather with constant indices."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import onnx_ir as ir

from ..ir.constants import constant_array
from ..ir.static import constant_ints, input_of, only_reader, producer_of, rank_of
from .leftovers import hand_on, supersede
from .rewriter import Rewriter
from .rules import Rule
from .slicing_steps import axis_size, spans_of

_MOST_INDICES = 1 << 16


class GatherOfGather(Rule):
    """x[i][j] = x[i[j]] along one axis, for constant i (a vector) and j."""

    op_types: ClassVar[tuple[str, ...]] = ("Gather",)

    def match_and_rewrite(self, node: ir.Node, rewriter: Rewriter) -> bool | str:
        """Pick from the indices ahead."""
        inner = producer_of(node.inputs[0], "Gather")
        if inner is None or inner.inputs[0] is None:
            return False
        axis, inner_axis = gather_axis(node), gather_axis(inner)
        first, second = constant_indices(inner), constant_indices(node)
        if first is None or second is None or axis is None or inner_axis != axis or first.ndim != 1:
            return False
        if not _in_range(second, first.size):
            return "an index is out of range"
        indices = rewriter.constant_before(node, f"{node.name}/indices", np.asarray(first[second]))
        return supersede(node, "Gather", [inner.inputs[0], indices], rewriter, {"axis": axis})


class GatherOfSlice(Rule):
    """x[a:b:s][i] = x[a + s i] along one axis."""

    op_types: ClassVar[tuple[str, ...]] = ("Gather",)
    reads: ClassVar[tuple[str, ...]] = ("Slice",)

    def match_and_rewrite(self, node: ir.Node, rewriter: Rewriter) -> bool | str:
        """Pick from the uncut tensor."""
        inner = producer_of(node.inputs[0], "Slice")
        axis, indices = gather_axis(node), constant_indices(node)
        if inner is None or inner.inputs[0] is None or indices is None or axis is None:
            return False
        spans = spans_of(inner)
        if spans is None or list(spans) != [axis]:
            return False
        span = spans[axis]
        if not _in_range(indices, len(span)):
            return "an index is out of range"
        there = np.asarray(span.start + span.step * np.where(indices < 0, indices + len(span), indices))
        operand = rewriter.constant_before(node, f"{node.name}/indices", there.astype(np.int64))
        return supersede(node, "Gather", [inner.inputs[0], operand], rewriter, {"axis": axis})


class GatherOfConcat(Rule):
    """Concat(a, b)[i] = b[i'] where all indices lie in b."""

    op_types: ClassVar[tuple[str, ...]] = ("Gather",)
    reads: ClassVar[tuple[str, ...]] = ("Concat",)

    def match_and_rewrite(self, node: ir.Node, rewriter: Rewriter) -> bool | str:
        """Pick from the operand that holds the indices."""
        concat = producer_of(node.inputs[0], "Concat")
        axis, indices = gather_axis(node), constant_indices(node)
        if concat is None or indices is None or axis is None or indices.size == 0:
            return False
        rank = rank_of(concat.outputs[0])
        if rank is None or concat.attributes.get_int("axis", 0) % rank != axis:
            return False
        if indices.min() < 0:
            total = axis_size(concat.outputs[0], axis)
            if total is None:
                return "the size of the Concat is not known"
            indices = np.where(indices < 0, indices + total, indices)
        begin = 0
        for operand in concat.inputs:
            size = axis_size(operand, axis)
            if size is None:
                return "the size of an operand of the Concat is not known"
            if begin <= indices.min() and indices.max() < begin + size:
                inside = rewriter.constant_before(
                    node, f"{node.name}/indices", np.asarray(indices - begin, np.int64)
                )
                return supersede(node, "Gather", [operand, inside], rewriter, {"axis": axis})
            begin += size
        return "its indices lie in several operands of the Concat"


class GatherTheOnly(Rule):
    """Gather(Unsqueeze(x, a), 0) along a = x."""

    op_types: ClassVar[tuple[str, ...]] = ("Gather",)

    def match_and_rewrite(self, node: ir.Node, rewriter: Rewriter) -> bool | str:
        """Hand x on."""
        inner = producer_of(node.inputs[0], "Unsqueeze")
        axis, indices = gather_axis(node), constant_indices(node)
        if inner is None or inner.inputs[0] is None or indices is None or indices.ndim != 0 or axis is None:
            return False
        rank, axes = rank_of(inner.outputs[0]), constant_ints(input_of(inner, 1))
        if (
            rank is None
            or axes is None
            or [each % rank for each in axes] != [axis]
            or int(indices) not in (0, -1)
        ):
            return False
        return hand_on(node, inner.inputs[0], rewriter)


class GatherEverything(Rule):
    """x[0, 1, .., n-1] = x."""

    op_types: ClassVar[tuple[str, ...]] = ("Gather",)
    benefit: ClassVar[int] = 2

    def match_and_rewrite(self, node: ir.Node, rewriter: Rewriter) -> bool | str:
        """Hand x on."""
        axis, source = gather_axis(node), node.inputs[0]
        size = axis_size(source, axis) if axis is not None else None
        operand = node.inputs[1]
        if size is None or source is None or operand is None or operand.shape is None:
            return False
        if list(operand.shape.dims) != [size]:
            return False
        indices = constant_indices(node)
        if indices is None or not bool(
            np.array_equal(np.where(indices < 0, indices + size, indices), range(size))
        ):
            return False
        return hand_on(node, source, rewriter)


class UnsqueezeOfGather(Rule):
    """Unsqueeze(x[i], a) = x[[i]] along a."""

    op_types: ClassVar[tuple[str, ...]] = ("Unsqueeze",)

    def match_and_rewrite(self, node: ir.Node, rewriter: Rewriter) -> bool | str:
        """Keep the axis while picking."""
        gather = producer_of(node.inputs[0], "Gather")
        if gather is None or not only_reader(gather.outputs[0]):
            return False
        axis, indices = gather_axis(gather), constant_indices(gather)
        rank, axes = rank_of(gather.inputs[0]), constant_ints(input_of(node, 1))
        if indices is None or indices.ndim != 0 or axis is None or rank is None or axes is None:
            return False
        if [each % rank for each in axes] != [axis]:
            return False
        operand = rewriter.constant_before(node, f"{node.name}/indices", indices.reshape(1))
        return supersede(node, "Gather", [gather.inputs[0], operand], rewriter, {"axis": axis})


def gather_axis(node: ir.Node) -> int | None:
    """The axis along which a Gather picks, from the left."""
    rank, axis = rank_of(node.inputs[0]), node.attributes.get_int("axis", 0)
    return axis % rank if rank else (axis if axis >= 0 else None)


def constant_indices(node: ir.Node) -> np.ndarray | None:
    """The indices of a Gather, where they are a constant of moderate size."""
    return constant_array(input_of(node, 1), _MOST_INDICES)


def _in_range(indices: np.ndarray, size: int) -> bool:
    return indices.size > 0 and int(indices.min()) >= -size and int(indices.max()) < size
