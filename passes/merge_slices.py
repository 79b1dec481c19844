"""`merge-slices`: consecutive Slice, Concat and Split operators on one axis become one or none."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from ..ir.static import constant_ints, input_of, only_reader, producer_of, rank_of
from .base import Pass, PassContext
from .gathers import (
    GatherEverything,
    GatherOfConcat,
    GatherOfGather,
    GatherOfSlice,
    GatherTheOnly,
    UnsqueezeOfGather,
)
from .leftovers import hand_on
from .registry import register
from .rewriter import Rewriter
from .rules import Rule
from .slicing_steps import EmptyOperand, SliceOnce, SplitOfConcat, SplitOfSplit


@register
@dataclass(frozen=True)
class MergeSlices(Pass):
    """Merge operators that cut a tensor up and put it together again.

    1. Concat(.., Concat(a, b), ..) on one axis is one Concat, if the inner one has no other reader.
    2. Concat of all outputs of a Split in order, or of Slices that follow each other without a gap, on one
       axis is the input, or one Slice of it.
    3. Slice(Slice(x)) on one axis with step 1 is one Slice.
    4. A Slice of a Concat that falls into one operand is a Slice of that operand, or the operand itself.
    5. Squeeze(x[i:i+1]) along the same axis is Gather(x, i): one index instead of a cut of length one.
    6. Slice(Slice(x)) on any axes with any steps is one Slice.
    7. Concat leaves out operands of size zero.
    8. Split of a Concat at its seams is its operands; Split of one output of a Split is one Split.
    9. Gather with constant indices from a Gather, Slice or Concat picks from its operand; picking everything
       or the only entry of a new axis picks nothing; Unsqueeze(x[i]) of the same axis is x[[i]].

    Bounds must be constant and the sizes along the axis known.
    """

    name: ClassVar[str] = "merge-slices"

    def rules(self) -> tuple[Rule, ...]:
        """The rules of the list above."""
        return (
            FlattenConcat(),
            ConcatOfPieces(),
            SliceOfSlice(),
            SliceOfConcat(),
            SlicesOnOtherAxes(),
            SqueezeOfSlice(),
            SliceOnce(),
            EmptyOperand(),
            SplitOfConcat(),
            SplitOfSplit(),
            GatherEverything(),
            GatherOfGather(),
            GatherOfSlice(),
            GatherOfConcat(),
            GatherTheOnly(),
            UnsqueezeOfGather(),
        )

    def apply(self, model: ir.Model, context: PassContext) -> None:
        """Drive the rules to a fixpoint."""
        context.rewrite(model, *self.rules())


@dataclass(frozen=True)
class Cut:
    """source[start:stop] along one axis, step 1."""

    source: ir.Value
    axis: int
    start: int
    stop: int


def cut_of(node: ir.Node | None) -> Cut | None:
    """Read a Slice along one axis with constant bounds and step 1; None for anything else."""
    if node is None or node.op_type != "Slice" or node.inputs[0] is None:
        return None
    source, rank = node.inputs[0], rank_of(node.inputs[0])
    starts, stops = constant_ints(input_of(node, 1)), constant_ints(input_of(node, 2))
    axes = constant_ints(input_of(node, 3)) if input_of(node, 3) is not None else [0]
    steps = constant_ints(input_of(node, 4)) if input_of(node, 4) is not None else [1]
    if rank is None or not (starts and stops and axes) or steps is None:
        return None
    if not len(starts) == len(stops) == len(axes) == 1 or any(step != 1 for step in steps):
        return None
    axis = axes[0] % rank
    size = _size(source, axis)
    if size is None:
        return None
    start, stop = (min(max(at + size if at < 0 else at, 0), size) for at in (starts[0], stops[0]))
    return Cut(source, axis, start, max(start, stop))


class FlattenConcat(Rule):
    """Concat(a, Concat(b, c)) = Concat(a, b, c)."""

    op_types: ClassVar[tuple[str, ...]] = ("Concat",)
    reads: ClassVar[tuple[str, ...]] = ("Concat",)
    benefit: ClassVar[int] = 2

    def match_and_rewrite(self, node: ir.Node, rewriter: Rewriter) -> bool | str:
        """Splice the operands of inner concats in."""
        axis = _axis(node)
        inner = {
            value: maker
            for value in node.inputs
            if value is not None
            and only_reader(value)
            and (maker := producer_of(value, "Concat")) is not None
            and _axis(maker) == axis
        }
        if not inner or axis is None:
            return False
        operands = [v for value in node.inputs for v in (inner[value].inputs if value in inner else [value])]  # type: ignore[index]
        rewriter.replace(node, rewriter.insert_before(node, "Concat", operands, {"axis": axis}))
        for maker in inner.values():
            rewriter.erase_unread(maker)
        return True


class ConcatOfPieces(Rule):
    """Concat(x[a:b], x[b:c]) = x[a:c];  Concat(Split(x)) = x."""

    op_types: ClassVar[tuple[str, ...]] = ("Concat",)
    reads: ClassVar[tuple[str, ...]] = ("Slice", "Split")

    def match_and_rewrite(self, node: ir.Node, rewriter: Rewriter) -> bool | str:
        """Find the longest run of neighbouring pieces and replace it by one."""
        axis = _axis(node)
        cuts = [_piece(value, axis) for value in node.inputs]
        for first in range(len(cuts)):
            run = _run(cuts, first)
            if run < 2:
                continue
            whole = _merged(cuts[first : first + run])
            merged = _slice(whole, node, rewriter)
            operands = [*node.inputs[:first], merged, *node.inputs[first + run :]]
            makers = [value.producer() for value in node.inputs[first : first + run] if value is not None]
            if len(operands) == 1:
                hand_on(node, merged, rewriter)
            else:
                rewriter.replace(node, rewriter.insert_before(node, "Concat", operands, {"axis": axis}))
            for maker in dict.fromkeys(makers):
                rewriter.erase_unread(maker)
            return True
        return False


class SliceOfSlice(Rule):
    """x[a:b][c:d] = x[a+c:a+d]."""

    op_types: ClassVar[tuple[str, ...]] = ("Slice",)
    reads: ClassVar[tuple[str, ...]] = ("Slice",)

    def match_and_rewrite(self, node: ir.Node, rewriter: Rewriter) -> bool | str:
        """Read the first source directly."""
        outer = cut_of(node)
        maker = producer_of(node.inputs[0], "Slice")
        inner = cut_of(maker)
        if outer is None or inner is None or maker is None or inner.axis != outer.axis:
            return False
        cut = Cut(inner.source, inner.axis, inner.start + outer.start, inner.start + outer.stop)
        rewriter.replace(node, [_slice(cut, node, rewriter, always=True)])
        rewriter.erase_unread(maker)
        return True


class SliceOfConcat(Rule):
    """Concat(a, b)[i:j] = b[i':j'] where the range lies in b."""

    op_types: ClassVar[tuple[str, ...]] = ("Slice",)
    reads: ClassVar[tuple[str, ...]] = ("Concat",)

    def match_and_rewrite(self, node: ir.Node, rewriter: Rewriter) -> bool | str:
        """Read the operand that holds the range."""
        cut, maker = cut_of(node), producer_of(node.inputs[0], "Concat")
        if cut is None or maker is None or _axis(maker) != cut.axis:
            return False
        begin = 0
        for operand in maker.inputs:
            size = _size(operand, cut.axis)
            if operand is None or size is None:
                return "the size of an operand of the Concat is not known"
            if begin <= cut.start and cut.stop <= begin + size and cut.start < cut.stop:
                inside = Cut(operand, cut.axis, cut.start - begin, cut.stop - begin)
                return hand_on(node, _slice(inside, node, rewriter), rewriter)
            begin += size
        return "the range spans several operands of the Concat"


class SlicesOnOtherAxes(Rule):
    """x[a:b][:, c:d] = x[a:b, c:d]."""

    op_types: ClassVar[tuple[str, ...]] = ("Slice",)
    reads: ClassVar[tuple[str, ...]] = ("Slice",)
    benefit: ClassVar[int] = 0

    def match_and_rewrite(self, node: ir.Node, rewriter: Rewriter) -> bool | str:
        """Cut along all axes at once."""
        inner = producer_of(node.inputs[0], "Slice")
        if inner is None or not only_reader(inner.outputs[0]):
            return False
        first, second = _bounds(inner), _bounds(node)
        if first is None or second is None or {bound[2] for bound in first} & {bound[2] for bound in second}:
            return False
        operands: list[ir.Value | None] = [inner.inputs[0]]
        bounds = np.array([*first, *second], np.int64)
        for column, name in enumerate(("starts", "ends", "axes", "steps")):
            operands.append(rewriter.constant_before(node, f"{node.name}/{name}", bounds[:, column].copy()))
        rewriter.replace(node, rewriter.insert_before(node, "Slice", operands))
        rewriter.erase_unread(inner)
        return True


class SqueezeOfSlice(Rule):
    """Squeeze(x[i:i+1]) = Gather(x, i)."""

    op_types: ClassVar[tuple[str, ...]] = ("Squeeze",)
    reads: ClassVar[tuple[str, ...]] = ("Slice",)

    def match_and_rewrite(self, node: ir.Node, rewriter: Rewriter) -> bool | str:
        """Pick the one index."""
        maker = producer_of(node.inputs[0], "Slice")
        cut, axes = cut_of(maker), constant_ints(input_of(node, 1))
        if maker is None or cut is None or not only_reader(maker.outputs[0]):
            return False
        rank = rank_of(cut.source)
        if rank is None or axes is None or [axis % rank for axis in axes] != [cut.axis]:
            return False
        if cut.stop - cut.start != 1:
            return False
        index = rewriter.constant_before(node, f"{node.name}/index", np.array(cut.start, np.int64))
        rewriter.replace(
            node, rewriter.insert_before(node, "Gather", [cut.source, index], {"axis": cut.axis})
        )
        rewriter.erase_unread(maker)
        return True


def _bounds(node: ir.Node) -> list[tuple[int, int, int, int]] | None:
    """(start, end, axis, step) for each axis that a Slice cuts; None where they are computed."""
    rank = rank_of(node.inputs[0])
    starts, ends = constant_ints(input_of(node, 1)), constant_ints(input_of(node, 2))
    if rank is None or starts is None or ends is None:
        return None
    axes = list(range(len(starts))) if input_of(node, 3) is None else constant_ints(input_of(node, 3))
    steps = [1] * len(starts) if input_of(node, 4) is None else constant_ints(input_of(node, 4))
    if axes is None or steps is None or not len(starts) == len(ends) == len(axes) == len(steps):
        return None
    return [(s, e, a % rank, t) for s, e, a, t in zip(starts, ends, axes, steps, strict=True)]


def _piece(value: ir.Value | None, axis: int | None) -> Cut | None:
    """The part of another tensor that `value` is, along `axis`."""
    maker = value.producer() if value is not None else None
    if maker is None or value is None or axis is None:
        return None
    if maker.op_type == "Split" and maker.inputs[0] is not None:
        rank = rank_of(maker.inputs[0])
        if rank is None or maker.attributes.get_int("axis", 0) % rank != axis:
            return None
        sizes = [_size(output, axis) for output in maker.outputs]
        known = [size for size in sizes if size is not None]
        if len(known) < len(sizes):
            return None
        start = sum(known[: maker.outputs.index(value)])
        return Cut(maker.inputs[0], axis, start, start + known[maker.outputs.index(value)])
    cut = cut_of(maker)
    return cut if cut is not None and cut.axis == axis else None


def _run(cuts: list[Cut | None], first: int) -> int:
    """How many pieces from `first` on follow each other."""
    count = 1
    while first + count < len(cuts):
        left, right = cuts[first + count - 1], cuts[first + count]
        if left is None or right is None or left.source is not right.source or left.stop != right.start:
            break
        count += 1
    return count if cuts[first] is not None else 0


def _merged(cuts: list[Cut | None]) -> Cut:
    first, last = cuts[0], cuts[-1]
    assert first is not None and last is not None
    return Cut(first.source, first.axis, first.start, last.stop)


def _slice(cut: Cut, node: ir.Node, rewriter: Rewriter, *, always: bool = False) -> ir.Value:
    """The cut as a value in front of `node`; the source itself where the cut takes all of it."""
    if not always and (cut.start, cut.stop) == (0, _size(cut.source, cut.axis)):
        return cut.source
    bounds = [
        rewriter.constant_before(node, f"{node.name}/{name}", np.array([entry], np.int64))
        for name, entry in (("starts", cut.start), ("ends", cut.stop), ("axes", cut.axis))
    ]
    (value,) = rewriter.insert_before(node, "Slice", [cut.source, *bounds])
    if cut.source.shape is not None:
        dims = list(cut.source.shape)
        dims[cut.axis] = cut.stop - cut.start
        value.shape = ir.Shape(dims)
    value.type = cut.source.type
    return value


def _axis(node: ir.Node) -> int | None:
    rank = rank_of(node.outputs[0])
    axis = node.attributes.get_int("axis", 0)
    return axis % rank if rank else (axis if axis >= 0 else None)


def _size(value: ir.Value | None, axis: int) -> int | None:
    if value is None or value.shape is None or axis >= len(value.shape):
        return None
    dim = value.shape[axis]
    return dim if isinstance(dim, int) else None
