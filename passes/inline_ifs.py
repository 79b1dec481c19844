"""`inline-ifs`: an If whose condition is known becomes the branch that is taken."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from ..ir.bodies import graphs_of
from ..ir.constants import constant_array
from .base import Pass, PassContext
from .registry import register
from .rewriter import Rewriter
from .rules import Rule


@register
@dataclass(frozen=True)
class InlineIfs(Pass):
    """Replace If nodes whose condition is a constant by the nodes of the branch that is taken.

    If(true){then}{else} = then, If(false){then}{else} = else. The nodes move to where the If stood, under
    names of their own; constants of the branch become constants of the graph around it. It does not fire in
    functions, which cannot hold constants.
    """

    name: ClassVar[str] = "inline-ifs"

    def apply(self, model: ir.Model, context: PassContext) -> None:
        """Drive one rule over the graph, which meets the Ifs inside a moved branch as well."""
        if any(node.op_type == "If" for graph in graphs_of(model) for node in graph):
            context.rewrite(model, TakeBranch())


class TakeBranch(Rule):
    """If(constant)  =>  the nodes of one branch."""

    op_types: ClassVar[tuple[str, ...]] = ("If",)
    label: ClassVar[str] = "branches taken"

    def match_and_rewrite(self, node: ir.Node, rewriter: Rewriter) -> bool | str:
        """Move the branch out and drop the other one."""
        condition = constant_array(node.inputs[0], 1)
        if condition is None or condition.size != 1:
            return "its condition is computed"
        if any(node.graph is function.graph for function in rewriter.model.functions.values()):
            return "it stands in a function"
        branch = node.attributes.get("then_branch" if condition.reshape(-1)[0] else "else_branch")
        if branch is None or branch.is_ref():
            return "its branch is not known"
        rewriter.replace(node, rewriter.move_out(node, branch.as_graph()))
        return True
