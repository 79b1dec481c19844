"""Layers as matrix products: what reconstruction fits.

A convolution is the product of its weight with the patches that its window sees; a transposed one is a
convolution of its input with zeros in between (`_spread_out`). An Einsum
with a stored operand is one product per index that both operands and the result have.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from ...ir.constants import constant_tensor
from ...ir.static import static_shape
from .letters import Letters, letters_of

_LAYERS = ("Conv", "ConvTranspose", "Einsum", "Gemm", "MatMul")


@dataclass(frozen=True)
class LinearLayer:
    """A Conv, ConvTranspose, Gemm, MatMul or Einsum with a constant weight that only it reads.

    Attributes:
        node: The node.
        source: What it reads.
        weight: Its weight.
        groups: Independent products (of a grouped convolution).
        features: Inputs of one product: channels of a group times window.
        outputs: Output channels of all groups.
        output_axis: Axis of `weight` that holds them.
        channel_axis: Axis of the result that holds them.
        bias_operand: Where its bias goes; None for MatMul and Einsum, which have none.
        letters: How operands and result of an Einsum, or of a MatMul with a stack of matrices, are indexed.
    """

    node: ir.Node
    source: ir.Value
    weight: ir.Value
    groups: int
    features: int
    outputs: int
    output_axis: int
    channel_axis: int
    bias_operand: int | None
    letters: Letters | None = None

    def rows(
        self, source: np.ndarray, residual: np.ndarray, generator: np.random.Generator, most: int
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Per group: features [rows, features] and residuals [rows, outputs of a group], float64.

        At most `most` positions are drawn, the same for all groups.
        """
        if self.letters is not None:
            yield from self._products(self.letters, source, residual, generator, most)
            return
        if self.node.op_type in ("Conv", "ConvTranspose"):
            yield from self._windows(source, residual, generator, most)
            return
        flipped = self.node.op_type == "Gemm" and self.node.attributes.get_int("transA", 0) == 1
        data = source.T if flipped else source
        features = data.reshape(-1, data.shape[-1])
        targets = residual.reshape(-1, residual.shape[-1])
        drawn = _drawn(len(features), generator, most)
        yield features[drawn].astype(np.float64), targets[drawn].astype(np.float64)

    def changed(self, weight: np.ndarray, change: np.ndarray) -> np.ndarray:
        """The weight plus a change [outputs, features], in its own layout and type."""
        if self.letters is not None:
            total = weight.astype(np.float64) + self.letters.as_weight(change, weight.shape)
        elif self.node.op_type == "ConvTranspose":
            window = weight.shape[2:]
            parts = change.reshape(self.groups, weight.shape[1], -1, *window)
            total = weight.astype(np.float64) + np.moveaxis(parts, 2, 1).reshape(weight.shape)
        elif self.output_axis == 0:
            total = weight.astype(np.float64) + change.reshape(weight.shape)
        else:
            total = weight.astype(np.float64) + change.T
        return total.astype(weight.dtype)

    def bias(self, shift: np.ndarray) -> np.ndarray:
        """A shift [outputs] as what is added to the result."""
        return shift if self.letters is None else self.letters.as_bias(shift, static_shape(self.weight) or ())

    def _products(
        self,
        letters: Letters,
        source: np.ndarray,
        residual: np.ndarray,
        generator: np.random.Generator,
        most: int,
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        features = letters.arranged(source, letters.source, letters.rows, letters.summed)
        targets = letters.arranged(residual, letters.result, letters.rows, letters.made)
        drawn = _drawn(features.shape[1], generator, most)
        for mine, wanted in zip(features, targets, strict=True):
            yield mine[drawn].astype(np.float64), wanted[drawn].astype(np.float64)

    def _windows(
        self, source: np.ndarray, residual: np.ndarray, generator: np.random.Generator, most: int
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        spatial = source.ndim - 2
        kernel = list(static_shape(self.weight) or ())[2:]
        strides = list(self.node.attributes.get_ints("strides", [1] * spatial))
        dilations = list(self.node.attributes.get_ints("dilations", [1] * spatial))
        if self.node.op_type == "ConvTranspose":
            padded = _spread_out(self.node, source, residual.shape[2:], kernel, strides, dilations)
            strides = [1] * spatial
        else:
            pads = _pads(self.node, source.shape[2:], kernel, strides, dilations)
            padded = np.pad(source, [(0, 0), (0, 0), *pads])
        reach = [(k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True)]
        views = np.lib.stride_tricks.sliding_window_view(padded, reach, axis=tuple(range(2, 2 + spatial)))
        steps = tuple(slice(None, None, s) for s in strides)
        taps = tuple(slice(None, None, d) for d in dilations)
        views = views[(slice(None), slice(None), *steps, *taps)]
        if self.node.op_type == "ConvTranspose":
            views = np.flip(views, tuple(range(-spatial, 0)))
        # [batch, channels, positions..., window...] to [batch, positions..., channels, window...]
        views = np.moveaxis(views, 1, 1 + spatial)
        targets = np.moveaxis(residual, 1, -1)
        places = np.unravel_index(
            _drawn(int(np.prod(targets.shape[:-1])), generator, most), targets.shape[:-1]
        )
        patches, wanted = views[places].astype(np.float64), targets[places].astype(np.float64)
        per_group, out = patches.shape[1] // self.groups, wanted.shape[1] // self.groups
        for group in range(self.groups):
            mine = patches[:, group * per_group : (group + 1) * per_group].reshape(len(patches), -1)
            yield mine, wanted[:, group * out : (group + 1) * out]


def linear_layer(node: ir.Node) -> tuple[LinearLayer | None, str]:
    """See a node as a linear layer; None and the reason where it is none."""
    if node.op_type not in _LAYERS or node.domain not in ("", "ai.onnx"):
        return None, f"{node.op_type} is not a layer that can be fitted"
    if len(node.inputs) < 2:
        return None, "it has no weight"
    source, weight = node.inputs[0], node.inputs[1]
    if node.op_type == "Einsum" and source is not None and source.is_initializer():
        source, weight = weight, source
    if source is None or weight is None or constant_tensor(weight) is None or not weight.is_initializer():
        return None, "its weight is not a constant"
    if len(weight.uses()) > 1 or weight.is_graph_output():
        return None, "it shares its weight with other nodes"
    shape = static_shape(weight)
    if shape is None or 0 in shape:
        return None, "the shape of its weight is not known"
    if node.op_type == "Conv":
        groups = node.attributes.get_int("group", 1)
        features = int(np.prod(shape[1:]))
        return LinearLayer(node, source, weight, groups, features, shape[0], 0, 1, 2), ""
    if node.op_type == "ConvTranspose":
        if node.attributes.get_string("auto_pad", "NOTSET") != "NOTSET" or "output_shape" in node.attributes:
            return None, "it chooses its padding by the size of its result"
        groups = node.attributes.get_int("group", 1)
        features = shape[0] // groups * int(np.prod(shape[2:]))
        return LinearLayer(node, source, weight, groups, features, shape[1] * groups, 1, 1, 2), ""
    if node.op_type == "Einsum" or len(shape) != 2:
        return _contraction(node, source, weight, shape)
    if node.op_type == "MatMul":
        rank = len(source.shape) if source.shape is not None else 0
        return LinearLayer(node, source, weight, 1, shape[0], shape[1], 1, max(rank, 1) - 1, None), ""
    if node.attributes.get_float("alpha", 1.0) != 1.0 or node.attributes.get_float("beta", 1.0) != 1.0:
        return None, "it scales its product"
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    if bias is not None and (
        static_shape(bias) != (shape[0 if node.attributes.get_int("transB", 0) else 1],)
    ):
        return None, "its bias is not one number per output"
    axis = 0 if node.attributes.get_int("transB", 0) else 1
    return LinearLayer(node, source, weight, 1, shape[1 - axis], shape[axis], axis, 1, 2), ""


def _contraction(
    node: ir.Node, source: ir.Value, weight: ir.Value, shape: tuple[int, ...]
) -> tuple[LinearLayer | None, str]:
    letters = letters_of(node, source, weight)
    if letters is None:
        return None, "it is not one product of a weight with what it reads"
    sizes = dict(zip(letters.weight, shape, strict=True))
    known = source.shape
    if known is None or any(
        sizes.get(letter, dim) != dim for letter, dim in zip(letters.source, known, strict=True)
    ):
        return None, "its operands are broadcast"
    groups, features, made = (
        int(np.prod([sizes[letter] for letter in part], dtype=np.int64))
        for part in (letters.shared, letters.summed, letters.made)
    )
    return LinearLayer(node, source, weight, groups, features, groups * made, 1, -1, None, letters), ""


def _spread_out(
    node: ir.Node,
    source: np.ndarray,
    sizes: tuple[int, ...],
    kernel: list[int],
    strides: list[int],
    dilations: list[int],
) -> np.ndarray:
    """The input of a transposed convolution with zeros in between, padded for windows that move by one."""
    before = list(node.attributes.get_ints("pads", [0] * 2 * len(sizes)))[: len(sizes)]
    reach = [(k - 1) * d for k, d in zip(kernel, dilations, strict=True)]
    spread = np.zeros(
        (*source.shape[:2], *(size + r for size, r in zip(sizes, reach, strict=True))), source.dtype
    )
    picked: list[slice | np.ndarray] = []
    places: list[np.ndarray] = []
    for count, stride, r, pad, size in zip(
        source.shape[2:], strides, reach, before, spread.shape[2:], strict=True
    ):
        place = np.arange(count) * stride + r - pad
        inside = np.flatnonzero((place >= 0) & (place < size))
        picked.append(inside)
        places.append(place[inside])
    every = np.arange(source.shape[0]), np.arange(source.shape[1])
    spread[np.ix_(*every, *places)] = source[np.ix_(*every, *picked)]  # type: ignore[arg-type]
    return spread


def _drawn(count: int, generator: np.random.Generator, most: int) -> np.ndarray:
    return np.arange(count) if count <= most else np.sort(generator.choice(count, most, replace=False))


def _pads(
    node: ir.Node, sizes: tuple[int, ...], kernel: list[int], strides: list[int], dilations: list[int]
) -> list[tuple[int, int]]:
    """Padding before and after each spatial axis."""
    mode = node.attributes.get_string("auto_pad", "NOTSET")
    if mode == "NOTSET":
        pads = list(node.attributes.get_ints("pads", [0] * 2 * len(sizes)))
        return list(zip(pads[: len(sizes)], pads[len(sizes) :], strict=True))
    if mode == "VALID":
        return [(0, 0)] * len(sizes)
    found = []
    for size, k, s, d in zip(sizes, kernel, strides, dilations, strict=True):
        total = max((-(-size // s) - 1) * s + (k - 1) * d + 1 - size, 0)
        small, large = total // 2, total - total // 2
        found.append((small, large) if mode == "SAME_UPPER" else (large, small))
    return found
