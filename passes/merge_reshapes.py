"""`merge-reshapes`: a chain of operators that only rename dimensions becomes one Reshape."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from ..ir.static import constant_ints, producer_of, static_shape
from .base import Pass, PassContext
from .registry import register
from .rewriter import Rewriter
from .rules import Rule

_RENAMING = ("Reshape", "Flatten", "Squeeze", "Unsqueeze")


@register
@dataclass(frozen=True)
class MergeReshapes(Pass):
    """Merge chains of Reshape, Flatten, Squeeze and Unsqueeze, which keep the order of the elements.

    1. A(B(x)), both of these operators, is the Reshape of x to the shape of A's output, which must be known
       but for one dimension (written -1). Where it is the shape of x, nothing is left.
    2. A Reshape whose shape operand is computed at run time, although its output shape is known but for one
       dimension, gets a constant operand, and what computed it dies.

    It does not fire where two output dimensions are unknown, or where the output may be empty (-1 would be
    ambiguous).
    """

    name: ClassVar[str] = "merge-reshapes"

    def apply(self, model: ir.Model, context: PassContext) -> None:
        """Drive both rules to a fixpoint."""
        context.rewrite(model, MergeRenaming(), FixShapeOperand())


class MergeRenaming(Rule):
    """Reshape(Reshape(x)) = Reshape(x)."""

    op_types: ClassVar[tuple[str, ...]] = _RENAMING
    benefit: ClassVar[int] = 2

    def match_and_rewrite(self, node: ir.Node, rewriter: Rewriter) -> bool | str:
        """Read what the first of the two read."""
        inner = producer_of(node.inputs[0], *_RENAMING)
        if inner is None or inner.inputs[0] is None:
            return False
        source, target = inner.inputs[0], shape_operand(node.outputs[0])
        if target is None:
            return "more than one dimension of its output is unknown"
        same = static_shape(source) is not None and static_shape(source) == static_shape(node.outputs[0])
        if same and not (node.outputs[0].is_graph_output() and source.producer() is None):
            rewriter.replace(node, [source])
        else:
            shape = rewriter.initializer(f"{node.name}/shape", np.array(target, np.int64))
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
        target = shape_operand(node.outputs[0])
        if target is None:
            return "more than one dimension of its output is unknown"
        rewriter.set_input(node, 1, rewriter.initializer(f"{node.name}/shape", np.array(target, np.int64)))
        rewriter.set_attribute(node, "allowzero", None)
        rewriter.erase_unread(operand.producer())
        return True


def shape_operand(value: ir.Value) -> list[int] | None:
    """Return the Reshape operand that gives `value` its shape, or None where that cannot be a constant."""
    if value.shape is None:
        return None
    dims = [dim if isinstance(dim, int) else -1 for dim in value.shape]
    return dims if dims.count(-1) <= 1 and 0 not in dims else None
