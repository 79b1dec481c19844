"""`eliminate-common-subexpressions`: compute the same thing once."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, ClassVar

import onnx_ir as ir

from ..ir.bodies import bodies_of
from ..ir.constants import constant_array, is_deterministic_alone
from .base import Pass, PassContext
from .merge_shapes import sizes_of
from .registry import register
from .rewriter import Rewriter

_COMMUTATIVE = {"Add", "Mul", "And", "Or", "Xor", "Equal", "BitwiseAnd", "BitwiseOr", "BitwiseXor"}
_SMALL = 1024


@register
@dataclass(frozen=True)
class EliminateCommonSubexpressions(Pass):
    """Replace a node by an earlier one with the same operator, inputs and attributes.

    Two nodes are the same when operator, domain, inputs (in any order for commutative operators) and
    attributes are equal. It does not fire on random operators, on nodes with bodies (If, Loop, Scan), or
    where an output to be replaced is a graph output. A node in a body may be replaced by one of an enclosing
    graph, never by one of a sibling body.
    Shape nodes of one graph that return the same named symbols are the same, whatever they read.
    Equal small constants (at most 1 KiB) are merged first, so that nodes reading them compare equal;
    larger weights stay apart, because passes that change weights need them unshared.
    """

    name: ClassVar[str] = "eliminate-common-subexpressions"
    settles: ClassVar[bool] = True

    def apply(self, model: ir.Model, context: PassContext) -> None:
        """Merge small constants, then number values from the main graph inwards."""
        rewriter = context.rewriter(model)
        self._merge_constants(model, rewriter, context)
        self._sweep(model.graph, {}, rewriter, context)
        for function in model.functions.values():
            self._sweep(function, {}, rewriter, context)

    def may_change(self, model: ir.Model, touched: Collection[ir.Node]) -> bool:
        """Whether there is a node that was not compared as it is now."""
        return any(node.graph is not None for node in touched)

    def _merge_constants(self, model: ir.Model, rewriter: Rewriter, context: PassContext) -> None:
        seen: dict[Any, ir.Value] = {}
        for value in list(model.graph.initializers.values()):
            array = constant_array(value, _SMALL)
            if array is None or value.is_graph_output() or value.is_graph_input():
                continue
            # A bias that two layers share could no longer be changed for one of them.
            if array.ndim > 0 and array.dtype.kind not in "iub":
                continue
            first = seen.setdefault((str(value.dtype), array.shape, array.tobytes()), value)
            if first is not value:
                rewriter.replace_uses(value, first)
                rewriter.remove_initializer(value)
                context.count("constants merged")

    def _sweep(
        self,
        graph: ir.Graph | ir.Function,
        outer: dict[Any, ir.Node],
        rewriter: Rewriter,
        context: PassContext,
    ) -> None:
        known = dict(outer)
        for node in list(graph):
            bodies = bodies_of(node) if node.attributes.data else ()
            for body in bodies:
                self._sweep(body, known, rewriter, context)
            # Nodes with bodies stay, so that those of the node need not be looked for again.
            if bodies or not is_deterministic_alone(node) or not self.selects(node):
                continue
            first = known.setdefault(_key(node), node)
            if first is node:
                continue
            if any(output.is_graph_output() for output in node.outputs):
                context.leave(node, f"computes the same as '{first.name}', but is a graph output")
                continue
            rewriter.replace(node, list(first.outputs))
            context.count("nodes merged")


def _key(node: ir.Node) -> Any:
    op_type, domain = node.op_type, node.domain
    standard = domain == "" or domain == "ai.onnx"
    if standard and op_type == "Shape":
        sizes = sizes_of(node)
        if sizes is not None and all(type(size) is int or size.value is not None for size in sizes):
            # Not across bodies: a size may change from one round of a loop to the next.
            return (
                "Shape",
                id(node.graph),
                tuple(size if type(size) is int else str(size) for size in sizes),
            )
    inputs = [id(value) if value is not None else 0 for value in node.inputs]
    if standard and op_type in _COMMUTATIVE:
        inputs.sort()
    given = node.attributes.data
    attributes = tuple([(name, _attribute_key(given[name])) for name in sorted(given)]) if given else ()
    return (domain, op_type, node.overload, *inputs, len(node.outputs), attributes)


def _attribute_key(attribute: ir.Attr) -> Any:
    if attribute.is_ref():
        return f"ref:{attribute.ref_attr_name}"
    if attribute.type == ir.AttributeType.TENSOR:
        tensor = attribute.as_tensor()
        return f"{tensor.dtype}{list(tensor.shape)}{tensor.tobytes().hex()}"
    return attribute.type, repr(attribute.value)
