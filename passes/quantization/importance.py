"""How much an error in each channel of an activation matters to the layers that read it.

A layer W turns an error e of its input into W e; where the errors of the channels are independent, as those
of rounding are, its expected square is sum_c h_c e_c^2 with h_c = sum_o |W_oc|^2, the diagonal of the
layer's Hessian. Ranges of least squared error that count every channel alike give up channels that are small
and matter, or keep others that nobody reads, above all where equalization has moved magnitudes from
activations into weights.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from ...ir.constants import constant_array
from ...ir.static import rank_of
from .operators import DEFAULT_DOMAINS


@dataclass(frozen=True, eq=False)
class Importance:
    """Of the channels of one value.

    Attributes:
        axis: of the value that holds the channels.
        rank: of the value.
        channels: float32 `[channels]`, 1 in the mean, none negative.
    """

    axis: int
    rank: int
    channels: np.ndarray

    @property
    def spread(self) -> np.ndarray:
        """The numbers in a shape that broadcasts against the value."""
        return self.channels.reshape([-1 if i == self.axis else 1 for i in range(self.rank)])


def importance_of(value: ir.Value) -> Importance | None:
    """What the channels of a value matter to the layers with constant weights that read it.

    It depends on the model alone, not on which of the layers are quantized, so that ranges can be reused.
    Several layers count alike. None, where all channels count alike: no such layer, layers that differ in
    where they have the channels, weights that say nothing (zeros, not finite).
    """
    rank = rank_of(value)
    if rank is None:
        return None
    readers = [_read_by(node, rank) for node, index in value.uses() if index == 0 and _is_layer(node)]
    if not readers or any(reader is None for reader in readers):
        return None
    found = [reader for reader in readers if reader is not None]
    first = found[0]
    if any((each.axis, each.channels.shape) != (first.axis, first.channels.shape) for each in found):
        return None
    channels = np.stack([each.channels for each in found]).astype(np.float64).mean(axis=0)
    return Importance(first.axis, rank, channels.astype(np.float32))


def _is_layer(node: ir.Node) -> bool:
    return (
        node.op_type in ("Conv", "ConvTranspose", "Gemm", "MatMul")
        and node.domain in DEFAULT_DOMAINS
        and constant_array(node.inputs[1]) is not None
    )


def _read_by(node: ir.Node, rank: int) -> Importance | None:
    array = constant_array(node.inputs[1])
    assert array is not None
    squares = np.square(array.astype(np.float64))
    if node.op_type == "Conv":
        # [outputs, channels of a group, ...]: the group of an output says which channels it reads.
        groups = node.attributes.get_int("group", 1)
        grouped = squares.reshape(groups, len(array) // groups, array.shape[1], -1)
        axis, sums = 1, grouped.sum(axis=(1, 3)).reshape(-1)
    elif node.op_type == "ConvTranspose":
        axis, sums = 1, squares.reshape(len(array), -1).sum(axis=1)
    elif array.ndim != 2:
        return None
    else:
        turned = node.attributes.get_int("transA", 0) if node.op_type == "Gemm" else 0
        stored_by_output = node.attributes.get_int("transB", 0) if node.op_type == "Gemm" else 0
        axis, sums = 0 if turned else rank - 1, squares.sum(axis=0 if stored_by_output else 1)
    mean = float(sums.mean()) if sums.size else 0.0
    if not (np.isfinite(mean) and mean > 0.0):
        return None
    return Importance(axis, rank, (sums / mean).astype(np.float32))
