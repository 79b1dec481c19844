"""`merge-shapes`: sizes are read where they are first known; what picks from them reads just that part."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir

from ..ir.constants import constant_array
from ..ir.static import constant_ints, input_of, producer_of, rank_of, static_shape
from .base import Pass, PassContext
from .drop_expands import expand_operand
from .elementwise import UNARY
from .leftovers import hand_on, supersede
from .registry import register
from .rewriter import Rewriter
from .rules import Rule

_KEEPS_SHAPE = (
    *sorted(UNARY),
    *("BatchNormalization", "CumSum", "Dropout", "InstanceNormalization", "LayerNormalization"),
    *("LogSoftmax", "LpNormalization", "RMSNormalization", "Softmax"),
)
_SMALL = 1024


@register
@dataclass(frozen=True)
class MergeShapes(Pass):
    """Shorten what computes sizes at run time, in models with symbolic dimensions.

    1. Shape(f(x)) = Shape(x) for f that keeps the shape (element-wise, Softmax, normalization).
    2. Gather(Shape(x), [i, i+1, ..]) and Slice(Shape(x)) = Shape(x, start, end); Unsqueeze(Gather(Shape(x),
       i)) likewise; constants where the sizes are known.
    3. Concat(Shape(x, a, b), Shape(x, b, c)) = Shape(x, a, c).
    4. ConstantOfShape and Expand to sizes that a constant can say get the constant.

    Size 1 in the operand of Expand keeps the size of its input, whatever that is.
    """

    name: ClassVar[str] = "merge-shapes"

    def rules(self) -> tuple[Rule, ...]:
        """The rules of the list above."""
        return (ShapeBefore(), KnownSizes(), PartOfShape(), SizeAsVector(), JoinShapes(), FixSizes())

    def apply(self, model: ir.Model, context: PassContext) -> None:
        """Drive the rules to a fixpoint."""
        context.rewrite(model, *self.rules())


def sizes_of(node: ir.Node) -> list[Any] | None:
    """The dimensions, numbers or symbols, that a Shape returns; None where the rank is not known."""
    source = node.inputs[0]
    if source is None or source.shape is None:
        return None
    start, end = span_of(node, len(source.shape))
    return list(source.shape.dims[start:end])


def span_of(node: ir.Node, rank: int) -> tuple[int, int]:
    """The first and the one behind the last axis that a Shape returns, both in 0..rank."""
    start, end = node.attributes.get_int("start", 0), node.attributes.get_int("end", rank)
    bounds = [max(0, min(rank, at + rank if at < 0 else at)) for at in (start, end)]
    return bounds[0], max(bounds)


class ShapeBefore(Rule):
    """Shape(f(x)) = Shape(x)."""

    op_types: ClassVar[tuple[str, ...]] = ("Shape", "Size")
    reads: ClassVar[tuple[str, ...]] = _KEEPS_SHAPE

    def match_and_rewrite(self, node: ir.Node, rewriter: Rewriter) -> bool | str:
        """Read the sizes before the operator, so that nothing waits for it."""
        maker = producer_of(node.inputs[0], *_KEEPS_SHAPE)
        if maker is None or maker.inputs[0] is None or maker.inputs[0].shape is None:
            return False
        rewriter.set_input(node, 0, maker.inputs[0])
        rewriter.erase_unread(maker)
        return True


class KnownSizes(Rule):
    """Shape(x, start, end) of known sizes is a constant."""

    op_types: ClassVar[tuple[str, ...]] = ("Shape",)
    benefit: ClassVar[int] = 2

    def match_and_rewrite(self, node: ir.Node, rewriter: Rewriter) -> bool | str:
        """Write the numbers down."""
        sizes = sizes_of(node)
        if sizes is None or any(type(size) is not int for size in sizes):
            return False
        if node.outputs[0].is_graph_output():
            return "it gives a graph output its name"
        constant = rewriter.constant_before(node, f"{node.name}/sizes", np.array(sizes, np.int64))
        return hand_on(node, constant, rewriter)


class PartOfShape(Rule):
    """Gather(Shape(x), [i, i+1, ..]) = Slice(Shape(x), i, j) = Shape(x, i, j)."""

    op_types: ClassVar[tuple[str, ...]] = ("Gather", "Slice")
    reads: ClassVar[tuple[str, ...]] = ("Shape",)

    def match_and_rewrite(self, node: ir.Node, rewriter: Rewriter) -> bool | str:
        """Read only the part."""
        maker = producer_of(node.inputs[0], "Shape")
        rank = rank_of(maker.inputs[0]) if maker is not None else None
        if maker is None or rank is None:
            return False
        start, end = span_of(maker, rank)
        picked = _picked(node, end - start)
        if picked is None:
            return "what it picks of the sizes is not constant, or not in a row"
        if picked.ndim == 0:
            return False
        attributes = {"start": start + int(picked[0]), "end": start + int(picked[-1]) + 1}
        return supersede(node, "Shape", [maker.inputs[0]], rewriter, attributes)


class SizeAsVector(Rule):
    """Unsqueeze(Gather(Shape(x), i), 0) = Shape(x, i, i + 1)."""

    op_types: ClassVar[tuple[str, ...]] = ("Unsqueeze", "Reshape")
    reads: ClassVar[tuple[str, ...]] = ("Gather",)

    def match_and_rewrite(self, node: ir.Node, rewriter: Rewriter) -> bool | str:
        """Read the size as a vector of one."""
        gather = producer_of(node.inputs[0], "Gather")
        maker = producer_of(gather.inputs[0], "Shape") if gather is not None else None
        rank = rank_of(maker.inputs[0]) if maker is not None else None
        if gather is None or maker is None or rank is None or static_shape(node.outputs[0]) != (1,):
            return False
        start, end = span_of(maker, rank)
        picked = _picked(gather, end - start)
        if picked is None or picked.size != 1:
            return False
        at = start + int(picked.reshape(()))
        return supersede(node, "Shape", [maker.inputs[0]], rewriter, {"start": at, "end": at + 1})


class JoinShapes(Rule):
    """Concat(Shape(x, a, b), Shape(x, b, c)) = Shape(x, a, c)."""

    op_types: ClassVar[tuple[str, ...]] = ("Concat",)
    reads: ClassVar[tuple[str, ...]] = ("Shape",)

    def match_and_rewrite(self, node: ir.Node, rewriter: Rewriter) -> bool | str:
        """Join the first two neighbours."""
        makers = [producer_of(value, "Shape") for value in node.inputs]
        for place, (left, right) in enumerate(itertools.pairwise(makers)):
            if left is None or right is None or left.inputs[0] is not right.inputs[0]:
                continue
            rank = rank_of(left.inputs[0])
            if rank is None or span_of(left, rank)[1] != span_of(right, rank)[0]:
                continue
            attributes = {"start": span_of(left, rank)[0], "end": span_of(right, rank)[1]}
            if len(makers) == 2:
                return supersede(node, "Shape", [left.inputs[0]], rewriter, attributes)
            (joined,) = rewriter.insert_before(node, "Shape", [left.inputs[0]], attributes)
            joined.type = node.outputs[0].type
            joined.shape = ir.Shape([attributes["end"] - attributes["start"]])
            operands = [*node.inputs[:place], joined, *node.inputs[place + 2 :]]
            return supersede(node, "Concat", operands, rewriter, dict(node.attributes))
        return False


class FixSizes(Rule):
    """ConstantOfShape(s) and Expand(x, s) with computed s that a constant can say."""

    op_types: ClassVar[tuple[str, ...]] = ("ConstantOfShape", "Expand")

    def match_and_rewrite(self, node: ir.Node, rewriter: Rewriter) -> bool | str:
        """Replace the operand."""
        place = 0 if node.op_type == "ConstantOfShape" else 1
        operand = node.inputs[place]
        if operand is None or constant_array(operand, _SMALL) is not None:
            return False
        sizes = expand_operand(node.outputs[0], node.inputs[0] if place == 1 else None)
        if sizes is None:
            return "one of its sizes is known at run time only"
        constant = rewriter.constant_before(node, f"{node.name}/shape", np.array(sizes, np.int64))
        rewriter.set_input(node, place, constant)
        rewriter.erase_unread(operand.producer())
        return True


def _picked(node: ir.Node, length: int) -> np.ndarray | None:
    """Which of `length` sizes a Gather or Slice takes, if that is constant and (in a vector) without gaps."""
    if node.op_type == "Gather":
        array = constant_array(input_of(node, 1), _SMALL)
        if array is None or array.ndim > 1 or array.size == 0:
            return None
        picked = np.where(array < 0, array + length, array).astype(np.int64)
    else:
        starts, ends = constant_ints(input_of(node, 1)), constant_ints(input_of(node, 2))
        steps = [1] if input_of(node, 4) is None else constant_ints(input_of(node, 4))
        if not starts or not ends or steps != [1]:
            return None
        picked = np.arange(length)[starts[0] : ends[0]]
    inside = picked.size > 0 and picked.min() >= 0 and picked.max() < length
    return picked if inside and (picked.ndim == 0 or bool(np.all(np.diff(picked) == 1))) else None
