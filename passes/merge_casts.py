"""`merge-casts`: a chain of type conversions becomes one, or none where nothing is lost on the way."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from ..ir.static import only_reader, producer_of
from .base import Pass, PassContext
from .leftovers import hand_on, supersede
from .registry import register
from .rewriter import Rewriter
from .rules import Rule

_T = ir.DataType
_SIGNED = {_T.INT8: 8, _T.INT16: 16, _T.INT32: 32, _T.INT64: 64}
_UNSIGNED = {_T.UINT8: 8, _T.UINT16: 16, _T.UINT32: 32, _T.UINT64: 64}
_INTEGER_BITS = _SIGNED | _UNSIGNED
# Bits of the significand, and what each type can be widened to without loss.
_SIGNIFICAND = {_T.FLOAT16: 11, _T.BFLOAT16: 8, _T.FLOAT: 24, _T.DOUBLE: 53}
_WIDER = {
    _T.FLOAT16: {_T.FLOAT, _T.DOUBLE},
    _T.BFLOAT16: {_T.FLOAT, _T.DOUBLE},
    _T.FLOAT: {_T.DOUBLE},
    _T.DOUBLE: set(),
}
_MOVING = (
    *("Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose", "Slice", "Expand", "Tile", "Gather"),
    *("DepthToSpace", "SpaceToDepth"),
)
_LONGEST_WAY = 8


@register
@dataclass(frozen=True)
class MergeCasts(Pass):
    """Merge Cast(Cast(x)), from type A over B to C.

    1. Where B holds every value of A (float16 in float32, int32 in int64, bool in anything), the detour
       changes nothing: Cast(x, C), and x itself where C = A.
    2. Between integers the low bits are kept, so with C no wider than B it is Cast(x, C) as well, and x
       where C = A.
    3. A -> B -> A with only movement of data (Reshape, Transpose, Slice, ...) in between, under 1 or 2: the
       movement is done on x as it is.

    It does not fire where a value may be rounded on the way (float32 -> float16 -> float32), nor on strings
    and types of 8 bits or less that hold fractions.
    """

    name: ClassVar[str] = "merge-casts"

    def rules(self) -> tuple[Rule, ...]:
        """The rules of the list above."""
        return (
            CastOfCast(),
            CastAroundMovement(),
        )

    def apply(self, model: ir.Model, context: PassContext) -> None:
        """Drive the rules to a fixpoint."""
        context.rewrite(model, *self.rules())


def holds(narrow: ir.DataType, wide: ir.DataType) -> bool:
    """Whether type `wide` represents every value of type `narrow` exactly."""
    if narrow == wide:
        return narrow in _INTEGER_BITS or narrow in _SIGNIFICAND or narrow == _T.BOOL
    if narrow == _T.BOOL:
        return wide in _INTEGER_BITS or wide in _SIGNIFICAND
    if narrow in _SIGNIFICAND:
        return wide in _WIDER[narrow]
    bits = _INTEGER_BITS.get(narrow)
    if bits is None:
        return False
    if wide in _INTEGER_BITS:
        if (narrow in _UNSIGNED) == (wide in _UNSIGNED):
            return _INTEGER_BITS[wide] >= bits
        return narrow in _UNSIGNED and _INTEGER_BITS[wide] > bits
    # The lowest signed number is a power of two, which needs no bit more than the others.
    return _SIGNIFICAND.get(wide, 0) >= bits - (narrow not in _UNSIGNED)


def is_detour(first: ir.DataType, via: ir.DataType, last: ir.DataType) -> bool:
    """Whether casting from `first` over `via` to `last` equals casting from `first` to `last`."""
    if holds(first, via):
        return holds(first, first) and (last in _INTEGER_BITS or last in _SIGNIFICAND or last == _T.BOOL)
    integers = all(each in _INTEGER_BITS for each in (first, via, last))
    return integers and _INTEGER_BITS[last] <= _INTEGER_BITS[via]


def _types(inner: ir.Node, outer: ir.Node) -> tuple[ir.DataType, ir.DataType, ir.DataType] | None:
    first = inner.inputs[0].dtype if inner.inputs[0] is not None else None
    via, last = (node.attributes.get_int("to", 0) for node in (inner, outer))
    return None if first is None or not via or not last else (first, _T(via), _T(last))


class CastOfCast(Rule):
    """Cast(Cast(x, B), C) = Cast(x, C)."""

    op_types: ClassVar[tuple[str, ...]] = ("Cast",)

    def match_and_rewrite(self, node: ir.Node, rewriter: Rewriter) -> bool | str:
        """Read what the first of the two reads."""
        inner = producer_of(node.inputs[0], "Cast")
        types = _types(inner, node) if inner is not None else None
        if inner is None or types is None or inner.inputs[0] is None:
            return False
        if not is_detour(*types):
            return f"{types[0].name} -> {types[1].name} -> {types[2].name} may lose something on the way"
        if types[0] == types[2]:
            return hand_on(node, inner.inputs[0], rewriter)
        return supersede(node, "Cast", [inner.inputs[0]], rewriter, {"to": int(types[2])})


class CastAroundMovement(Rule):
    """Cast(M(Cast(x, B)), A) = M(x) for x of type A and M that moves data."""

    op_types: ClassVar[tuple[str, ...]] = ("Cast",)
    benefit: ClassVar[int] = 0

    def match_and_rewrite(self, node: ir.Node, rewriter: Rewriter) -> bool | str:
        """Rebuild the movement in the type of x."""
        moves: list[ir.Node] = []
        value = node.inputs[0]
        while len(moves) < _LONGEST_WAY:
            move = producer_of(value, *_MOVING)
            if move is None or value is None or not only_reader(value):
                break
            moves.append(move)
            value = move.inputs[0]
        inner = producer_of(value, "Cast")
        types = _types(inner, node) if inner is not None and moves else None
        if inner is None or types is None or types[0] != types[2] or not is_detour(*types):
            return False
        moved = inner.inputs[0]
        assert moved is not None
        for move in reversed(moves):
            source_type = moved.type
            (moved,) = rewriter.insert_before(
                node, move.op_type, [moved, *move.inputs[1:]], dict(move.attributes)
            )
            moved.shape, moved.type = move.outputs[0].shape, source_type
        return hand_on(node, moved, rewriter)
