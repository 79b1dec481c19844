"""Labels into and out of bodies: the branches of If, and what Loop and Scan carry from step to step."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from ...ir.bodies import bodies_of
from .labels import Axis
from .tracer import Tracer, traces


@traces("If")
def _if(node: ir.Node, tracer: Tracer) -> str | None:
    bodies = bodies_of(node)
    for index, output in enumerate(node.outputs):
        if not all(_alike(tracer, body.outputs[index], output) for body in bodies):
            return "its branches give different shapes"
    condition = node.inputs[0]
    if condition is not None:
        tracer.keep_value(condition, tracer.labels.new_pin(node, "it decides between branches"))
    for body in bodies:
        _walk(body, tracer)
    for index, output in enumerate(node.outputs):
        first, *others = (body.outputs[index] for body in bodies)
        axes = tracer.all_axes(first)
        for other in others:
            for axis, labels in enumerate(axes):
                tracer.tie(labels, other, axis)
        tracer.set(output, axes)
    return None


@traces("Loop")
def _loop(node: ir.Node, tracer: Tracer) -> str | None:
    (body,) = bodies_of(node)
    carried = list(node.inputs[2:])
    if any(value is None for value in carried):
        return "a value that it carries is missing"
    # Inputs of the body: iteration, condition, carried; outputs: condition, carried, what each step adds.
    inside, outside = body.inputs[2:], body.outputs[1 : 1 + len(carried)]
    reason = _differs(tracer, carried, inside, outside, node.outputs)  # type: ignore[arg-type]
    if reason is not None:
        return reason
    pin = tracer.labels.new_pin(node, "it controls a loop")
    for value in (*node.inputs[:2], *body.inputs[:2]):
        if value is not None:
            tracer.axes[value] = [pin] * len(tracer.known_dims(value) or ())
    for value, start in zip(inside, carried, strict=True):
        assert start is not None
        tracer.axes[value] = list(tracer.all_axes(start))
    _walk(body, tracer)
    tracer.keep_value(body.outputs[0], pin)
    _tie_steps(tracer, inside, outside, node.outputs)
    for output, each in zip(node.outputs[len(carried) :], body.outputs[1 + len(carried) :], strict=True):
        tracer.set(output, [pin, *tracer.all_axes(each)])
    return None


@traces("Scan")
def _scan(node: ir.Node, tracer: Tracer) -> str | None:
    (body,) = bodies_of(node)
    scanned = node.attributes.get_int("num_scan_inputs", 0)
    if any(node.attributes.get_ints(f"scan_{each}_axes", ()) for each in ("input", "output")):
        return "it scans along axes other than the first"
    values = [value for value in node.inputs if value is not None]
    count = len(values) - scanned
    carried, inside, outside = values[:count], body.inputs[:count], body.outputs[:count]
    reason = _differs(tracer, carried, inside, outside, node.outputs)
    if reason is not None:
        return reason
    pin = tracer.labels.new_pin(node, "Scan steps along this axis")
    for value, start in zip(inside, carried, strict=True):
        tracer.axes[value] = list(tracer.all_axes(start))
    for value, whole in zip(body.inputs[count:], values[count:], strict=True):
        tracer.tie(pin, whole, 0)
        tracer.axes[value] = list(tracer.all_axes(whole)[1:])
    _walk(body, tracer)
    _tie_steps(tracer, inside, outside, node.outputs)
    for output, each in zip(node.outputs[count:], body.outputs[count:], strict=True):
        tracer.set(output, [pin, *tracer.all_axes(each)])
    return None


def _walk(body: ir.Graph, tracer: Tracer) -> None:
    for node in body:
        tracer.walk(node)


def _tie_steps(
    tracer: Tracer, inside: Sequence[ir.Value], outside: Sequence[ir.Value], outputs: Sequence[ir.Value]
) -> None:
    """Tie what a step starts with to what it ends with; the last step gives the node's outputs."""
    for value, end, output in zip(inside, outside, outputs, strict=False):
        axes: list[Axis] = tracer.all_axes(value)
        for axis, labels in enumerate(axes):
            tracer.tie(labels, end, axis)
        tracer.set(output, axes)


def _differs(
    tracer: Tracer,
    carried: Sequence[ir.Value],
    inside: Sequence[ir.Value],
    outside: Sequence[ir.Value],
    outputs: Sequence[ir.Value],
) -> str | None:
    """Why carried values cannot be followed, or None where each keeps its shape from step to step."""
    if not len(carried) == len(inside) == len(outside):
        return "it carries values in an unusual way"
    for start, value, end, output in zip(carried, inside, outside, outputs, strict=False):
        if not all(_alike(tracer, start, other) for other in (value, end, output)):
            return f"'{start.name}' changes its shape from step to step"
    return None


def _alike(tracer: Tracer, a: ir.Value, b: ir.Value) -> bool:
    """Whether two values have the same known rank and the same static dimensions."""
    first, second = tracer.known_dims(a), tracer.known_dims(b)
    if first is None or second is None or len(first) != len(second):
        return False
    return all(
        x == y or not (isinstance(x, int) or isinstance(y, int)) for x, y in zip(first, second, strict=True)
    )
