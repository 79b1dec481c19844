"""Additions and multiplications by constants."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from ...ir.constants import constant_array
from ...ir.static import only_reader, producer_of
from ..leftovers import supersede
from ..rewriter import Rewriter
from ..rules import Rule
from .broadcasting import fits_without_broadcast, scalar, tensor_and_constant

Parts = tuple[ir.Value, np.ndarray]
"""What an operator with a scalar constant computes on, and the constant."""

_WIDE_FLOATS = (ir.DataType.FLOAT, ir.DataType.DOUBLE)
# Factors in this range neither overflow nor underflow where their product would not, but at the very ends.
_SMALLEST, _LARGEST = 2.0**-20, 2.0**20


class SumOfTwo(Rule):
    """Sum(a, b) = a + b."""

    op_types: ClassVar[tuple[str, ...]] = ("Sum",)

    def match_and_rewrite(self, node: ir.Node, rewriter: Rewriter) -> bool | str:
        """Write it as what every other rule looks for."""
        if len(node.inputs) != 2:
            return False
        return supersede(node, "Add", list(node.inputs), rewriter)


class TimesMinusOne(Rule):
    """-1 x = -x;  x / -1 = -x. Exact."""

    op_types: ClassVar[tuple[str, ...]] = ("Mul", "Div")
    reads: ClassVar[tuple[str, ...]] = ("Constant",)

    def match_and_rewrite(self, node: ir.Node, rewriter: Rewriter) -> bool | str:
        """Negate instead."""
        found = tensor_and_constant(node)
        if found is None or (node.op_type == "Div" and found[0] != 0):
            return False
        place, array = found
        source = node.inputs[place]
        if array.dtype.kind not in "fi" or array.size == 0 or array.item(0) != -1 or not np.all(array == -1):
            return False
        return supersede(node, "Neg", [source], rewriter)


class DivideByPowerOfTwo(Rule):
    """x / 2^k = 2^-k x, which rounds in the same way: both are the float nearest to the same number."""

    op_types: ClassVar[tuple[str, ...]] = ("Div",)

    def match_and_rewrite(self, node: ir.Node, rewriter: Rewriter) -> bool | str:
        """Multiply by the reciprocal, where that is exact."""
        divisor = node.inputs[1]
        array = constant_array(divisor, 1 << 16)
        if (
            array is None
            or array.dtype.kind != "f"
            or array.size == 0
            or constant_array(node.inputs[0]) is not None
        ):
            return False
        if not np.isfinite(array).all() or not (array != 0).all():
            return False
        mantissa, _ = np.frexp(array)
        with np.errstate(all="ignore"):
            reciprocal = np.asarray(1 / array, array.dtype)
        tiny = np.finfo(array.dtype).tiny
        if (
            not (np.abs(mantissa) == 0.5).all()
            or not np.isfinite(reciprocal).all()
            or (np.abs(reciprocal) < tiny).any()
        ):
            return False
        factor = rewriter.constant_before(node, f"{node.name}/reciprocal", reciprocal)
        return supersede(node, "Mul", [node.inputs[0], factor], rewriter)


class ScaleOnce(Rule):
    """c (d x) = (c d) x, and likewise for quotients, with one rounding less.

    Only for scalars between 2^-20 and 2^20 in float32 or wider, so that no intermediate result overflows or
    loses bits that the other order keeps, and for integers, which wrap around in either order (products).
    """

    op_types: ClassVar[tuple[str, ...]] = ("Mul", "Div")
    reads: ClassVar[tuple[str, ...]] = ("Mul", "Div")

    def match_and_rewrite(self, node: ir.Node, rewriter: Rewriter) -> bool | str:
        """Multiply the two constants."""
        nested = _nested(node, _factor, self.op_types)
        if nested is None:
            return False
        outer, inner_node, inner = nested
        source, dtype = inner[0], inner[0].dtype
        if dtype is None:
            return False
        if dtype.is_integer():
            if "Div" in (node.op_type, inner_node.op_type):
                return False
            with np.errstate(all="ignore"):
                product = np.asarray(inner[1] * outer[1])
        elif dtype in _WIDE_FLOATS:
            first, second = _scale(inner_node, inner[1]), _scale(node, outer[1])
            if not all(_SMALLEST <= abs(each) <= _LARGEST for each in (first, second, first * second)):
                return "its factors are too far apart to be multiplied ahead"
            product = np.asarray(first * second)
        else:
            return "a narrow float would round the product"
        factor = rewriter.constant_before(node, f"{node.name}/factor", np.array(product, dtype.numpy()))
        return supersede(node, "Mul", [source, factor], rewriter)


class ShiftOnce(Rule):
    """(x + c) + d = x + (c + d), for integers (which wrap around), and for floats c and d of the same sign.

    With different signs, what x loses beside the larger one would come back.
    """

    op_types: ClassVar[tuple[str, ...]] = ("Add", "Sub")
    reads: ClassVar[tuple[str, ...]] = ("Add", "Sub")

    def match_and_rewrite(self, node: ir.Node, rewriter: Rewriter) -> bool | str:
        """Add the two constants."""
        nested = _nested(node, _shift, self.op_types)
        if nested is None:
            return False
        outer, _, inner = nested
        source, dtype = inner[0], inner[0].dtype
        if dtype is None:
            return False
        if dtype in _WIDE_FLOATS:
            signs = np.sign([float(inner[1]), float(outer[1])])
            if signs[0] * signs[1] < 0:
                return "its constants have different signs"
        elif not dtype.is_integer():
            return "a narrow float would round the sum"
        with np.errstate(all="ignore"):
            total = inner[1] + outer[1]
        if dtype in _WIDE_FLOATS and not np.isfinite(total):
            return "the sum of its constants is not finite"
        constant = rewriter.constant_before(node, f"{node.name}/shift", np.array(total, dtype.numpy()))
        return supersede(node, "Add", [source, constant], rewriter)


def _nested(
    node: ir.Node, parts: Callable[[ir.Node], Parts | None], kinds: tuple[str, ...]
) -> tuple[Parts, ir.Node, Parts] | None:
    """The parts of a node, the node of the same kind that alone feeds it, and that node's parts."""
    outer = parts(node)
    inner_node = producer_of(outer[0], *kinds) if outer is not None else None
    inner = parts(inner_node) if inner_node is not None else None
    if outer is None or inner is None or inner_node is None or not only_reader(inner_node.outputs[0]):
        return None
    return outer, inner_node, inner


def _factor(node: ir.Node) -> Parts | None:
    """Data and number of a product or a quotient with a scalar constant."""
    return _parts(node, commutes=node.op_type == "Mul")


def _parts(node: ir.Node, *, commutes: bool) -> Parts | None:
    """Data and scalar constant of a node; the constant stands behind unless the operator commutes."""
    for place in (0, 1) if commutes else (0,):
        source, number = node.inputs[place], scalar(node.inputs[1 - place])
        if (
            source is not None
            and number is not None
            and fits_without_broadcast(source, node.inputs[1 - place])
        ):
            return source, number
    return None


def _scale(node: ir.Node, number: np.ndarray) -> float:
    if node.op_type == "Mul":
        return float(number)
    return 1 / float(number) if number != 0 else float("inf")


def _shift(node: ir.Node) -> Parts | None:
    """Data and number of a sum, or of a difference with the number behind."""
    found = _parts(node, commutes=node.op_type == "Add")
    if found is None or node.op_type == "Add":
        return found
    with np.errstate(all="ignore"):
        return found[0], np.asarray(np.zeros_like(found[1]) - found[1])
