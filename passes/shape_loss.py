"""Did a pass lose what was known about a value? The graph is written down before and held against after."""

from __future__ import annotations

from dataclasses import dataclass, field

import onnx_ir as ir

from ..ir.bodies import all_graphs
from ..ir.sweep import nodes_in

Signature = tuple[ir.TypeProtocol | None, ir.Shape | None]


@dataclass
class Known:
    """What is known about the values of a model.

    Attributes:
        values: Type and shape of everything that nodes make, in all graphs.
        outputs: The same of the model's outputs by name, which another value may have taken over.
        lost: Which value that was known before has no type or no shape any more; None where all have.
        other: Which value is of another type or shape than before; None where none is.
    """

    values: dict[ir.Value, Signature] = field(default_factory=dict)
    outputs: dict[str, Signature] = field(default_factory=dict)
    lost: str | None = None
    other: str | None = None


def known_values(model: ir.Model, before: Known | None = None) -> Known:
    """Write down what is known now, and how it differs from `before`."""
    found = Known()
    values, old = found.values, before.values if before is not None else {}
    for graph in all_graphs(model):
        for node in nodes_in(graph):
            for value in node._outputs:
                kind, shape = value._type, value._shape
                was = old.get(value)
                if was is None:
                    values[value] = (kind, shape)
                elif was[1] is shape and was[0] is kind:
                    values[value] = was
                else:
                    now = values[value] = (kind, shape)
                    _compare(value, was, now, found)
    for value in model.graph.outputs:
        now = found.outputs[value.name or ""] = (value.type, value.shape)
        if before is not None and value not in old:
            was = before.outputs.get(value.name or "")
            if was is not None:
                _compare(value, was, now, found)
    return found


def _compare(value: ir.Value, was: Signature, now: Signature, found: Known) -> None:
    if found.lost is None and was[1] is not None and now[1] is None:
        found.lost = f"{_made(value)} has no shape any more; it was {was[1]}"
    if found.lost is None and was[0] is not None and now[0] is None:
        found.lost = f"{_made(value)} has no type any more; it was {was[0]}"
    if found.other is not None:
        return
    if was[0] is not None and now[0] is not None and was[0] != now[0]:
        found.other = f"{_made(value)} was {was[0]} and is {now[0]} now"
    elif was[1] is not None and now[1] is not None and _clash(was[1], now[1]):
        found.other = f"{_made(value)} was {was[1]} and is {now[1]} now"


def _clash(before: ir.Shape, after: ir.Shape) -> bool:
    if len(before) != len(after):
        return True
    return any(type(a) is int and type(b) is int and a != b for a, b in zip(before, after, strict=True))


def _made(value: ir.Value) -> str:
    node = value.producer()
    return f"value '{value.name}', made by '{node.name}' ({node.op_type})," if node else f"'{value.name}'"
