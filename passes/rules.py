"""What a rewrite rule is. The driver indexes rules by op type and calls them node by node."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import onnx_ir as ir

if TYPE_CHECKING:
    from .rewriter import Rewriter


class NoMatch(str):
    """Why a rule is not meant for a node at all; shown by `--explain` only, not among what was left alone."""


class Rule:
    """One local rewrite, rooted at a node of one of `op_types`.

    Attributes:
        op_types: Operator types at which the rule may start, those outside of the default domain as
            `domain::type`; empty means every node.
        reads: Operator types, as in `op_types`, one of which makes an input of every node that the rule is
            meant for ("Constant" stands for initializers too); empty where that cannot be said. Nodes without
            such an input are not even tried.
        benefit: Among rules for one node the higher benefit is tried first; ties keep the order given.
        label: Name in statistics and error messages; the class name unless given.
    """

    op_types: ClassVar[tuple[str, ...]] = ()
    reads: ClassVar[tuple[str, ...]] = ()
    benefit: ClassVar[int] = 1
    label: ClassVar[str] = ""

    def __init_subclass__(cls) -> None:
        cls.label = cls.__dict__.get("label") or cls.__name__

    def match_and_rewrite(self, node: ir.Node, rewriter: Rewriter) -> bool | str:
        """Try the rule at `node`.

        Returns:
            True when the graph was changed (only through `rewriter`), False when the rule is not meant for
            this node, and a text when it is a candidate but must not fire: the reason, which ends in the
            report.
        """
        raise NotImplementedError
