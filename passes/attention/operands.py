"""Queries, keys and values behind constant factors, transposes, views and repeated heads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir

from ...ir.constants import constant_array
from ...ir.static import constant_ints, producer_of, same_dim
from ..rewriter import Rewriter
from .dimensions import Dim, dims_of, reshaped, same_dims

_DEPTH = 4


@dataclass(frozen=True)
class Move:
    """Transpose by `perm`, Reshape or Unsqueeze `node` again, Reshape to `shape`, or Squeeze of `axis`."""

    perm: tuple[int, ...] | None = None
    axis: int | None = None
    node: ir.Node | None = None
    shape: tuple[int | tuple[ir.Value, int], ...] | None = None


@dataclass(frozen=True)
class Operand:
    """A value and what moves its elements into place.

    Attributes:
        value: Where it comes from.
        dims: Its dimensions once moved.
        moves: Applied to `value` in this order.
        factor: A constant that was taken out of it: what it stood for is `factor` times this.
    """

    value: ir.Value
    dims: tuple[Dim, ...]
    moves: tuple[Move, ...] = ()
    factor: float = 1.0

    def emit(self, rewriter: Rewriter, anchor: ir.Node) -> ir.Value:
        """The value, moved."""
        value = self.value
        for move in self.moves:
            if move.perm is not None:
                (value,) = rewriter.insert_before(anchor, "Transpose", [value], {"perm": list(move.perm)})
            elif move.axis is not None:
                axes = rewriter.initializer(f"{anchor.name}/axis", np.array([move.axis], np.int64))
                (value,) = rewriter.insert_before(anchor, "Squeeze", [value, axes])
            elif move.node is not None:
                again = move.node
                inputs = [value, *again.inputs[1:]]
                (value,) = rewriter.insert_before(anchor, again.op_type, inputs, dict(again.attributes))
            else:
                assert move.shape is not None
                value = reshaped(rewriter, anchor, value, move.shape)
        return value

    def transposed(self, perm: Sequence[int]) -> Operand:
        """The operand with its axes permuted; transposes in a row become one."""
        moves, perm = list(self.moves), tuple(perm)
        dims = tuple(self.dims[axis] for axis in perm)
        if moves and moves[-1].perm is not None:
            inner = moves.pop().perm
            assert inner is not None
            perm = tuple(inner[axis] for axis in perm)
        if perm != tuple(range(len(perm))):
            moves.append(Move(perm=perm))
        return replace(self, dims=dims, moves=tuple(moves))


def scalar_of(value: ir.Value | None) -> float | None:
    """The number a constant of one element holds, or None."""
    array = constant_array(value, 1)
    if array is None or array.size != 1 or (array.dtype.kind != "f" and array.dtype.name != "bfloat16"):
        return None
    return float(array.reshape(-1)[0])


def scaled_by(node: ir.Node | None) -> tuple[ir.Value, float] | None:
    """What a product or quotient with a constant number scales, and by what."""
    if node is None or node.op_type not in ("Mul", "Div") or node.domain not in ("", "ai.onnx"):
        return None
    for data, other in ((0, 1), (1, 0)) if node.op_type == "Mul" else ((0, 1),):
        number, value = scalar_of(node.inputs[other]), node.inputs[data]
        constant_dims = dims_of(node.inputs[other])
        if number is None or value is None or constant_dims is None:
            continue
        dims = dims_of(value)
        if dims is None or len(constant_dims) > len(dims) or not np.isfinite(number):
            return None
        if node.op_type == "Mul":
            return value, number
        return (value, 1.0 / number) if number else None
    return None


def unscaled(value: ir.Value) -> Operand | None:
    """An operand without the constant factor in or just above its transposes and views; None: no rank."""
    dims = dims_of(value)
    if dims is None:
        return None
    moves: list[Move] = []
    at = value
    for _ in range(_DEPTH):
        node = at.producer()
        scaled = scaled_by(node)
        if scaled is not None:
            return Operand(scaled[0], dims, _fused(moves), scaled[1])
        if node is None or node.domain not in ("", "ai.onnx") or not node.inputs or node.inputs[0] is None:
            break
        if node.op_type == "Transpose" and dims_of(node.inputs[0]) is not None:
            rank = len(dims_of(node.inputs[0]) or ())
            perm = node.attributes.get_ints("perm", tuple(reversed(range(rank))))
            moves.insert(0, Move(perm=tuple(perm or ())))
        elif node.op_type in ("Reshape", "Unsqueeze"):
            moves.insert(0, Move(node=node))
        else:
            break
        at = node.inputs[0]
    return Operand(value, dims)


def _behind_transpose(operand: Operand) -> Operand:
    """The operand, a Transpose that makes it taken as a move so that others can cancel it."""
    node = producer_of(operand.value, "Transpose")
    source = dims_of(node.inputs[0]) if node is not None else None
    if node is None or source is None or node.inputs[0] is None:
        return operand
    perm = node.attributes.get_ints("perm", tuple(reversed(range(len(source)))))
    moves = _fused([Move(perm=tuple(perm or ())), *operand.moves])
    return replace(operand, value=node.inputs[0], moves=moves)


def _fused(moves: Sequence[Move]) -> tuple[Move, ...]:
    done: list[Move] = []
    for move in moves:
        if done and move.perm is not None and done[-1].perm is not None:
            inner = done.pop().perm
            assert inner is not None
            move = Move(perm=tuple(inner[axis] for axis in move.perm))
        if move.perm is None or move.perm != tuple(range(len(move.perm))):
            done.append(move)
    return tuple(done)


def untransposed(value: ir.Value) -> Operand | None:
    """A value [..., a, b] read as the transpose of an operand [..., b, a]; None: no rank."""
    plain = unscaled(value)
    if plain is None or len(plain.dims) < 2:
        return None
    inner = _through_views(plain)
    if inner is not None:
        return inner
    rank = len(plain.dims)
    return _behind_transpose(plain).transposed([*range(rank - 2), rank - 1, rank - 2])


def _through_views(operand: Operand) -> Operand | None:
    """Torch's Reshape(Transpose(Reshape(x, [-1, b, a]), [0, 2, 1]), [..., a, b]): x as [..., b, a]."""
    if operand.moves:
        return None
    outer = producer_of(operand.value, "Reshape")
    turn = producer_of(outer.inputs[0], "Transpose") if outer is not None else None
    if turn is None or list(turn.attributes.get_ints("perm", ()) or ()) != [0, 2, 1]:
        return None
    inner = producer_of(turn.inputs[0], "Reshape")
    flat, source = dims_of(turn.inputs[0]), dims_of(inner.inputs[0]) if inner is not None else None
    if inner is None or inner.inputs[0] is None or flat is None or source is None or len(source) < 2:
        return None
    a, b = operand.dims[-2:]
    if not (same_dims(source[-2:], flat[-2:]) and same_dims(flat[-2:], (b, a))):
        return None
    dims = (*operand.dims[:-2], b, a)
    found = unscaled(inner.inputs[0])
    assert found is not None
    factor = operand.factor * found.factor
    if same_dims(source, dims):
        return replace(found, dims=dims, factor=factor)
    unknown = [i for i, dim in enumerate(dims[:-2]) if not isinstance(dim, int)]
    if len(unknown) > 1:
        return None
    lead = [dim if isinstance(dim, int) else -1 for dim in dims[:-2]]
    size = len(source)
    tail = [(inner.inputs[0], size - 2), (inner.inputs[0], size - 1)]
    view = Move(shape=(*lead, *tail))
    return Operand(found.value, dims, (*found.moves, view), factor)


def without_repeats(operand: Operand) -> tuple[Operand, int]:
    """Keys or values [batch, heads, length, size] before each head was repeated, and how often it was.

    Spelled Reshape(Expand(Unsqueeze(x, 2), ...)), Expand of a single head, or Gather with the indices
    0 0 1 1 2 2 ... along the heads.
    """
    if len(operand.dims) != 4:
        return operand, 1
    source = operand.value
    if not operand.moves:
        gathered = _gathered_heads(source)
        if gathered is not None:
            return replace(operand, value=gathered[0], dims=gathered[1]), gathered[2]
        single = _single_head(source, operand.dims)
        if single is not None:
            return replace(operand, value=single, dims=dims_of(single) or ()), int(str(operand.dims[1]))
        view = producer_of(source, "Reshape")
        source = view.inputs[0] if view is not None else None  # type: ignore[assignment]
    elif len(operand.moves) > 1 or (operand.moves[0].shape is None and not _is_reshape(operand.moves[0])):
        return operand, 1
    wide = producer_of(source, "Expand", "Tile")
    one = dims_of(wide.inputs[0]) if wide is not None else None
    many = dims_of(source)
    if wide is None or one is None or many is None or (len(one), len(many)) != (5, 5) or one[2] != 1:
        return operand, 1
    repeats, heads = many[2], one[1]
    if not isinstance(repeats, int) or not isinstance(heads, int) or operand.dims[1] != heads * repeats:
        return operand, 1
    x = (*one[:2], *one[3:])
    if not same_dims((*x[:2], repeats, *x[2:]), many):
        return operand, 1
    if not same_dims((x[0], x[2], x[3]), (operand.dims[0], *operand.dims[2:])):
        return operand, 1
    single = producer_of(wide.inputs[0], "Unsqueeze", "Reshape")
    if single is not None and single.inputs[0] is not None and same_dims(dims_of(single.inputs[0]) or (), x):
        return Operand(single.inputs[0], x, (), operand.factor), repeats
    assert wide.inputs[0] is not None
    return Operand(wide.inputs[0], x, (Move(axis=2),), operand.factor), repeats


def _single_head(value: ir.Value, dims: tuple[Dim, ...]) -> ir.Value | None:
    """What [batch, heads, length, size] was expanded from, where that has one head."""
    wide = producer_of(value, "Expand")
    one = dims_of(wide.inputs[0]) if wide is not None else None
    if wide is None or one is None or len(one) != 4 or one[1] != 1 or not isinstance(dims[1], int):
        return None
    return wide.inputs[0] if same_dims((one[0], *one[2:]), (dims[0], *dims[2:])) else None


def _is_reshape(move: Move) -> bool:
    return move.node is not None and move.node.op_type == "Reshape"


def _gathered_heads(value: ir.Value) -> tuple[ir.Value, tuple[Dim, ...], int] | None:
    gather = producer_of(value, "Gather")
    if gather is None or gather.inputs[0] is None or gather.attributes.get_int("axis", 0) not in (1, -3):
        return None
    indices, x = constant_ints(gather.inputs[1]), dims_of(gather.inputs[0])
    if not indices or x is None or len(x) != 4 or not isinstance(x[1], int) or len(indices) % x[1]:
        return None
    repeats = len(indices) // x[1]
    if [index % x[1] for index in indices] != [i // repeats for i in range(len(indices))] or repeats == 1:
        return None
    return gather.inputs[0], x, repeats


def fits(a: Dim, b: Dim) -> bool:
    """Whether dimension `a` is known to be `b`."""
    return same_dim(a, b)
