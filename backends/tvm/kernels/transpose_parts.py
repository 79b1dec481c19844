"""A transposed convolution as few ordinary ones: output phases that read the same inputs are channels of one.

Along one axis a part holds phases that cover the same reach of inputs; channels of a part are (group, phase,
output of the group). Where kernel and stride are equal that is one 1x1 convolution of all phases. Taps that a
phase lacks are zero.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from math import prod
from typing import Any

import numpy as np

from . import emit
from .conv_transpose import Phase, phases
from .interface import Index
from .tile import blocks

_MISSING = -1
_WIDEST_MERGE = 4
"""Phases along one axis that become channels although they read different inputs, at most."""


@dataclass(frozen=True)
class Axis:
    """Phases of one axis that one convolution of stride one computes."""

    firsts: tuple[int, ...]
    """The first output of each phase."""
    count: int
    """Outputs of each phase."""
    taps: tuple[tuple[int, ...], ...]
    """Per phase the kernel tap at each place of the reach, `_MISSING` where there is none."""
    step: int
    """Distance between the inputs of neighbouring places."""
    before: int
    """Padding before the first input; negative where inputs are skipped."""

    @property
    def reach(self) -> int:
        """Taps of the convolution."""
        return len(self.taps[0])

    @property
    def is_even(self) -> bool:
        """Whether phases are evenly spaced, as `first` wants it."""
        return len(set(np.diff(self.firsts))) < 2

    def first(self, number: Any) -> Any:
        """The first output of a phase."""
        if isinstance(number, int):
            return self.firsts[number]
        return self.firsts[0] + number * (self.firsts[1] - self.firsts[0])

    def after(self, size: int) -> int:
        """Padding after the last of `size` inputs; negative where inputs are left over."""
        return self.count - size - self.before + self.step * (self.reach - 1)


def split_axis(size: int, kernel: int, stride: int, dilation: int, before: int) -> list[Axis]:
    """The phases of an axis with `size` outputs, those that read the same inputs together."""
    alike: dict[tuple[int, ...], list[Phase]] = {}
    for phase in phases(size, kernel, stride, dilation, before):
        # What reads nothing reads one input by a weight of zero.
        place = (max(len(phase.taps), 1), phase.step, phase.before) if phase.taps else (1, 1, 0)
        alike.setdefault((phase.count, *place), []).append(phase)
    return [
        Axis(
            tuple(phase.first for phase in group),
            count,
            tuple(phase.taps or (_MISSING,) for phase in group),
            step,
            lead,
        )
        for (count, _, step, lead), group in alike.items()
    ]


def _merged(parts: Sequence[Axis]) -> Axis | None:
    """All phases as one part over all inputs that one of them reads; None where they are not as many each."""
    if len({part.count for part in parts}) > 1 or sum(len(part.firsts) for part in parts) > _WIDEST_MERGE:
        return None
    lowest = min(-part.before for part in parts)
    reach = max(part.step * (part.reach - 1) - part.before for part in parts) - lowest + 1
    found: dict[int, tuple[int, ...]] = {}
    for part in parts:
        for first, own in zip(part.firsts, part.taps, strict=True):
            places = [_MISSING] * reach
            for number, tap in enumerate(own):
                places[part.step * number - part.before - lowest] = tap
            found[first] = tuple(places)
    taps = tuple(found[first] for first in sorted(found))
    return Axis(tuple(sorted(found)), parts[0].count, taps, 1, -lowest)


def _alone(part: Axis) -> list[Axis]:
    """Every phase as a part of its own."""
    return [
        Axis((first,), part.count, (taps,), part.step, part.before)
        for first, taps in zip(part.firsts, part.taps, strict=True)
    ]


@dataclass(frozen=True)
class Part:
    """Phases of all axes that one convolution computes."""

    axes: tuple[Axis, ...]
    stride: tuple[int, ...]
    groups: int
    per_group: int
    """Output channels of one group of the transposed convolution."""

    @property
    def phases(self) -> int:
        """How many."""
        return prod(len(axis.firsts) for axis in self.axes)

    @property
    def channels(self) -> int:
        """Output channels of the convolution."""
        return self.groups * self.phases * self.per_group

    def place(self, channel: Any, at: Sequence[Any]) -> tuple[Any, Index]:
        """Channel and position in the convolution's output -> those in the transposed convolution's."""
        phase, own = self._split(channel)
        numbers = emit.unravel(phase, [len(axis.firsts) for axis in self.axes])
        places = [
            index * stride + axis.first(number)
            for index, stride, axis, number in zip(at, self.stride, self.axes, numbers, strict=True)
        ]
        return own, tuple(places)

    def _split(self, channel: Any) -> tuple[Any, Any]:
        """Phase and channel of the transposed convolution."""
        if self.phases == 1:
            return 0, channel
        if self.groups == 1:
            return emit.floordiv(channel, self.per_group), emit.floormod(channel, self.per_group)
        wide = self.phases * self.per_group
        group, rest = emit.floordiv(channel, wide), emit.floormod(channel, wide)
        own = group * self.per_group + emit.floormod(rest, self.per_group)
        return emit.floordiv(rest, self.per_group), own

    def weights(self, array: np.ndarray) -> np.ndarray:
        """(C, O / groups, taps...) -> (groups * phases * O / groups, C / groups, reach...)."""
        channels, per_group, *taps = array.shape
        depth = channels // self.groups
        split = array.reshape(self.groups, depth, per_group, *taps)
        # One tap of zeros behind each axis is what missing ones read.
        wide = np.pad(split, [(0, 0)] * 3 + [(0, 1)] * len(taps))
        pieces = []
        for own in product(*(axis.taps for axis in self.axes)):
            index: tuple[Any, ...] = (..., *np.ix_(*own))
            pieces.append(wide[index])
        stacked = np.stack(pieces, axis=1)
        ordered = np.moveaxis(stacked, 2, 3)
        return np.ascontiguousarray(ordered.reshape(self.channels, depth, *stacked.shape[4:]))


def choose_parts(
    axes: Sequence[Sequence[Axis]],
    stride: tuple[int, ...],
    channels: tuple[int, int, int],
    lanes: int,
) -> list[Part]:
    """The parts that fill vectors best.

    Args:
        axes: per axis the parts of `split_axis`.
        stride: of the transposed convolution.
        channels: groups, input and output channels of one.
        lanes: output channels of a vector.
    """
    groups, depth, per_group = channels
    alone = [[each for part in axis for each in _alone(part)] for axis in axes]
    if groups > 1 and depth == per_group == 1:
        # Depthwise ones stay what they are.
        return [Part(axes, stride, groups, 1) for axes in product(*alone)]
    options = []
    for axis, single in zip(axes, alone, strict=True):
        found = [[each for part in axis for each in ([part] if part.is_even else _alone(part))], single]
        whole = _merged(axis)
        options.append([*found, [whole]] if whole else found)
    best: list[Part] = []
    for chosen in product(*options):
        parts = [Part(each, stride, groups, per_group) for each in product(*chosen)]
        if not best or _cost(parts, lanes) < _cost(best, lanes):
            best = parts
    return best


def _cost(parts: Sequence[Part], lanes: int) -> tuple[int, int]:
    """Vectors that are multiplied; among equals the fewest parts."""
    work = sum(
        prod(axis.reach * axis.count for axis in part.axes)
        * part.groups
        * blocks(part.phases * part.per_group, lanes)
        for part in parts
    )
    return work, len(parts)
