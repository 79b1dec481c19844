"""`merge-convs`: linear operators in a row become one, where that is no more work."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from ..ir.constants import constant_array
from ..ir.static import input_of, only_reader, producer_of
from .affine import Linear, match_linear, pads
from .base import Pass, PassContext
from .leftovers import supersede
from .registry import register
from .rewriter import Rewriter
from .rules import Rule


@register
@dataclass(frozen=True)
class MergeConvs(Pass):
    """Multiply the weights of two linear operators with nothing in between.

    With V, c of the first and W, b of the second operator, o, m, i output, middle and input channels:

    1. Conv 1x1 behind a Conv:  W'[o, i, ..] = sum_m W[o, m] V[m, i, ..],  b' = W c + b, strides multiplied.
       The 1x1 must not pad.
    2. Conv behind a Conv 1x1:  W'[o, i, ..] = sum_m W[o, m, ..] V[m, i],  b' = b + sum W c. The 1x1 must
       neither pad nor stride; the second may pad only where c = 0, as it pads with 0 and not with c.
    3. MatMul(MatMul(x, V), W) = MatMul(x, V W).

    It is part of `fuse`, not of `simplify`, which keeps stored weights bit for bit: the product rounds anew,
    and behind an infinite input two operators may give inf - inf where one gives inf.

    Left alone, with the reason: weights that are shared or not constant, a middle result that is read
    elsewhere, and pairs whose product would have more weights or take more multiplications than the two
    (bottlenecks and depthwise separable convolutions, which are there to save them).
    """

    name: ClassVar[str] = "merge-convs"

    def rules(self) -> tuple[Rule, ...]:
        """The rules of the list above."""
        return (
            MergePointwise(),
            MergeProducts(),
        )

    def apply(self, model: ir.Model, context: PassContext) -> None:
        """Drive the rules to a fixpoint."""
        context.rewrite(model, *self.rules())


class MergePointwise(Rule):
    """Conv(Conv(x, V), W) = Conv(x, W V) where one of the two is 1x1."""

    op_types: ClassVar[tuple[str, ...]] = ("Conv",)

    def match_and_rewrite(self, node: ir.Node, rewriter: Rewriter) -> bool | str:
        """Emit one convolution with the product of the weights."""
        first_node = producer_of(node.inputs[0], "Conv")
        if first_node is None:
            return False
        if not only_reader(first_node.outputs[0]):
            return f"'{first_node.outputs[0].name}' has other readers"
        first, second = match_linear(first_node), match_linear(node)
        if isinstance(first, str):
            return first
        if isinstance(second, str):
            return second
        if _is_pointwise(node) and not pads(node):
            window = first
        elif _is_pointwise(first_node) and not pads(first_node) and set(_strides(first)) == {1}:
            window = second
            if pads(node) and np.any(_bias(first)):
                return "it pads with zeros, but the bias of the convolution before it is not zero"
        else:
            return "neither of the two is a plain 1x1 convolution"
        if (window.node.attributes.get_string("auto_pad", "NOTSET") or "NOTSET") not in ("NOTSET", "VALID"):
            return f"the padding of '{window.node.name}' depends on the size of its input"
        groups = first.groups if first.groups == second.groups else 1
        pixels, merged = _pixels(first, second), _merged_size(first, second, window, groups)
        if pixels is None:
            return "the size of a result is not known"
        work = first.array.size * pixels[0] + second.array.size * pixels[1]
        if merged > first.array.size + second.array.size or merged * pixels[1] > work:
            return "the product of their weights takes more multiplications than the two"
        array, bias = _product(first, second, groups)
        with np.errstate(over="ignore"):
            stored, shift = array.astype(first.array.dtype), bias.astype(first.array.dtype)
        if not (np.isfinite(stored).all() and np.isfinite(shift).all()):
            return f"the weights would overflow {first.array.dtype}"
        return _emit(first, second, window, groups, stored, shift, rewriter)


class MergeProducts(Rule):
    """(x V) W = x (V W)."""

    op_types: ClassVar[tuple[str, ...]] = ("MatMul",)

    def match_and_rewrite(self, node: ir.Node, rewriter: Rewriter) -> bool | str:
        """Emit one product with the product of the weights."""
        inner = producer_of(node.inputs[0], "MatMul")
        if inner is None or constant_array(node.inputs[1]) is None or constant_array(inner.inputs[1]) is None:
            return False
        if not only_reader(inner.outputs[0]):
            return f"'{inner.outputs[0].name}' has other readers"
        first, second = match_linear(inner), match_linear(node)
        if isinstance(first, str):
            return first
        if isinstance(second, str):
            return second
        if first.array.shape[0] * second.array.shape[1] > first.array.size + second.array.size:
            return "the product of their weights takes more multiplications than the two"
        product = first.array.astype(np.float64) @ second.array.astype(np.float64)
        with np.errstate(over="ignore"):
            stored = product.astype(first.array.dtype)
        if not np.isfinite(stored.astype(np.float64)).all():
            return f"the weights would overflow {first.array.dtype}"
        weight = rewriter.constant_before(node, f"{first.weight.name}/merged", stored)
        return supersede(node, "MatMul", [inner.inputs[0], weight], rewriter)


def _is_pointwise(node: ir.Node) -> bool:
    weight = constant_array(node.inputs[1])
    return weight is not None and weight.ndim > 2 and all(size == 1 for size in weight.shape[2:])


def _strides(linear: Linear) -> list[int]:
    spatial = linear.array.ndim - 2
    return list(linear.node.attributes.get_ints("strides", ()) or [1] * spatial)


def _bias(linear: Linear) -> np.ndarray:
    array = constant_array(input_of(linear.node, 2))
    return np.zeros(linear.output_channels) if array is None else array.astype(np.float64)


def _pixels(first: Linear, second: Linear) -> tuple[int, int] | None:
    """Output pixels of the two; (1, 1) where as many, but not known; None where not even that is."""
    shapes = [linear.node.outputs[0].shape for linear in (first, second)]
    counts = []
    for shape in shapes:
        sizes = [] if shape is None else [size for size in shape.dims[2:] if type(size) is int]
        counts.append(math.prod(sizes) if shape is not None and len(sizes) == len(shape) - 2 else None)
    if counts[0] is not None and counts[1] is not None:
        return counts[0], counts[1]
    return (1, 1) if set(_strides(second)) == {1} else None


def _merged_size(first: Linear, second: Linear, window: Linear, groups: int) -> int:
    outputs, inputs = second.output_channels, first.input_channels
    return outputs * (inputs // groups) * math.prod(window.array.shape[2:])


def _product(first: Linear, second: Linear, groups: int) -> tuple[np.ndarray, np.ndarray]:
    """W V, group by group, and W c + b; float64."""
    v, w = (_with_groups(linear, groups) for linear in (first, second))
    inner, outer = v.shape[1:], w.shape[1:]
    # [g, m, i, window] and [g, o, m, window], of which one window is a single pixel.
    left = w.reshape(groups, outer[0], outer[1], -1)
    right = v.reshape(groups, inner[0], inner[1], -1)
    if left.shape[-1] == 1:
        product = left[..., 0] @ right.reshape(groups, inner[0], -1)
        spatial = first.array.shape[2:]
    else:
        product = (left.swapaxes(2, 3) @ right[:, None, :, :, 0]).swapaxes(2, 3)
        spatial = second.array.shape[2:]
    array = product.reshape(groups * outer[0], inner[1], *spatial)
    bias = (left.sum(axis=3) @ _bias(first).reshape(groups, -1, 1)).reshape(-1) + _bias(second)
    return array, bias


def _with_groups(linear: Linear, groups: int) -> np.ndarray:
    """The weights as `[groups, out / groups, in / groups, ...]`; finer groups are filled up with zeros."""
    weights = linear.array.astype(np.float64)
    if linear.groups == groups:
        return weights.reshape(groups, -1, *weights.shape[1:])
    full = np.zeros((weights.shape[0], linear.input_channels, *weights.shape[2:]))
    rows, columns = weights.shape[0] // linear.groups, weights.shape[1]
    for g in range(linear.groups):
        full[g * rows : (g + 1) * rows, g * columns : (g + 1) * columns] = weights[g * rows : (g + 1) * rows]
    return full[None]


def _emit(
    first: Linear,
    second: Linear,
    window: Linear,
    groups: int,
    array: np.ndarray,
    bias: np.ndarray,
    rewriter: Rewriter,
) -> bool:
    spatial = array.ndim - 2
    attributes = {
        "kernel_shape": list(array.shape[2:]),
        "group": groups,
        "strides": [a * b for a, b in zip(_strides(first), _strides(second), strict=True)],
    }
    given = window.node.attributes
    attributes["dilations"] = list(given.get_ints("dilations", ()) or [1] * spatial)
    attributes["pads"] = [0] * (2 * spatial)
    if pads(window.node):
        attributes["pads"] = list(given.get_ints("pads", ()) or ())
    operands = [
        first.node.inputs[0],
        rewriter.constant_before(second.node, f"{first.weight.name}/merged", array),
    ]
    has_bias = any(input_of(linear.node, 2) is not None for linear in (first, second))
    if has_bias:
        operands.append(rewriter.constant_before(second.node, f"{first.weight.name}/merged.bias", bias))
    return supersede(second.node, "Conv", operands, rewriter, attributes)
