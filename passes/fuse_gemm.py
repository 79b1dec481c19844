"""`fuse-gemm`: a matrix product and the bias behind it become one Gemm."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from ..ir.static import only_reader, producer_of, rank_of, static_shape
from .base import Pass, PassContext
from .registry import register
from .rewriter import Rewriter
from .rules import Rule


@register
@dataclass(frozen=True)
class FuseGemm(Pass):
    """Fuse products of matrices with what surrounds them.

    1. MatMul(A, B) + c = Gemm(A, B, c), for matrices A and B and a bias c that broadcasts to the product.
    2. Gemm(A, B) + c = Gemm(A, B, c), where it has no bias yet.
    3. Gemm(transpose A, B) = Gemm(A, B, transA), B likewise.

    It does not fire where the product has other readers, or where c would broadcast it to a larger shape.
    """

    name: ClassVar[str] = "fuse-gemm"

    def apply(self, model: ir.Model, context: PassContext) -> None:
        """Drive the rules to a fixpoint."""
        context.rewrite(model, ProductPlusBias(), GemmOfTranspose())


class ProductPlusBias(Rule):
    """A B + c = Gemm(A, B, c)."""

    op_types: ClassVar[tuple[str, ...]] = ("Add",)

    def match_and_rewrite(self, node: ir.Node, rewriter: Rewriter) -> bool | str:
        """Take the other operand as bias."""
        for data, other in ((0, 1), (1, 0)):
            product = producer_of(node.inputs[data], "MatMul", "Gemm")
            if product is not None:
                return self._fuse(node, product, node.inputs[other], rewriter)
        return False

    @staticmethod
    def _fuse(node: ir.Node, product: ir.Node, bias: ir.Value | None, rewriter: Rewriter) -> bool | str:
        if product.op_type == "Gemm" and len(product.inputs) > 2 and product.inputs[2] is not None:
            return "the Gemm has a bias already"
        if any(rank_of(value) != 2 for value in product.inputs[:2]):
            return "its operands are not both matrices"
        if not only_reader(product.outputs[0]):
            return f"'{product.outputs[0].name}' has other readers"
        if product.outputs[0].dtype not in _FLOATS:
            return "Gemm takes floats"
        shape, addend = product.outputs[0].shape, static_shape(bias)
        if addend is None or shape is None or bias is None or len(addend) > 2:
            return "the shape of the bias is not known"
        wanted = list(shape)[2 - len(addend) :]
        if any(mine not in (1, theirs) for mine, theirs in zip(addend, wanted, strict=True)):
            return "the bias broadcasts the product"
        attributes = dict(product.attributes)
        inputs = [*product.inputs[:2], bias]
        rewriter.replace(node, rewriter.insert_before(node, "Gemm", inputs, attributes))
        rewriter.erase_unread(product)
        return True


class GemmOfTranspose(Rule):
    """Gemm(transpose A, B) = Gemm(A, B, transA)."""

    op_types: ClassVar[tuple[str, ...]] = ("Gemm",)

    def match_and_rewrite(self, node: ir.Node, rewriter: Rewriter) -> bool | str:
        """Flip the flag instead of moving data."""
        for index, flag in ((0, "transA"), (1, "transB")):
            transpose = producer_of(node.inputs[index], "Transpose")
            if transpose is None or list(transpose.attributes.get_ints("perm", (1, 0))) != [1, 0]:
                continue
            rewriter.set_attribute(node, flag, 1 - node.attributes.get_int(flag, 0))
            rewriter.set_input(node, index, transpose.inputs[0])
            rewriter.erase_unread(transpose)
            return True
        return False


_FLOATS = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.DOUBLE)
