"""`fuse-normalization`: layer and RMS normalization spelled out become one standard operator."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from ..ir.constants import constant_array
from ..ir.static import only_reader, producer_of, rank_of, static_shape
from .base import Pass, PassContext
from .normalization_rules import (
    LayerNorm,
    LayerNormByMoments,
    LayerNormByParts,
    RmsNorm,
    RmsNormByLength,
    WouldCancel,
)
from .registry import register
from .rewriter import Rewriter
from .rules import NoMatch, Rule


@register
@dataclass(frozen=True)
class FuseNormalization(Pass):
    """Fuse LayerNormalization and RMSNormalization from their parts.

    Ba, Kiros and Hinton, 2016; Zhang and Sennrich, 2019. With d = x - mean(x) and v = mean(d^2):

    1. d / sqrt(v + epsilon) = LayerNormalization(x) with scale one. The square may be a power or a product,
       the quotient a product with a reciprocal or a power of -1/2.
    2. x / sqrt(mean(x^2) + epsilon) = RMSNormalization(x) with scale one; sqrt(n) x / |x| is one for n
       elements, without epsilon. Means may be sums by the number of elements.
    3. x r + (b - mean(x) r) = LayerNormalization(x, g, b) with r = g / sqrt(v + epsilon).
    4. A Mul or Add behind with a constant over the normalized axes goes into scale and bias.
    5. Over other axes than the last ones: transpose, normalize, transpose back; channels first become last.
    6. With `cancellation`: 1 and 3 with v = mean(x^2) - mean(x)^2, as Flax writes it.
    7. Cast, normalize with scale one, cast back = normalize in the narrow type, which stashes in float.

    Sizes of the normalized axes must be known. It does not fire where something else reads a value in
    between. Normalization over height and width of images is left to `fuse-group-norm`.
    """

    name: ClassVar[str] = "fuse-normalization"

    cancellation: bool = False
    """Also fuse a variance written as E[x^2] - E[x]^2, which is less exact than the operator."""

    def apply(self, model: ir.Model, context: PassContext) -> None:
        """Drive the rules to a fixpoint; scales and biases follow once the core is fused."""
        moments = LayerNormByMoments() if self.cancellation else WouldCancel()
        cores = [LayerNorm(), LayerNormByParts(), RmsNorm(), RmsNormByLength(), moments]
        context.rewrite(model, *cores, NarrowNorm(), AbsorbScale(), AbsorbBias())


_NORMS = ("LayerNormalization", "RMSNormalization")


class NarrowNorm(Rule):
    """Cast(Norm(Cast(x), 1)) = Norm(x, 1) in the type of x, which computes in float all the same."""

    op_types: ClassVar[tuple[str, ...]] = ("Cast",)

    def match_and_rewrite(self, node: ir.Node, rewriter: Rewriter) -> bool | str:
        """Demand float inside, and one narrower type on both sides."""
        norm = producer_of(node.inputs[0], *_NORMS)
        cast = producer_of(norm.inputs[0], "Cast") if norm is not None else None
        if norm is None or cast is None or cast.inputs[0] is None:
            return NoMatch("no normalization between two casts")
        x = cast.inputs[0]
        if (
            x.dtype not in (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)
            or norm.inputs[0].dtype != ir.DataType.FLOAT
        ):
            return NoMatch("the casts are not from half to float")
        if node.attributes.get_int("to", 0) != x.dtype:
            return NoMatch("the casts do not undo each other")
        scale = constant_array(norm.inputs[1])
        if scale is None or not (scale == 1).all() or len(norm.inputs) > 2:
            return "scale and bias are applied before the cast"
        if not only_reader(norm.outputs[0]):
            return f"'{norm.outputs[0].name}' has other readers"
        ones = rewriter.constant_before(node, f"{norm.name}/scale", scale.astype(x.dtype.numpy()))
        attributes = {**norm.attributes, "stash_type": 1}
        rewriter.replace(node, rewriter.insert_before(node, norm.op_type, [x, ones], attributes))
        rewriter.erase_unread(norm)
        return True


class AbsorbScale(Rule):
    """Norm(x, s, b) * g = Norm(x, s g, b g)."""

    op_types: ClassVar[tuple[str, ...]] = ("Mul",)

    def match_and_rewrite(self, node: ir.Node, rewriter: Rewriter) -> bool | str:
        """Multiply scale and bias."""
        return _absorb(node, _NORMS, lambda s, b, g: (s * g, None if b is None else b * g), rewriter)


class AbsorbBias(Rule):
    """LayerNorm(x, s, b) + c = LayerNorm(x, s, b + c)."""

    op_types: ClassVar[tuple[str, ...]] = ("Add",)

    def match_and_rewrite(self, node: ir.Node, rewriter: Rewriter) -> bool | str:
        """Add to the bias, or make one."""
        return _absorb(
            node, _NORMS[:1], lambda s, b, c: (s, c if b is None else (b + c).astype(b.dtype)), rewriter
        )


def _absorb(node: ir.Node, op_types: tuple[str, ...], combine, rewriter: Rewriter) -> bool | str:  # type: ignore[no-untyped-def]
    """Put the constant operand of `node` into the normalization, or the transposed one, that is the other."""
    for data, other in ((0, 1), (1, 0)):
        transpose = producer_of(node.inputs[data], "Transpose")
        source = transpose.inputs[0] if transpose is not None else node.inputs[data]
        norm, array = producer_of(source, *op_types), constant_array(node.inputs[other])
        if norm is not None and array is not None:
            break
    else:
        return NoMatch("no normalization and constant are its operands")
    inner = [norm.outputs[0]] if transpose is None else [norm.outputs[0], transpose.outputs[0]]
    for each in inner:
        if not only_reader(each):
            return f"'{each.name}' has other readers"
    sizes = static_shape(norm.inputs[1])
    scale = constant_array(norm.inputs[1])
    bias = constant_array(norm.inputs[2]) if len(norm.inputs) > 2 else None
    if sizes is None or scale is None or (bias is None and len(norm.inputs) > 2):
        return "its scale or bias is computed"
    if transpose is not None:
        array = _untransposed(array, transpose)
    full = _over(array, sizes)
    rank = rank_of(node.outputs[0])
    if full is None or rank is None or rank != rank_of(inner[-1]):
        return f"the constant of shape {list(array.shape)} is not one over the normalized axes"
    operands = [norm.inputs[0]]
    for name, parameter in zip(("scale", "bias"), combine(scale, bias, full), strict=True):
        if parameter is not None:
            contents = np.ascontiguousarray(np.broadcast_to(parameter, sizes)).astype(scale.dtype)
            operands.append(rewriter.constant_before(node, f"{norm.name}/{name}", contents))
    (result,) = rewriter.insert_before(node, norm.op_type, operands, dict(norm.attributes))
    result.shape, result.type = norm.outputs[0].shape, norm.outputs[0].type
    if transpose is not None:
        (result,) = rewriter.insert_before(node, "Transpose", [result], dict(transpose.attributes))
    rewriter.replace(node, [result])
    rewriter.erase_unread(transpose if transpose is not None else norm)
    return True


def _untransposed(array: np.ndarray, transpose: ir.Node) -> np.ndarray:
    """A constant that meets the result of a transpose, as it would meet its input."""
    rank = rank_of(transpose.inputs[0]) or 0
    order = list(transpose.attributes.get_ints("perm", range(rank)[::-1]))
    if array.ndim > rank or len(order) != rank:
        return array
    return array.reshape((1,) * (rank - array.ndim) + array.shape).transpose(np.argsort(order))


def _over(array: np.ndarray, sizes: tuple[int, ...]) -> np.ndarray | None:
    """A constant broadcast over the normalized axes; None where it varies over others or does not fit."""
    leading = max(array.ndim - len(sizes), 0)
    if any(dim != 1 for dim in array.shape[:leading]):
        return None
    trailing = array.reshape(array.shape[leading:])
    tail = sizes[len(sizes) - trailing.ndim :]
    if any(trailing.shape[axis] not in (1, wanted) for axis, wanted in enumerate(tail)):
        return None
    return np.broadcast_to(trailing, sizes)
