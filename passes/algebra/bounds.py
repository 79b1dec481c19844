"""Clip, Relu, and Max and Min with a constant: bounds in a row become one pair."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from ...ir.static import input_of
from ..leftovers import hand_on, supersede
from ..rewriter import Rewriter
from ..rules import Rule
from .broadcasting import fits_without_broadcast, scalar

_BOUNDING = ("Clip", "Max", "Min", "Relu")


@dataclass(frozen=True)
class Interval:
    """min(max(source, low), high); None where there is no bound."""

    source: ir.Value
    low: float | int | None
    high: float | int | None


class BoundOnce(Rule):
    """Clip(Clip(x, a, b), c, d) = Clip(x, a clipped to [c, d], b clipped to [c, d]), for a <= b and c <= d.

    Relu is Clip(x, 0), Max(x, c) is Clip(x, c), Min(x, c) is Clip(x, , c). NaN passes through all of them.
    A Clip without an upper bound turns infinity into the largest number on ONNX Runtime, so that Max and Min
    become a Clip only together.
    """

    op_types: ClassVar[tuple[str, ...]] = _BOUNDING

    def match_and_rewrite(self, node: ir.Node, rewriter: Rewriter) -> bool | str:
        """Bound what the first one bounds."""
        outer = interval_of(node)
        maker = outer.source.producer() if outer is not None else None
        inner = interval_of(maker) if maker is not None else None
        if outer is None or inner is None or maker is None:
            return False
        low, high = _clip(inner.low, outer), _clip(inner.high, outer)
        low = outer.low if inner.low is None else low
        high = outer.high if inner.high is None else high
        if (low, high) == (inner.low, inner.high):
            return hand_on(node, outer.source, rewriter)
        return self._emit(node, maker, Interval(inner.source, low, high), rewriter)

    @staticmethod
    def _emit(node: ir.Node, maker: ir.Node, merged: Interval, rewriter: Rewriter) -> bool | str:
        source = merged.source
        if source.dtype is None:
            return "the type of its input is not known"

        def constant(name: str, number: float | int | None) -> ir.Value | None:
            assert source.dtype is not None
            if number is None:
                return None
            return rewriter.constant_before(
                node, f"{node.name}/{name}", np.array(number, source.dtype.numpy())
            )

        both = merged.low is not None and merged.high is not None
        if both or "Clip" in (node.op_type, maker.op_type):
            bounds = [constant("min", merged.low), constant("max", merged.high)]
            return supersede(node, "Clip", [source, *bounds[: 2 if bounds[1] is not None else 1]], rewriter)
        if merged.low is None:
            return supersede(node, "Min", [source, constant("max", merged.high)], rewriter)
        if merged.low == 0 and "Relu" in (node.op_type, maker.op_type):
            return supersede(node, "Relu", [source], rewriter)
        return supersede(node, "Max", [source, constant("min", merged.low)], rewriter)


def interval_of(node: ir.Node) -> Interval | None:
    """The bounds that a node sets, or None where they are computed, NaN, crossed or tensors."""
    if node.domain not in ("", "ai.onnx") or node.op_type not in _BOUNDING or not node.inputs:
        return None
    if node.op_type == "Relu":
        return None if node.inputs[0] is None else Interval(node.inputs[0], 0, None)
    if node.op_type == "Clip":
        if node.inputs[0] is None:
            return None
        bounds: list[float | int | None] = []
        for index in (1, 2):
            operand = input_of(node, index)
            number = scalar(operand)
            if operand is not None and number is None:
                return None
            bounds.append(None if number is None else number.item())
        return _ordered(Interval(node.inputs[0], *bounds))
    return _of_extremum(node)


def _of_extremum(node: ir.Node) -> Interval | None:
    if len(node.inputs) != 2:
        return None
    for place in (0, 1):
        source, number = node.inputs[place], scalar(node.inputs[1 - place])
        if source is None or number is None or not fits_without_broadcast(source, node.inputs[1 - place]):
            continue
        bound = number.item()
        return _ordered(
            Interval(source, bound, None) if node.op_type == "Max" else Interval(source, None, bound)
        )
    return None


def _ordered(found: Interval) -> Interval | None:
    given = [bound for bound in (found.low, found.high) if bound is not None]
    if not all(isinstance(bound, (int, float)) and not math.isnan(bound) for bound in given):
        return None
    if given != sorted(given):
        return None
    return found


def _clip(bound: float | int | None, outer: Interval) -> float | int | None:
    if bound is None:
        return None
    if outer.low is not None:
        bound = max(bound, outer.low)
    return bound if outer.high is None else min(bound, outer.high)
