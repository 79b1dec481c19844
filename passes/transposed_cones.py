"""The rule of `merge-transposes` for a transposed value that several element-wise operators share."""

from __future__ import annotations

from typing import ClassVar

import onnx_ir as ir

from ..ir.static import rank_of
from .elementwise import BROADCASTING, UNARY
from .permutations import inverse, is_one_number, permutation, permuted_shape, transposed, unpermuted
from .rewriter import Rewriter
from .rules import Rule

_MOST_OPERATORS = 24
_LONGEST_WAY = 8


class SinkThroughCone(Rule):
    """g(P(x), f(P(x))) = P(g(x, f(x))) for element-wise f and g, as in x sigmoid(x) or a spelled-out GELU.

    The cone is g and the element-wise operators in front of it up to transposes by one permutation; nothing
    outside may read what lies in it.
    """

    op_types: ClassVar[tuple[str, ...]] = tuple(sorted(BROADCASTING))
    benefit: ClassVar[int] = 0

    def match_and_rewrite(self, node: ir.Node, rewriter: Rewriter) -> bool | str:
        """Build the cone on what is transposed, then transpose once."""
        first = _shared_transpose(node)
        perm = permutation(first) if first is not None else None
        if first is None or perm is None or len(node.outputs) != 1:
            return False
        cone = _Cone(perm)
        refusal = cone.collect(node)
        if refusal:
            return refusal
        result = cone.rebuild(rewriter)
        rewriter.replace(node, [transposed(result, perm, node, rewriter)])
        for transpose in cone.transposes:
            rewriter.erase_unread(transpose)
        for inner in reversed(cone.nodes[:-1]):
            rewriter.erase_unread(inner)
        return True


class _Cone:
    """The element-wise operators between transposes by `perm` and one result, producers first."""

    def __init__(self, perm: list[int]):
        self.perm = perm
        self.nodes: list[ir.Node] = []
        self.transposes: dict[ir.Node, None] = {}

    def collect(self, root: ir.Node) -> str | None:
        """Find the operators; returns why they may not be moved, or None."""
        refusal = self._visit(root, {})
        if refusal:
            return refusal
        inside = set(self.nodes)
        for member in [*self.transposes, *self.nodes[:-1]]:
            value = member.outputs[0]
            if value.is_graph_output() or not inside.issuperset(value.consumers()):
                return f"'{value.name}' has other readers"
        return None

    def _visit(self, node: ir.Node, seen: dict[ir.Node, None]) -> str | None:
        seen[node] = None
        if len(seen) > _MOST_OPERATORS:
            return "it shares a transposed value with too many operators"
        if rank_of(node.outputs[0]) != len(self.perm):
            return f"the rank of '{node.outputs[0].name}' is not that of the transpose"
        for value in _data(node):
            if (
                value is None
                or is_one_number(value, len(self.perm))
                or unpermuted(value, self.perm) is not None
            ):
                continue
            maker = value.producer()
            if maker is None or maker.domain not in ("", "ai.onnx") or maker.graph is not node.graph:
                return f"operand '{value.name}' is not transposed"
            if maker.op_type == "Transpose" and permutation(maker) == self.perm:
                self.transposes[maker] = None
            elif (maker.op_type in UNARY or maker.op_type in BROADCASTING) and len(maker.outputs) == 1:
                refusal = None if maker in seen else self._visit(maker, seen)
                if refusal:
                    return refusal
            else:
                return f"operand '{value.name}' is not transposed"
        self.nodes.append(node)
        return None

    def rebuild(self, rewriter: Rewriter) -> ir.Value:
        """Make the operators again on the sources of the transposes; returns the result."""
        moved: dict[ir.Value, ir.Value | None] = {t.outputs[0]: t.inputs[0] for t in self.transposes}
        anchor = self.nodes[-1]
        for node in self.nodes:
            count = len(_data(node))
            operands: list[ir.Value | None] = list(node.inputs[count:])
            for value in reversed(node.inputs[:count]):
                operands.insert(0, self._operand(value, moved, rewriter))
            (new,) = rewriter.insert_before(anchor, node.op_type, operands, dict(node.attributes))
            new.type = node.outputs[0].type
            new.shape = permuted_shape(node.outputs[0].shape, inverse(self.perm))
            moved[node.outputs[0]] = new
        return new

    def _operand(
        self, value: ir.Value | None, moved: dict[ir.Value, ir.Value | None], rewriter: Rewriter
    ) -> ir.Value | None:
        if value is None or value in moved:
            return moved[value] if value is not None else None
        if is_one_number(value, len(self.perm)):
            return value
        array = unpermuted(value, self.perm)
        assert array is not None
        return rewriter.constant_before(self.nodes[-1], f"{value.name}/transposed", array)


def _data(node: ir.Node) -> list[ir.Value | None]:
    return list(node.inputs[:1] if node.op_type in UNARY else node.inputs)


def _shared_transpose(node: ir.Node) -> ir.Node | None:
    """The Transpose with several readers up the way through first operands, if there is one near."""
    for value in node.inputs:
        for _ in range(_LONGEST_WAY):
            maker = value.producer() if value is not None else None
            if maker is None:
                break
            if maker.op_type == "Transpose":
                return maker if len(maker.outputs[0].uses()) > 1 else None
            if maker.op_type not in UNARY and maker.op_type not in BROADCASTING:
                break
            value = maker.inputs[0]
    return None
