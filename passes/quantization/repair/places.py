"""Where the channels of a value lie, followed through reshapes and transposes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir


@dataclass(frozen=True)
class Place:
    """Channels of a value: axes from major to minor, counted from the front, and their sizes.

    The channels of `[batch, tokens, channels]` lie at `(2,)`; behind a reshape to
    `[batch, tokens, heads, width]` at `(2, 3)`.
    """

    axes: tuple[int, ...]
    sizes: tuple[int, ...]

    @property
    def channels(self) -> int:
        """How many there are."""
        return math.prod(self.sizes)

    def at(self, axis: int) -> bool:
        """Whether all channels lie along one axis."""
        return self.axes == (axis,)

    def spread(self, factors: np.ndarray, rank: int) -> np.ndarray:
        """Factors `[channels]` in a shape that broadcasts against a value of this rank."""
        order = sorted(range(len(self.axes)), key=lambda index: self.axes[index])
        shape = [1] * rank
        for axis, size in zip(self.axes, self.sizes, strict=True):
            shape[axis] = size
        return factors.reshape(self.sizes).transpose(order).reshape(shape)


def transposed(place: Place, permutation: Sequence[int]) -> Place:
    """The channels behind a Transpose."""
    return Place(tuple(permutation.index(axis) for axis in place.axes), place.sizes)


def reshaped(place: Place, before: ir.Shape | None, after: ir.Shape | None) -> Place | None:
    """The channels behind a Reshape, or None where it mixes them with something else.

    Args:
        place: Channels in front of it.
        before: Shape in front of it.
        after: Shape behind it.
    """
    if before is None or after is None:
        return None
    blocks = _matching_blocks(list(before.dims), list(after.dims))
    axes: list[int] = []
    sizes: list[int] = []
    pending = list(place.axes)
    while pending:
        found = next((block for block in blocks if pending[0] in block[0]), None)
        if found is None or tuple(pending[: len(found[0])]) != found[0]:
            return None
        pending = pending[len(found[0]) :]
        axes.extend(found[1])
        sizes.extend(int(after.dims[axis]) for axis in found[1])  # type: ignore[arg-type]
    return Place(tuple(axes), tuple(sizes))


def _matching_blocks(
    before: list[int | ir.SymbolicDim], after: list[int | ir.SymbolicDim]
) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Smallest runs of axes that hold the same elements on both sides, from the right, without sizes of 1."""
    blocks: list[tuple[tuple[int, ...], tuple[int, ...]]] = []
    i, j = len(before), len(after)
    while i > 0 and j > 0:
        left, right = [i - 1], [j - 1]
        i, j = i - 1, j - 1
        a, b = before[i], after[j]
        while isinstance(a, int) and isinstance(b, int) and a != b:
            if a < b and i > 0:
                i -= 1
                left.insert(0, i)
                a = a * before[i] if isinstance(before[i], int) else before[i]  # type: ignore[operator]
            elif b < a and j > 0:
                j -= 1
                right.insert(0, j)
                b = b * after[j] if isinstance(after[j], int) else after[j]  # type: ignore[operator]
            else:
                return blocks
        if not (isinstance(a, int) and isinstance(b, int)):
            return blocks
        blocks.append(
            (
                tuple(axis for axis in left if before[axis] != 1),
                tuple(axis for axis in right if after[axis] != 1),
            )
        )
    return blocks
