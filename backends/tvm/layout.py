"""How a value lies in memory: the order of ONNX, or channels last for the values of convolutional regions.

Kernels index values by their logical (ONNX) index; a layout translates. Nothing in a graph is transposed
for the sake of a layout: whoever reads or writes a value does so through the translation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Layout:
    """The stored order of a value.

    Channels last stores (N, C, H, W) as (N, H, W, C) and (N, C, W) as (N, 1, W, C), the shape that
    convolution kernels read.
    """

    channels_last: bool = False

    def stored_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        """The shape in memory of a value of logical shape `shape`."""
        return tuple(self.to_stored(tuple(shape), one=1))

    def to_stored(self, index: Sequence[Any], one: Any = 0) -> tuple[Any, ...]:
        """The stored index of a logical one; `one` fills an axis that only storage has."""
        if not self.channels_last:
            return tuple(index)
        if len(index) == 3:
            return (index[0], one, index[2], index[1])
        return (index[0], *index[2:], index[1])

    def to_logical(self, index: Sequence[Any], rank: int) -> tuple[Any, ...]:
        """The logical index of a stored one, for a value of rank `rank`."""
        if not self.channels_last:
            return tuple(index)
        if rank == 3:
            return (index[0], index[3], index[2])
        return (index[0], index[-1], *index[1:-1])

    def stored_axis(self, axis: int, rank: int) -> int:
        """Where a logical axis is stored."""
        if not self.channels_last:
            return axis
        return self.to_stored(tuple(range(rank)), one=-1).index(axis)

    def is_plain_view(self, shape: Sequence[int]) -> bool:
        """Whether a value of this shape lies in memory exactly as ONNX orders it."""
        order = [
            axis
            for axis in self.to_stored(tuple(range(len(shape))), one=-1)
            if axis >= 0 and shape[axis] != 1
        ]
        return order == sorted(order)

    def __str__(self) -> str:
        return "channels-last" if self.channels_last else "canonical"


CANONICAL = Layout()
CHANNELS_LAST = Layout(channels_last=True)
