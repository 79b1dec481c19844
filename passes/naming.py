"""Names that nothing in a model has yet."""

from __future__ import annotations

import onnx_ir as ir

from ..ir.bodies import all_graphs
from ..ir.sweep import nodes_in


class Names:
    """The names taken in a model: of nodes, values, inputs and initializers, in all scopes.

    Names of what was erased stay taken, so that a name in a report means one thing only.
    """

    def __init__(self, model: ir.Model):
        self._taken = _names_in(model)
        self._next_suffix: dict[str, int] = {}

    def unique(self, hint: str) -> str:
        """Return `hint`, or `hint_N` where `hint` is taken; the result is taken afterwards."""
        name = hint
        while name in self._taken:
            n = self._next_suffix.get(hint, 0) + 1
            self._next_suffix[hint] = n
            name = f"{hint}_{n}"
        self._taken.add(name)
        return name


def _names_in(model: ir.Model) -> set[str]:
    names: set[str | None] = set()
    for graph in all_graphs(model):
        names.update([value.name for value in graph.inputs])
        names.update(graph.initializers)
        nodes = nodes_in(graph)
        names.update([node._name for node in nodes])
        names.update([value._name for node in nodes for value in node._outputs])
    names.discard(None)
    names.discard("")
    return names  # type: ignore[return-value]
