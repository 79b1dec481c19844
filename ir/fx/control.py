"""If, Loop and Scan: bodies become submodules that plain Python runs; they cannot be exported again."""

from __future__ import annotations

import operator
from typing import Any

import onnx_ir as ir
import torch
from torch import fx

from ..bodies import nodes_of
from .emitter import Emitter, Form


class Branches(torch.nn.Module):
    """An If: one of two bodies."""

    def __init__(self, then_branch: fx.GraphModule, else_branch: fx.GraphModule) -> None:
        super().__init__()
        self.then_branch, self.else_branch = then_branch, else_branch

    def forward(self, condition: torch.Tensor, then_captured: list[Any], else_captured: list[Any]) -> Any:
        """The results of the branch that the condition picks."""
        if bool(condition):
            return self.then_branch(*then_captured)
        return self.else_branch(*else_captured)


class Loop(torch.nn.Module):
    """A Loop: carried values, and results collected step by step."""

    def __init__(self, body: fx.GraphModule, carried: int) -> None:
        super().__init__()
        self.body = body
        self.carried = carried

    def forward(
        self, count: torch.Tensor | None, condition: torch.Tensor | None, carried: list[Any],
        captured: list[Any],
        like: torch.Tensor,
    ) -> list[Any]:  # fmt: skip
        """Carried values after the last step, then the collected ones."""
        alive = True if condition is None else bool(condition)
        limit = None if count is None else int(count)
        step, rows = 0, []
        while alive and (limit is None or step < limit):
            place = torch.tensor(step, device=like.device)
            flag = torch.tensor(alive, device=like.device)
            found = self.body(place, flag, *carried, *captured)
            alive, carried = bool(found[0]), list(found[1 : 1 + self.carried])
            rows.append(found[1 + self.carried :])
            step += 1
        if not rows:
            raise RuntimeError("a loop without a step has nothing to collect")
        return [*carried, *(torch.stack(column) for column in zip(*rows, strict=True))]


class Scan(torch.nn.Module):
    """A Scan: states, and slices of sequences in and out."""

    def __init__(
        self, body: fx.GraphModule, states: int, axes: list[list[int]], backwards: list[list[int]]
    ) -> None:
        super().__init__()
        self.body, self.states = body, states
        self.axes, self.backwards = axes, backwards

    def forward(self, states: list[Any], sequences: list[Any], captured: list[Any]) -> list[Any]:
        """States after the last step, then the collected sequences."""
        steps = sequences[0].shape[self.axes[0][0]]
        columns: list[list[Any]] = []
        for step in range(steps):
            rows = [
                torch.select(x, axis, steps - 1 - step if backwards else step)
                for x, axis, backwards in zip(sequences, self.axes[0], self.backwards[0], strict=True)
            ]
            found = self.body(*states, *rows, *captured)
            states = list(found[: self.states])
            columns.append(list(found[self.states :]))
        collected = []
        for index, column in enumerate(zip(*columns, strict=True)):
            parts = column[::-1] if self.backwards[1][index] else column
            collected.append(torch.stack(parts, self.axes[1][index]))
        return [*states, *collected]


def _captured(body: ir.Graph) -> list[ir.Value]:
    """Values of outer graphs that a body reads."""
    inside = set(body.inputs) | set(body.initializers.values())
    for node in nodes_of(body):
        inside.update(node.outputs)
        for attribute in node.attributes.values():
            if attribute.type == ir.AttributeType.GRAPH:
                inner = attribute.as_graph()
                inside.update(inner.inputs)
                inside.update(inner.initializers.values())
    read = [value for node in nodes_of(body) for value in node.inputs] + list(body.outputs)
    return list(dict.fromkeys(value for value in read if value is not None and value not in inside))


def _body(emitter: Emitter, graph: ir.Graph) -> tuple[fx.GraphModule, list[Any]]:
    from .translate import translate

    outer = _captured(graph)
    inner = Emitter(emitter.model, emitter)
    for value in [*graph.inputs, *outer]:
        inner.placeholder(value)
    translate(inner, graph)
    inner.graph.output(tuple(inner.tensor(value) for value in graph.outputs))
    return fx.GraphModule(inner.root, inner.graph), [emitter.tensor(value) for value in outer]


def _items(emitter: Emitter, made: Any, node: ir.Node) -> list[Any]:
    return [emitter.call(operator.getitem, made, index) for index in range(len(node.outputs))]


def _if(emitter: Emitter, node: ir.Node) -> Any:
    bodies = [_body(emitter, node.attributes[name].as_graph()) for name in ("then_branch", "else_branch")]
    path = emitter.submodule(str(node.name), Branches(bodies[0][0], bodies[1][0]))
    made = emitter.call_module(path, emitter.tensor(node.inputs[0]), bodies[0][1], bodies[1][1])
    return _items(emitter, made, node)


def _loop(emitter: Emitter, node: ir.Node) -> Any:
    body, captured = _body(emitter, node.attributes["body"].as_graph())
    count, condition, *carried = emitter.tensors(node)
    path = emitter.submodule(str(node.name), Loop(body, len(carried)))
    made = emitter.call_module(path, count, condition, carried, captured, emitter.device())
    return _items(emitter, made, node)


def _scan(emitter: Emitter, node: ir.Node) -> Any:
    attributes = node.attributes
    body, captured = _body(emitter, attributes["body"].as_graph())
    tensors = emitter.tensors(node)
    sequences = attributes.get_int("num_scan_inputs")
    states = len(tensors) - sequences
    outputs = len(node.outputs) - states
    axes = [
        list(attributes.get_ints(name, [0] * count))
        for name, count in (("scan_input_axes", sequences), ("scan_output_axes", outputs))
    ]
    backwards = [
        list(attributes.get_ints(name, [0] * count))
        for name, count in (("scan_input_directions", sequences), ("scan_output_directions", outputs))
    ]
    path = emitter.submodule(str(node.name), Scan(body, states, axes, backwards))
    made = emitter.call_module(path, tensors[:states], tensors[states:], captured)
    return _items(emitter, made, node)


FORMS: dict[str, Form] = {"If": _if, "Loop": _loop, "Scan": _scan}
