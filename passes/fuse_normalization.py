"""`fuse-normalization`: layer and RMS normalization spelled out become one standard operator."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from ..ir.constants import constant_array
from ..ir.static import constant_ints, input_of, only_reader, producer_of, rank_of, static_shape
from .available import lacks
from .base import Pass, PassContext
from .matcher import Match, match_pattern
from .pattern_rule import PatternRule
from .patterns import Pattern, any_of, constant, op, value
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
    2. x / sqrt(mean(x^2) + epsilon) = RMSNormalization(x) with scale one.
    3. x r + (b - mean(x) r) = LayerNormalization(x, g, b) with r = g / sqrt(v + epsilon).
    4. A Mul or Add behind with a constant over the normalized axes goes into scale and bias.
    5. Over other axes than the last ones: transpose, normalize, transpose back; channels first become last.
    6. Cast, normalize with scale one, cast back = normalize in the narrow type, which stashes in float.

    Sizes of the normalized axes must be known. It does not fire where something else reads a value in
    between. Normalization over height and width of images is left to `fuse-group-norm`.
    """

    name: ClassVar[str] = "fuse-normalization"

    def apply(self, model: ir.Model, context: PassContext) -> None:
        """Drive the rules to a fixpoint; scales and biases follow once the core is fused."""
        context.rewrite(
            model, LayerNorm(), LayerNormByParts(), RmsNorm(), NarrowNorm(), AbsorbScale(), AbsorbBias()
        )


_x, _epsilon = value("x"), constant("epsilon", scalar=True)
_mean = op("ReduceMean", _x, constant("mean_axes"), name="mean", keepdims=(1, 1))
_centered, _centered_again = op("Sub", _x, _mean), op("Sub", _x, _mean)
_one = constant(equals=1.0, scalar=True)


def _square(operand: Pattern) -> Pattern:
    return any_of(op("Pow", operand, constant(equals=2.0)), op("Mul", operand, operand))


def _power(squared: Pattern, exponent: float) -> Pattern:
    """(mean(squared) + epsilon) to the power of 1/2 or -1/2."""
    variance = op("ReduceMean", squared, constant("axes"), name="variance", keepdims=(1, 1))
    shifted = op("Add", variance, _epsilon, commutative=True)
    written = op("Pow", shifted, constant(equals=exponent, scalar=True))
    if exponent > 0:
        return any_of(op("Sqrt", shifted), written)
    root = any_of(op("Sqrt", shifted), op("Pow", shifted, constant(equals=0.5, scalar=True)))
    return any_of(op("Reciprocal", root), op("Div", _one, root), written)


def _normalized(numerator: Pattern, squared: Pattern) -> Pattern:
    return any_of(
        op("Div", numerator, _power(squared, 0.5)),
        op("Mul", numerator, _power(squared, -0.5), commutative=True),
    )


_NORMS = ("LayerNormalization", "RMSNormalization")


class _Core(PatternRule):
    """A normalization without scale and bias."""

    becomes: ClassVar[str] = "LayerNormalization"

    def check(self, match: Match) -> str | None:
        """Demand known axes of known sizes, the same for mean and variance."""
        axes, x = _axes(match, "axes"), match["x"]
        if match.get("mean_axes") is not None and _axes(match, "mean_axes") != axes:
            return "mean and variance are taken over different axes"
        if not axes or x.shape is None:
            return "the axes or the rank are not known"
        if any(not isinstance(x.shape[axis], int) for axis in axes):
            return "the size of the normalized axes is not known"
        if x.dtype is None or not x.dtype.is_floating_point():
            return "its type is not known to be a float"
        if self.becomes == "LayerNormalization" and len(axes) > 1 and axes == list(range(2, len(x.shape))):
            return "it normalizes whole images, see fuse-group-norm"
        return None

    def match_and_rewrite(self, node: ir.Node, rewriter: Rewriter) -> bool | str:
        """Match only where the operator exists."""
        absent = lacks(rewriter.model, self.becomes)
        if absent is None:
            return super().match_and_rewrite(node, rewriter)
        match, reason = match_pattern(self.pattern, node)
        return NoMatch(reason) if match is None else absent

    def rewrite(self, match: Match, rewriter: Rewriter) -> ir.Value:
        """Emit the operator with a scale of ones, between transposes where the axes are not the last ones."""
        axes, x = _axes(match, "axes"), match["x"]
        return emit_norm(match.root, self.becomes, x, axes or [], _epsilon_of(match), rewriter)


class LayerNorm(_Core):
    """d / sqrt(mean(d^2) + epsilon) = LayerNormalization(x, 1)."""

    pattern = any_of(
        _normalized(_centered, _square(_centered)), _normalized(_centered, _square(_centered_again))
    )


class RmsNorm(_Core):
    """x / sqrt(mean(x^2) + epsilon) = RMSNormalization(x, 1)."""

    pattern = _normalized(_x, _square(_x))
    becomes = "RMSNormalization"

    def check(self, match: Match) -> str | None:
        """Leave what is centered over the same axes to layer normalization."""
        centered = producer_of(match["x"], "Sub")
        mean = producer_of(centered.inputs[1], "ReduceMean") if centered is not None else None
        if centered is not None and mean is not None and mean.inputs[0] is centered.inputs[0]:
            axes, rank = constant_ints(input_of(mean, 1)), rank_of(match["x"]) or 1
            if axes and sorted(axis % rank for axis in axes) == _axes(match, "axes"):
                return NoMatch("it is centered")
        return super().check(match)


_gain = op("Mul", _power(_square(_centered), -0.5), constant("gamma"), commutative=True)


class LayerNormByParts(_Core):
    """x r + (b - mean(x) r) = d r + b with r = g / sqrt(v + epsilon)."""

    pattern = op(
        "Add",
        op("Mul", _x, _gain, commutative=True),
        op("Sub", constant("beta"), op("Mul", _mean, _gain, commutative=True)),
        commutative=True,
    )

    def rewrite(self, match: Match, rewriter: Rewriter) -> ir.Value:
        """Emit core, scale and bias; the latter are absorbed next."""
        core = super().rewrite(match, rewriter)
        core.shape, core.type = match["x"].shape, match["x"].type
        (scaled,) = rewriter.insert_before(match.root, "Mul", [core, match["gamma"]])
        scaled.shape, scaled.type = match.root.outputs[0].shape, core.type
        return rewriter.insert_before(match.root, "Add", [scaled, match["beta"]])[0]


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


def emit_norm(
    anchor: ir.Node, op_type: str, x: ir.Value, axes: list[int], epsilon: float, rewriter: Rewriter
) -> ir.Value:
    """Insert a normalization of `x` over `axes` (sorted, not negative, of known size), with scale one."""
    assert x.shape is not None and x.dtype is not None
    rank = len(x.shape)
    sizes = [int(str(x.shape[axis])) for axis in axes]
    ones = rewriter.constant_before(anchor, f"{anchor.name}/scale", np.ones(sizes, x.dtype.numpy()))
    attributes = {"axis": -len(axes), "epsilon": epsilon}
    order = [axis for axis in range(rank) if axis not in axes] + axes
    if order == list(range(rank)):
        return rewriter.insert_before(anchor, op_type, [x, ones], attributes)[0]
    (moved,) = rewriter.insert_before(anchor, "Transpose", [x], {"perm": order})
    moved.shape, moved.type = ir.Shape([x.shape[axis] for axis in order]), x.type
    (normal,) = rewriter.insert_before(anchor, op_type, [moved, ones], attributes)
    normal.shape, normal.type = moved.shape, x.type
    back = [order.index(axis) for axis in range(rank)]
    return rewriter.insert_before(anchor, "Transpose", [normal], {"perm": back})[0]


def _axes(match: Match, name: str) -> list[int] | None:
    """The reduced axes, sorted, not negative."""
    axes, rank = constant_ints(match[name]), rank_of(match["x"])
    if not axes or rank is None or any(not -rank <= axis < rank for axis in axes):
        return None
    return sorted(axis % rank for axis in axes)


def _epsilon_of(match: Match) -> float:
    return float(match.array("epsilon").reshape(-1)[0])


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
