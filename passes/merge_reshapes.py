"""`merge-reshapes`: a chain of operators that only rename dimensions becomes one Reshape."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from ..ir.constants import constant_array
from ..ir.static import constant_ints, input_of, known_equal, only_reader, producer_of, rank_of, same_dim
from .base import Pass, PassContext
from .elementwise import BINARY, UNARY
from .leftovers import hand_on, supersede
from .registry import register
from .rewriter import Rewriter
from .rules import NoMatch, Rule

_UNKNOWN = "more than one dimension of its output is unknown"
_LONGEST_CHAIN = 8
_RENAMING = ("Reshape", "Flatten", "Squeeze", "Unsqueeze")


@register
@dataclass(frozen=True)
class MergeReshapes(Pass):
    """Merge chains of Reshape, Flatten, Squeeze and Unsqueeze, which keep the order of the elements.

    1. A(B(x)), both of these operators, is the Reshape of x to the shape of A's output, if a constant can say
       it: a symbolic dimension that x has in the same place is written 0 (copied), one further unknown
       dimension -1. Where it is the shape of x, nothing is left.
    2. A Reshape whose shape operand is computed at run time, although a constant can say it, gets the
       constant, and what computed the operand dies.
    3. Where no constant can: Unsqueeze(Unsqueeze(x)) is one Unsqueeze, Squeeze(Squeeze(x)) one Squeeze, and
       Squeeze(Unsqueeze(x)) and Unsqueeze(Squeeze(x)) of the same axes are x.
    4. A(f(B(x))), with element-wise f of one tensor (and numbers) in between, is f on x and the one Reshape.

    It does not fire where the output may be empty (-1 and 0 would be ambiguous).
    """

    name: ClassVar[str] = "merge-reshapes"

    def rules(self) -> tuple[Rule, ...]:
        """The rules of the list above."""
        return (
            MergeRenaming(),
            MergeAxes(),
            UndoAxes(),
            RenameAroundElementwise(),
            FixShapeOperand(),
        )

    def apply(self, model: ir.Model, context: PassContext) -> None:
        """Drive the rules to a fixpoint."""
        context.rewrite(model, *self.rules())


class MergeRenaming(Rule):
    """Reshape(Reshape(x)) = Reshape(x)."""

    op_types: ClassVar[tuple[str, ...]] = _RENAMING
    reads: ClassVar[tuple[str, ...]] = _RENAMING
    benefit: ClassVar[int] = 2

    def match_and_rewrite(self, node: ir.Node, rewriter: Rewriter) -> bool | str:
        """Read what the first of the two read."""
        inner = producer_of(node.inputs[0], *_RENAMING)
        if inner is None or inner.inputs[0] is None:
            return False
        source = inner.inputs[0]
        same = known_equal(source.shape, node.outputs[0].shape)
        target = shape_operand(node.outputs[0], source)
        if target is None and not same:
            return NoMatch(_UNKNOWN) if inner.op_type == node.op_type != "Reshape" else _UNKNOWN
        if same:
            return hand_on(node, source, rewriter)
        shape = rewriter.constant_before(node, f"{node.name}/shape", np.array(target, np.int64))
        rewriter.replace(node, rewriter.insert_before(node, "Reshape", [source, shape]))
        rewriter.erase_unread(inner)
        return True


class FixShapeOperand(Rule):
    """Reshape(x, computed shape) = Reshape(x, constant)."""

    op_types: ClassVar[tuple[str, ...]] = ("Reshape",)

    def match_and_rewrite(self, node: ir.Node, rewriter: Rewriter) -> bool | str:
        """Replace the operand by the output shape, with -1 for the one unknown dimension."""
        operand = node.inputs[1]
        if operand is None or constant_ints(operand) is not None:
            return False
        target = shape_operand(node.outputs[0], node.inputs[0])
        if target is None:
            return _UNKNOWN
        rewriter.set_input(
            node, 1, rewriter.constant_before(node, f"{node.name}/shape", np.array(target, np.int64))
        )
        rewriter.set_attribute(node, "allowzero", None)
        rewriter.erase_unread(operand.producer())
        return True


class MergeAxes(Rule):
    """Unsqueeze(Unsqueeze(x, a), b) = Unsqueeze(x, a'), Squeeze likewise, for shapes of unknown size."""

    op_types: ClassVar[tuple[str, ...]] = ("Unsqueeze", "Squeeze")
    reads: ClassVar[tuple[str, ...]] = ("Unsqueeze", "Squeeze")

    def match_and_rewrite(self, node: ir.Node, rewriter: Rewriter) -> bool | str:
        """Say which axes are new, or gone, from the first input to the last output."""
        inner = producer_of(node.inputs[0], node.op_type)
        if inner is None or inner.inputs[0] is None:
            return False
        # An axis keeps its place in the larger of the two shapes, so the later Unsqueeze is read first.
        first, second = (inner, node) if node.op_type == "Squeeze" else (node, inner)
        outer_axes, inner_axes = _axes(first), _axes(second)
        if outer_axes is None or inner_axes is None:
            return "its axes are not constant"
        rank = rank_of(inner.inputs[0] if node.op_type == "Squeeze" else node.outputs[0])
        if rank is None:
            return "its rank is not known"
        kept = [axis for axis in range(rank) if axis not in outer_axes]
        axes = np.array(sorted([*outer_axes, *(kept[axis] for axis in inner_axes)]), np.int64)
        inputs = [inner.inputs[0], rewriter.constant_before(node, f"{node.name}/axes", axes)]
        rewriter.replace(node, rewriter.insert_before(node, node.op_type, inputs))
        rewriter.erase_unread(inner)
        return True


class UndoAxes(Rule):
    """Squeeze(Unsqueeze(x, a), a) = x;  Unsqueeze(Squeeze(x, a), a) = x."""

    op_types: ClassVar[tuple[str, ...]] = ("Unsqueeze", "Squeeze")
    benefit: ClassVar[int] = 3

    def match_and_rewrite(self, node: ir.Node, rewriter: Rewriter) -> bool | str:
        """Hand x on."""
        inner = producer_of(node.inputs[0], "Squeeze" if node.op_type == "Unsqueeze" else "Unsqueeze")
        if inner is None or inner.inputs[0] is None:
            return False
        first, second = _axes(inner), _axes(node)
        if first is None or second is None or sorted(first) != sorted(second):
            return False
        return hand_on(node, inner.inputs[0], rewriter)


class RenameAroundElementwise(Rule):
    """Reshape(f(Reshape(x))) = Reshape(f(x)), for element-wise f of one tensor."""

    op_types: ClassVar[tuple[str, ...]] = _RENAMING
    benefit: ClassVar[int] = 0

    def match_and_rewrite(self, node: ir.Node, rewriter: Rewriter) -> bool | str:
        """Apply f before renaming."""
        chain: list[tuple[ir.Node, int]] = []
        value = node.inputs[0]
        while value is not None and only_reader(value) and len(chain) < _LONGEST_CHAIN:
            found = _elementwise_step(value)
            if found is None:
                break
            chain.append(found)
            value = found[0].inputs[found[1]]
        inner = producer_of(value, *_RENAMING) if chain else None
        if inner is None or inner.inputs[0] is None or not only_reader(inner.outputs[0]):
            return False
        source = inner.inputs[0]
        rank = rank_of(source)
        if rank is None or any(not _fits_rank(step, data, rank) for step, data in chain):
            return False
        same = known_equal(source.shape, node.outputs[0].shape)
        target = shape_operand(node.outputs[0], source)
        if target is None and not same:
            return _UNKNOWN
        moved = source
        for step, data in reversed(chain):
            inputs = [moved if place == data else operand for place, operand in enumerate(step.inputs)]
            (moved,) = rewriter.insert_before(node, step.op_type, inputs, dict(step.attributes))
            moved.shape, moved.type = source.shape, step.outputs[0].type
        if same:
            return hand_on(node, moved, rewriter)
        shape = rewriter.constant_before(node, f"{node.name}/shape", np.array(target, np.int64))
        return supersede(node, "Reshape", [moved, shape], rewriter)


def _elementwise_step(value: ir.Value) -> tuple[ir.Node, int] | None:
    """The element-wise operator that makes `value` from one tensor, and which input that is."""
    node = value.producer()
    if node is None or node.domain not in ("", "ai.onnx") or len(node.outputs) != 1:
        return None
    if node.op_type in UNARY:
        return node, 0
    if node.op_type not in BINARY or len(node.inputs) != 2:
        return None
    numbers = [operand is not None and _is_number(operand) for operand in node.inputs]
    return (node, numbers.index(False)) if sum(numbers) == 1 else None


def _is_number(value: ir.Value) -> bool:
    array = constant_array(value, 1)
    return array is not None and array.size == 1


def _fits_rank(step: ir.Node, data: int, rank: int) -> bool:
    """Whether no number beside the data has more axes than the data, which it would broadcast."""
    others = [operand for place, operand in enumerate(step.inputs) if place != data and operand is not None]
    return all((rank_of(operand) or 0) <= rank for operand in others)


def _axes(node: ir.Node) -> list[int] | None:
    """The axes of a Squeeze or Unsqueeze, counted from the left in the larger shape."""
    axes = constant_ints(input_of(node, 1))
    rank = rank_of(node.inputs[0] if node.op_type == "Squeeze" else node.outputs[0])
    return None if not axes or rank is None else [axis % rank for axis in axes]


def shape_operand(value: ir.Value, source: ir.Value | None = None) -> list[int] | None:
    """Return the Reshape operand that gives `value` its shape, or None where that cannot be a constant.

    Args:
        value: What the Reshape makes.
        source: What it reads; its symbolic dimensions can be copied (0) where they stay in place.
    """
    if value.shape is None or 0 in value.shape.dims:
        return None
    dims = [dim if isinstance(dim, int) else -1 for dim in value.shape]
    before = source.shape if source is not None else None
    if dims.count(-1) > 1 and before is not None:
        for place, (old, new) in enumerate(zip(before.dims, value.shape.dims, strict=False)):
            if dims[place] == -1 and same_dim(old, new):
                dims[place] = 0
    return dims if dims.count(-1) <= 1 else None
