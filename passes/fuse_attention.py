"""`fuse-attention`: softmax(q k^T + mask) v spelled out becomes one Attention."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from ..ir.errors import PassError
from ..ir.static import producer_of, same_dim
from .attention.dimensions import Dim, dims_of, same_dims
from .attention.emit import Parts, emit_attention
from .attention.masks import (
    Bias,
    Viewed,
    bias_dims,
    constant_of,
    is_causal,
    lowest_finite,
    lowest_number,
    lowest_of,
    rows_can_be_empty,
    viewable,
)
from .attention.operands import Operand, unscaled, untransposed, without_repeats
from .attention.scores import Scores, Weights, find_softmax, read_scores
from .available import lacks
from .base import Pass, PassContext
from .registry import register
from .rewriter import Rewriter
from .rules import Rule


@register
@dataclass(frozen=True)
class FuseAttention(Pass):
    """Fuse scaled dot-product attention (Vaswani et al., 2017) from its parts into the standard Attention.

    softmax(c tanh(s q k^T / c) + m) v = Attention(q, k, v, m, scale=s, softcap=c), with or without the cap.

    1. Constant factors of q, k and the scores become the scale; factors per head go to q.
    2. What is added to the scores, and Where(keep, scores, -large), become the mask m. A mask that is
       provably the causal one becomes `is_causal`.
    3. Keys and values whose heads were repeated are read as they were before (grouped queries: Ainslie et
       al., 2023), and so are keys that were transposed in several steps.
    4. Concat(past, new) of keys and values becomes past and present of the operator.

    Numbers stay. A row that a finite number masks entirely has equal weights; such numbers are kept apart
    from -infinity, with which the row is NaN here but zero in Attention: unless that is impossible or the
    graph itself turns it into zero, NaN is added again, which costs an Add (`masked_rows`). A low finite
    number in place of a score hides its key: the scores of a row are taken to differ by less. Scores and
    weights must have no other readers, and types be float, float16 or double.
    """

    name: ClassVar[str] = "fuse-attention"
    masked_rows: str = "keep"
    """Rows that -infinity masks entirely: 'keep' their NaN, or let them become 'zero'."""

    hides: float = -1e9
    """A number this low in place of a score hides the key; in float16 -1e4 is enough."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.masked_rows not in ("keep", "zero"):
            raise PassError(
                f"{self.name}: option 'masked_rows' is 'keep' or 'zero', not {self.masked_rows!r}"
            )

    def apply(self, model: ir.Model, context: PassContext) -> None:
        """Drive the rules to a fixpoint."""
        context.rewrite(model, SpelledAttention(self.masked_rows == "zero", self.hides))
        context.rewrite(model, CachedAttention())


_TYPES = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.DOUBLE)


class SpelledAttention(Rule):
    """softmax(q k^T + mask) v = Attention(q, k, v, mask)."""

    op_types: ClassVar[tuple[str, ...]] = ("MatMul",)

    def __init__(self, zero_rows: bool = False, hides: float = -1e9):
        self.zero_rows = zero_rows
        self.hides = hides

    def match_and_rewrite(self, node: ir.Node, rewriter: Rewriter) -> bool | str:
        """Read the parts, check them, emit the operator."""
        parts = self._read(node)
        if not isinstance(parts, Parts):
            return parts
        absent = lacks(rewriter.model, "Attention")
        if absent is not None:
            return absent
        emit_attention(node, parts, rewriter)
        return True

    def _read(self, node: ir.Node) -> Parts | str | bool:
        left, right = node.inputs
        weights, turned = find_softmax(left), False
        if weights is None or weights.turned:
            weights, turned = find_softmax(right), True
        if weights is None or left is None or right is None or weights.turned is not turned:
            return False
        half = node.outputs[0].dtype == ir.DataType.FLOAT16
        hides = max(self.hides, -1e4) if half else self.hides
        scores = read_scores(weights.softmax, hides)
        if scores is None:
            return False
        if isinstance(scores, str):
            return scores
        refusal = _leaks(right if turned else left, weights)
        if refusal is not None:
            return refusal
        lead = (dims_of(right if turned else left) or ())[:-2]
        if not same_dims(scores.levels[0], lead):
            return "the weights are viewed in another shape than the scores"
        if not same_dims(scores.levels[-1], lead):
            scores.bias = None if scores.bias is None else Viewed(scores.bias, scores.levels[-1], lead)
        q, k = unscaled(_input(scores.product, 0)), untransposed(_input(scores.product, 1))
        v = _turned(left) if turned else _plain(right)
        if q is None or k is None or v is None:
            return "the ranks of queries, keys and values are not known"
        scores.scale *= q.factor * k.factor
        return self._check(weights, scores, q, k, v, hides)

    def _check(
        self, weights: Weights, scores: Scores, q: Operand, k: Operand, v: Operand, hides: float
    ) -> Parts | str:
        types = {operand.value.dtype for operand in (q, k, v)}
        if len(types) != 1 or not types <= set(_TYPES):
            return "its operands are not all float, all float16 or all double"
        if scores.scale <= 0:
            return "its scale is not positive"
        rank = len(q.dims)
        if rank > 4 or len(k.dims) != rank or len(v.dims) != rank:
            return f"queries, keys and values of {rank}, {len(k.dims)} and {len(v.dims)} dimensions"
        if not same_dim(k.dims[-2], v.dims[-2]):
            return "keys and values are not known to have the same length"
        if 0 in (*q.dims, *k.dims, *v.dims):
            return "one of its operands is empty"
        if rank == 4:
            heads = _shared_heads(q, k, v)
            if isinstance(heads, str):
                return heads
            k, v = heads
        elif not same_dims(q.dims[:-2], k.dims[:-2]) or not same_dims(q.dims[:-2], v.dims[:-2]):
            return "queries, keys and values are not known to have the same batch"
        mask = self._mask(weights, scores, hides)
        if isinstance(mask, str):
            return mask
        return Parts(weights, scores, q, k, v, *mask)

    def _mask(
        self, weights: Weights, scores: Scores, hides: float
    ) -> tuple[tuple[Dim, ...], Bias | None, bool, bool, bool] | str:
        """The last fields of `Parts`, or why there is no such mask."""
        bias, lead = scores.bias, scores.levels[0]
        if isinstance(bias, Viewed) and len(lead) == 1 and _splits(bias.old):
            # Products over batch and heads as one dimension, masked with both apart.
            lead = bias.old
            bias = bias.inside
        if bias is None:
            return lead, None, False, False, False
        constant = constant_of(bias)
        if constant is not None and not constant.any():
            return lead, None, False, False, False
        if is_causal(bias, hides):
            return lead, None, True, False, False
        dims = bias_dims(bias)
        if dims is None or len(dims) > len(lead) + 2:
            return "the rank of its mask is not known or too large"
        if not _views_are_static(bias):
            return "its mask is viewed in shapes that are not static"
        lowest = lowest_of(bias)
        empty = rows_can_be_empty(bias)
        rotten = lowest == -np.inf and empty and not weights.guarded and not self.zero_rows
        if weights.guarded and lowest is None:
            return "it is not known whether its mask holds -infinity, whose rows become zero"
        raw = lowest == -np.inf
        if rotten:
            # Finite numbers that ONNX Runtime takes for -infinity must be raised; NaN is added in any case.
            least = lowest_finite(bias)
            dtype = scores.product.outputs[0].dtype
            raw = least is not None and dtype is not None and least >= lowest_number(dtype)
        return lead, bias, False, raw, rotten


def _input(node: ir.Node, index: int) -> ir.Value:
    value = node.inputs[index]
    assert value is not None
    return value


def _plain(value: ir.Value) -> Operand | None:
    dims = dims_of(value)
    return None if dims is None else Operand(value, dims)


def _turned(value: ir.Value) -> Operand | None:
    """[..., b, a] read as [..., a, b]."""
    plain = _plain(value)
    if plain is None:
        return None
    rank = len(plain.dims)
    return plain.transposed([*range(rank - 2), rank - 1, rank - 2])


def _leaks(value: ir.Value, weights: Weights) -> str | None:
    """Why the weights must stay in memory, None where only the product reads them."""
    at, readers = value, 1
    while True:
        if len(at.uses()) != readers or at.is_graph_output():
            return f"'{at.name}' has other readers"
        node = at.producer()
        assert node is not None
        if node is weights.softmax:
            return None
        # The guard against NaN reads the weights twice.
        guard = node.op_type == "Where"
        at, readers = _input(node, 2 if guard else 0), 2 if guard else 1


def _shared_heads(q: Operand, k: Operand, v: Operand) -> tuple[Operand, Operand] | str:
    """Keys and values with as many heads as they really have."""
    (k_once, k_times), (v_once, v_times) = without_repeats(k), without_repeats(v)
    alike = k_times == v_times and k_times > 1 and same_dim(k_once.dims[1], v_once.dims[1])
    # One head for all queries may be repeated in one of the two and left to broadcasting in the other.
    if alike or (k_once.dims[1] == v_once.dims[1] == 1 and max(k_times, v_times) > 1):
        k, v = k_once, v_once
    if not same_dim(k.dims[1], v.dims[1]):
        return "keys and values are not known to have the same number of heads"
    heads, shared = q.dims[1], k.dims[1]
    if not same_dim(heads, shared) and not (isinstance(heads, int) and isinstance(shared, int)):
        return "the numbers of heads are not known"
    if isinstance(heads, int) and isinstance(shared, int) and heads % shared:
        return f"{heads} heads of queries do not share {shared} of keys"
    if (
        isinstance(heads, int)
        and isinstance(shared, int)
        and heads != shared
        and k_times == 1
        and shared != 1
    ):
        return f"{heads} heads of queries and {shared} of keys"
    batches = [operand.dims[0] for operand in (q, k, v)]
    if not all(
        same_dim(a, b) or 1 in (a, b) for a, b in zip(batches, batches[1:] + batches[:1], strict=True)
    ):
        return "queries, keys and values are not known to have the same batch"
    return k, v


def _splits(lead: tuple[Dim, ...]) -> bool:
    return len(lead) == 2 and isinstance(lead[1], int)


def _views_are_static(bias: Bias) -> bool:
    inside = [part for part in vars(bias).values() if isinstance(part, Bias)]
    return (not isinstance(bias, Viewed) or viewable(bias)) and all(
        _views_are_static(part) for part in inside
    )


class CachedAttention(Rule):
    """Attention(q, Concat(past, new)) with the concatenations kept = Attention with past and present.

    Only without `is_causal`, whose triangle would move with the length of the past.
    """

    op_types: ClassVar[tuple[str, ...]] = ("Attention",)

    def match_and_rewrite(self, node: ir.Node, rewriter: Rewriter) -> bool | str:
        """Let the operator do both concatenations."""
        if len(node.inputs) > 4 or len(node.outputs) > 1:
            return False
        keys, values = (producer_of(node.inputs[index], "Concat") for index in (1, 2))
        if keys is None or values is None or not _extends(keys) or not _extends(values):
            return False
        if node.attributes.get_int("is_causal", 0):
            return "the causal triangle would move with the length of the past"
        for joined in (keys, values):
            if joined.graph is not node.graph or len(joined.outputs[0].uses()) != 1:
                return f"'{joined.outputs[0].name}' has other readers"
        mask = node.inputs[3] if len(node.inputs) > 3 else None
        inputs = [node.inputs[0], keys.inputs[1], values.inputs[1], mask, keys.inputs[0], values.inputs[0]]
        y, key, value = rewriter.insert_before(
            node, "Attention", inputs, dict(node.attributes), num_outputs=3
        )
        rewriter.replace(node, [y])
        rewriter.replace(keys, [key])
        rewriter.replace(values, [value])
        return True


def _extends(concat: ir.Node) -> bool:
    return (
        len(concat.inputs) == 2
        and len(dims_of(concat.outputs[0]) or ()) == 4
        and concat.attributes.get_int("axis", 0) in (2, -2)
    )
