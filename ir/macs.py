"""Multiply-accumulates of one node, from its shapes."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Iterable

import onnx_ir as ir

Size = int | ir.SymbolicDim
"""A number of elements or operations: an integer, or an expression in symbolic dimensions."""


_DOMAINS = ("", "com.microsoft")


class _UnknownError(Exception):
    """A shape that is needed is not known."""


def node_macs(node: ir.Node) -> tuple[Size | None, str]:
    """Multiply-accumulates of one run of `node`, and why they are not known (empty if they are).

    Operators that are no products of tensors, and those of foreign domains, cost 0. Subgraphs and function
    bodies are not looked into.
    """
    rule = _RULES.get(node.op_type) if node.domain in _DOMAINS else None
    if rule is None:
        return 0, ""
    try:
        return rule(node), ""
    except _UnknownError as error:
        return None, str(error)
    except (TypeError, ValueError) as error:
        return None, f"MACs unknown: {error}"


def _dims(value: ir.Value | None, least: int = 0) -> list[Size]:
    name = "an input" if value is None else f"'{value.name}'"
    if value is None or value.shape is None:
        raise _UnknownError(f"MACs unknown: {name} has no shape")
    if len(value.shape) < least:
        raise _UnknownError(f"MACs unknown: {name} {value.shape} has too few dimensions")
    dims = list(value.shape)
    if any(not isinstance(dim, int) and dim.value is None for dim in dims):
        raise _UnknownError(f"MACs unknown: {name} {value.shape} has unknown dimensions")
    return dims


def _product(dims: Iterable[Size]) -> Size:
    numbers, symbols = 1, []
    for dim in dims:
        if isinstance(dim, int):
            numbers *= dim
        else:
            symbols.append(dim)
    return _symbolic_product(numbers, tuple(symbols)) if numbers and symbols else numbers


@functools.lru_cache(maxsize=4096)
def _symbolic_product(numbers: int, symbols: tuple[ir.SymbolicDim, ...]) -> Size:
    """Symbolic arithmetic is slow, and deep models repeat their layers."""
    result: Size = numbers
    for dim in symbols:
        result = dim * result
    return result


def total(costs: Iterable[Size]) -> Size:
    """The sum of many costs; equal formulas are counted before anything symbolic is added."""
    numbers, formulas = 0, Counter[ir.SymbolicDim]()
    for cost in costs:
        if isinstance(cost, int):
            numbers += cost
        else:
            formulas[cost] += 1
    result: Size = numbers
    for formula, count in formulas.items():
        result = formula * count + result
    return result


def _input(node: ir.Node, index: int) -> ir.Value | None:
    return node.inputs[index] if index < len(node.inputs) else None


def _convolution(weight: int) -> Callable[[ir.Node], Size]:
    """Each output element takes one weight filter `[C/group, k...]`; dilation moves taps, it adds none."""

    def rule(node: ir.Node) -> Size:
        return _product([*_dims(node.outputs[0], 3), *_dims(_input(node, weight), 3)[1:]])

    return rule


def _transposed_convolution(node: ir.Node) -> Size:
    """Each input element is spread over one filter `[M/group, k...]`."""
    return _product([*_dims(_input(node, 0), 3), *_dims(_input(node, 1), 3)[1:]])


def _matmul(left: int, right: int) -> Callable[[ir.Node], Size]:
    def rule(node: ir.Node) -> Size:
        _dims(_input(node, right), 1)
        return _product([*_dims(node.outputs[0]), _dims(_input(node, left), 1)[-1]])

    return rule


def _gemm(node: ir.Node) -> Size:
    a, b = _dims(_input(node, 0), 2), _dims(_input(node, 1), 2)
    transposed = node.attributes.get_int("transB", 0)
    rows = a if not node.attributes.get_int("transA", 0) else a[::-1]
    return _product([*rows, b[0] if transposed else b[1]])


def _einsum(node: ir.Node) -> Size:
    """One product over all labels for each operand after the first (one operand is a mere reduction)."""
    equation = node.attributes.get_string("equation", "").replace(" ", "")
    terms = equation.split("->")[0].split(",")
    if len(terms) < 2:
        return 0
    sizes: dict[str, Size] = {}
    for term, value in zip(terms, node.inputs, strict=False):
        dims = _dims(value)
        named = term.replace("...", "")
        spare = len(dims) - len(named)
        head = len(term.split("...")[0]) if "..." in term else len(named)
        labels = [*named[:head], *(f"...{spare - i}" for i in range(spare)), *named[head:]]
        for label, dim in zip(labels, dims, strict=False):
            if label not in sizes or sizes[label] == 1:
                sizes[label] = dim
    return _product([*sizes.values(), len(terms) - 1])


def _attention(node: ir.Node) -> Size:
    """Scores and their application: batch x heads x queries x keys x (key width + value width)."""
    query, key = _dims(_input(node, 0), 3), _dims(_input(node, 1), 3)
    value = _dims(_input(node, 2), 3)
    heads = node.attributes.get_int("q_num_heads", 0)
    kv_heads = node.attributes.get_int("kv_num_heads", 0) or heads
    if len(query) == 3 and not heads:
        raise _UnknownError("MACs unknown: 3-d inputs without q_num_heads")
    rows = query[:2] if len(query) == 3 else [query[0], query[1], query[2]]
    past = _input(node, 4)
    length: Size = key[-2] if past is None else key[-2] + _dims(past, 4)[2]
    width = query[-1]
    if len(query) == 3:
        # All heads lie side by side; several query heads may share one value head.
        return _product([*rows, length]) * (width + value[-1] * heads // kv_heads)
    return _product([*rows, length]) * (width + value[-1])


def _recurrent(node: ir.Node) -> Size:
    """Every step multiplies with all of W and R, for each sequence of the batch."""
    steps = _product(_dims(_input(node, 0), 3)[:2])
    return _product([steps, _product(_dims(_input(node, 1), 3)) + _product(_dims(_input(node, 2), 3))])


_RULES: dict[str, Callable[[ir.Node], Size]] = {
    "Conv": _convolution(1),
    "FusedConv": _convolution(1),
    "ConvInteger": _convolution(1),
    "DeformConv": _convolution(1),
    "QLinearConv": _convolution(3),
    "ConvTranspose": _transposed_convolution,
    "MatMul": _matmul(0, 1),
    "MatMulInteger": _matmul(0, 1),
    "QLinearMatMul": _matmul(0, 3),
    "Gemm": _gemm,
    "FusedGemm": _gemm,
    "Einsum": _einsum,
    "Attention": _attention,
    "LSTM": _recurrent,
    "GRU": _recurrent,
    "RNN": _recurrent,
}
