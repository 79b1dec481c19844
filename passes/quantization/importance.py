"""How much an error in each channel of an activation matters to the layers that read it.

A layer W turns an error e of its input into W e; where the errors of the channels are independent, as those
of rounding are, its expected square is sum_c h_c e_c^2 with h_c = sum_o |W_oc|^2, the diagonal of the
layer's Hessian. Ranges of least squared error that count every channel alike give up channels that are small
and matter, or keep others that nobody reads, above all where equalization has moved magnitudes from
activations into weights.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np

from ...ir.constants import constant_array
from ...ir.static import rank_of
from .operators import WeightedNode
from .placement import Plan


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

    @property
    def digest(self) -> str:
        """What tells it from others."""
        return hashlib.blake2b(self.channels.tobytes(), digest_size=8).hexdigest()


def importance_of(plan: Plan) -> dict[str, Importance]:
    """Of every value of a plan that quantized layers read, by name.

    Several layers count alike. Values whose layers differ in where they have the channels, or whose weights
    say nothing (zeros, not finite), are left out: there all channels matter alike.
    """
    found: dict[str, list[Importance | None]] = {}
    for part in plan.weighted:
        found.setdefault(str(part.data.name), []).append(_read_by(part))
    return {name: joined for name, each in found.items() if (joined := _joined(each)) is not None}


def _read_by(part: WeightedNode) -> Importance | None:
    node, rank = part.node, rank_of(part.data)
    array = constant_array(part.weight)
    turned = node.attributes.get_int("transA", 0) if node.op_type == "Gemm" else 0
    if rank is None or array is None or turned:
        return None
    squares = np.square(array.astype(np.float64))
    if node.op_type == "Conv":
        # [outputs, channels of a group, ...]: the group of an output says which channels it reads.
        groups = node.attributes.get_int("group", 1)
        grouped = squares.reshape(groups, len(array) // groups, array.shape[1], -1)
        axis, sums = 1, grouped.sum(axis=(1, 3)).reshape(-1)
    elif node.op_type == "ConvTranspose":
        axis, sums = 1, squares.reshape(len(array), -1).sum(axis=1)
    elif array.ndim == 2 and node.op_type in ("Gemm", "MatMul"):
        axis, sums = rank - 1, squares.sum(axis=part.axis)
    else:
        return None
    mean = float(sums.mean()) if sums.size else 0.0
    if not (np.isfinite(mean) and mean > 0.0):
        return None
    return Importance(axis, rank, (sums / mean).astype(np.float32))


def _joined(readers: list[Importance | None]) -> Importance | None:
    first = readers[0]
    if first is None:
        return None
    total = np.zeros(len(first.channels), np.float64)
    for reader in readers:
        if reader is None or (reader.axis, reader.channels.shape) != (first.axis, first.channels.shape):
            return None
        total += reader.channels
    return Importance(first.axis, first.rank, (total / len(readers)).astype(np.float32))
