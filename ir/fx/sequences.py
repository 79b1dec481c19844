"""Sequences of tensors: Python lists."""

from __future__ import annotations

from typing import Any

import onnx_ir as ir
import torch

from .emitter import Emitter, Form


def split_to_list(x: torch.Tensor, sizes: Any, axis: int, keep: bool) -> list[torch.Tensor]:
    """Parts of a tensor along an axis: of one size, or of one each."""
    parts = list(torch.split(x, sizes, axis))
    return parts if keep else [torch.squeeze(part, axis) for part in parts]


def _split(emitter: Emitter, node: ir.Node) -> Any:
    axis = node.attributes.get_int("axis", 0)
    given = node.inputs[1] if len(node.inputs) > 1 else None
    keep = given is not None or bool(node.attributes.get_int("keepdims", 1))
    sizes = 1 if given is None else emitter.host(given)
    return emitter.call(split_to_list, emitter.tensor(node.inputs[0]), sizes, axis, keep)


def make(*tensors: torch.Tensor) -> list[torch.Tensor]:
    """A list of these."""
    return list(tensors)


def at(items: list[torch.Tensor], place: int) -> torch.Tensor:
    """One of a list; negative places count from the end."""
    return items[int(place)]


def insert(items: list[torch.Tensor], tensor: torch.Tensor, place: int | None) -> list[torch.Tensor]:
    """The list with a tensor before a place, at the end by default."""
    place = len(items) if place is None else int(place)
    place = place + len(items) if place < 0 else place
    return [*items[:place], tensor, *items[place:]]


def erase(items: list[torch.Tensor], place: int | None) -> list[torch.Tensor]:
    """The list without one, the last by default."""
    place = (-1 if place is None else int(place)) % len(items)
    return [*items[:place], *items[place + 1 :]]


def length(items: list[torch.Tensor], like: torch.Tensor) -> torch.Tensor:
    """How many tensors a list holds."""
    return torch.tensor(len(items), device=like.device)


def joined(items: list[torch.Tensor], axis: int, new_axis: bool) -> torch.Tensor:
    """All of a list as one tensor, along an axis or a new one."""
    return torch.stack(items, axis) if new_axis else torch.cat(items, axis)


def _place(emitter: Emitter, node: ir.Node, index: int) -> Any:
    value = node.inputs[index] if len(node.inputs) > index else None
    return None if value is None else emitter.number(value)


def _join(emitter: Emitter, node: ir.Node) -> Any:
    axis, new = node.attributes.get_int("axis"), bool(node.attributes.get_int("new_axis", 0))
    return emitter.call(joined, emitter.tensor(node.inputs[0]), axis, new)


def _insert(emitter: Emitter, node: ir.Node) -> Any:
    items, tensor = (emitter.tensor(value) for value in node.inputs[:2])
    return emitter.call(insert, items, tensor, _place(emitter, node, 2))


FORMS: dict[str, Form] = {
    "SplitToSequence": _split,
    "SequenceConstruct": lambda emitter, node: emitter.call(make, *emitter.tensors(node)),
    "SequenceEmpty": lambda emitter, node: emitter.call(make),
    "SequenceAt": lambda emitter, node: emitter.call(
        at, emitter.tensor(node.inputs[0]), _place(emitter, node, 1)
    ),
    "SequenceInsert": _insert,
    "SequenceErase": lambda emitter, node: emitter.call(
        erase, emitter.tensor(node.inputs[0]), _place(emitter, node, 1)
    ),
    "SequenceLength": lambda emitter, node: emitter.call(
        length, emitter.tensor(node.inputs[0]), emitter.device()
    ),
    "ConcatFromSequence": _join,
}
