"""A rewriter that tells what it does: to the analyses that are cached, and to whoever wants the story."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from ..ir.bodies import bodies_of, nodes_of
from .analyses import Analyses
from .rewriter import Rewriter


@dataclass(frozen=True)
class Event:
    """One thing that happened to a node.

    Attributes:
        kind: "created", "erased", "replaced" or "changed".
        node: Name of the node.
        op_type: Its operator.
        rule: Label of the rule at work; "" where the pass did it itself.
        by: Names of the nodes (or constants) that stand for it now, or that it was made from.
    """

    kind: str
    node: str
    op_type: str
    rule: str
    by: tuple[str, ...] = ()


class WatchedRewriter(Rewriter):
    """Does what a `Rewriter` does, and notes it.

    Args:
        model: The model being changed.
        origin: Name of the pass.
        analyses: Cached analyses that must hear of changes.
        story: Where events go, or None where nobody wants them.
    """

    def __init__(
        self, model: ir.Model, origin: str = "", *, analyses: Analyses, story: list[Event] | None = None
    ):
        super().__init__(model, origin)
        self._analyses = analyses
        self._story = story

    def replace(self, node: ir.Node, values: Sequence[ir.Value | None]) -> None:
        """Replace all uses of the outputs of `node` and erase it; tell what stands for it now."""
        if self._story is not None:
            self._tell("replaced", node, values)
        super().replace(node, values)

    def replace_uses(self, old: ir.Value, new: ir.Value) -> None:
        """Let every use of `old` read `new`."""
        users = [user for user, _ in old.uses()]
        makers = [value.producer() for value in (old, new)]
        super().replace_uses(old, new)
        self._note(*users, *(maker for maker in makers if maker is not None))

    def erase(self, node: ir.Node) -> None:
        """Remove a node whose outputs are not used."""
        makers = [value.producer() for value in node.inputs if value is not None]
        gone = [node, *(inner for body in bodies_of(node) for inner in nodes_of(body))]
        super().erase(node)
        self._tell("erased", node)
        self._note(*gone, *(maker for maker in makers if maker is not None))

    def set_input(self, node: ir.Node, index: int, value: ir.Value | None) -> None:
        """Let input `index` of `node` read `value`."""
        old = node.inputs[index] if index < len(node.inputs) else None
        super().set_input(node, index, value)
        self._tell("changed", node)
        makers = [each.producer() for each in (old, value) if each is not None]
        self._note(node, *(maker for maker in makers if maker is not None))

    def set_attribute(self, node: ir.Node, name: str, value: Any) -> None:
        """Set an attribute."""
        super().set_attribute(node, name, value)
        self._tell("changed", node)
        self._note(node)

    def initializer(
        self, hint: str, array: np.ndarray | ir.TensorProtocol, *, graph: ir.Graph | None = None
    ) -> ir.Value:
        """Add a constant."""
        value = super().initializer(hint, array, graph=graph)
        self._analyses.note(value)
        return value

    def lift(self, node: ir.Node, tensor: ir.TensorProtocol) -> None:
        """Let what a Constant node makes be an initializer."""
        (value,) = node.outputs
        super().lift(node, tensor)
        self._analyses.note(value)
        self._note(node, *(user for user, _ in value.uses()))
        if self._story is not None:
            self._story.append(
                Event("replaced", node.name or "", node.op_type, self.rule, (value.name or "",))
            )

    def set_initializer(self, value: ir.Value, array: np.ndarray | ir.TensorProtocol) -> None:
        """Replace the data of an initializer."""
        super().set_initializer(value, array)
        self._analyses.note(value)

    def remove_initializer(self, value: ir.Value) -> None:
        """Remove an initializer that nothing reads."""
        super().remove_initializer(value)
        self._analyses.note(value)

    def set_shape(self, value: ir.Value, shape: Sequence[int | str | None] | ir.Shape | None) -> None:
        """Set the shape of a value."""
        super().set_shape(value, shape)
        self._analyses.note(value)

    def rename(self, value: ir.Value, hint: str) -> None:
        """Give a value a fresh name."""
        super().rename(value, hint)
        self._analyses.note(value)

    def _record_origin(self, node: ir.Node, anchor: ir.Node) -> None:
        super()._record_origin(node, anchor)
        if self._story is not None:
            self._story.append(
                Event("created", node.name or "", node.op_type, self.rule, (anchor.name or "",))
            )
        makers = [value.producer() for value in node.inputs if value is not None]
        self._note(node, *(maker for maker in makers if maker is not None))

    def _note(self, *nodes: ir.Node) -> None:
        for node in nodes:
            self._analyses.note(node)

    def _tell(self, kind: str, node: ir.Node, values: Sequence[ir.Value | None] = ()) -> None:
        if self._story is None:
            return
        heirs = []
        for value in values:
            maker = value.producer() if value is not None else None
            if maker is not None:
                heirs.append(maker.name or "")
            elif value is not None:
                heirs.append(value.name or "")
        self._story.append(Event(kind, node.name or "", node.op_type, self.rule, tuple(dict.fromkeys(heirs))))
