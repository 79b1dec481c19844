"""Codings of float32 numbers that kernels read as sums of bfloat16 (`split_floats.py`), in panels.

Payload, little-endian::

    uint32 4, 0, parts, 0
    uint64 depth, across, word, period, gap
    payload of the float32 numbers

The numbers are `[..., steps, across, depth / word, 16, word]`, which sums run through `depth` at a time. Each
becomes the bits of `parts` bfloat16, those of one kind side by side: `[..., across, parts, depth / word, 16,
word]`. Where `gap` is not 0, a kernel reads the last of every `period` steps moved up, so that it ends with
the data: there `gap` zeros come first, and what stands at the end, zeros as well, falls off.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from .split_floats import split_float32

if TYPE_CHECKING:
    from .coding import Coding, Pieces

SPLIT = 4
_LANES = 16
_MOST_PARTS = 3
_HEAD = "<4I5Q"


@dataclass(frozen=True)
class Panels:
    """The order of numbers, as the head of this module says."""

    depth: int
    across: int
    word: int
    period: int = 1
    gap: int = 0

    @property
    def run(self) -> int:
        """Numbers whose first parts lie side by side."""
        return self.depth * _LANES

    def moved_up(self, numbers: np.ndarray) -> np.ndarray:
        """Numbers with the gaps that kernels expect."""
        return self._moved(numbers, slice(self.gap, None), slice(0, self.depth - self.gap))

    def straightened(self, numbers: np.ndarray) -> np.ndarray:
        """The inverse of `moved_up`."""
        return self._moved(numbers, slice(0, self.depth - self.gap), slice(self.gap, None))

    def _moved(self, numbers: np.ndarray, to: slice, of: slice) -> np.ndarray:
        if not self.gap:
            return numbers
        made = np.array(numbers).reshape(
            -1, self.period, self.across, self.depth // self.word, _LANES, self.word
        )
        last = made[:, -1].swapaxes(-3, -2).reshape(-1, self.across, _LANES, self.depth)
        moved = np.zeros_like(last)
        moved[..., to] = last[..., of]
        made[:, -1] = moved.reshape(-1, self.across, _LANES, self.depth // self.word, self.word).swapaxes(
            -3, -2
        )
        return made.reshape(numbers.shape)

    def require_sound(self, size: int) -> None:
        """Raises ValueError where it cannot be the order of `size` numbers."""
        least = min(self.word, self.across, self.period, self.depth - self.gap)
        if least < 1 or self.depth % self.word or size % (self.run * self.across * self.period):
            raise ValueError("a coded tensor is in panels that no kernel reads")


@dataclass(frozen=True)
class Split:
    """The coding of numbers in parts.

    Attributes:
        numbers: how the float32 numbers are restored.
        parts: bfloat16 per number.
        panels: their order.
    """

    numbers: Coding | Pieces
    parts: int
    panels: Panels

    @property
    def size(self) -> int:
        """Numbers of what `restore` makes."""
        return self.numbers.size * self.parts

    def restore(self) -> np.ndarray:
        """The bits, uint16, on one axis."""
        runs = self.panels.moved_up(self.numbers.restore().reshape(-1)).reshape(-1, self.panels.run)
        return np.stack(split_float32(runs, self.parts), axis=1).reshape(-1)

    def to_bytes(self) -> bytes:
        """The payload, see above."""
        order = self.panels
        sizes = order.depth, order.across, order.word, order.period, order.gap
        return struct.pack(_HEAD, SPLIT, 0, self.parts, 0, *sizes) + self.numbers.to_bytes()


def read_split(data: Any, read: Callable[[Any], Coding | Pieces | Split]) -> Split:
    """What `Split.to_bytes` wrote.

    Args:
        data: the payload.
        read: what reads the payload within.

    Raises:
        ValueError: it contradicts itself.
        struct.error: it is truncated.
    """
    _, _, parts, _, *sizes = struct.unpack_from(_HEAD, data, 0)
    (inner,) = struct.unpack_from("<I", data, struct.calcsize(_HEAD))
    if inner == SPLIT or not 1 <= parts <= _MOST_PARTS:
        raise ValueError("a coded tensor is split into parts that no kernel reads")
    numbers = read(data[struct.calcsize(_HEAD) :])
    assert not isinstance(numbers, Split)
    panels = Panels(*sizes)
    panels.require_sound(numbers.size)
    return Split(numbers, parts, panels)
