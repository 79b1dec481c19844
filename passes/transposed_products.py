"""Rules of `merge-transposes` for products of matrices."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import onnx_ir as ir

from ..ir.static import only_reader, producer_of, rank_of
from .leftovers import supersede
from .permutations import permutation, transposed
from .rewriter import Rewriter
from .rules import Rule

_FLOATS = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.DOUBLE)


class ProductOfTransposes(Rule):
    """A^T B^T = (B A)^T, for the last two axes: one transpose instead of two."""

    op_types: ClassVar[tuple[str, ...]] = ("MatMul",)
    reads: ClassVar[tuple[str, ...]] = ("Transpose",)
    benefit: ClassVar[int] = 3

    def match_and_rewrite(self, node: ir.Node, rewriter: Rewriter) -> bool | str:
        """Multiply the other way round."""
        sides = [_alone(value) for value in node.inputs]
        if any(side is None or not _swaps_matrix(side[1]) for side in sides):
            return False
        left, right = (side[0] for side in sides if side is not None)
        rank = rank_of(node.outputs[0])
        if rank is None or node.inputs[0] is node.inputs[1]:
            return False
        (product,) = rewriter.insert_before(node, "MatMul", [right.inputs[0], left.inputs[0]])
        product.type = node.outputs[0].type
        shape = node.outputs[0].shape
        if shape is not None:
            product.shape = ir.Shape([*shape.dims[:-2], shape.dims[-1], shape.dims[-2]])
        order = [*range(rank - 2), rank - 1, rank - 2]
        rewriter.replace(node, [transposed(product, order, node, rewriter)])
        for transpose in (left, right):
            rewriter.erase_unread(transpose)
        return True


class GemmInsteadOfTranspose(Rule):
    """A^T B = Gemm(A, B, transA), A B^T = Gemm(A, B, transB), for two matrices of floats."""

    op_types: ClassVar[tuple[str, ...]] = ("MatMul",)
    reads: ClassVar[tuple[str, ...]] = ("Transpose",)
    benefit: ClassVar[int] = 2

    def match_and_rewrite(self, node: ir.Node, rewriter: Rewriter) -> bool | str:
        """Set a flag instead of moving data."""
        if any(rank_of(value) != 2 for value in node.inputs):
            return False
        for index, flag in ((0, "transA"), (1, "transB")):
            side = _alone(node.inputs[index])
            if side is None or side[1] != [1, 0]:
                continue
            if node.outputs[0].dtype not in _FLOATS:
                return "Gemm takes floats"
            operands = list(node.inputs)
            operands[index] = side[0].inputs[0]
            return supersede(node, "Gemm", operands, rewriter, {flag: 1})
        return False


class SinkThroughProduct(Rule):
    """P(A) B = P(A B) where P leaves the axis of the sum in place and B has no more axes than a matrix.

    Also with the sides swapped, and P(A) P(B) = P(A B) where P reorders only the axes before the matrices. It
    does not fire where the product is larger than what was transposed.
    """

    op_types: ClassVar[tuple[str, ...]] = ("MatMul",)
    reads: ClassVar[tuple[str, ...]] = ("Transpose",)

    def match_and_rewrite(self, node: ir.Node, rewriter: Rewriter) -> bool | str:
        """Multiply first."""
        sides = [_alone(value) for value in node.inputs]
        found = [side for side in sides if side is not None]
        if not found:
            return False
        perm, rank = found[0][1], len(found[0][1])
        if rank_of(node.outputs[0]) != rank:
            return False
        if len(found) == 2:
            if found[1][1] != perm or perm[-2:] != [rank - 2, rank - 1] or node.inputs[0] is node.inputs[1]:
                return "its operands are transposed in different ways, or within their matrices"
        else:
            place = 0 if sides[0] is not None else 1
            fixed = rank - 1 if place == 0 else rank - 2
            if rank_of(node.inputs[1 - place]) != 2 or perm[fixed] != fixed:
                return "its transposed operand moves the axis of the sum, or the other one is no matrix"
            if not _no_larger(node, place):
                return "the product may be larger than what is transposed"
        operands = [
            value if side is None else side[0].inputs[0]
            for value, side in zip(node.inputs, sides, strict=True)
        ]
        (product,) = rewriter.insert_before(node, "MatMul", operands)
        product.type = node.outputs[0].type
        if node.outputs[0].shape is not None:
            product.shape = ir.Shape([node.outputs[0].shape[perm.index(axis)] for axis in range(rank)])
        rewriter.replace(node, [transposed(product, perm, node, rewriter)])
        for transpose, _ in found:
            rewriter.erase_unread(transpose)
        return True


def _alone(value: ir.Value | None) -> tuple[ir.Node, list[int]] | None:
    """The Transpose that makes `value` for one reader, with its permutation."""
    transpose = producer_of(value, "Transpose")
    if transpose is None or value is None or not only_reader(value) or transpose.inputs[0] is None:
        return None
    perm = permutation(transpose)
    return None if perm is None or len(perm) < 2 else (transpose, perm)


def _swaps_matrix(perm: Sequence[int]) -> bool:
    rank = len(perm)
    return list(perm) == [*range(rank - 2), rank - 1, rank - 2]


def _no_larger(node: ir.Node, place: int) -> bool:
    """Whether multiplying by the matrix does not make the transposed operand larger."""
    matrix = node.inputs[1 - place]
    if matrix is None or matrix.shape is None:
        return False
    before, after = (matrix.shape[0], matrix.shape[1]) if place == 0 else (matrix.shape[1], matrix.shape[0])
    return isinstance(before, int) and isinstance(after, int) and after <= before
