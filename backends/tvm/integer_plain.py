"""Integer operators as plain tensor expressions."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from .expressions import cast
from .integer_ops import AVERAGE, CONV, CONV_TRANSPOSE, MATMUL, TABLE, WEIGHT_MATMUL
from .lazy import Index, Lazy, immediate
from .op import Op
from .plain import Plain, convolution, pooling, product_of, transposed_convolution, without_offset


def weight_product(op: Op, a: Lazy, w: Lazy, scale: Lazy | None = None, offset: Lazy | None = None) -> Lazy:
    """A product with weights that are restored where they are read."""
    flip, group = bool(op.attr("transB", 0)), op.attr("group")
    stored = 8 if op.attr("bits") == 4 else 0
    shape = (w.shape[1], w.shape[0]) if flip else w.shape

    def read(index: Index) -> Any:
        value = cast(cast(w.read((index[1], index[0]) if flip else index), "int32") + stored, "float32")
        at = (index[0] // group, index[1])
        value = value * scale.read(at) if scale is not None else value
        return value + offset.read(at) if offset is not None else value

    return product_of(replace(op, type="MatMul"), a, Lazy(shape, "float32", read))


def integer_average(op: Op, x: Lazy) -> Lazy:
    """Average pooling of integers, their zero point taken off."""
    offset = op.attr("zero_point", 0)
    centred = Lazy(
        x.shape, "float32", lambda index: cast(without_offset(x.read(index), offset, "int32"), "float32")
    )
    return pooling(op, centred)


def table(op: Op, x: Lazy, entries: Lazy) -> Lazy:
    """A look-up in 256 entries, ordered by the bits of what is looked up."""

    def read(index: Index) -> Any:
        return entries.read((cast(x.read(index), "int32") & immediate(255, "int32"),))

    return Lazy(op.outputs[0].shape, op.outputs[0].dtype, read)


INTEGER_PLAIN: dict[str, Plain] = {
    CONV: convolution,
    CONV_TRANSPOSE: transposed_convolution,
    MATMUL: product_of,
    AVERAGE: integer_average,
    WEIGHT_MATMUL: weight_product,
    TABLE: table,
}
