"""Reductions with the axes they keep, and reductions in a row."""

from __future__ import annotations

import math
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from ...ir.constants import constant_array
from ...ir.static import constant_ints, input_of, only_reader, producer_of, rank_of
from ..leftovers import hand_on, supersede
from ..rewriter import Rewriter
from ..rules import Rule

_REDUCTIONS = tuple(
    f"Reduce{kind}"
    for kind in ["L1", "L2", "LogSum", "LogSumExp", "Max", "Mean", "Min", "Prod", "Sum", "SumSquare"]
)
_ARGUMENTS = ("ArgMax", "ArgMin")
# Reducing in two steps is reducing in one; a mean of means too, as all groups are of one size.
_IN_STEPS = ("ReduceMax", "ReduceMean", "ReduceMin", "ReduceSum")
_WIDE_FLOATS = (ir.DataType.FLOAT, ir.DataType.DOUBLE)
_OF_ONE_IS_ITSELF = (*_IN_STEPS, "ReduceProd")


class SqueezeReduction(Rule):
    """Squeeze(Reduce(x, axes, keepdims=1), axes) = Reduce(x, axes, keepdims=0); ArgMax and ArgMin alike."""

    op_types: ClassVar[tuple[str, ...]] = ("Squeeze",)

    def match_and_rewrite(self, node: ir.Node, rewriter: Rewriter) -> bool | str:
        """Drop the axes while reducing."""
        reduction = producer_of(node.inputs[0], *_REDUCTIONS, *_ARGUMENTS)
        if reduction is None or not reduction.attributes.get_int("keepdims", 1):
            return False
        axes, rank = reduced_axes(reduction), rank_of(node.inputs[0])
        squeezed = constant_ints(input_of(node, 1))
        if (
            axes is None
            or rank is None
            or squeezed is None
            or {axis % rank for axis in squeezed} != set(axes)
        ):
            return False
        return _reduce_again(node, reduction, rewriter, keepdims=0)


class UnsqueezeReduction(Rule):
    """Unsqueeze(Reduce(x, axes, keepdims=0), axes) = Reduce(x, axes, keepdims=1); ArgMax and ArgMin alike."""

    op_types: ClassVar[tuple[str, ...]] = ("Unsqueeze",)

    def match_and_rewrite(self, node: ir.Node, rewriter: Rewriter) -> bool | str:
        """Keep the axes while reducing."""
        reduction = producer_of(node.inputs[0], *_REDUCTIONS, *_ARGUMENTS)
        if reduction is None or reduction.attributes.get_int("keepdims", 1):
            return False
        axes, rank = reduced_axes(reduction), rank_of(node.outputs[0])
        added = constant_ints(input_of(node, 1))
        if axes is None or rank is None or added is None or {axis % rank for axis in added} != set(axes):
            return False
        return _reduce_again(node, reduction, rewriter, keepdims=1)


class ReduceInOneStep(Rule):
    """Reduce(Reduce(x, a), b) = Reduce(x, a and b), for sums, means, largest and smallest elements."""

    op_types: ClassVar[tuple[str, ...]] = _IN_STEPS

    def match_and_rewrite(self, node: ir.Node, rewriter: Rewriter) -> bool | str:
        """Reduce along all axes at once."""
        inner = producer_of(node.inputs[0], node.op_type)
        if inner is None or not only_reader(inner.outputs[0]):
            return False
        first, second, rank = reduced_axes(inner), reduced_axes(node), rank_of(inner.inputs[0])
        if first is None or second is None or rank is None:
            return "its axes are not constant"
        kept = inner.attributes.get_int("keepdims", 1)
        if kept != node.attributes.get_int("keepdims", 1):
            return "one of the two keeps the axes, the other does not"
        places = list(range(rank)) if kept else [axis for axis in range(rank) if axis not in first]
        axes = sorted({*first, *(places[axis] for axis in second)})
        if not axes:
            return False
        if node.op_type == "ReduceMean" and inner.inputs[0].dtype not in _WIDE_FLOATS:  # type: ignore[union-attr]
            return "a narrow type may not hold the sum over all axes, and integers round each mean"
        operand = rewriter.constant_before(node, f"{node.name}/axes", np.array(axes, np.int64))
        return supersede(node, node.op_type, [inner.inputs[0], operand], rewriter, {"keepdims": kept})


class SumOverCount(Rule):
    """ReduceSum(x) / n = ReduceMean(x), n being how many are summed; or times 1 / n."""

    op_types: ClassVar[tuple[str, ...]] = ("Div", "Mul")
    reads: ClassVar[tuple[str, ...]] = ("ReduceSum",)

    def match_and_rewrite(self, node: ir.Node, rewriter: Rewriter) -> bool | str:
        """Demand known sizes and one number, which is the count of what is summed."""
        for place in (0,) if node.op_type == "Div" else (0, 1):
            total = producer_of(node.inputs[place], "ReduceSum")
            number = constant_array(node.inputs[1 - place], 1)
            if total is not None and number is not None and number.size == 1:
                break
        else:
            return False
        source, axes = total.inputs[0], reduced_axes(total)
        if source is None or source.shape is None or source.dtype not in _WIDE_FLOATS or not axes:
            return False
        sizes = [source.shape[axis] for axis in axes]
        kept = total.attributes.get_int("keepdims", 1)
        rank = len(source.shape) - (0 if kept else len(axes))
        if not all(isinstance(size, int) and size > 0 for size in sizes) or number.ndim > rank:
            return False
        count, given = math.prod(int(size) for size in sizes), float(number.reshape(-1)[0])  # type: ignore[arg-type]
        wanted = count if node.op_type == "Div" else 1 / count
        if not math.isclose(given, wanted, rel_tol=2 * float(np.finfo(number.dtype).eps)):
            return False
        if not only_reader(total.outputs[0]):
            return f"'{total.outputs[0].name}' has other readers"
        operand = rewriter.constant_before(node, f"{node.name}/axes", np.array(axes, np.int64))
        return supersede(node, "ReduceMean", [source, operand], rewriter, {"keepdims": kept})


class ReduceNothing(Rule):
    """The sum (mean, product, largest, smallest) of one number is that number."""

    op_types: ClassVar[tuple[str, ...]] = _OF_ONE_IS_ITSELF

    def match_and_rewrite(self, node: ir.Node, rewriter: Rewriter) -> bool | str:
        """Squeeze instead of reducing along axes of size one; nothing where the axes are kept."""
        source, axes = node.inputs[0], reduced_axes(node)
        if source is None or source.shape is None or axes is None:
            return False
        if any(source.shape[axis] != 1 for axis in axes):
            return False
        kept = node.attributes.get_int("keepdims", 1)
        if kept or not axes:
            return hand_on(node, source, rewriter)
        operand = rewriter.constant_before(node, f"{node.name}/axes", np.array(axes, np.int64))
        return supersede(node, "Squeeze", [source, operand], rewriter)


def reduced_axes(node: ir.Node) -> list[int] | None:
    """The axes of a reduction from the left, sorted; None where they or the rank are not known."""
    rank = rank_of(node.inputs[0])
    if rank is None or rank == 0:
        return None
    if node.op_type in _ARGUMENTS:
        return [node.attributes.get_int("axis", 0) % rank]
    operand = input_of(node, 1)
    axes = constant_ints(operand)
    if operand is not None and axes is None:
        return None
    if not axes:
        nothing = node.attributes.get_int("noop_with_empty_axes", 0)
        return [] if nothing else list(range(rank))
    return sorted({axis % rank for axis in axes})


def _reduce_again(node: ir.Node, reduction: ir.Node, rewriter: Rewriter, *, keepdims: int) -> bool | str:
    if not only_reader(reduction.outputs[0]):
        return f"'{reduction.outputs[0].name}' has other readers"
    attributes = {**reduction.attributes, "keepdims": keepdims}
    return supersede(node, reduction.op_type, list(reduction.inputs), rewriter, attributes)
