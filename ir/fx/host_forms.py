"""Nodes that compute sizes: done on plain numbers while the module runs, or now if all is known."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import onnx_ir as ir
from torch import fx

from . import hosts
from .emitter import Emitter, static_sizes

_KINDS = {
    **dict.fromkeys((ir.DataType.INT64, ir.DataType.INT32), "int"),
    **dict.fromkeys((ir.DataType.FLOAT, ir.DataType.DOUBLE), "float"),
    ir.DataType.BOOL: "bool",
}
_CHANGING = ("Cast", "CastLike", "Equal", "Less", "Greater", "LessOrEqual", "GreaterOrEqual")
_REDUCTIONS = {"ReduceProd": "prod", "ReduceSum": "sum", "ReduceMin": "min", "ReduceMax": "max"}


def emit_host(emitter: Emitter, node: ir.Node) -> bool:
    """Defines the result of a node as a host value, if it is one."""
    form = _FORMS.get(node.op_type)
    if form is None or node.domain not in ("", "ai.onnx") or not node.outputs:
        return False
    value = node.outputs[0]
    if node.op_type not in ("Shape", "Size"):
        if value.dtype not in _KINDS or (value.shape is not None and len(value.shape) > 1):
            return False
        read = node.inputs[:1] if node.op_type == "CastLike" else node.inputs
        if not all(each is None or emitter.is_host(each) for each in read):
            return False
        if not node.inputs or not _worth_it(emitter, node):
            return False
    made = form(emitter, node)
    if made is None:
        return False
    emitter.define_host(value, made)
    return True


def _worth_it(emitter: Emitter, node: ir.Node) -> bool:
    """Whether integers are computed, the ends of a range, or others from sizes: a layer's stay tensors."""
    kind = node.outputs[0].dtype
    if kind in (ir.DataType.INT64, ir.DataType.INT32):
        return True
    uses = node.outputs[0].uses()
    if uses and all(user.op_type == "Range" for user, _ in uses):
        return True
    sizes = [value for value in node.inputs if value is not None and emitter.is_size(value)]
    return any(kind == value.dtype or node.op_type in _CHANGING for value in sizes)


def _apply(emitter: Emitter, function: Callable[..., Any], *operands: Any) -> Any:
    """The result now where all operands are known, else a call."""
    if any(isinstance(each, fx.Node) for each in operands):
        return emitter.call(function, *operands)
    return function(*operands)


def _shape(emitter: Emitter, node: ir.Node) -> Any:
    x = node.inputs[0]
    start, end = node.attributes.get_int("start", 0), node.attributes.get_int("end", None)
    sizes = static_sizes(x)
    if sizes is not None:
        return sizes[start:end]
    if x is not None and x.shape is not None and all(isinstance(each, int) for each in x.shape[start:end]):
        return [int(each) for each in x.shape[start:end]]  # type: ignore[arg-type]
    return emitter.call(hosts.shape, emitter.tensor(x), start, end)


def _size(emitter: Emitter, node: ir.Node) -> Any:
    sizes = static_sizes(node.inputs[0])
    if sizes is not None:
        return hosts.reduce_("prod", sizes)
    return emitter.call(hosts.size, emitter.tensor(node.inputs[0]))


def _elementwise(emitter: Emitter, node: ir.Node) -> Any:
    truncates = node.attributes.get_int("fmod", 0)
    if truncates:
        return None
    operands = [emitter.host(value) for value in node.inputs if value is not None]
    return _apply(emitter, hosts.elementwise, node.op_type, *operands)


def _same(emitter: Emitter, node: ir.Node) -> Any:
    assert node.inputs[0] is not None
    return emitter.host(node.inputs[0])


def _cast(emitter: Emitter, node: ir.Node) -> Any:
    kind = _KINDS[node.outputs[0].dtype]  # type: ignore[index]
    return _apply(emitter, hosts.cast, kind, _same(emitter, node))


def _concat(emitter: Emitter, node: ir.Node) -> Any:
    return _apply(emitter, hosts.concat, *(emitter.host(value) for value in node.inputs if value is not None))


def _gather(emitter: Emitter, node: ir.Node) -> Any:
    data, places = node.inputs
    if data is None or places is None or places.shape is None or len(places.shape) > 1:
        return None
    return _apply(emitter, hosts.gather, emitter.host(data), emitter.host(places))


def _slice(emitter: Emitter, node: ir.Node) -> Any:
    rest = [None if value is None else emitter.literal(value) for value in node.inputs[1:]]
    if any(each is None and value is not None for each, value in zip(rest, node.inputs[1:], strict=True)):
        return None
    start, end = (int(each.reshape(-1)[0]) for each in rest[:2])  # type: ignore[union-attr]
    step = int(rest[3].reshape(-1)[0]) if len(rest) > 3 and rest[3] is not None else 1
    return _apply(emitter, hosts.slice_, _same(emitter, node), start, end, step)


def _listed(emitter: Emitter, node: ir.Node) -> Any:
    return _apply(emitter, hosts.to_list, _same(emitter, node))


def _numbered(emitter: Emitter, node: ir.Node) -> Any:
    return _apply(emitter, hosts.to_number, _same(emitter, node))


def _reshape(emitter: Emitter, node: ir.Node) -> Any:
    shape = node.outputs[0].shape
    if shape is None:
        return None
    return (_listed if len(shape) else _numbered)(emitter, node)


def _reduce(emitter: Emitter, node: ir.Node) -> Any:
    total = _apply(emitter, hosts.reduce_, _REDUCTIONS[node.op_type], _same(emitter, node))
    if node.attributes.get_int("keepdims", 1):
        return _apply(emitter, hosts.to_list, total)
    return total


_FORMS: dict[str, Callable[[Emitter, ir.Node], Any]] = {
    "Shape": _shape,
    "Size": _size,
    **dict.fromkeys(hosts.ELEMENTWISE, _elementwise),
    "Identity": _same,
    **dict.fromkeys(("Cast", "CastLike"), _cast),
    "Concat": _concat,
    "Gather": _gather,
    "Slice": _slice,
    "Unsqueeze": _listed,
    "Squeeze": _numbered,
    "Reshape": _reshape,
    **dict.fromkeys(_REDUCTIONS, _reduce),
}
