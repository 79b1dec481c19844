"""`merge-softmax-reshapes`: a softmax between two Reshapes works on the tensor as it was."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from ..ir.static import known_equal, only_reader, producer_of
from .base import Pass, PassContext
from .leftovers import hand_on, supersede
from .merge_reshapes import shape_operand
from .registry import register
from .rewriter import Rewriter
from .rules import Rule

_RENAMING = ("Reshape", "Flatten", "Squeeze", "Unsqueeze")

Size = tuple[int, Counter[str]]


@register
@dataclass(frozen=True)
class MergeSoftmaxReshapes(Pass):
    """A(softmax_k(B(x))) = A'(softmax_a(x)), with A and B of Reshape, Flatten, Squeeze, Unsqueeze.

    Such operators keep the order of the elements. Axis k of B(x) and axis a of x hold the same groups of
    elements if both have the same length and as many elements before and behind them. LogSoftmax and Hardmax
    alike. A' is nothing where A restores the shape of x, as it does in a Softmax of before opset 13.
    """

    name: ClassVar[str] = "merge-softmax-reshapes"

    def rules(self) -> tuple[Rule, ...]:
        """The one rule."""
        return (SoftmaxBeforeRenaming(),)

    def apply(self, model: ir.Model, context: PassContext) -> None:
        """Drive the rule to a fixpoint."""
        context.rewrite(model, *self.rules())


class SoftmaxBeforeRenaming(Rule):
    """Reshape(Softmax(Reshape(x))) = Reshape(Softmax(x))."""

    op_types: ClassVar[tuple[str, ...]] = _RENAMING

    def match_and_rewrite(self, node: ir.Node, rewriter: Rewriter) -> bool | str:
        """Find the axis of x that holds the same elements."""
        softmax = producer_of(node.inputs[0], "Softmax", "LogSoftmax", "Hardmax")
        if softmax is None or not only_reader(softmax.outputs[0]):
            return False
        view = softmax.inputs[0]
        inner = producer_of(view, *_RENAMING)
        if inner is None or view is None or not only_reader(view) or inner.inputs[0] is None:
            return False
        source = inner.inputs[0]
        if view.shape is None or source.shape is None or not view.shape.dims:
            return "the shapes around the softmax are not known"
        axis = same_axis(view.shape.dims, softmax.attributes.get_int("axis", -1), source.shape.dims)
        if axis is None:
            return "no axis of the tensor before its reshape holds the elements of a softmax"
        same = known_equal(source.shape, node.outputs[0].shape)
        target = None if same else shape_operand(node.outputs[0], source)
        if target is None and not same:
            return "more than one dimension of its output is unknown"
        (moved,) = rewriter.insert_before(node, softmax.op_type, [source], {"axis": axis})
        moved.shape, moved.type = source.shape, softmax.outputs[0].type
        if same:
            return hand_on(node, moved, rewriter)
        shape = rewriter.initializer(f"{node.name}/shape", np.array(target, np.int64))
        return supersede(node, "Reshape", [moved, shape], rewriter)


def same_axis(
    view: Sequence[int | ir.SymbolicDim], axis: int, source: Sequence[int | ir.SymbolicDim]
) -> int | None:
    """The axis of `source` that groups the elements as `axis` does in `view`, another shape of the same data.

    Args:
        view: dimensions, not empty.
        axis: from -rank to rank - 1.
        source: dimensions of the same elements in the same order.

    Returns:
        None where there is no such axis, or where unnamed dimensions do not let it be known.
    """
    axis %= len(view)
    wanted = [_size(view[:axis]), _size(view[axis : axis + 1]), _size(view[axis + 1 :])]
    if None in wanted:
        return None
    for place in range(len(source)):
        parts = (source[:place], source[place : place + 1], source[place + 1 :])
        if [_size(part) for part in parts] == wanted:
            return place
    return None


def _size(dims: Sequence[int | ir.SymbolicDim]) -> Size | None:
    """The number of elements as a number times symbols; None where a dimension has no name."""
    numbers = [dim for dim in dims if isinstance(dim, int)]
    names = [dim.value for dim in dims if not isinstance(dim, int)]
    if None in names:
        return None
    return math.prod(numbers), Counter(name for name in names if name is not None)
