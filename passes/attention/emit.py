"""Writes the standard Attention for what was read off a graph."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from ...ir.static import same_dim
from ..rewriter import Rewriter
from .dimensions import Dim, reshaped, shape_vector
from .masks import Bias, Filled, bias_dims, emit_bias, lowest_number, lowest_of
from .operands import Operand
from .scores import Scores, Weights


@dataclass(frozen=True)
class Parts:
    """Everything that the operator needs.

    Attributes:
        weights: The softmax and how it is read.
        scores: What it is taken of.
        q: Queries [..., length, size].
        k: Keys [..., key length, size]; heads may be fewer than those of the queries.
        v: Values [..., key length, value size].
        lead: Leading dimensions to compute in, at most batch and heads.
        bias: What is added to the scores, None where nothing is or the causal triangle says it all.
        causal: Whether the mask is the causal one.
        raw: Whether -infinity in the mask stays.
        rotten: Whether rows masked entirely are NaN, where Attention gives zero.
    """

    weights: Weights
    scores: Scores
    q: Operand
    k: Operand
    v: Operand
    lead: tuple[Dim, ...]
    bias: Bias | None
    causal: bool
    raw: bool
    rotten: bool


def emit_attention(node: ir.Node, parts: Parts, rewriter: Rewriter) -> None:
    """Replace the last product of a spelled-out attention by the operator."""
    q, k, v = (_placed(operand, rewriter, node) for operand in (parts.q, parts.k, parts.v))
    for factor, multiplies in parts.scores.factors:
        (scaled,) = rewriter.insert_before(node, "Mul" if multiplies else "Div", [q, factor])
        q = _known(scaled, q.shape)
    scale = parts.scores.scale
    if q.dtype == ir.DataType.DOUBLE and scale != float(np.float32(scale)):
        # The attribute holds a float only.
        number = rewriter.initializer(f"{node.name}/scale", np.asarray(scale, np.float64))
        (scaled,) = rewriter.insert_before(node, "Mul", [q, number])
        q, scale = _known(scaled, q.shape, q), 1.0
    own = len(parts.q.dims) - 2
    back: list[int | tuple[ir.Value, int]] = [
        *((q, axis) for axis in range(own + 1)),
        (v, own + 1),
    ]
    q, k, v = (_four(value, parts.lead, own, rewriter, node) for value in (q, k, v))
    q, k, v = _one_batch([q, k, v], rewriter, node)
    inputs: list[ir.Value | None] = [q, k, v]
    whole = None
    if parts.bias is not None:
        mask, whole = _mask(parts, rewriter, node)
        inputs.append(_spread(mask, parts.bias, q, k, rewriter, node))
    (y,) = rewriter.insert_before(node, "Attention", inputs, _attributes(parts, scale, q))
    if whole is not None and parts.rotten:
        (y,) = rewriter.insert_before(node, "Add", [y, _rot(whole, q, rewriter, node)])
    if own != 2:
        y = reshaped(rewriter, node, y, back)
    if parts.weights.turned:
        axes = list(range(own + 2))
        axes[-2:] = [own + 1, own]
        (y,) = rewriter.insert_before(node, "Transpose", [y], {"perm": axes})
    operands = [value.producer() for value in node.inputs if value is not None]
    rewriter.replace(node, [y])
    for producer in operands:
        rewriter.erase_unread(producer)


def _attributes(parts: Parts, scale: float, q: ir.Value) -> dict[str, float | int]:
    attributes: dict[str, float | int] = {"scale": scale}
    if parts.causal:
        attributes["is_causal"] = 1
    if parts.scores.softcap:
        attributes["softcap"] = parts.scores.softcap
    precision = parts.weights.softmax.outputs[0].dtype
    # Left out, it is float for double operands too.
    if precision is not None and (precision != q.dtype or precision == ir.DataType.DOUBLE):
        attributes["softmax_precision"] = int(precision)
    return attributes


def _known(
    value: ir.Value, dims: ir.Shape | tuple[Dim, ...] | None, like: ir.Value | None = None
) -> ir.Value:
    """A new value told its shape, so that later steps can read dimensions off it."""
    if dims is not None and value.shape is None:
        value.shape = ir.Shape(list(dims))
    if like is not None and value.type is None:
        value.type = like.type
    return value


def _placed(operand: Operand, rewriter: Rewriter, node: ir.Node) -> ir.Value:
    return _known(operand.emit(rewriter, node), operand.dims, operand.value)


def _four(value: ir.Value, lead: tuple[Dim, ...], own: int, rewriter: Rewriter, node: ir.Node) -> ir.Value:
    """A value of `own` leading dimensions as [batch, heads, length, size]."""
    if own == 2:
        return value
    assert value.shape is not None
    tail = list(value.shape.dims[-2:])
    if own == 1 and len(lead) == 2:
        split = [dim if isinstance(dim, int) else -1 for dim in lead]
        view = reshaped(rewriter, node, value, [*split, (value, 1), (value, 2)])
        return _known(view, (*lead, *tail), value)
    axes = rewriter.initializer(f"{node.name}/axes", _AXES[own])
    (view,) = rewriter.insert_before(node, "Unsqueeze", [value, axes])
    return _known(view, (*value.shape.dims[:own], *[1] * (2 - own), *tail), value)


_AXES = {0: np.array([0, 1], np.int64), 1: np.array([1], np.int64)}


def _one_batch(values: list[ir.Value], rewriter: Rewriter, node: ir.Node) -> list[ir.Value]:
    """Spread those over the batch that have one entry for all of it."""
    shapes = [value.shape for value in values]
    many = next((i for i, shape in enumerate(shapes) if shape is not None and shape[0] != 1), None)
    if many is None:
        return values
    done = []
    for value, shape in zip(values, shapes, strict=True):
        if shape is not None and shape[0] == 1:
            wide = shape_vector(rewriter, node, [(values[many], 0), 1, 1, 1])
            (spread,) = rewriter.insert_before(node, "Expand", [value, wide])
            value = _known(spread, (values[many].shape.dims[0], *shape.dims[1:]), value)  # type: ignore[union-attr]
        done.append(value)
    return done


def _mask(parts: Parts, rewriter: Rewriter, node: ir.Node) -> tuple[ir.Value, ir.Value]:
    """The mask that the operator gets, and the one in which -infinity still stands."""
    bias, dtype = parts.bias, parts.q.value.dtype
    assert bias is not None and dtype is not None
    dims = bias_dims(bias)
    assert dims is not None
    if isinstance(bias, Filled) and bias.inside is None and parts.raw and not parts.rotten:
        whole = bias.condition
        if not bias.keeps:
            (whole,) = rewriter.insert_before(node, "Not", [whole])
    else:
        whole = emit_bias(bias, dtype, rewriter, node)
    if len(parts.q.dims) == 3 and len(dims) == 3 and len(parts.lead) == 1:
        axes = rewriter.initializer(f"{node.name}/axes", _AXES[1])
        (whole,) = rewriter.insert_before(node, "Unsqueeze", [whole, axes])
    floor = lowest_number(dtype)
    lowest = lowest_of(bias, floor)
    if parts.raw or (lowest is not None and lowest >= floor):
        return whole, whole
    number = rewriter.initializer(f"{node.name}/lowest", np.asarray(floor, dtype.numpy()))
    return rewriter.insert_before(node, "Max", [whole, number])[0], whole


def _rot(mask: ir.Value, q: ir.Value, rewriter: Rewriter, node: ir.Node) -> ir.Value:
    """NaN for the rows that hold nothing but -infinity, else 0: [..., rows or 1, 1]."""
    assert q.dtype is not None
    kind = q.dtype.numpy()
    axes = rewriter.initializer(f"{node.name}/axes", np.array([-1], np.int64))
    (top,) = rewriter.insert_before(node, "ReduceMax", [mask, axes], {"keepdims": 1})
    numbers = [
        rewriter.initializer(f"{node.name}/{name}", np.asarray(number, kind))
        for name, number in (("infinity", -np.inf), ("nan", np.nan), ("zero", 0.0))
    ]
    (empty,) = rewriter.insert_before(node, "Equal", [top, numbers[0]])
    return rewriter.insert_before(node, "Where", [empty, numbers[1], numbers[2]])[0]


def _spread(
    mask: ir.Value, bias: Bias, q: ir.Value, k: ir.Value, rewriter: Rewriter, node: ir.Node
) -> ir.Value:
    """The mask with as many rows and columns as there are queries and keys, which ONNX Runtime demands."""
    dims = bias_dims(bias)
    assert dims is not None and q.shape is not None and k.shape is not None
    sizes = (q.shape[2], k.shape[2])
    if len(dims) < 2 or not all(same_dim(a, b) for a, b in zip(dims[-2:], sizes, strict=True)):
        wide = shape_vector(rewriter, node, [(q, 2), (k, 2)])
        (mask,) = rewriter.insert_before(node, "Expand", [mask, wide])
    return mask
