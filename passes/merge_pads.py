"""`merge-pads`: paddings in a row become one, or part of the convolution or pooling behind them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from ..ir.constants import constant_array
from ..ir.static import constant_ints, input_of, only_reader, producer_of, rank_of
from .base import Pass, PassContext
from .leftovers import supersede
from .registry import register
from .rewriter import Rewriter
from .rules import Rule
from .signs import never_negative


@register
@dataclass(frozen=True)
class MergePads(Pass):
    """Merge Pad with the Pad, convolution or pooling behind it.

    1. Pad(Pad(x)) with the same number, or both of mode edge, adds up, if none of the pads is negative (a
       crop may cut off what the other one added).
    2. Conv pads with zeros by itself: Conv(Pad(x, 0)) takes the numbers over, if they are on spatial axes
       and not negative.
    3. AveragePool(Pad(x, 0)) likewise, counting the padding (count_include_pad=1), if it had no padding of
       its own or counted that already; LpPool as well.
    4. MaxPool(Pad(x, v)) likewise where v cannot win: minus infinity or the smallest integer, or 0 where x is
       never negative (after Relu, say) and each window sees at least one real number.

    Pads of a pooling must be smaller than its window (the standard wants that), without ceil_mode and
    dilation. With auto_pad SAME the numbers depend on the size: left alone.
    """

    name: ClassVar[str] = "merge-pads"

    def rules(self) -> tuple[Rule, ...]:
        """The rules of the list above."""
        return (
            PadOfPad(),
            ConvOfPad(),
            PoolOfPad(),
        )

    def apply(self, model: ir.Model, context: PassContext) -> None:
        """Drive the rules to a fixpoint."""
        context.rewrite(model, *self.rules())


@dataclass(frozen=True)
class Padding:
    """What a Pad adds: per axis before and behind, and the number (None where the mode is not constant)."""

    node: ir.Node
    before: tuple[int, ...]
    behind: tuple[int, ...]
    value: float | None
    mode: str

    @property
    def crops(self) -> bool:
        """Whether it cuts anything off."""
        return min((*self.before, *self.behind), default=0) < 0


def padding_of(node: ir.Node) -> Padding | str:
    """Read a Pad with constant operands, or say why it cannot be read."""
    rank, given = rank_of(node.inputs[0]), constant_ints(input_of(node, 1))
    axes_input = input_of(node, 3)
    axes = constant_ints(axes_input) if axes_input is not None else list(range(rank or 0))
    if rank is None or given is None or axes is None or len(given) != 2 * len(axes):
        return f"the pads of '{node.name}' are not constant, or its rank is not known"
    before, behind = [0] * rank, [0] * rank
    for place, axis in enumerate(axes):
        before[axis % rank], behind[axis % rank] = given[place], given[place + len(axes)]
    mode = node.attributes.get_string("mode", "constant") or "constant"
    value: float | None = None
    if mode == "constant":
        operand = input_of(node, 2)
        stored = np.zeros(1) if operand is None else constant_array(operand, 1)
        if stored is None or stored.dtype.kind not in "fiu":
            return f"the value of '{node.name}' is not a constant number"
        value = stored.reshape(-1)[0].item() if stored.size else 0
    return Padding(node, tuple(before), tuple(behind), value, mode)


class PadOfPad(Rule):
    """Pad(Pad(x, p), q) = Pad(x, p + q)."""

    op_types: ClassVar[tuple[str, ...]] = ("Pad",)

    def match_and_rewrite(self, node: ir.Node, rewriter: Rewriter) -> bool | str:
        """Add the numbers up."""
        inner = producer_of(node.inputs[0], "Pad")
        if inner is None or not only_reader(inner.outputs[0]):
            return False
        first, second = padding_of(inner), padding_of(node)
        if isinstance(first, str):
            return first
        if isinstance(second, str):
            return second
        if first.mode != second.mode or first.mode not in ("constant", "edge"):
            return f"paddings of modes {first.mode} and {second.mode} do not add up"
        if first.value != second.value:
            return f"'{inner.name}' pads with another number"
        if first.crops or second.crops:
            return "one of the two crops"
        total = np.array([first.before, first.behind], np.int64)
        total += np.array([second.before, second.behind], np.int64)
        pads = rewriter.constant_before(node, f"{node.name}/pads", total.reshape(-1))
        inputs = [inner.inputs[0], pads, *([input_of(node, 2)] if first.mode == "constant" else [])]
        return supersede(node, "Pad", inputs, rewriter, {"mode": first.mode})


class ConvOfPad(Rule):
    """Conv(Pad(x, 0)) = Conv(x, pads)."""

    op_types: ClassVar[tuple[str, ...]] = ("Conv",)

    def match_and_rewrite(self, node: ir.Node, rewriter: Rewriter) -> bool | str:
        """Let the convolution pad."""
        found = _zero_cost_padding(node)
        if not isinstance(found, Padding):
            return found
        if found.value != 0:
            return f"'{found.node.name}' does not pad with zeros"
        _take_over(node, found, rewriter)
        return True


class PoolOfPad(Rule):
    """Pool(Pad(x)) = Pool(x, pads)."""

    op_types: ClassVar[tuple[str, ...]] = ("AveragePool", "LpPool", "MaxPool")

    def match_and_rewrite(self, node: ir.Node, rewriter: Rewriter) -> bool | str:
        """Let the pooling pad."""
        found = _zero_cost_padding(node)
        if not isinstance(found, Padding):
            return found
        own, kernel = _own_pads(node, len(found.before) - 2), node.attributes.get_ints("kernel_shape", ())
        total = [mine + more for mine, more in zip(own, _spatial(found), strict=True)]
        if not kernel or any(pad >= size for pad, size in zip(total, [*kernel, *kernel], strict=True)):
            return "the padding is as large as its window"
        steps = node.attributes.get_ints("dilations", ()) or ()
        if node.attributes.get_int("ceil_mode", 0) or any(step != 1 for step in steps):
            return "it rounds up or is dilated"
        refusal = self._refusal(node, found, own)
        if refusal:
            return refusal
        _take_over(node, found, rewriter)
        if node.op_type == "AveragePool":
            rewriter.set_attribute(node, "count_include_pad", 1)
        return True

    @staticmethod
    def _refusal(node: ir.Node, found: Padding, own: list[int]) -> str | None:
        if node.op_type != "MaxPool":
            if found.value != 0:
                return f"'{found.node.name}' does not pad with zeros"
            counted = node.attributes.get_int("count_include_pad", 0)
            uncounted = any(own) and not counted and node.op_type != "LpPool"
            return "it does not count the padding of its own" if uncounted else None
        if any(output.uses() or output.is_graph_output() for output in node.outputs[1:]):
            return "its indices are read"
        data = found.node.inputs[0]
        if found.value == _lowest(data) or (found.value == 0 and never_negative(data)):
            return None
        return f"what '{found.node.name}' pads with may be the largest number"


def _zero_cost_padding(node: ir.Node) -> Padding | bool | str:
    """The constant padding on spatial axes in front of a convolution or pooling that may take it over."""
    pad = producer_of(node.inputs[0], "Pad")
    if pad is None:
        return False
    if not only_reader(pad.outputs[0]):
        return f"'{pad.outputs[0].name}' has other readers"
    found = padding_of(pad)
    if isinstance(found, str):
        return found
    if found.mode != "constant":
        return f"'{pad.name}' pads in mode {found.mode}"
    if found.crops or any((*found.before[:2], *found.behind[:2])):
        return f"'{pad.name}' crops, or pads batch or channels"
    if (node.attributes.get_string("auto_pad", "NOTSET") or "NOTSET") not in ("NOTSET", "VALID"):
        return "its own padding depends on the size of its input"
    return found


def _take_over(node: ir.Node, found: Padding, rewriter: Rewriter) -> None:
    own = _own_pads(node, len(found.before) - 2)
    rewriter.set_attribute(node, "auto_pad", None)
    total = [mine + more for mine, more in zip(own, _spatial(found), strict=True)]
    rewriter.set_attribute(node, "pads", total)
    rewriter.set_input(node, 0, found.node.inputs[0])
    rewriter.erase_unread(found.node)


def _own_pads(node: ir.Node, spatial: int) -> list[int]:
    if (node.attributes.get_string("auto_pad", "NOTSET") or "NOTSET") == "VALID":
        return [0] * (2 * spatial)
    return list(node.attributes.get_ints("pads", ()) or [0] * (2 * spatial))


def _spatial(found: Padding) -> list[int]:
    return [*found.before[2:], *found.behind[2:]]


def _lowest(value: ir.Value | None) -> float | None:
    """What a MaxPool pads with."""
    if value is None or value.dtype is None:
        return None
    kind = value.dtype.numpy().kind
    return float(np.iinfo(value.dtype.numpy()).min) if kind in "iu" else -math.inf
