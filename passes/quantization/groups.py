"""Groups of values that must have something in common."""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir


class Groups:
    """Union-find over values.

    Args:
        values: all of them.
        links: pairs that belong together.
    """

    def __init__(self, values: Mapping[ir.Value, None], links: list[tuple[ir.Value, ir.Value]]):
        self._parent = {value: value for value in values}
        for a, b in links:
            self._parent[self.of(a)] = self.of(b)

    def of(self, value: ir.Value) -> ir.Value:
        """The representative of a value's group."""
        root = value
        while self._parent[root] is not root:
            root = self._parent[root]
        while self._parent[value] is not root:
            self._parent[value], value = root, self._parent[value]
        return root
