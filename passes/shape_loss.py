"""Did a pass lose what was known about a value? The graph is written down before and held against after."""

from __future__ import annotations

from collections import Counter

import onnx_ir as ir

from ..ir.bodies import all_graphs

Known = dict[ir.Value, tuple[str, ir.DataType | None, ir.Shape | None]]


def known_values(model: ir.Model) -> Known:
    """Name, element type and shape of everything that nodes make, in all graphs."""
    return {
        value: (value.name or "", value.dtype, value.shape)
        for graph in all_graphs(model)
        for node in graph
        for value in node.outputs
    }


def lost(before: Known, after: Known) -> str | None:
    """Return what is known no more about a value that is still there, or None."""
    for value, now, was in _survivors(before, after):
        if was[2] is not None and now[2] is None:
            return f"{_made(value)} has no shape any more; it was {was[2]}"
        if was[1] is not None and now[1] is None:
            return f"{_made(value)} has no type any more; it was {was[1].name}"
    return None


def contradicted(before: Known, after: Known) -> str | None:
    """Return which value that is still there has another shape or type than before, or None."""
    for value, now, was in _survivors(before, after):
        if was[1] is not None and now[1] is not None and was[1] != now[1]:
            return f"{_made(value)} was {was[1].name} and is {now[1].name} now"
        if was[2] is not now[2] and was[2] is not None and now[2] is not None and _clash(was[2], now[2]):
            return f"{_made(value)} was {was[2]} and is {now[2]} now"
    return None


def _survivors(before: Known, after: Known):  # type: ignore[no-untyped-def]
    """Values of both, and graph outputs that another value stands for now."""
    times = Counter(was[0] for was in before.values())
    # Bodies side by side may call their values alike.
    gone = ((value, was) for value, was in before.items() if value not in after)
    outputs = {was[0]: was for _, was in gone if was[0] and times[was[0]] == 1}
    for value, now in after.items():
        was = before.get(value)
        if was is None and value.is_graph_output():
            was = outputs.get(now[0])
        if was is not None:
            yield value, now, was


def _clash(before: ir.Shape, after: ir.Shape) -> bool:
    if len(before) != len(after):
        return True
    return any(type(a) is int and type(b) is int and a != b for a, b in zip(before, after, strict=True))


def _made(value: ir.Value) -> str:
    node = value.producer()
    return f"value '{value.name}', made by '{node.name}' ({node.op_type})," if node else f"'{value.name}'"
