"""Arithmetic around a function, read as a polynomial: every spelling of a formula gives the same one.

An activation such as 0.5 x (1 + erf(x / sqrt 2)) is written in dozens of ways: factors in any order, folded
into one another, distributed over the sum, as quotients. Instead of listing them, a rule starts at the
function in the middle (the center) and compares two polynomials: its argument in x, and the result in x and
t, the center's output.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import ml_dtypes
import numpy as np
import onnx_ir as ir

from ..ir.constants import constant_array
from .rewriter import Rewriter

Exponents = tuple[int, ...]
Polynomial = dict[Exponents, float]
"""Coefficients by the exponents of the atoms."""

_ARITHMETIC = frozenset({"Add", "Sub", "Mul", "Div", "Neg", "Pow"})
_MAX_DEGREE = 4
_MAX_NODES = 16
_MAX_CANDIDATES = 10


@dataclass(frozen=True)
class Surroundings:
    """What stands around a center.

    Attributes:
        x: The value that the argument is a polynomial of.
        argument: The center's argument, a polynomial in x.
        result: A polynomial in x and the center's output.
        last: The node that computes the result.
        covered: All nodes between x and the result, the center included, `last` first.
    """

    x: ir.Value
    argument: Polynomial
    result: Polynomial
    last: ir.Node
    covered: tuple[ir.Node, ...]


def surroundings(center: ir.Node) -> Iterator[Surroundings]:
    """Every way to read what stands around `center`: the farthest x first, for it the nearest result first,
    which is the center's own.

    Only ways in which nothing outside reads an inner value are given.
    """
    t = center.outputs[0]
    for x in _candidates(center.inputs[0]):
        inner: dict[ir.Node, None] = {}
        argument = polynomial(center.inputs[0], [x], inner)
        if argument is None:
            continue
        for last in (center, *_followers(t)):
            covered = dict(inner)
            result = polynomial(last.outputs[0], [x, t], covered)
            if result is None:
                break
            nodes = (last, *(node for node in (center, *covered) if node is not last))
            if _closed(nodes):
                yield Surroundings(x, argument, result, last, nodes)


def polynomial(
    value: ir.Value | None, atoms: Sequence[ir.Value], covered: dict[ir.Node, None]
) -> Polynomial | None:
    """`value` as a polynomial in `atoms`, None where it is none; the nodes on the way are added to `covered`.

    Constants count where they have one element. A node counts against the limit of nodes once; sums of
    sums with themselves are cut off by it long before they grow.
    """
    if value is None:
        return None
    if value in atoms:
        return {tuple(int(atom is value) for atom in atoms): 1.0}
    constant = constant_array(value, 1)
    if constant is not None:
        return {(0,) * len(atoms): float(constant.reshape(-1)[0])} if constant.size == 1 else None
    node = value.producer()
    if node is None or node.domain not in ("", "ai.onnx") or node.op_type not in _ARITHMETIC:
        return None
    covered[node] = None
    if len(covered) > _MAX_NODES:
        return None
    operands: list[Polynomial] = []
    for each in node.inputs:
        term = polynomial(each, atoms, covered) if not operands or each is not node.inputs[0] else operands[0]
        if term is None:
            return None
        operands.append(term)
    left, right = operands[0], operands[-1]
    if node.op_type == "Neg":
        return _scaled(left, -1.0)
    if node.op_type == "Add":
        return _sum(left, right)
    if node.op_type == "Sub":
        return _sum(left, _scaled(right, -1.0))
    if node.op_type == "Mul":
        return _product(left, right)
    number = _number(right)
    if node.op_type == "Div":
        return _scaled(left, 1.0 / number) if number else None
    return _power(left, number)


def close(found: Polynomial, wanted: Polynomial, tolerance: float) -> bool:
    """Whether two polynomials have the same coefficients to a relative tolerance."""
    keys = {key for key, factor in found.items() if factor != 0.0}
    return keys == wanted.keys() and all(
        abs(found[key] - factor) <= tolerance * abs(factor) for key, factor in wanted.items()
    )


def tolerance_of(value: ir.Value) -> float:
    """How far a coefficient may be off: exporters round constants to four digits or to the type at hand."""
    if value.dtype is None or not value.dtype.is_floating_point():
        return 1e-4
    return max(1e-4, 2.0 * float(ml_dtypes.finfo(value.dtype.numpy()).eps))


def same_shape(last: ir.Node, x: ir.Value) -> bool:
    """Whether no constant broadcasts x, as far as the shapes tell."""
    result = last.outputs[0]
    return result.shape is None or x.shape is None or result.shape == x.shape


def first(center: ir.Node, fits: Callable[[Surroundings, float], bool]) -> Surroundings | None:
    """The first way to read the surroundings of `center` that fits."""
    for found in surroundings(center):
        if fits(found, tolerance_of(found.x)) and same_shape(found.last, found.x):
            return found
    return None


def replace(found: Surroundings, result: ir.Value, rewriter: Rewriter) -> None:
    """Let `result` stand for that of the last node, and erase what only it had read."""
    rewriter.replace(found.last, [result])
    for node in found.covered[1:]:
        rewriter.erase_unread(node)


def _candidates(argument: ir.Value | None) -> list[ir.Value]:
    """Values that the argument is computed from by arithmetic, the farthest first."""
    found: dict[ir.Value, None] = {}
    pending = [argument]
    while pending and len(found) < _MAX_CANDIDATES:
        value = pending.pop(0)
        if value is None or value in found or constant_array(value, 1) is not None:
            continue
        found[value] = None
        node = value.producer()
        if node is not None and node.domain in ("", "ai.onnx") and node.op_type in _ARITHMETIC:
            pending.extend(node.inputs)
    return list(reversed(found))


def _followers(value: ir.Value) -> Iterator[ir.Node]:
    """The nodes that compute from `value` one after the other, as long as each result has one reader."""
    for _ in range(_MAX_NODES):
        if len(value.uses()) != 1 or value.is_graph_output():
            return
        (node,) = value.consumers()
        if node.domain not in ("", "ai.onnx") or node.op_type not in _ARITHMETIC:
            return
        if node.graph is not value.graph:
            return
        yield node
        value = node.outputs[0]


def _closed(nodes: Sequence[ir.Node]) -> bool:
    inside = set(nodes)
    return not any(
        value.is_graph_output() or any(user not in inside for user in value.consumers())
        for node in nodes[1:]
        for value in node.outputs
    )


def _sum(left: Polynomial, right: Polynomial) -> Polynomial:
    return {key: left.get(key, 0.0) + right.get(key, 0.0) for key in left | right}


def _scaled(terms: Polynomial, factor: float) -> Polynomial:
    return {key: value * factor for key, value in terms.items()}


def _product(left: Polynomial, right: Polynomial) -> Polynomial | None:
    result: Polynomial = {}
    for a, x in left.items():
        for b, y in right.items():
            key = tuple(np.add(a, b).tolist())
            if sum(key) > _MAX_DEGREE:
                return None
            result[key] = result.get(key, 0.0) + x * y
    return result


def _power(base: Polynomial, exponent: float | None) -> Polynomial | None:
    if exponent is None or exponent != int(exponent) or not 1 <= exponent <= _MAX_DEGREE:
        return None
    result: Polynomial | None = base
    for _ in range(int(exponent) - 1):
        result = _product(result, base) if result is not None else None
    return result


def _number(terms: Polynomial) -> float | None:
    """The value of a polynomial that is a constant."""
    ((key, value), *others) = terms.items() or (((1,), 0.0),)
    return None if others or any(key) else value
