"""The operator that attention becomes on CPUs: one kernel that never stores the scores.

`blockwise::Attention(q, k, v[, bias])` is softmax(cap(scale q k^T) + bias) v over four axes: batch, heads,
length, size. `bias` has four axes that broadcast. Operands whose attribute `*_inner` is set, and the output
with `out_inner`, lie as (batch, length, heads, size): transposes around attention are then no work at all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from ...ir.static import only_reader, producer_of
from .lazy import Index
from .op import type_of

if TYPE_CHECKING:
    from .anchor_views import AnchorKernel
    from .decompose import Assembler
    from .spec import GroupSpec

DOMAIN = "blockwise"
ATTENTION = f"{DOMAIN}::Attention"
_TURNED = (0, 2, 1, 3)
_FEW_ROWS = 4


@dataclass(frozen=True)
class Heads:
    """A value of (batch, heads, length, size); where `inner` is set heads and length lie the other way."""

    value: ir.Value
    sizes: tuple[int, int, int, int]
    inner: bool = False


@dataclass(frozen=True)
class Parts:
    """An Attention taken apart: `bias` is what is added to the scores, causality apart."""

    q: Heads
    k: Heads
    v: Heads
    bias: ir.Value | None
    bias_shape: tuple[int, ...]
    scale: float
    softcap: float
    causal: bool
    past: int


def suits(new: Assembler, rows: int, shared: bool) -> bool:
    """Whether the kernel serves an Attention, and is estimated to be the faster way.

    Single queries that share their keys are better off as rows of one product.
    """
    if new.target is None or new.target.kind != "llvm" or new.uses(3):
        return False
    inputs = [new.input(position) for position in range(3)]
    if any(
        value is None or value.dtype != ir.DataType.FLOAT or 0 in type_of(value).shape for value in inputs
    ):
        return False
    if new.attr("softmax_precision", int(ir.DataType.FLOAT)) != int(ir.DataType.FLOAT):
        return False
    mask = new.input(3)
    if mask is not None and (
        mask.dtype not in (ir.DataType.FLOAT, ir.DataType.BOOL) or not type_of(mask).shape
    ):
        return False
    return not (shared and rows < _FEW_ROWS)


def heads_of(value: ir.Value, sizes: tuple[int, int, int, int]) -> Heads:
    """A value of four axes as it lies in memory: a transpose of heads and positions is looked through."""
    made = producer_of(value, "Transpose")
    if made is None or made.inputs[0] is None:
        return Heads(value, sizes)
    turned = tuple(made.attributes.get_ints("perm", ()) or ()) == _TURNED
    return Heads(made.inputs[0], sizes, inner=True) if turned else Heads(value, sizes)


def insert(new: Assembler, parts: Parts, out_inner: bool) -> ir.Value:
    """The operator; its output lies as `out_inner` says."""
    batch, heads, rows, _ = parts.q.sizes
    size = parts.v.sizes[3]
    operands = [parts.q.value, parts.k.value, parts.v.value]
    if parts.bias is not None:
        missing = 4 - len(parts.bias_shape)
        wide = np.array([1] * missing + list(parts.bias_shape), np.int64)
        operands.append(new("Reshape", parts.bias, wide) if missing else parts.bias)
    attributes = {
        "q_inner": int(parts.q.inner),
        "k_inner": int(parts.k.inner),
        "v_inner": int(parts.v.inner),
        "out_inner": int(out_inner),
        "causal": int(parts.causal),
        "past": parts.past,
        "scale": float(parts.scale),
        "softcap": float(parts.softcap),
    }
    (made,) = new.rewriter.insert_before(new.node, "Attention", operands, attributes, domain=DOMAIN)
    shape = (batch, rows, heads, size) if out_inner else (batch, heads, rows, size)
    made.type, made.shape = ir.TensorType(ir.DataType.FLOAT), ir.Shape(shape)
    return made


def turned_back(value: ir.Value) -> ir.Node | None:
    """The Transpose that alone reads an output of four axes and puts positions before heads."""
    reader = next(iter(value.consumers()), None)
    if reader is None or reader.op_type != "Transpose" or reader.domain or not only_reader(value):
        return None
    return reader if tuple(reader.attributes.get_ints("perm", ()) or ()) == _TURNED else None


def attention_kernel(spec: GroupSpec) -> AnchorKernel | None:
    """How the kernel's view of the operator relates to it."""
    from .anchor_views import AnchorKernel, as_is, external
    from .kernels.attention import attention
    from .kernels.attention_spec import AttentionSpec

    op = spec.anchor_op
    data = [external(spec, position) for position in range(len(op.inputs))]
    if any(each is None or each[1].layout.channels_last for each in data):
        return None
    flags = {name: bool(op.attr(name)) for name in ("q_inner", "k_inner", "v_inner", "out_inner")}
    batch, heads, rows, size = _sizes(op.input(0).shape, flags["q_inner"])
    _, kv_heads, columns, _ = _sizes(op.input(1).shape, flags["k_inner"])
    *_, value_size = op.input(2).shape
    shape = AttentionSpec(
        batch,
        heads,
        kv_heads,
        rows,
        columns,
        size,
        value_size,
        op.attr("scale"),
        op.attr("softcap"),
        bool(op.attr("causal")),
        op.attr("past"),
        op.input(3).shape if op.has(3) else None,  # type: ignore[arg-type]
        **flags,
    )

    def logical(index: Index) -> Index:
        n, h, row, column = index
        return (n, row, h, column) if shape.out_inner else index

    return AnchorKernel(
        lambda epilogue, target: attention(shape, epilogue, target),
        tuple(each[0] for each in data if each is not None),
        (),
        (batch, heads, rows, value_size),
        logical,
        as_is,
    )


def _sizes(shape: Sequence[int], inner: bool) -> tuple[Any, ...]:
    a, b, c, d = shape
    return (a, c, b, d) if inner else (a, b, c, d)
