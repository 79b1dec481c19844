"""ONNX Attention as products, a softmax and what is added to the scores."""

from __future__ import annotations

from collections.abc import Sequence
from math import sqrt
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from ...ir.static import producer_of
from ...passes.attention.masks import bounds
from .blockwise import Heads, Parts, heads_of, insert, suits, turned_back
from .op import type_of

if TYPE_CHECKING:
    from .decompose import Assembler


def attention(new: Assembler) -> Sequence[ir.Value | None]:
    """Scaled dot-product attention with ONNX semantics: masks, causality, cached keys, grouped heads.

    Raises:
        CompileError: the lengths of padded keys are given (input 6), or a softmax in another type.
    """
    if new.input(6) is not None:
        raise new.error("nonpad_kv_seqlen is not supported by the TVM backend")
    if new.attr("left_window_size", -1) != -1 or new.attr("right_window_size", -1) != -1:
        raise new.error("sliding windows are not supported by the TVM backend")
    flat = len(new.shape(0)) == 3
    q = _heads(new, 0, new.attr("q_num_heads")) if flat else new.input(0)
    k = _heads(new, 1, new.attr("kv_num_heads")) if flat else new.input(1)
    v = _heads(new, 2, new.attr("kv_num_heads")) if flat else new.input(2)
    k = new("Concat", new.input(4), k, axis=2) if new.input(4) is not None else k
    v = new("Concat", new.input(5), v, axis=2) if new.input(5) is not None else v
    present = [k, v]
    batch, q_heads, rows, size, kv_heads, columns, value_size = _dims(new, flat)
    shared = q_heads != kv_heads
    scale = new.attr("scale") or 1.0 / sqrt(size)
    if suits(new, rows, shared):
        return [_blockwise(new, flat, k, v, scale), *present][: len(new.node.outputs)]
    if shared:
        # Queries that share a head of keys are more rows of one product, so no key is copied.
        grouped = [batch, kv_heads, q_heads // kv_heads * rows]
        q = new("Reshape", q, np.array([*grouped, size], np.int64))
    raw = new("Mul", new("MatMul", q, _columns(new, k)), new.number(scale))
    if shared:
        raw = new("Reshape", raw, np.array([batch, q_heads, rows, columns], np.int64))
    bias = _bias(new, rows, columns)
    softcap = new.attr("softcap", 0.0)
    steps = {0: raw}
    scores = raw
    if softcap:
        scores = new("Mul", new("Tanh", new("Div", scores, new.number(softcap))), new.number(softcap))
    steps[1] = scores
    scores = new("Add", scores, bias) if bias is not None else scores
    steps[2] = scores
    weights = new("Softmax", scores, axis=-1)
    if _may_be_infinite(new.input(3)):
        # A row in which every key is masked is zero, not NaN.
        masked = new("Equal", bias, new.number(float("-inf")))
        weights = new("Where", masked, new.number(0), weights)
    steps[3] = weights
    if shared:
        weights = new("Reshape", weights, np.array([*grouped, columns], np.int64))
    y = new("MatMul", weights, v)
    if shared:
        y = new("Reshape", y, np.array([batch, q_heads, rows, value_size], np.int64))
    if flat:
        turned = new("Transpose", y, perm=[0, 2, 1, 3])
        y = new("Reshape", turned, np.array([batch, rows, q_heads * value_size], np.int64))
    return [y, *present, steps[new.attr("qk_matmul_output_mode", 0)]][: len(new.node.outputs)]


def _blockwise(new: Assembler, flat: bool, k: Any, v: Any, scale: float) -> ir.Value:
    """Attention as one kernel that reads its operands, and writes its output, as they lie around it.

    Args:
        new: what it stands in for.
        flat: whether operands have three axes.
        k: keys as (batch, heads, length, size), cached ones in front.
        v: values likewise.
        scale: factor of the products.
    """
    batch, heads, rows, size, kv_heads, columns, value_size = _dims(new, flat)
    cached = new.input(4) is not None
    sizes = ((heads, rows, size), (kv_heads, columns, size), (kv_heads, columns, value_size))
    operands = []
    for position, (count, length, width) in enumerate(sizes):
        given, whole = new.input(position), (batch, count, length, width)
        assert given is not None
        if position and cached:
            operands.append(Heads((k, v)[position - 1], whole))
        elif flat:
            split = np.array([batch, length, count, width], np.int64)
            operands.append(Heads(new("Reshape", given, split), whole, inner=True))
        else:
            operands.append(heads_of(given, whole))
    parts = Parts(
        operands[0],
        operands[1],
        operands[2],
        bias=_mask(new, columns),
        bias_shape=(*type_of(mask).shape[:-1], columns) if (mask := new.input(3)) is not None else (),
        scale=scale,
        softcap=new.attr("softcap", 0.0),
        causal=bool(new.attr("is_causal", 0)),
        past=new.shape(4)[2] if cached else 0,
    )
    reader = None if flat else turned_back(new.node.outputs[0])
    made = insert(new, parts, out_inner=flat or reader is not None)
    if reader is not None:
        new.rewriter.replace(reader, [made])
    return new("Reshape", made, np.array([batch, rows, heads * value_size], np.int64)) if flat else made


def _may_be_infinite(mask: ir.Value | None) -> bool:
    """Whether a mask can hold -infinity or False, as far as is known."""
    if mask is None:
        return False
    lowest, _ = bounds(mask)
    return mask.dtype == ir.DataType.BOOL or lowest is None or not np.isfinite(lowest)


def _columns(new: Assembler, k: Any) -> ir.Value:
    """Keys as columns; where a Transpose makes the keys, both are one."""
    made = producer_of(k, "Transpose")
    if made is None:
        return new("Transpose", k, perm=[0, 1, 3, 2])
    a, b, c, d = made.attributes.get_ints("perm", (3, 2, 1, 0)) or (3, 2, 1, 0)
    return new("Transpose", made.inputs[0], perm=[a, b, d, c])


def _heads(new: Assembler, position: int, heads: int) -> ir.Value:
    """(batch, sequence, heads * size) -> (batch, heads, sequence, size)."""
    batch, length, width = new.shape(position)
    split = np.array([batch, length, heads, width // heads], np.int64)
    return new("Transpose", new("Reshape", new.input(position), split), perm=[0, 2, 1, 3])


def _dims(new: Assembler, flat: bool) -> tuple[int, ...]:
    """Batch, query heads, query length, head size, key heads, key length with the cache, value size."""
    q, k, v = (new.shape(position) for position in range(3))
    past = new.shape(4)[2] if new.input(4) is not None else 0
    if flat:
        q_heads, kv_heads = new.attr("q_num_heads"), new.attr("kv_num_heads")
        return q[0], q_heads, q[1], q[2] // q_heads, kv_heads, k[1] + past, v[2] // kv_heads
    return q[0], q[1], q[2], q[3], k[1], k[2] + past, v[3]


def _bias(new: Assembler, rows: int, columns: int) -> Any:
    """What is added to the scores: the mask as numbers and the causal triangle."""
    bias = _mask(new, columns)
    if new.attr("is_causal", 0):
        offset = new.shape(4)[2] if new.input(4) is not None else 0
        allowed = np.tril(np.ones((rows, columns), bool), offset)
        triangle = np.where(allowed, 0.0, -np.inf).astype(_type_of_scores(new))
        bias = new("Add", bias, triangle) if bias is not None else triangle
    return bias


def _mask(new: Assembler, columns: int) -> Any:
    """The mask as numbers, keys that it does not reach hidden; None without one."""
    mask = new.input(3)
    if mask is None:
        return None
    dtype = _type_of_scores(new)
    length, bias = type_of(mask).shape[-1], mask
    if mask.dtype == ir.DataType.BOOL:
        bias = new("Where", mask, np.asarray(0, dtype), np.asarray(-np.inf, dtype))
    if length < columns:
        pads = np.zeros(2 * len(type_of(mask).shape), np.int64)
        pads[-1] = columns - length
        bias = new("Pad", bias, pads, np.asarray(-np.inf, dtype))
    return bias


def _type_of_scores(new: Assembler) -> Any:
    source = new.input(0)
    assert source is not None and source.dtype is not None
    return source.dtype.numpy()
