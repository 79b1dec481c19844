"""Operators that reshape, cut, repeat and fill."""

from __future__ import annotations

import operator
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
import torch.nn.functional as F
from torch import fx

from . import hosts
from .dtypes import carrier
from .emitter import Emitter, Form, rank, refusal, static_sizes


def reshape(x: torch.Tensor, shape: list[Any], allow_zero: bool) -> torch.Tensor:
    """ONNX's Reshape: 0 keeps the input's size at that place."""
    if not allow_zero:
        shape = [
            x.shape[axis] if type(size) is int and size == 0 else size for axis, size in enumerate(shape)
        ]
    return torch.reshape(x, shape)


def _reshape(emitter: Emitter, node: ir.Node) -> Any:
    x, target = node.inputs
    assert target is not None
    shape = emitter.host(target)
    if isinstance(shape, fx.Node):
        shape = static_sizes(node.outputs[0]) or shape
    if isinstance(shape, list) and 0 not in shape:
        return emitter.call(torch.reshape, emitter.tensor(x), shape)
    allow_zero = bool(node.attributes.get_int("allowzero", 0))
    return emitter.call(reshape, emitter.tensor(x), shape, allow_zero)


def flatten(x: torch.Tensor, axis: int) -> torch.Tensor:
    """A matrix: the axes before `axis` as rows, the others as columns."""
    axis = axis + x.dim() if axis < 0 else axis
    rows = 1
    for size in x.shape[:axis]:
        rows = rows * size
    columns = 1
    for size in x.shape[axis:]:
        columns = columns * size
    return torch.reshape(x, (rows, columns))


def _flatten(emitter: Emitter, node: ir.Node) -> Any:
    axis = node.attributes.get_int("axis", 1)
    x = emitter.tensor(node.inputs[0])
    if axis == 1 and rank(node.inputs[0], node) >= 2:
        return emitter.call(torch.flatten, x, 1)
    return emitter.call(flatten, x, axis)


def _squeeze(emitter: Emitter, node: ir.Node) -> Any:
    x = emitter.tensor(node.inputs[0])
    if len(node.inputs) < 2 or node.inputs[1] is None:
        return emitter.call(torch.squeeze, x)
    axes = emitter.numbers(node.inputs[1])
    return emitter.call(torch.squeeze, x, tuple(axes) if isinstance(axes, list) else axes)


def unsqueeze(x: torch.Tensor, axes: list[int]) -> torch.Tensor:
    """New axes of size 1 at these places of the result."""
    total = x.dim() + len(axes)
    for axis in sorted(axis % total for axis in axes):
        x = torch.unsqueeze(x, axis)
    return x


def _unsqueeze(emitter: Emitter, node: ir.Node) -> Any:
    axes = emitter.numbers(node.inputs[1])
    x = emitter.tensor(node.inputs[0])
    if isinstance(axes, list) and len(axes) == 1:
        return emitter.call(torch.unsqueeze, x, axes[0])
    return emitter.call(unsqueeze, x, axes)


def _transpose(emitter: Emitter, node: ir.Node) -> Any:
    order = list(node.attributes.get_ints("perm", []))
    if not order:
        order = list(range(rank(node.inputs[0], node)))[::-1]
    return emitter.call(torch.permute, emitter.tensor(node.inputs[0]), order)


def _concat(emitter: Emitter, node: ir.Node) -> Any:
    return emitter.call(torch.cat, emitter.tensors(node), node.attributes.get_int("axis"))


def split_evenly(x: torch.Tensor, parts: int, axis: int) -> list[torch.Tensor]:
    """So many parts of one size, the last one smaller if need be."""
    size = x.shape[axis]
    each = (size + parts - 1) // parts
    return list(torch.split(x, [each] * (parts - 1) + [size - each * (parts - 1)], axis))


def _split(emitter: Emitter, node: ir.Node) -> Any:
    axis = node.attributes.get_int("axis", 0)
    x = emitter.tensor(node.inputs[0])
    count = len(node.outputs)
    if len(node.inputs) > 1 and node.inputs[1] is not None:
        made = emitter.call(torch.split, x, emitter.host(node.inputs[1]), axis)
    else:
        made = emitter.call(split_evenly, x, count, axis)
    return [emitter.call(operator.getitem, made, index) for index in range(count)]


def sliced(
    x: torch.Tensor,
    starts: list[Any],
    ends: list[Any],
    axes: list[int] | None = None,
    steps: list[int] | None = None,
) -> torch.Tensor:
    """ONNX's Slice: ends beyond the axis are cut off, steps may go backwards."""
    axes = list(range(len(starts))) if axes is None else axes
    steps = [1] * len(axes) if steps is None else steps
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        if step > 0:
            last = None if type(end) is int and end >= 1 << 31 else end
            x = torch.ops.aten.slice.Tensor(x, axis, start, last, step)
            continue
        size = x.shape[axis]
        first = min(start + size if start < 0 else start, size - 1)
        last = max(end + size, -1) if end < 0 else end
        places = (
            torch.arange(first, last, step, device=x.device)
            if first > last
            else torch.arange(0, device=x.device)
        )
        x = torch.index_select(x, axis, places)
    return x


def _slice(emitter: Emitter, node: ir.Node) -> Any:
    given = [
        value if value is None else emitter.numbers(value) for value in [*node.inputs[1:], None, None][:4]
    ]
    return emitter.call(sliced, emitter.tensor(node.inputs[0]), *given)


def expand(x: torch.Tensor, shape: list[Any]) -> torch.Tensor:
    """Broadcasts in both directions: a 1 in `shape` keeps the size of `x`."""
    return torch.broadcast_to(x, hosts.broadcast(x.shape, shape))


def _expand(emitter: Emitter, node: ir.Node) -> Any:
    x, target = node.inputs
    assert target is not None
    sizes = static_sizes(node.outputs[0])
    if sizes is not None:
        return emitter.call(torch.broadcast_to, emitter.tensor(x), sizes)
    return emitter.call(expand, emitter.tensor(x), emitter.host(target))


def _tile(emitter: Emitter, node: ir.Node) -> Any:
    assert node.inputs[1] is not None
    return emitter.call(torch.tile, emitter.tensor(node.inputs[0]), emitter.host(node.inputs[1]))


def pad(x: torch.Tensor, pads: list[Any], axes: list[int], mode: str, value: Any) -> torch.Tensor:
    """ONNX's Pad; negative pads cut."""
    count = len(axes)
    for index, axis in enumerate(axes):
        begin, end = pads[index], pads[index + count]
        size = x.shape[axis]
        if type(begin) is int and type(end) is int and begin <= 0 and end <= 0:
            x = torch.narrow(x, axis, -begin, size + begin + end) if begin or end else x
            continue
        if mode == "constant":
            spread = [0, 0] * (x.dim() - 1 - axis % x.dim()) + [begin, end]
            x = F.pad(x, spread, "constant", value.item() if isinstance(value, torch.Tensor) else value)
            continue
        places = torch.arange(-begin, size + end, device=x.device)
        if mode == "edge":
            places = torch.clamp(places, 0, size - 1)
        elif mode == "wrap":
            places = torch.remainder(places, size)
        else:
            span = 2 * (size - 1)
            places = (
                (size - 1) - torch.abs(torch.remainder(places, span) - (size - 1)) if size > 1 else places * 0
            )
        x = torch.index_select(x, axis, places)
    return x


def _pad(emitter: Emitter, node: ir.Node) -> Any:
    x, pads, *rest = node.inputs
    assert pads is not None
    value = emitter.operand(rest[0]) if rest and rest[0] is not None else 0
    axes = emitter.known_ints(node, 3, "axes")
    if axes is None:
        axes = list(range(rank(x, node)))
    mode = node.attributes.get_string("mode", "constant")
    return emitter.call(pad, emitter.tensor(x), emitter.host(pads), axes, mode, value)


def depth_to_space(x: torch.Tensor, block: int, columns_first: bool) -> torch.Tensor:
    """Channels into blocks of pixels, `[N, C, H, W]`; depth-column-row order unless `columns_first`."""
    n, c, h, w = x.shape
    if columns_first:
        return F.pixel_shuffle(x, block)
    parts = x.reshape(n, block, block, c // (block * block), h, w).permute(0, 3, 4, 1, 5, 2)
    return parts.reshape(n, c // (block * block), h * block, w * block)


def _depth_to_space(emitter: Emitter, node: ir.Node) -> Any:
    block = node.attributes.get_int("blocksize")
    if node.attributes.get_string("mode", "DCR") == "CRD":
        return emitter.call(F.pixel_shuffle, emitter.tensor(node.inputs[0]), block)
    return emitter.call(depth_to_space, emitter.tensor(node.inputs[0]), block, False)


def space_to_depth(x: torch.Tensor, block: int) -> torch.Tensor:
    """Blocks of pixels into channels, `[N, C, H, W]`."""
    n, c, h, w = x.shape
    parts = x.reshape(n, c, h // block, block, w // block, block).permute(0, 3, 5, 1, 2, 4)
    return parts.reshape(n, c * block * block, h // block, w // block)


def _space_to_depth(emitter: Emitter, node: ir.Node) -> Any:
    return emitter.call(space_to_depth, emitter.tensor(node.inputs[0]), node.attributes.get_int("blocksize"))


def filled(shape: list[Any], value: Any, dtype: torch.dtype, like: torch.Tensor) -> torch.Tensor:
    """A tensor of one number, where `like` lives."""
    return torch.full(shape, value, dtype=dtype, device=like.device)


def _constant_of_shape(emitter: Emitter, node: ir.Node) -> Any:
    given = node.attributes.get_tensor("value", None)
    array = np.zeros(1, np.float32) if given is None else given.numpy()
    kind = carrier(ir.DataType.from_numpy(array.dtype))
    assert node.inputs[0] is not None
    shape = emitter.host(node.inputs[0])
    return emitter.call(filled, shape, array.reshape(-1)[0].item(), kind, emitter.device())


def arange(start: Any, limit: Any, delta: Any, dtype: torch.dtype, like: torch.Tensor) -> torch.Tensor:
    """Numbers from `start` up to `limit`, where `like` lives."""
    return torch.arange(start, limit, delta, dtype=dtype, device=like.device)


def _range(emitter: Emitter, node: ir.Node) -> Any:
    numbers = [emitter.number(value) for value in node.inputs]
    return emitter.call(arange, *numbers, carrier(node.outputs[0].dtype), emitter.device())


def _trilu(emitter: Emitter, node: ir.Node) -> Any:
    k = emitter.host(node.inputs[1]) if len(node.inputs) > 1 and node.inputs[1] is not None else 0
    function = torch.triu if node.attributes.get_int("upper", 1) else torch.tril
    return emitter.call(function, emitter.tensor(node.inputs[0]), k)


def eye_like(x: torch.Tensor, k: int, dtype: torch.dtype) -> torch.Tensor:
    """Ones on the k-th diagonal of a matrix shaped like `x`."""
    rows = torch.arange(x.shape[0], device=x.device)[:, None]
    return (torch.arange(x.shape[1], device=x.device)[None] - rows == k).to(dtype)


def _eye_like(emitter: Emitter, node: ir.Node) -> Any:
    k, dtype = node.attributes.get_int("k", 0), carrier(node.outputs[0].dtype)
    return emitter.call(eye_like, emitter.tensor(node.inputs[0]), k, dtype)


def center_crop_pad(x: torch.Tensor, sizes: list[Any], axes: list[int]) -> torch.Tensor:
    """Cuts or pads with zeros around the middle of each axis."""
    for axis, wanted in zip(axes, sizes, strict=True):
        have = x.shape[axis]
        if have > wanted:
            x = torch.narrow(x, axis, (have - wanted) // 2, wanted)
        elif have < wanted:
            before = (wanted - have) // 2
            x = pad(x, [before, wanted - have - before], [axis], "constant", 0)
    return x


def _center_crop_pad(emitter: Emitter, node: ir.Node) -> Any:
    x, sizes = node.inputs
    assert sizes is not None
    axes = list(node.attributes.get_ints("axes", range(rank(x, node))))
    return emitter.call(center_crop_pad, emitter.tensor(x), emitter.host(sizes), axes)


def _col2im(emitter: Emitter, node: ir.Node) -> Any:
    image, block = (emitter.known_ints(node, index, "sizes") or [] for index in (1, 2))
    count = len(image)
    attributes = node.attributes
    strides, dilations = (list(attributes.get_ints(name, [1] * count)) for name in ("strides", "dilations"))
    pads = list(attributes.get_ints("pads", [0] * 2 * count))
    if count != 2 or pads[:2] != pads[2:]:
        raise refusal(node, "torch folds images of two dimensions with equal pads on both sides")
    return emitter.call(F.fold, emitter.tensor(node.inputs[0]), image, block, dilations, pads[:2], strides)


FORMS: dict[str, Form] = {
    "Identity": lambda emitter, node: emitter.tensor(node.inputs[0]),
    "Reshape": _reshape,
    "Flatten": _flatten,
    "Squeeze": _squeeze,
    "Unsqueeze": _unsqueeze,
    "Transpose": _transpose,
    "Concat": _concat,
    "Split": _split,
    "Slice": _slice,
    "Expand": _expand,
    "Tile": _tile,
    "Pad": _pad,
    "DepthToSpace": _depth_to_space,
    "SpaceToDepth": _space_to_depth,
    "ConstantOfShape": _constant_of_shape,
    "Range": _range,
    "Trilu": _trilu,
    "EyeLike": _eye_like,
    "CenterCropPad": _center_crop_pad,
    "Col2Im": _col2im,
}
