"""How large constants are and may get, for `fold-constants`."""

from __future__ import annotations

import math

import onnx_ir as ir

from ..ir.bodies import graphs_of
from ..ir.constants import constant_tensor
from ..ir.static import static_shape
from ..ir.tensors import byte_count


class Budget:
    """How much larger the constants of a model may get.

    Args:
        model: The model, before anything is folded.
        limit: Bytes they may grow by at least.
        growth: The same as a fraction of what they take before.
    """

    def __init__(self, model: ir.Model, limit: int, growth: float):
        self._model, self._limit, self._growth = model, limit, growth
        self._grown = 0
        self._allowed: int | None = None

    def excess(self, foldable: dict[ir.Node, None], frontier: list[ir.Value]) -> int:
        """Bytes that storing `frontier` in place of `foldable` takes too many; not positive where it fits."""
        growth = sum([bytes_of(value) or 0 for value in frontier]) - _freed_bytes(foldable)
        if self._allowed is None:
            if self._grown + growth <= self._limit:
                # Within the budget of any model, so that the constants of this one need not be counted.
                self._grown += max(growth, 0)
                return 0
            before = _constant_bytes(self._model) - self._grown
            self._allowed = before + max(self._limit, int(self._growth * before))
        return _constant_bytes(self._model) + growth - self._allowed


def _freed_bytes(foldable: dict[ir.Node, None]) -> int:
    """Bytes of constants that nothing reads any more once `foldable` is gone."""
    read = dict.fromkeys(v for node in foldable for v in node.inputs if v is not None)
    return sum(
        bytes_of(value) or 0
        for value in read
        if value.producer() not in foldable
        and not value.is_graph_output()
        and all(user in foldable for user, _ in value.uses())
    )


def _constant_bytes(model: ir.Model) -> int:
    """Bytes of initializers and of Constant nodes."""
    total = 0
    for graph in graphs_of(model):
        for value in graph.initializers.values():
            if value.const_value is not None:
                total += byte_count(value.const_value)
        for node in graph:
            if node.op_type == "Constant":
                total += bytes_of(node.outputs[0]) or 0
    return total


def bytes_of(value: ir.Value) -> int | None:
    """Bytes that a value takes, or None where its size is not known."""
    producer = value.producer()
    dims, dtype = static_shape(value), value.dtype
    unknown = dims is None or dtype is None or dtype == ir.DataType.STRING
    if producer is None or (unknown and producer.op_type == "Constant"):
        tensor = constant_tensor(value)
        if tensor is not None:
            return byte_count(tensor)
    if dims is None or dtype is None or dtype == ir.DataType.STRING:
        return None
    return math.ceil(math.prod(dims) * dtype.bitwidth / 8)
