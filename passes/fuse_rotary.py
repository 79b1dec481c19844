"""`fuse-rotary`: rotary position embeddings spelled out become one RotaryEmbedding."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from ..ir.static import constant_ints, producer_of
from .attention.dimensions import dims_of, reshaped, same_dims
from .attention.operands import scaled_by
from .attention.pieces import Piece, piece_of, repeats_itself
from .attention.turned import emit_rotary, placement
from .base import Pass, PassContext
from .registry import register
from .rewriter import Rewriter
from .rules import Rule


@register
@dataclass(frozen=True)
class FuseRotary(Pass):
    """Fuse rotary position embeddings (Su et al., 2021) from their parts into the standard RotaryEmbedding.

    Every pair (a, b) of numbers of a head is turned by an angle: (a cos - b sin, b cos + a sin). Pairs are

    1. the halves of a head, written x cos + [-x2, x1] sin with each angle stored twice (GPT-NeoX, Llama);
    2. the halves, written [x1 cos - x2 sin, x2 cos + x1 sin];
    3. neighbours, written x cos + [-x1, x0, -x3, x2, ...] sin with each angle stored twice (GPT-J);
    4. neighbours, written as parts of complex numbers (the first Llama);
    5. any of them in the first numbers of a head only, the rest joined behind (partial rotary).

    Where angles are stored twice, that is proven from how the table is made. Tables may be constants or
    computed, per batch entry or for all; x is [batch, heads, length, size], [batch, length, heads, size] or
    one head. It does not fire on other types than float and float16, or where sizes of heads are not known.
    """

    name: ClassVar[str] = "fuse-rotary"

    def apply(self, model: ir.Model, context: PassContext) -> None:
        """Drive the rules to a fixpoint; what is not turned is absorbed once the rest is fused."""
        context.rewrite(model, TurnedSum(), TurnedHalves(), TurnedPairs())
        context.rewrite(model, PartlyTurned())


def _operands(node: ir.Node | None, op_type: str) -> tuple[ir.Value, ir.Value] | None:
    if node is None or node.op_type != op_type or len(node.inputs) != 2:
        return None
    first, second = node.inputs
    return (first, second) if first is not None and second is not None else None


def _made(value: ir.Value | None, op_type: str) -> tuple[ir.Value, ir.Value] | None:
    return _operands(producer_of(value, op_type), op_type)


def _both_orders(pair: tuple[ir.Value, ir.Value]) -> Sequence[tuple[ir.Value, ir.Value]]:
    return (pair, (pair[1], pair[0]))


def _negated(value: ir.Value | None) -> ir.Value | None:
    node = producer_of(value, "Neg")
    if node is not None:
        return node.inputs[0]
    scaled = scaled_by(producer_of(value, "Mul"))
    return scaled[0] if scaled is not None and scaled[1] == -1.0 else None


class TurnedSum(Rule):
    """x cos + turned(x) sin = RotaryEmbedding(x)."""

    op_types: ClassVar[tuple[str, ...]] = ("Add",)

    def match_and_rewrite(self, node: ir.Node, rewriter: Rewriter) -> bool | str:
        """Find the turned operand; its pieces tell x."""
        left, right = (_made(value, "Mul") for value in node.inputs)
        if left is None or right is None:
            return False
        for plain, turned in ((left, right), (right, left)):
            for around, sin in _both_orders(turned):
                found = _turned(around)
                if found is None:
                    continue
                for x, cos in _both_orders(plain):
                    if piece_of(x) == found[0]:
                        return self._fuse(node, x, cos, sin, found[1], rewriter)
                return f"'{around.name}' is not turned from what the cosines multiply"
        return False

    @staticmethod
    def _fuse(
        node: ir.Node, x: ir.Value, cos: ir.Value, sin: ir.Value, paired: bool, rewriter: Rewriter
    ) -> bool | str:
        for table in (cos, sin):
            if not repeats_itself(table, -1, paired):
                return f"'{table.name}' is not known to hold every angle twice"
        places = placement(x, [cos, sin], rewriter)
        if isinstance(places, str):
            return places
        emit_rotary(node, x, [cos, sin], places, paired, 2 if paired else 0, rewriter)
        return True


def _turned(value: ir.Value) -> tuple[Piece, bool] | None:
    """What a value [-x2, x1] or [-x1, x0, -x3, x2, ...] is turned from, and whether pairs are neighbours."""
    joined = producer_of(value, "Concat")
    paired = joined is None
    if paired:
        view = producer_of(value, "Reshape")
        joined = producer_of(view.inputs[0], "Concat") if view is not None else None
    dims = dims_of(value)
    if joined is None or dims is None or len(joined.inputs) != 2:
        return None
    rank = len(dims_of(joined.outputs[0]) or ())
    if joined.attributes.get_int("axis", 0) not in (-1, rank - 1):
        return None
    if paired and (
        rank != len(dims) + 1 or not same_dims((dims_of(joined.outputs[0]) or ())[: rank - 2], dims[:-1])
    ):
        return None
    minus, plus = _negated(joined.inputs[0]), joined.inputs[1]
    if paired:
        # The sign may be taken before or behind the view.
        minus = minus if minus is not None else _negated(_column(joined.inputs[0]))
        minus, plus = _column(minus) or minus, _column(plus)
    back, front = piece_of(minus), piece_of(plus)
    if back is None or front is None or back.base is not front.base:
        return None
    return _whole(front, back, paired)


def _whole(first: Piece, second: Piece, paired: bool) -> tuple[Piece, bool] | None:
    """The piece that two pieces make up, as halves or as neighbours."""
    if paired:
        fits = first.step == second.step == 2 and second.start == first.start + 1
        fits = fits and second.stop == first.stop + 1
        return (Piece(first.base, first.start, second.stop), True) if fits else None
    fits = first.step == second.step == 1 and first.stop == second.start
    fits = fits and second.stop - second.start == first.stop - first.start
    return (Piece(first.base, first.start, second.stop), False) if fits else None


def _column(value: ir.Value | None) -> ir.Value | None:
    """Return x of [..., n, 1] made from x [..., n]."""
    node = producer_of(value, "Unsqueeze", "Reshape")
    inner, outer = (dims_of(node.inputs[0]), dims_of(value)) if node is not None else (None, None)
    if node is None or inner is None or outer is None or not same_dims((*inner, 1), outer):
        return None
    return node.inputs[0]


class TurnedHalves(Rule):
    """[x1 cos - x2 sin, x2 cos + x1 sin] = RotaryEmbedding(x)."""

    op_types: ClassVar[tuple[str, ...]] = ("Concat",)

    def match_and_rewrite(self, node: ir.Node, rewriter: Rewriter) -> bool | str:
        """Read both halves."""
        rank = len(dims_of(node.outputs[0]) or ())
        if len(node.inputs) != 2 or not rank or node.attributes.get_int("axis", 0) not in (-1, rank - 1):
            return False
        found = _complex_product(node.inputs[0], node.inputs[1])
        if found is None:
            return False
        first, second, cos, sin = found
        pieces = piece_of(first), piece_of(second)
        if pieces[0] is None or pieces[1] is None or pieces[0].base is not pieces[1].base:
            return "its halves are not those of one tensor"
        whole = _whole(pieces[0], pieces[1], False)
        if whole is None:
            return "its halves are not those of one tensor"
        x = _value_of(whole[0], first)
        if x is None:
            return "the two halves are not all of a tensor"
        places = placement(x, [cos, sin], rewriter)
        if isinstance(places, str):
            return places
        emit_rotary(node, x, [cos, sin], places, False, 1, rewriter)
        return True


class TurnedPairs(Rule):
    """(x0 cos - x1 sin, x0 sin + x1 cos) side by side = RotaryEmbedding(x, interleaved)."""

    op_types: ClassVar[tuple[str, ...]] = ("Reshape",)

    def match_and_rewrite(self, node: ir.Node, rewriter: Rewriter) -> bool | str:
        """Read real and imaginary parts."""
        joined = producer_of(node.inputs[0], "Concat")
        outer, inner = dims_of(node.outputs[0]), dims_of(node.inputs[0])
        if joined is None or outer is None or inner is None or len(joined.inputs) != 2 or inner[-1] != 2:
            return False
        if joined.attributes.get_int("axis", 0) not in (-1, len(inner) - 1) or not same_dims(
            inner[:-2], outer[:-1]
        ):
            return False
        found = _complex_product(_column(joined.inputs[0]), _column(joined.inputs[1]))
        found = found or _complex_product(joined.inputs[0], joined.inputs[1])
        if found is None:
            return False
        first, second, cos, sin = found
        x = _of_pairs(first, second)
        view = None if x is not None else _pairs(first, second)
        if view is not None:
            # Stands for the heads, which are no value of their own yet, while all else is checked.
            x = ir.Value(name=view.name, shape=_joined(view), type=view.type)
        if x is None:
            return "its parts are not those of one tensor"
        tables = []
        for table in (cos, sin):
            whole = _column(table) if (dims_of(table) or (0,))[-1] == 1 else table
            if whole is None:
                return f"'{table.name}' is not a table of angles"
            tables.append(whole)
        places = placement(x, tables, rewriter)
        if isinstance(places, str):
            return places
        if view is not None:
            x = _merged(view, x, node, rewriter)
        emit_rotary(node, x, tables, places, True, 1, rewriter)
        return True


def _complex_product(
    real: ir.Value | None, imaginary: ir.Value | None
) -> tuple[ir.Value, ir.Value, ir.Value, ir.Value] | None:
    """(a, b, cos, sin) of a cos - b sin and a sin + b cos."""
    minus, plus = _made(real, "Sub"), _made(imaginary, "Add")
    if minus is None or plus is None:
        return None
    first, second, *sums = (_made(value, "Mul") for value in (*minus, *plus))
    if first is None or second is None or None in sums:
        return None
    wanted = {frozenset(each) for each in sums if each is not None}
    for a, cos in _both_orders(first):
        for b, sin in _both_orders(second):
            if wanted == {frozenset((a, sin)), frozenset((b, cos))}:
                return a, b, cos, sin
    return None


def _value_of(piece: Piece, part: ir.Value) -> ir.Value | None:
    """The value that is a piece: its base, or what the parts were cut from."""
    whole = piece_of(piece.base)
    if whole is not None and (whole.start, whole.stop) == (piece.start, piece.stop):
        return piece.base
    node = part.producer()
    source = node.inputs[0] if node is not None and node.op_type in ("Slice", "Split") else None
    return source if source is not None and piece_of(source) == piece else None


def _of_pairs(first: ir.Value, second: ir.Value) -> ir.Value | None:
    """The tensor [..., 2n] whose even elements are `first` and whose odd ones are `second`."""
    a, b = piece_of(first), piece_of(second)
    if a is not None and b is not None and a.base is b.base and a.step == 2:
        whole = _whole(a, b, True)
        return _value_of(whole[0], first) if whole is not None else None
    pairs = _pairs(first, second)
    view = producer_of(pairs, "Reshape")
    inner, outer = (dims_of(view.inputs[0]), dims_of(view.outputs[0])) if view is not None else (None, None)
    if view is None or inner is None or outer is None or not same_dims(inner[:-1], outer[:-2]):
        return None
    return view.inputs[0]


def _pairs(first: ir.Value, second: ir.Value) -> ir.Value | None:
    """The tensor [..., n, 2] from which `first` and `second` are cut."""
    parts = [_part_of_view(value) for value in (first, second)]
    if parts[0] is None or parts[1] is None or parts[0][0] is not parts[1][0]:
        return None
    return parts[0][0] if (parts[0][1], parts[1][1]) == (0, 1) and parts[0][0].shape is not None else None


def _joined(pairs: ir.Value) -> ir.Shape:
    """The shape of pairs [..., n, 2] seen as [..., 2n]."""
    assert pairs.shape is not None
    count = pairs.shape[-2]
    return ir.Shape([*pairs.shape.dims[:-2], 2 * count if isinstance(count, int) else None])


def _merged(pairs: ir.Value, like: ir.Value, node: ir.Node, rewriter: Rewriter) -> ir.Value:
    """The tensor [..., n, 2] as [..., 2n], straight from what it is a view of."""
    assert like.shape is not None
    view = producer_of(pairs, "Reshape")
    source = view.inputs[0] if view is not None and view.inputs[0] is not None else pairs
    known = [dim if isinstance(dim, int) else None for dim in like.shape.dims]
    entries: list[int | tuple[ir.Value, int]] = [
        dim if dim is not None else (-1 if known.count(None) == 1 else (pairs, axis))
        for axis, dim in enumerate(known)
    ]
    value = reshaped(rewriter, node, source, entries)
    value.shape, value.type = like.shape, like.type
    return value


def _part_of_view(value: ir.Value) -> tuple[ir.Value, int] | None:
    """(v, i) of v[..., i] or v[..., i : i + 1], where the last axis of v has two elements."""
    gather = producer_of(value, "Gather")
    if gather is not None and gather.inputs[0] is not None:
        rank, index = len(dims_of(gather.inputs[0]) or ()), constant_ints(gather.inputs[1])
        if index is not None and len(index) == 1 and gather.attributes.get_int("axis", 0) in (-1, rank - 1):
            return gather.inputs[0], index[0] % 2
        return None
    view = producer_of(value, "Squeeze", "Reshape")
    inner = view.inputs[0] if view is not None else value
    piece = piece_of(inner)
    if piece is None or piece.stop - piece.start != 1 or (dims_of(piece.base) or (0,))[-1] != 2:
        return None
    return piece.base, piece.start


class PartlyTurned(Rule):
    """[RotaryEmbedding(first of y), rest of y] = RotaryEmbedding(y, rotary_embedding_dim)."""

    op_types: ClassVar[tuple[str, ...]] = ("Concat",)

    def match_and_rewrite(self, node: ir.Node, rewriter: Rewriter) -> bool | str:
        """Let the operator pass the rest through."""
        rank = len(dims_of(node.outputs[0]) or ())
        turned = producer_of(node.inputs[0], "RotaryEmbedding")
        if turned is None or len(node.inputs) != 2 or rank != 4:
            return False
        if (
            node.attributes.get_int("axis", 0) not in (-1, rank - 1)
            or "rotary_embedding_dim" in turned.attributes
        ):
            return False
        first, rest = piece_of(turned.inputs[0]), piece_of(node.inputs[1])
        if (
            first is None
            or rest is None
            or first.base is not rest.base
            or len(dims_of(first.base) or ()) != 4
        ):
            return "what is joined behind is not the rest of the heads"
        whole, heads = dims_of(first.base), (dims_of(first.base) or (0, 0))[1]
        if (first.start, first.step, rest.step) != (0, 1, 1) or rest.start != first.stop or whole is None:
            return "what is joined behind is not the rest of the heads"
        if rest.stop != whole[-1] or not isinstance(heads, int):
            return "what is joined behind is not the rest of the heads"
        attributes = {**dict(turned.attributes), "rotary_embedding_dim": first.stop, "num_heads": heads}
        inputs = [first.base, *turned.inputs[1:]]
        operands = [value.producer() for value in node.inputs if value is not None]
        rewriter.replace(node, rewriter.insert_before(node, "RotaryEmbedding", inputs, attributes))
        for producer in operands:
            rewriter.erase_unread(producer)
        return True
