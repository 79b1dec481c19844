"""Arithmetic on sizes: plain numbers and lists of them, which may be symbolic while torch traces."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch

Number = Any
"""An int, float or bool, or what stands for one while torch traces (`torch.SymInt`)."""
Host = Any
"""A number, or a list of numbers."""


def shape(x: torch.Tensor, start: int = 0, end: int | None = None) -> list[Number]:
    """Sizes of a tensor, as ONNX's Shape counts them."""
    return list(x.shape)[start:end]


def size(x: torch.Tensor) -> Number:
    """Number of elements."""
    return x.numel()


def from_tensor(x: torch.Tensor) -> Host:
    """The numbers of a tensor of rank 0 or 1."""
    return x.tolist()


def as_tensor(host: Host, dtype: torch.dtype, like: torch.Tensor) -> torch.Tensor:
    """A tensor of rank 0 or 1, where `like` lives."""
    if isinstance(host, list):
        if not host:
            return torch.zeros(0, dtype=dtype, device=like.device)
        return torch.stack([torch.scalar_tensor(each, dtype=dtype, device=like.device) for each in host])
    return torch.scalar_tensor(host, dtype=dtype, device=like.device)


def elementwise(name: str, *operands: Host) -> Host:
    """`name` over numbers and lists, single numbers and lists of one repeated."""
    function = ELEMENTWISE[name]
    lengths = [len(each) for each in operands if isinstance(each, list)]
    if not lengths:
        return function(*operands)
    length = max(lengths) if 0 not in lengths else 0
    rows = [each * length if len(each) == 1 else each for each in map(_listed, operands)]
    return [function(*row) for row in zip(*(row[:length] for row in rows), strict=True)]


def concat(*parts: Host) -> list[Number]:
    """Lists, one after the other."""
    return [number for part in parts for number in part]


def gather(data: list[Number], places: Host) -> Host:
    """Elements by position; negative ones count from the end."""
    if isinstance(places, list):
        return [data[place] for place in places]
    return data[places]


def slice_(data: list[Number], start: int, end: int, step: int) -> list[Number]:
    """ONNX's Slice of a list; ends beyond the list are cut off."""
    if step < 0 and end < -len(data):
        return data[start::step]
    return data[start:end:step]


def to_list(data: Host) -> list[Number]:
    """A number as a list of one."""
    return _listed(data)


def to_number(data: Host) -> Number:
    """A list of one as a number."""
    return data[0] if isinstance(data, list) else data


def reduce_(name: str, data: Host) -> Number:
    """Product, sum, least or largest of a list."""
    reductions: dict[str, Callable[..., Number]] = {"prod": math.prod, "sum": sum, "min": min, "max": max}
    return reductions[name](_listed(data))


def cast(kind: str, data: Host) -> Host:
    """To `int`, `float` or `bool`, each number."""
    if kind == "int":
        return _each(lambda number: int(number) if isinstance(number, (float, bool)) else number, data)
    if kind == "float":
        return _each(lambda number: number * 1.0, data)
    return _each(lambda number: number != 0, data)


def _each(function: Callable[[Number], Number], data: Host) -> Host:
    return [function(number) for number in data] if isinstance(data, list) else function(data)


def _listed(data: Host) -> list[Number]:
    return data if isinstance(data, list) else [data]


def _divide(a: Number, b: Number) -> Number:
    if isinstance(a, float) or isinstance(b, float):
        return a / b
    if type(a) is int and type(b) is int and (a < 0) != (b < 0):
        return -(-a // b)
    return a // b


def _where(condition: Number, a: Number, b: Number) -> Number:
    return a if condition else b


def _extreme(pick: Callable[..., Number]) -> Callable[..., Number]:
    def chosen(*numbers: Number) -> Number:
        return numbers[0] if len(numbers) == 1 else pick(*numbers)

    return chosen


ELEMENTWISE: dict[str, Callable[..., Number]] = {
    "Add": operator.add,
    "Sub": operator.sub,
    "Mul": operator.mul,
    "Div": _divide,
    "Mod": operator.mod,
    "Neg": operator.neg,
    "Abs": abs,
    "Equal": operator.eq,
    "Less": operator.lt,
    "Greater": operator.gt,
    "LessOrEqual": operator.le,
    "GreaterOrEqual": operator.ge,
    "And": lambda a, b: a and b,
    "Or": lambda a, b: a or b,
    "Not": operator.not_,
    "Where": _where,
    "Min": _extreme(torch.sym_min),
    "Max": _extreme(torch.sym_max),
    "Ceil": math.ceil,
    "Floor": math.floor,
}


def broadcast(shape_a: Sequence[Number], shape_b: Sequence[Number]) -> list[Number]:
    """The shape that two shapes broadcast to; a 1 of either side takes the other's size."""
    longest = max(len(shape_a), len(shape_b))
    a = [1] * (longest - len(shape_a)) + list(shape_a)
    b = [1] * (longest - len(shape_b)) + list(shape_b)
    return [y if type(x) is int and x == 1 else x for x, y in zip(a, b, strict=True)]
