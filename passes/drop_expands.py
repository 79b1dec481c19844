"""`drop-expands`: an Expand in front of an operator that broadcasts by itself does nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from ..ir.constants import constant_array
from ..ir.static import constant_ints, known_equal, producer_of, same_dim
from .base import Pass, PassContext
from .elementwise import BROADCASTING
from .leftovers import hand_on, supersede
from .registry import register
from .rewriter import Rewriter
from .rules import NoMatch, Rule


@register
@dataclass(frozen=True)
class DropExpands(Pass):
    """Drop Expand before operators that broadcast, and Where whose condition is known.

    1. f(Expand(x, s), y) = f(x, y) for element-wise f, where x and y alone broadcast to the output's shape,
       number by number or symbol by symbol. Tile along axes of size one is an Expand, and a
       ConstantOfShape is one of a number. MatMul broadcasts the axes before its matrices in the same way.
    2. Where(all true, a, b) = a and Where(all false, a, b) = b, where that has the output's shape already.
    3. Expand(Expand(x)) = Expand(x) to sizes that a constant can say; Tile(Tile(x, r), s) = Tile(x, r s).
    """

    name: ClassVar[str] = "drop-expands"

    def rules(self) -> tuple[Rule, ...]:
        """The rules of the list above."""
        return (
            ReadUnexpanded(),
            MultiplyUnexpanded(),
            NumberInsteadOfFill(),
            KnownWhere(),
            ExpandOnce(),
            TileOnce(),
        )

    def apply(self, model: ir.Model, context: PassContext) -> None:
        """Drive the rules to a fixpoint."""
        context.rewrite(model, *self.rules())


class ReadUnexpanded(Rule):
    """f(Expand(x), y) = f(x, y)."""

    op_types: ClassVar[tuple[str, ...]] = tuple(sorted(BROADCASTING))
    reads: ClassVar[tuple[str, ...]] = ("Expand", "Tile")

    def match_and_rewrite(self, node: ir.Node, rewriter: Rewriter) -> bool | str:
        """Read what the first Expand reads whose size the other operands bring along."""
        refusal: bool | str = False
        for index, value in enumerate(node.inputs):
            expand = producer_of(value, "Expand", "Tile")
            if expand is None or expand.inputs[0] is None or not _only_repeats_ones(expand):
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


class MultiplyUnexpanded(Rule):
    """Expand(x) y = x y: MatMul broadcasts all axes but the last two."""

    op_types: ClassVar[tuple[str, ...]] = ("MatMul",)
    reads: ClassVar[tuple[str, ...]] = ("Expand",)

    def match_and_rewrite(self, node: ir.Node, rewriter: Rewriter) -> bool | str:
        """Read the matrices before they are repeated."""
        for index, value in enumerate(node.inputs):
            expand = producer_of(value, "Expand")
            source = expand.inputs[0] if expand is not None else None
            if expand is None or source is None or source.shape is None or len(source.shape) < 2:
                continue
            other, result = node.inputs[1 - index], node.outputs[0].shape
            if other is None or other.shape is None or len(other.shape) < 2 or result is None:
                continue
            matrix = known_equal(ir.Shape(source.shape.dims[-2:]), ir.Shape(value.shape.dims[-2:]))  # type: ignore[union-attr]
            batch = broadcast([ir.Shape(source.shape.dims[:-2]), ir.Shape(other.shape.dims[:-2])])
            if not matrix or not known_equal(batch, ir.Shape(result.dims[:-2])):
                continue
            rewriter.set_input(node, index, source)
            rewriter.erase_unread(expand)
            return True
        return False


class NumberInsteadOfFill(Rule):
    """f(ConstantOfShape(s, c), y) = f(c, y)."""

    op_types: ClassVar[tuple[str, ...]] = tuple(sorted(BROADCASTING))
    reads: ClassVar[tuple[str, ...]] = ("ConstantOfShape",)

    def match_and_rewrite(self, node: ir.Node, rewriter: Rewriter) -> bool | str:
        """Read the number where the other operands bring the size along."""
        for index, value in enumerate(node.inputs):
            fill = producer_of(value, "ConstantOfShape")
            if fill is None:
                continue
            others = [v.shape for i, v in enumerate(node.inputs) if v is not None and i != index]
            if not known_equal(broadcast(others), node.outputs[0].shape):
                continue
            given = fill.attributes.get("value")
            number = np.zeros((), np.float32) if given is None else given.as_tensor().numpy().reshape(())
            rewriter.set_input(
                node, index, rewriter.constant_before(node, f"{fill.name}/number", np.array(number))
            )
            rewriter.erase_unread(fill)
            return True
        return False


class ExpandOnce(Rule):
    """Expand(Expand(x)) = Expand(x)."""

    op_types: ClassVar[tuple[str, ...]] = ("Expand",)

    def match_and_rewrite(self, node: ir.Node, rewriter: Rewriter) -> bool | str:
        """Expand to the last shape at once."""
        inner = producer_of(node.inputs[0], "Expand")
        if inner is None or inner.inputs[0] is None:
            return False
        sizes = expand_operand(node.outputs[0], inner.inputs[0])
        if sizes is None:
            return "one of its sizes is known at run time only"
        operand = rewriter.constant_before(node, f"{node.name}/shape", np.array(sizes, np.int64))
        return supersede(node, "Expand", [inner.inputs[0], operand], rewriter)


class TileOnce(Rule):
    """Tile(Tile(x, r), s) = Tile(x, r s)."""

    op_types: ClassVar[tuple[str, ...]] = ("Tile",)

    def match_and_rewrite(self, node: ir.Node, rewriter: Rewriter) -> bool | str:
        """Multiply the numbers of repeats."""
        inner = producer_of(node.inputs[0], "Tile")
        if inner is None:
            return False
        first, second = constant_ints(inner.inputs[1]), constant_ints(node.inputs[1])
        if first is None or second is None:
            return "its repeats are computed"
        repeats = np.array(first, np.int64) * np.array(second, np.int64)
        operand = rewriter.constant_before(node, f"{node.name}/repeats", repeats)
        return supersede(node, "Tile", [inner.inputs[0], operand], rewriter)


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
        if chosen is None or not known_equal(chosen.shape, node.outputs[0].shape):
            return "the chosen operand would have to be broadcast"
        return hand_on(node, chosen, rewriter)


def expand_operand(value: ir.Value, source: ir.Value | None) -> list[int] | None:
    """The Expand operand that makes `value` of `source`, or None where that cannot be a constant.

    A symbolic size that the source has in the same place is written 1, which keeps it.
    """
    if value.shape is None:
        return None
    before = list(source.shape.dims) if source is not None and source.shape is not None else []
    if len(before) > len(value.shape):
        return None
    sizes = []
    for mine, size in zip([0] * (len(value.shape) - len(before)) + before, value.shape.dims, strict=True):
        if type(size) is not int and not same_dim(mine, size):
            return None
        sizes.append(size if type(size) is int else 1)
    return sizes


def _only_repeats_ones(node: ir.Node) -> bool:
    """Whether a Tile or Expand repeats only axes of size one, so that broadcasting does the same."""
    if node.op_type == "Expand":
        return True
    before, after = node.inputs[0], node.outputs[0]
    if before is None or before.shape is None or after.shape is None or len(before.shape) != len(after.shape):
        return False
    return all(b == 1 or same_dim(b, a) for b, a in zip(before.shape.dims, after.shape.dims, strict=True))


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
