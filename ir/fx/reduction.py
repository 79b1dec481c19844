"""Reductions, products of matrices, and sums along axes."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import onnx_ir as ir
import torch
import torch.nn.functional as F
from torch import fx

from .emitter import Emitter, Form, is_trainable, layer_path


def _l1(x: torch.Tensor, axes: list[int], keep: bool) -> torch.Tensor:
    return torch.sum(torch.abs(x), axes, keep).to(x.dtype)


def _l2(x: torch.Tensor, axes: list[int], keep: bool) -> torch.Tensor:
    wide = x if x.dtype.is_floating_point else x.to(torch.float64)
    return torch.sqrt(torch.sum(wide * wide, axes, keep)).to(x.dtype)


def _sum(x: torch.Tensor, axes: list[int], keep: bool) -> torch.Tensor:
    return torch.sum(x, axes, keep, dtype=x.dtype)


def _mean(x: torch.Tensor, axes: list[int], keep: bool) -> torch.Tensor:
    if x.dtype.is_floating_point:
        return torch.mean(x, axes, keep)
    count = math.prod(x.shape[axis] for axis in axes)
    return torch.div(torch.sum(x, axes, keep), count, rounding_mode="trunc").to(x.dtype)


def _sum_square(x: torch.Tensor, axes: list[int], keep: bool) -> torch.Tensor:
    return torch.sum(x * x, axes, keep, dtype=x.dtype)


def _log_sum(x: torch.Tensor, axes: list[int], keep: bool) -> torch.Tensor:
    return torch.log(torch.sum(x, axes, keep)).to(x.dtype)


def _log_sum_exp(x: torch.Tensor, axes: list[int], keep: bool) -> torch.Tensor:
    wide = x if x.dtype.is_floating_point else x.to(torch.float64)
    return torch.logsumexp(wide, axes, keep).to(x.dtype)


def _prod(x: torch.Tensor, axes: list[int], keep: bool) -> torch.Tensor:
    for axis in sorted(axes, reverse=True):
        x = torch.prod(x, axis, keep, dtype=x.dtype)
    return x


def _extreme(largest: bool) -> Callable[[torch.Tensor, list[int], bool], torch.Tensor]:
    def extreme(x: torch.Tensor, axes: list[int], keep: bool) -> torch.Tensor:
        if any(x.shape[axis] == 0 for axis in axes):
            shape = [1 if axis in axes else size for axis, size in enumerate(x.shape)]
            made = torch.full(shape, _limit(x.dtype, lowest=largest), dtype=x.dtype, device=x.device)
            return made if keep else torch.squeeze(made, tuple(axes))
        return (torch.amax if largest else torch.amin)(x, axes, keep)

    return extreme


def _limit(dtype: torch.dtype, lowest: bool) -> Any:
    if dtype == torch.bool:
        return not lowest
    if dtype.is_floating_point:
        return -math.inf if lowest else math.inf
    return torch.iinfo(dtype).min if lowest else torch.iinfo(dtype).max


_max, _min = _extreme(True), _extreme(False)

_REDUCTIONS: dict[str, Callable[[torch.Tensor, list[int], bool], torch.Tensor]] = {
    "ReduceL1": _l1,
    "ReduceL2": _l2,
    "ReduceSum": _sum,
    "ReduceMean": _mean,
    "ReduceSumSquare": _sum_square,
    "ReduceLogSum": _log_sum,
    "ReduceLogSumExp": _log_sum_exp,
    "ReduceProd": _prod,
    "ReduceMax": _max,
    "ReduceMin": _min,
}


def reduced(
    x: torch.Tensor, kind: str, axes: list[int] | None, keep: bool, noop: bool = False
) -> torch.Tensor:
    """An ONNX reduction; no axes mean all of them, or none at all where that is asked for."""
    if not axes and noop:
        # Over axes of one element each, so that what is done to the elements themselves is done.
        return _REDUCTIONS[kind](x.unsqueeze(-1), [x.dim()], False)
    if not x.dim():
        return _REDUCTIONS[kind](x.reshape(1), [0], False)
    return _REDUCTIONS[kind](x, [axis % x.dim() for axis in axes] if axes else list(range(x.dim())), keep)


_OWN: dict[str, Callable[..., Any]] = {
    "ReduceMean": torch.mean,
    "ReduceSum": torch.sum,
    "ReduceMax": torch.amax,
    "ReduceMin": torch.amin,
}


def _reduce(emitter: Emitter, node: ir.Node) -> Any:
    x = node.inputs[0]
    given = node.inputs[1] if len(node.inputs) > 1 else None
    axes = None if given is None else emitter.host(given)
    if isinstance(axes, int):
        axes = [axes]
    keep = bool(node.attributes.get_int("keepdims", 1))
    tensor = emitter.tensor(x)
    if isinstance(axes, fx.Node):
        noop = bool(node.attributes.get_int("noop_with_empty_axes", 0))
        return emitter.call(reduced, tensor, node.op_type, axes, keep, noop)
    if not axes:
        if node.attributes.get_int("noop_with_empty_axes", 0):
            return emitter.call(reduced, tensor, node.op_type, [], keep, True)
        axes = None
    known = x is not None and x.shape is not None and len(x.shape) > 0
    floating = x is not None and x.dtype is not None and x.dtype.is_floating_point()
    if known and floating and axes and node.op_type in _OWN and 0 not in tuple(x.shape):  # type: ignore[union-attr, arg-type]
        return emitter.call(_OWN[node.op_type], tensor, axes, keep)
    return emitter.call(reduced, tensor, node.op_type, axes, keep)


def _argument(emitter: Emitter, node: ir.Node) -> Any:
    attributes = node.attributes
    axis, keep = attributes.get_int("axis", 0), bool(attributes.get_int("keepdims", 1))
    last = bool(attributes.get_int("select_last_index", 0))
    x = emitter.tensor(node.inputs[0])
    if last:
        return emitter.call(last_place, x, axis, keep, node.op_type == "ArgMax")
    return emitter.call(torch.argmax if node.op_type == "ArgMax" else torch.argmin, x, axis, keep)


def last_place(x: torch.Tensor, axis: int, keep: bool, largest: bool) -> torch.Tensor:
    """The place of the largest or smallest along an axis, the last one of equal ones."""
    function = torch.argmax if largest else torch.argmin
    return x.shape[axis] - 1 - function(torch.flip(x, [axis]), axis, keep)


def accumulated(x: torch.Tensor, axis: Any, exclusive: bool, reverse: bool) -> torch.Tensor:
    """Sums up to each element along an axis."""
    axis = int(axis[0] if isinstance(axis, list) else axis)
    x = torch.flip(x, [axis]) if reverse else x
    made = torch.cumsum(x, axis, dtype=x.dtype)
    made = made - x if exclusive and not x.dtype.is_floating_point else made
    if exclusive and x.dtype.is_floating_point:
        first = torch.zeros_like(torch.narrow(x, axis, 0, 1))
        made = torch.cat([first, torch.narrow(made, axis, 0, x.shape[axis] - 1)], axis)
    return torch.flip(made, [axis]) if reverse else made


def accumulated_product(x: torch.Tensor, axis: Any, exclusive: bool, reverse: bool) -> torch.Tensor:
    """Products up to each element along an axis."""
    axis = int(axis[0] if isinstance(axis, list) else axis)
    x = torch.flip(x, [axis]) if reverse else x
    if exclusive:
        first = torch.ones_like(torch.narrow(x, axis, 0, 1))
        x = torch.cat([first, torch.narrow(x, axis, 0, x.shape[axis] - 1)], axis)
    made = torch.cumprod(x, axis, dtype=x.dtype)
    return torch.flip(made, [axis]) if reverse else made


def _cum_sum(emitter: Emitter, node: ir.Node) -> Any:
    x, axis = node.inputs
    assert axis is not None
    exclusive, reverse = (bool(node.attributes.get_int(name, 0)) for name in ("exclusive", "reverse"))
    return emitter.call(_RUNNING[node.op_type], emitter.tensor(x), emitter.host(axis), exclusive, reverse)


_RUNNING = {"CumSum": accumulated, "CumProd": accumulated_product}


def _matmul(emitter: Emitter, node: ir.Node) -> Any:
    return emitter.call(torch.matmul, *emitter.tensors(node))


def gemm(a: torch.Tensor, b: torch.Tensor, c: torch.Tensor | None, alpha: float, beta: float) -> torch.Tensor:
    """Alpha * a @ b + beta * c."""
    made = torch.matmul(a, b)
    made = made if alpha == 1.0 else alpha * made
    if c is None or beta == 0.0:
        return made
    return made + (c if beta == 1.0 else beta * c)


def _gemm(emitter: Emitter, node: ir.Node) -> Any:
    attributes = node.attributes
    a, b, c = node.inputs[0], node.inputs[1], node.inputs[2] if len(node.inputs) > 2 else None
    alpha, beta = attributes.get_float("alpha", 1.0), attributes.get_float("beta", 1.0)
    x = emitter.tensor(a)
    if attributes.get_int("transA", 0):
        x = emitter.call(torch.transpose, x, 0, 1)
    turned = bool(attributes.get_int("transB", 0))
    plain = (
        alpha == 1.0 and beta == 1.0 and turned and (c is None or (c.shape is not None and len(c.shape) == 1))
    )
    floating = b is not None and b.dtype is not None and b.dtype.is_floating_point()
    if plain and floating:
        path = layer_path(emitter, node, [b, c], ["weight", "bias"])
        if path is not None and b is not None and is_trainable(b) and _is_row(b, c):
            weight = emitter.weight(b)
            module = torch.nn.Linear(weight.shape[1], weight.shape[0], c is not None, device="meta")
            module.weight = torch.nn.Parameter(weight)
            if c is not None:
                module.bias = torch.nn.Parameter(emitter.weight(c))
            return emitter.call_module(emitter.submodule(path, module), x)
        if c is None or _is_row(b, c):
            return emitter.call(F.linear, x, emitter.tensor(b), emitter.tensor(c))
    right = emitter.tensor(b)
    if turned:
        right = emitter.call(torch.transpose, right, 0, 1)
    if floating:
        return emitter.call(gemm, x, right, emitter.tensor(c), alpha, beta)
    return emitter.call(gemm, x, right, emitter.tensor(c), int(alpha), int(beta))


def _is_row(b: ir.Value | None, c: ir.Value | None) -> bool:
    if c is None:
        return True
    return b is not None and b.shape is not None and c.shape is not None and tuple(c.shape) == (b.shape[0],)


def _einsum(emitter: Emitter, node: ir.Node) -> Any:
    equation = node.attributes.get_string("equation").replace(" ", "")
    return emitter.call(torch.einsum, equation, *emitter.tensors(node))


def _det(emitter: Emitter, node: ir.Node) -> Any:
    return emitter.call(torch.linalg.det, emitter.tensor(node.inputs[0]))


FORMS: dict[str, Form] = {
    **dict.fromkeys(_REDUCTIONS, _reduce),
    "ArgMax": _argument,
    "ArgMin": _argument,
    **dict.fromkeys(_RUNNING, _cum_sum),
    "MatMul": _matmul,
    "Gemm": _gemm,
    "Einsum": _einsum,
    "Det": _det,
}
