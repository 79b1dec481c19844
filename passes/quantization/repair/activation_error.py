"""What rounding to 8 bits is expected to cost behind a site, as a function of the factors per channel.

With values divided and weights multiplied by s, a step D of the activations' common grid errs D^2 / 12 per
number, which reaches an output of the layer behind through the squares of its weights:

    activations   D^2 / 12  sum_j s_j^2 |w_j|^2           D = (max_j high_j / s_j - min_j low_j / s_j) / 255
    weights       sum_o (max_j |w_oj| s_j / 127)^2 / 12  sum_j E[x_j^2] / s_j^2

both in units of what the layer computes, so that the readers of a site can be added up.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from .channel_statistics import ChannelStatistics
from .scaling import Constants, Edit
from .sites import Site

_ACTIVATION_STEPS, _WEIGHT_STEPS = 255.0, 127.0
# Rounding that looks at data (GPTQ) and corrected biases take back about this much of the weights' error.
_WEIGHT_SHARE = 0.25
_STRENGTHS = tuple(np.linspace(0.0, 1.0, 9))
_WEIGHT_STRENGTHS = (0.0, 0.15, 0.3, 0.5)
_LARGEST = 2.0**12
# A gain of less than this share of the error is not worth the change.
_LEAST_GAIN = 0.02


@dataclass(frozen=True)
class Reader:
    """A layer that reads the site.

    Attributes:
        statistics: of what it reads.
        magnitudes: largest weight by output and channel, `[groups, outputs, channels of a group]`.
        squares: sum of squared weights by channel, `[channels]`, in units of the layer's output power.
        power: that output power.
    """

    statistics: ChannelStatistics
    magnitudes: np.ndarray
    squares: np.ndarray
    power: float

    def weight_error(self, factors: np.ndarray) -> float:
        """The second sum of the module's docstring."""
        groups, _, width = self.magnitudes.shape
        per_group = factors.reshape(groups, 1, width)
        steps = (self.magnitudes * per_group).max(axis=2) / _WEIGHT_STEPS
        seen = (self.statistics.square / factors**2).reshape(groups, width).sum(axis=1)
        return float((np.square(steps).sum(axis=1) * seen).sum() / 12.0 / self.power)


@dataclass(frozen=True)
class Candidate:
    """A site with what is known of it.

    Attributes:
        readers: the layers behind.
        terms: statistics of values that are rounded on the way, and the share of the error that is left.
    """

    readers: Sequence[Reader]
    terms: Sequence[tuple[ChannelStatistics, float]]

    @classmethod
    def of(cls, site: Site, statistics: Mapping[str, ChannelStatistics], constants: Constants) -> Candidate:
        """Gathers it; `constants` are the weights as they are by now."""
        readers = []
        for edit, (value, _) in zip(site.multiplied, site.entries, strict=True):
            readers.append(_reader(edit, constants.get(edit.operand), statistics[str(value.name)]))
        entries = {value for value, _ in site.entries}
        terms = {value: share for value, _, share in site.terms if value not in entries}
        return cls(readers, [(statistics[str(value.name)], share) for value, share in terms.items()])

    def error(self, factors: np.ndarray) -> float:
        """Expected noise over signal, summed over the readers."""
        total = 0.0
        squared = factors**2
        for reader in self.readers:
            step = _step(reader.statistics, factors)
            total += step**2 / 12.0 * float((squared * reader.squares).sum())
            total += _WEIGHT_SHARE * reader.weight_error(factors)
        reached = sum(reader.squares for reader in self.readers) / len(self.readers)
        for term, share in self.terms:
            total += share * _step(term, factors) ** 2 / 12.0 * float((squared * reached).sum())
        return total


@dataclass(frozen=True)
class Found:
    """Factors float64 `[channels]`, and by how many decibels they should lower the error."""

    factors: np.ndarray
    gain_db: float


def best_factors(candidate: Candidate) -> Found | None:
    """The factors of least expected error, or None where hardly any is gained."""
    ranges = _typical([reader.statistics.magnitude for reader in candidate.readers])
    weights = _typical([_by_channel(reader.magnitudes) for reader in candidate.readers])
    plain = np.ones(len(ranges))
    first = best = candidate.error(plain)
    factors = plain
    for strength, opposed in itertools.product(_STRENGTHS, _WEIGHT_STRENGTHS):
        tried = np.clip(ranges**strength / weights**opposed, 1.0 / _LARGEST, _LARGEST)
        error = candidate.error(tried)
        if error < best:
            best, factors = error, tried
    if not best < (1.0 - _LEAST_GAIN) * first:
        return None
    return Found(factors, float(10.0 * np.log10(first / best)))


def _reader(edit: Edit, array: np.ndarray, statistics: ChannelStatistics) -> Reader:
    wide = np.abs(array.astype(np.float64))
    if edit.groups > 1:
        # [outputs, channels of a group, ...]
        shaped = wide.reshape(edit.groups, len(wide) // edit.groups, wide.shape[1], -1)
    else:
        axis = edit.axes[0]
        # The outputs are the axis that is not summed over; what is left are positions of a window.
        out = 1 - axis if wide.ndim == 2 or axis < 2 else wide.ndim - 1
        shaped = np.moveaxis(wide, (out, axis), (0, 1)).reshape(1, wide.shape[out], wide.shape[axis], -1)
    squares = np.square(shaped).sum(axis=(1, 3)).reshape(-1)
    power = float((squares * statistics.square).sum())
    power = power if power > 0.0 else 1.0
    return Reader(statistics, shaped.max(axis=3), squares / power, power)


def _step(statistics: ChannelStatistics, factors: np.ndarray) -> float:
    high = max(float((statistics.high / factors).max()), 0.0)
    low = min(float((statistics.low / factors).min()), 0.0)
    return (high - low) / _ACTIVATION_STEPS


def _by_channel(magnitudes: np.ndarray) -> np.ndarray:
    return magnitudes.max(axis=1).reshape(-1)


def _typical(rows: Sequence[np.ndarray]) -> np.ndarray:
    """The geometric mean over rows, each relative to its own mean; channels of zeros count as usual."""
    total = np.zeros(len(rows[0]))
    for row in rows:
        sound = row > 0.0
        if not sound.any():
            continue
        logs = np.log(np.where(sound, row, 1.0))
        total += np.where(sound, logs - logs[sound].mean(), 0.0)
    return np.exp(total / len(rows))
