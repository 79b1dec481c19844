"""`fuse-group-norm`: normalization over images, by channels or groups of them, as one standard operator."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from ..ir.constants import constant_array
from ..ir.static import known_equal, only_reader, producer_of, rank_of
from .base import Pass, PassContext
from .matcher import Match
from .normalization_rules import LayerNorm, axes_of, emit_norm, epsilon_of, not_a_mean
from .registry import register
from .rewriter import Rewriter
from .rules import NoMatch, Rule


@register
@dataclass(frozen=True)
class FuseGroupNorm(Pass):
    """Fuse InstanceNormalization and GroupNormalization from their parts.

    Ulyanov, Vedaldi and Lempitsky, 2016; Wu and He, 2018. With d = x - mean(x) over all axes behind the
    channels:

    1. d / sqrt(mean(d^2) + epsilon) = InstanceNormalization(x, 1, 0), for two or more such axes; where a
       scale over height and width follows, LayerNormalization(x).
    2. Reshape(InstanceNormalization(Reshape(x, [N, G, ...]), s, b), shape of x) = GroupNormalization(x) of G
       groups, scale and bias repeated for the channels of each; a LayerNormalization over the last axes
       inside does as well.
    3. A Mul or Add behind with one constant per channel goes into scale and bias.

    The number of channels must be known. It does not fire where something else reads a value in between.
    """

    name: ClassVar[str] = "fuse-group-norm"

    def apply(self, model: ir.Model, context: PassContext) -> None:
        """Drive the rules to a fixpoint."""
        context.rewrite(model, InstanceNorm(), GroupNorm(), AbsorbChannelScale(), AbsorbChannelBias())


_NORMS = ("InstanceNormalization", "GroupNormalization")


class InstanceNorm(LayerNorm):
    """d / sqrt(mean(d^2) + epsilon) = InstanceNormalization(x, 1, 0) over height and width."""

    pattern = LayerNorm.pattern

    def check(self, match: Match) -> str | None:
        """Demand all axes after the second, at least two, and a known number of channels."""
        axes, shape = axes_of(match, "axes"), match["x"].shape
        if axes is None or shape is None or axes_of(match, "mean_axes") != axes:
            return "the axes are not known, or not the same for mean and variance"
        if len(axes) < 2 or axes != list(range(2, len(shape))):
            return NoMatch("it does not normalize whole images")
        refusal = not_a_mean(match, axes)
        if refusal is not None:
            return refusal
        if not isinstance(shape[1], int):
            return "the number of channels is not known"
        dtype = match["x"].dtype
        return (
            None if dtype is not None and dtype.is_floating_point() else "its type is not known to be a float"
        )

    def rewrite(self, match: Match, rewriter: Rewriter) -> ir.Value:
        """Emit the operator that the scale behind it suits."""
        x, root = match["x"], match.root
        assert x.shape is not None and x.dtype is not None
        if _scaled_over_image(root):
            axes = axes_of(match, "axes") or []
            return emit_norm(root, "LayerNormalization", x, axes, epsilon_of(match), rewriter)
        channels = int(str(x.shape[1]))
        parameters = [
            rewriter.constant_before(root, f"{root.name}/{name}", np.full(channels, number, x.dtype.numpy()))
            for name, number in (("scale", 1), ("bias", 0))
        ]
        attributes = {"epsilon": epsilon_of(match)}
        return rewriter.insert_before(root, "InstanceNormalization", [x, *parameters], attributes)[0]


def _scaled_over_image(root: ir.Node) -> bool:
    """Whether a constant that varies over height and width is multiplied to the result."""
    result = root.outputs[0]
    for user in result.consumers() if only_reader(result) else ():
        for value in user.inputs:
            array = constant_array(value) if user.op_type == "Mul" and value is not result else None
            if array is not None and any(dim != 1 for dim in array.shape[-2:]):
                return all(isinstance(dim, int) for dim in (result.shape or ())[2:])
    return False


class GroupNorm(Rule):
    """Reshape, normalize each group, reshape back = GroupNormalization."""

    op_types: ClassVar[tuple[str, ...]] = ("Reshape",)

    def match_and_rewrite(self, node: ir.Node, rewriter: Rewriter) -> bool | str:
        """Look for a normalization between two reshapes."""
        norm = producer_of(node.inputs[0], "InstanceNormalization", "LayerNormalization")
        grouping = producer_of(norm.inputs[0], "Reshape") if norm is not None else None
        if norm is None or grouping is None or grouping.inputs[0] is None:
            return NoMatch("no normalization between two reshapes")
        x, grouped = grouping.inputs[0], grouping.outputs[0]
        if not only_reader(norm.outputs[0]):
            return f"'{norm.outputs[0].name}' has other readers"
        refusal = _grouping_refusal(node, norm, x, grouped)
        if refusal:
            return refusal
        parameters = _group_parameters(norm)
        if parameters is None:
            return "scale or bias of the groups is computed, or varies within a group"
        assert x.shape is not None and grouped.shape is not None and x.dtype is not None
        channels, groups = int(str(x.shape[1])), int(str(grouped.shape[1]))
        operands: list[ir.Value | None] = [x]
        for name, array in zip(("scale", "bias"), parameters, strict=True):
            full = np.repeat(np.broadcast_to(array, groups), channels // groups).astype(x.dtype.numpy())
            operands.append(rewriter.constant_before(node, f"{norm.name}/{name}", full))
        attributes = {"epsilon": norm.attributes.get_float("epsilon", 1e-5)}
        if groups == channels:
            result = rewriter.insert_before(node, "InstanceNormalization", operands, attributes)
        else:
            result = rewriter.insert_before(
                node, "GroupNormalization", operands, {**attributes, "num_groups": groups}
            )
        rewriter.replace(node, result)
        rewriter.erase_unread(norm)
        return True


def _grouping_refusal(node: ir.Node, norm: ir.Node, x: ir.Value, grouped: ir.Value) -> str | None:
    if x.shape is None or grouped.shape is None or len(x.shape) < 3 or len(grouped.shape) < 3:
        return "the shapes around the normalization are not known"
    if not known_equal(node.outputs[0].shape, x.shape):
        return "it does not come back to the shape before"
    channels, groups = x.shape[1], grouped.shape[1]
    if not isinstance(channels, int) or not isinstance(groups, int) or channels % groups:
        return "its channels do not fall into groups"
    if not known_equal(ir.Shape([x.shape[0]]), ir.Shape([grouped.shape[0]])):
        return "the batch is not kept apart"
    if norm.op_type == "LayerNormalization":
        rank = len(grouped.shape)
        if norm.attributes.get_int("axis", -1) % rank != 2:
            return "it does not normalize whole groups"
    return None


def _group_parameters(norm: ir.Node) -> tuple[np.ndarray, np.ndarray] | None:
    """Scale and bias, one number per group or one for all."""
    scale = constant_array(norm.inputs[1])
    bias = constant_array(norm.inputs[2]) if len(norm.inputs) > 2 else np.zeros(1, np.float32)
    if scale is None or bias is None:
        return None
    if norm.op_type == "LayerNormalization":
        uniform = (scale == scale.reshape(-1)[0]).all() and (bias == bias.reshape(-1)[0]).all()
        return (scale.reshape(-1)[:1], bias.reshape(-1)[:1]) if uniform else None
    return scale, bias


class AbsorbChannelScale(Rule):
    """Norm(x, s, b) * g = Norm(x, s g, b g) with one g per channel."""

    op_types: ClassVar[tuple[str, ...]] = ("Mul",)

    def match_and_rewrite(self, node: ir.Node, rewriter: Rewriter) -> bool | str:
        """Multiply scale and bias."""
        return _absorb(node, lambda s, b, g: (s * g, b * g), rewriter)


class AbsorbChannelBias(Rule):
    """Norm(x, s, b) + c = Norm(x, s, b + c) with one c per channel."""

    op_types: ClassVar[tuple[str, ...]] = ("Add",)

    def match_and_rewrite(self, node: ir.Node, rewriter: Rewriter) -> bool | str:
        """Add to the bias."""
        return _absorb(node, lambda s, b, c: (s, b + c), rewriter)


def _absorb(node: ir.Node, combine, rewriter: Rewriter) -> bool | str:  # type: ignore[no-untyped-def]
    for data, other in ((0, 1), (1, 0)):
        norm, array = producer_of(node.inputs[data], *_NORMS), constant_array(node.inputs[other])
        if norm is not None and array is not None:
            break
    else:
        return NoMatch("no normalization and constant are its operands")
    if not only_reader(norm.outputs[0]):
        return f"'{norm.outputs[0].name}' has other readers"
    scale, bias = constant_array(norm.inputs[1]), constant_array(norm.inputs[2])
    rank = rank_of(norm.outputs[0])
    if scale is None or bias is None or rank is None or rank_of(node.outputs[0]) != rank:
        return "its scale or bias is computed, or the rank is not known"
    vector = _per_channel(array, rank, scale.size)
    if vector is None:
        return f"the constant of shape {list(array.shape)} has not one number per channel"
    operands = [norm.inputs[0]]
    for name, parameter in zip(("scale", "bias"), combine(scale, bias, vector), strict=True):
        operands.append(
            rewriter.constant_before(node, f"{norm.name}/{name}", np.asarray(parameter, scale.dtype))
        )
    rewriter.replace(node, rewriter.insert_before(node, norm.op_type, operands, dict(norm.attributes)))
    rewriter.erase_unread(norm)
    return True


def _per_channel(array: np.ndarray, rank: int, channels: int) -> np.ndarray | None:
    """A constant as one number per channel, where it broadcasts over everything else."""
    if array.ndim > rank:
        return None
    shape = (1,) * (rank - array.ndim) + array.shape
    if any(dim != 1 for axis, dim in enumerate(shape) if axis != 1) or shape[1] not in (1, channels):
        return None
    return np.broadcast_to(array.reshape(-1), (channels,))
