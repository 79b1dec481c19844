"""A stored weight cut into the blocks that share a scale."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from ....ir.constants import constant_array
from ....ir.static import input_of
from ...rewriter import Rewriter
from ..weight_forms import Encoded
from ..weight_sums import keep_sums
from .layers import QuantizedLayer

_TINY = float(np.finfo(np.float32).tiny)


@dataclass(frozen=True)
class BlockedWeight:
    """A weight by blocks: `[outputs, blocks, size]`, the last block filled up.

    Attributes:
        weight: Float weights, float64.
        real: Which entries are weights and no filling.
        codes: Integers, float64.
        scales, zeros: float64 `[outputs, blocks]`.
        low, high: The integers that may be used.
        asymmetric: Whether zero points are stored, and may change.
        features: Entries of a row without filling.
    """

    weight: np.ndarray
    real: np.ndarray
    codes: np.ndarray
    scales: np.ndarray
    zeros: np.ndarray
    low: int
    high: int
    asymmetric: bool
    features: int

    def of_type(self, dtype: type[np.floating]) -> BlockedWeight:
        """The same with floats of another type."""
        floats = {name: getattr(self, name).astype(dtype) for name in ("weight", "codes", "scales", "zeros")}
        return dataclasses.replace(self, **floats)

    def decode(self) -> np.ndarray:
        """The numbers that the codes stand for."""
        return self.scales[..., None] * (self.codes - self.zeros[..., None])

    def rescaled(self, share: float) -> BlockedWeight:
        """The same weights rounded at smaller scales; where zero lies in a block stays."""
        scales = (self.scales * share).astype(np.float32).astype(self.scales.dtype)
        middle = 0.5 * (self.low + self.high)
        zeros = self.zeros
        if self.asymmetric:
            zeros = np.clip(np.rint(middle + (self.zeros - middle) / share), self.low, self.high)
        codes = np.clip(np.rint(self.weight / scales[..., None]) + zeros[..., None], self.low, self.high)
        return dataclasses.replace(self, scales=scales, zeros=zeros, codes=codes)

    def fitted(self, wanted: np.ndarray) -> BlockedWeight:
        """Scales and zero points that fit `wanted` best at the codes there are; weights rounded to them."""
        zeros = self.zeros
        if self.asymmetric:
            means = np.where(self.real, self.codes - wanted / self.scales[..., None], 0.0).sum(axis=-1)
            zeros = np.clip(np.rint(means / np.maximum(self.real.sum(axis=-1), 1)), self.low, self.high)
        steps = np.where(self.real, self.codes - zeros[..., None], 0.0)
        energy = np.square(steps).sum(axis=-1)
        scales = np.where(energy > 0.0, (steps * wanted).sum(axis=-1) / np.maximum(energy, 1.0), self.scales)
        kept = scales * np.sign(self.scales) > _TINY
        scales = np.where(kept, scales, self.scales).astype(np.float32).astype(self.scales.dtype)
        codes = np.rint(self.weight / scales[..., None]) + zeros[..., None]
        return dataclasses.replace(
            self, scales=scales, zeros=zeros, codes=np.clip(codes, self.low, self.high)
        )

    def where(self, chosen: np.ndarray, other: BlockedWeight) -> BlockedWeight:
        """This one's blocks where `chosen [outputs, blocks]` says so, the other's elsewhere."""
        return dataclasses.replace(
            self,
            scales=np.where(chosen, self.scales, other.scales),
            zeros=np.where(chosen, self.zeros, other.zeros),
            codes=np.where(chosen[..., None], self.codes, other.codes),
        )

    def with_kept_sums(self, window: int = 1) -> BlockedWeight:
        """Codes rounded so that errors of an output cancel; see `keep_sums`."""
        rows, _, size = self.weight.shape

        def flat(array: np.ndarray) -> np.ndarray:
            return array.reshape(rows, -1)[:, : self.features]

        # Codes as indices of levels: what they stand for if symmetric, else counted from the lowest.
        low = 0 if self.asymmetric else self.low
        levels = np.arange(low, low + self.high - self.low + 1, dtype=np.float32)
        codes = (flat(self.codes) - self.low).astype(np.uint8)
        zeros = self.zeros - self.low if self.asymmetric else None
        encoded = Encoded(codes, self.scales.astype(np.float32), zeros, levels, size)
        kept = keep_sums(encoded, flat(self.weight).astype(np.float32), window).codes
        whole = self.codes.reshape(rows, -1).copy()
        whole[:, : self.features] = kept.astype(self.codes.dtype) + self.low
        return dataclasses.replace(self, codes=whole.reshape(self.codes.shape))

    def write(self, layer: QuantizedLayer, restored: ir.Node, rewriter: Rewriter) -> None:
        """Store codes, scales and zero points in the form the layer has."""
        codes = self.codes.reshape(len(self.codes), -1)[:, : self.features].astype(np.int32)
        rewriter.set_initializer(layer.stored.integers, layer.stored_form(codes))
        _store(restored, 1, self.scales, layer, rewriter)
        if self.asymmetric:
            _store(restored, 2, self.zeros, layer, rewriter)


def blocked(layer: QuantizedLayer) -> BlockedWeight | str:
    """Cut a layer's weight into its blocks, or say why that cannot be done."""
    if layer.node.op_type == "ConvTranspose":
        return "its blocks lie along its inputs, apart for every place of its window"
    stored = layer.stored
    outputs, features = layer.weight.shape
    restored = stored.scale.consumers()[0]
    count = _tensor_size(stored.scale)
    size = stored.block if stored.block else features
    blocks = -(-features // size)
    if count != outputs * blocks:
        return "its scales are not one per block of an output"
    if len(stored.scale.uses()) > 1:
        return "it shares its scales with other nodes"
    zero_point = input_of(restored, 2)
    asymmetric = bool(zero_point is not None and stored.zeros.any())
    if asymmetric and zero_point is not None and len(zero_point.uses()) > 1:
        return "it shares its zero points with other nodes"
    padding = blocks * size - features

    def cut(matrix: np.ndarray, filling: float) -> np.ndarray:
        wide = np.pad(matrix.astype(np.float64), ((0, 0), (0, padding)), constant_values=filling)
        return wide.reshape(outputs, blocks, size)

    real = cut(np.ones((outputs, features)), 0.0) > 0.0
    firsts = np.arange(blocks) * size
    zeros = stored.zeros[:, firsts].astype(np.float64)
    codes = np.where(real, cut(stored.codes, 0.0), zeros[..., None])
    low, high = stored.low, stored.high
    # With scales of either sign the lowest integer serves the side that reaches further.
    if not asymmetric and low < 0 and not (stored.scales < 0.0).any():
        low, high = max(low, -high) if high < -low else low, high
    return BlockedWeight(
        cut(layer.weight, 0.0), real, codes, stored.scales[:, firsts], zeros, low, high, asymmetric, features
    )


def _tensor_size(value: ir.Value) -> int:
    array = constant_array(value)
    return 0 if array is None else array.size


def _store(
    restored: ir.Node, index: int, matrix: np.ndarray, layer: QuantizedLayer, rewriter: Rewriter
) -> None:
    value = restored.inputs[index]
    array = constant_array(value)
    assert value is not None and array is not None
    whole = matrix if layer.linear.output_axis == 0 else matrix.T
    made = np.ascontiguousarray(whole.reshape(array.shape))
    kept = made.astype(np.int32).astype(array.dtype) if index == 2 else made.astype(array.dtype)
    rewriter.set_initializer(value, kept)
