"""`drop-expands`: an Expand in front of an operator that broadcasts by itself does nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from ..ir.constants import constant_array
from ..ir.static import known_equal, producer_of, same_dim
from .base import Pass, PassContext
from .elementwise import BROADCASTING
from .registry import register
from .rewriter import Rewriter
from .rules import NoMatch, Rule


@register
@dataclass(frozen=True)
class DropExpands(Pass):
    """Drop Expand before operators that broadcast, and Where whose condition is known.

    1. f(Expand(x, s), y) = f(x, y) for element-wise f, where x and y alone broadcast to the output's shape,
       number by number or symbol by symbol.
    2. Where(all true, a, b) = a and Where(all false, a, b) = b, where that has the output's shape already.
    """

    name: ClassVar[str] = "drop-expands"

    def apply(self, model: ir.Model, context: PassContext) -> None:
        """Drive the rules to a fixpoint."""
        context.rewrite(model, ReadUnexpanded(), KnownWhere())


class ReadUnexpanded(Rule):
    """f(Expand(x), y) = f(x, y)."""

    op_types: ClassVar[tuple[str, ...]] = (*sorted(BROADCASTING), "Where")

    def match_and_rewrite(self, node: ir.Node, rewriter: Rewriter) -> bool | str:
        """Read what the first Expand reads whose size the other operands bring along."""
        refusal: bool | str = False
        for index, value in enumerate(node.inputs):
            expand = producer_of(value, "Expand")
            if expand is None or expand.inputs[0] is None:
                continue
            source = expand.inputs[0]
            operands = [source if i == index else v for i, v in enumerate(node.inputs)]
            shape = broadcast([v.shape for v in operands if v is not None])
            if not known_equal(shape, node.outputs[0].shape):
                refusal = NoMatch("its other operands are not known to be as large")
                continue
            rewriter.set_input(node, index, source)
            rewriter.erase_unread(expand)
            return True
        return refusal


class KnownWhere(Rule):
    """Where(true, a, b) = a;  Where(false, a, b) = b."""

    op_types: ClassVar[tuple[str, ...]] = ("Where",)
    benefit: ClassVar[int] = 2

    def match_and_rewrite(self, node: ir.Node, rewriter: Rewriter) -> bool | str:
        """Hand the chosen operand on."""
        condition = constant_array(node.inputs[0], 1 << 20)
        if condition is None or condition.size == 0 or condition.any() != condition.all():
            return False
        chosen = node.inputs[1 if condition.all() else 2]
        output = node.outputs[0]
        if chosen is None or not known_equal(chosen.shape, output.shape):
            return "the chosen operand would have to be broadcast"
        if output.is_graph_output() and (chosen.producer() is None or chosen.is_graph_output()):
            return "it gives a graph output its name"
        makers = [value.producer() for value in node.inputs if value is not None]
        rewriter.replace(node, [chosen])
        for maker in makers:
            rewriter.erase_unread(maker)
        return True


def broadcast(shapes: Sequence[ir.Shape | None]) -> ir.Shape | None:
    """The shape that `shapes` broadcast to, or None where that depends on unknown sizes."""
    rank = max((len(shape) for shape in shapes if shape is not None), default=0)
    result: list[int | ir.SymbolicDim] = [1] * rank
    for shape in shapes:
        if shape is None:
            return None
        for place, dim in enumerate(shape.dims, rank - len(shape)):
            if dim == 1 and type(dim) is int:
                continue
            if result[place] != 1 and not same_dim(result[place], dim):
                return None
            result[place] = dim
    return ir.Shape(result)
