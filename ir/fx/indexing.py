"""Operators that pick and place elements by index."""

from __future__ import annotations

import operator
from typing import Any

import onnx_ir as ir
import torch
import torch.nn.functional as F

from .dtypes import tensor_from
from .emitter import Emitter, Form, is_trainable, layer_path


def _counted(places: torch.Tensor, size: Any) -> torch.Tensor:
    """Indices from the start, as torch wants them; what a graph makes of them takes negative ones itself."""
    if torch.compiler.is_exporting():
        return places
    return torch.where(places < 0, places + size, places)


def gather(data: torch.Tensor, places: torch.Tensor, axis: int) -> torch.Tensor:
    """Slices of `data` along an axis; negative places count from the end."""
    places = _counted(places, data.shape[axis])
    axis = axis + data.dim() if axis < 0 else axis
    flat = torch.index_select(data, axis, torch.reshape(places, (-1,)))
    return torch.reshape(flat, (*data.shape[:axis], *places.shape, *data.shape[axis + 1 :]))


def embedding(table: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    """Rows of a table; negative places count from the end."""
    return F.embedding(_counted(places, table.shape[0]), table)


def _gather(emitter: Emitter, node: ir.Node) -> Any:
    data, places = node.inputs
    assert data is not None and places is not None
    axis = node.attributes.get_int("axis", 0)
    known = emitter.literal(places)
    if known is not None and known.ndim == 0:
        return emitter.call(torch.select, emitter.tensor(data), axis, int(known))
    if emitter.is_size(places) and places.shape is not None and len(places.shape) == 0:
        return emitter.call(torch.select, emitter.tensor(data), axis, emitter.host(places))
    if known is not None and known.ndim == 1 and known.dtype.kind == "i":
        constant = emitter.constant(tensor_from(known), str(places.name))
        return emitter.call(torch.index_select, emitter.tensor(data), axis, constant)
    if axis == 0 and is_trainable(data) and data.shape is not None and len(data.shape) == 2:
        path = layer_path(emitter, node, [data], ["weight"])
        if path is None:
            return emitter.call(embedding, emitter.tensor(data), emitter.tensor(places))
        module = Embedding.from_pretrained(emitter.weight(data), freeze=False)
        return emitter.call_module(emitter.submodule(path, module), emitter.tensor(places))
    return emitter.call(gather, emitter.tensor(data), emitter.tensor(places), axis)


class Embedding(torch.nn.Embedding):
    """An embedding whose negative indices count from the end, as ONNX's do."""

    def forward(self, places: torch.Tensor) -> torch.Tensor:
        """Rows of the table: `[..., width]`."""
        return embedding(self.weight, places)


def gather_elements(data: torch.Tensor, places: torch.Tensor, axis: int) -> torch.Tensor:
    """Element by element along an axis."""
    return torch.gather(
        data, axis, torch.where(places < 0, places + data.shape[axis], places).to(torch.int64)
    )


def gather_nd(data: torch.Tensor, places: torch.Tensor, batch: int) -> torch.Tensor:
    """Slices by tuples of indices; the first `batch` axes of both go together."""
    depth = places.shape[-1]
    rows = []
    for axis in range(batch):
        shape = [1] * (places.dim() - 1)
        shape[axis] = -1
        rows.append(torch.arange(data.shape[axis], device=data.device).reshape(shape))
    rows += [places[..., index] for index in range(depth)]
    return data[tuple(rows)] if rows else data.expand(places.shape[:-1] + data.shape)


_SCATTERS = {"add": "sum", "mul": "prod", "max": "amax", "min": "amin"}


def scatter_elements(
    data: torch.Tensor, places: torch.Tensor, updates: torch.Tensor, axis: int, how: str
) -> torch.Tensor:
    """Writes updates element by element along an axis, or combines them with what is there."""
    places = torch.where(places < 0, places + data.shape[axis], places).to(torch.int64)
    if how == "none":
        return torch.scatter(data, axis, places, updates)
    return torch.scatter_reduce(data, axis, places, updates, _SCATTERS[how], include_self=True)


def scatter_nd(data: torch.Tensor, places: torch.Tensor, updates: torch.Tensor, how: str) -> torch.Tensor:
    """Writes slices at tuples of indices, or combines them with what is there."""
    depth = places.shape[-1]
    if not depth:
        return updates.reshape(data.shape)
    if how == "none":
        return torch.index_put(data, tuple(places[..., index] for index in range(depth)), updates)
    inner = 1
    for size in data.shape[depth:]:
        inner = inner * size
    flat = torch.zeros_like(places[..., 0])
    for index in range(depth):
        place = places[..., index]
        flat = flat * data.shape[index] + torch.where(place < 0, place + data.shape[index], place)
    rows = data.reshape(-1, inner)
    target = flat.reshape(-1, 1).expand(-1, inner)
    made = torch.scatter_reduce(
        rows, 0, target, updates.reshape(-1, inner), _SCATTERS[how], include_self=True
    )
    return made.reshape(data.shape)


def one_hot(places: torch.Tensor, depth: Any, values: torch.Tensor, axis: int) -> torch.Tensor:
    """`values[1]` at each place along a new axis, else `values[0]`."""
    depth = int(depth[0] if isinstance(depth, list) else depth)
    axis = axis + places.dim() + 1 if axis < 0 else axis
    wrapped = torch.where(places < 0, places + depth, places)
    shape = [1] * (places.dim() + 1)
    shape[axis] = depth
    hit = torch.arange(depth, device=places.device).reshape(shape) == torch.unsqueeze(wrapped, axis)
    return torch.where(hit, values[1], values[0])


def _one_hot(emitter: Emitter, node: ir.Node) -> Any:
    places, depth, values = node.inputs
    assert depth is not None
    axis = node.attributes.get_int("axis", -1)
    return emitter.call(one_hot, emitter.tensor(places), emitter.host(depth), emitter.tensor(values), axis)


def nonzero(x: torch.Tensor) -> torch.Tensor:
    """Indices of what is not zero, `[rank, count]`."""
    return torch.transpose(torch.nonzero(x), 0, 1)


def compress(x: torch.Tensor, condition: torch.Tensor, axis: int | None) -> torch.Tensor:
    """The slices (elements of the flat input without an axis) where the condition holds."""
    flat = x.reshape(-1) if axis is None else x
    return torch.index_select(flat, axis or 0, torch.nonzero(condition).reshape(-1))


def _compress(emitter: Emitter, node: ir.Node) -> Any:
    axis = node.attributes.get_int("axis", None)
    return emitter.call(compress, *emitter.tensors(node), axis)


def reverse_sequence(x: torch.Tensor, lengths: torch.Tensor, time: int, batch: int) -> torch.Tensor:
    """The first `length` steps of each sequence backwards."""
    steps = torch.arange(x.shape[time], device=x.device)[:, None]
    places = torch.where(steps < lengths[None], lengths[None] - 1 - steps, steps)
    places = places if time == 0 else places.transpose(0, 1)
    shape = places.shape + (1,) * (x.dim() - 2)
    return torch.gather(x, time, places.reshape(shape).expand(x.shape).to(torch.int64))


def _reverse_sequence(emitter: Emitter, node: ir.Node) -> Any:
    time, batch = node.attributes.get_int("time_axis", 0), node.attributes.get_int("batch_axis", 1)
    return emitter.call(reverse_sequence, *emitter.tensors(node), time, batch)


def top_k(x: torch.Tensor, k: Any, axis: int, largest: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """The k largest or smallest, in order; of equal ones the first."""
    k = k[0] if isinstance(k, list) else k
    if (
        torch.compiler.is_exporting()
    ):  # of equal ones it may take any; it becomes ONNX's, which takes the first
        return torch.topk(x, k, axis, largest)
    ordered, places = torch.sort(x, dim=axis, descending=largest, stable=True)
    return torch.narrow(ordered, axis, 0, k), torch.narrow(places, axis, 0, k)


def _top_k(emitter: Emitter, node: ir.Node) -> Any:
    x, k = node.inputs
    assert k is not None
    axis, largest = node.attributes.get_int("axis", -1), bool(node.attributes.get_int("largest", 1))
    found = emitter.call(top_k, emitter.tensor(x), emitter.host(k), axis, largest)
    return [emitter.call(operator.getitem, found, index) for index in range(2)]


def unique(
    x: torch.Tensor, axis: int | None, ordered: bool
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Values once each, where each came first, which one every element is, and how often."""
    data = x.reshape(-1) if axis is None else x
    along = axis or 0
    values, inverse, counts = torch.unique(
        data, sorted=True, return_inverse=True, return_counts=True, dim=along
    )
    places = torch.arange(inverse.numel() - 1, -1, -1, device=x.device)
    first = torch.zeros_like(counts).scatter(0, inverse.reshape(-1).flip(0), places)
    if not ordered:
        order = torch.argsort(first)
        values, first, counts = torch.index_select(values, along, order), first[order], counts[order]
        inverse = torch.argsort(order)[inverse]
    return values, first, inverse, counts


def _unique(emitter: Emitter, node: ir.Node) -> Any:
    axis = node.attributes.get_int("axis", None)
    made = emitter.call(
        unique, emitter.tensor(node.inputs[0]), axis, bool(node.attributes.get_int("sorted", 1))
    )
    return [emitter.call(operator.getitem, made, index) for index in range(len(node.outputs))]


def tensor_scatter(
    past: torch.Tensor, update: torch.Tensor, starts: torch.Tensor | None, axis: int, circular: bool
) -> torch.Tensor:
    """Writes `update` into a cache along an axis, from a start per batch entry."""
    axis = axis + past.dim() if axis < 0 else axis
    batch, steps = past.shape[0], update.shape[axis]
    begin = torch.zeros(batch, dtype=torch.int64, device=past.device) if starts is None else starts
    places = begin.reshape(-1, 1) + torch.arange(steps, device=past.device)
    places = torch.remainder(places, past.shape[axis]) if circular else places
    shape = [batch] + [1] * (past.dim() - 1)
    shape[axis] = steps
    return torch.scatter(past, axis, places.reshape(shape).expand(update.shape), update)


def _tensor_scatter(emitter: Emitter, node: ir.Node) -> Any:
    past, update, *starts = emitter.tensors(node)
    circular = node.attributes.get_string("mode", "linear") == "circular"
    return emitter.call(
        tensor_scatter,
        past,
        update,
        starts[0] if starts else None,
        node.attributes.get_int("axis", -2),
        circular,
    )


def _gather_nd(emitter: Emitter, node: ir.Node) -> Any:
    return emitter.call(gather_nd, *emitter.tensors(node), node.attributes.get_int("batch_dims", 0))


def _gather_elements(emitter: Emitter, node: ir.Node) -> Any:
    return emitter.call(gather_elements, *emitter.tensors(node), node.attributes.get_int("axis", 0))


def _scatter_elements(emitter: Emitter, node: ir.Node) -> Any:
    how = node.attributes.get_string("reduction", "none")
    return emitter.call(scatter_elements, *emitter.tensors(node), node.attributes.get_int("axis", 0), how)


def _scatter_nd(emitter: Emitter, node: ir.Node) -> Any:
    return emitter.call(scatter_nd, *emitter.tensors(node), node.attributes.get_string("reduction", "none"))


FORMS: dict[str, Form] = {
    "Gather": _gather,
    "GatherElements": _gather_elements,
    "GatherND": _gather_nd,
    "ScatterElements": _scatter_elements,
    "ScatterND": _scatter_nd,
    "OneHot": _one_hot,
    "NonZero": lambda emitter, node: emitter.call(nonzero, emitter.tensor(node.inputs[0])),
    "Compress": _compress,
    "ReverseSequence": _reverse_sequence,
    "TopK": _top_k,
    "Unique": _unique,
    "TensorScatter": _tensor_scatter,
}
