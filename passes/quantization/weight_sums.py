"""Rounding some weights the other way, so that the errors of an output cancel: no data needed.

What a convolution reads is mostly one-sided, behind a ReLU, and alike in neighbouring places. With inputs of
second moments H = I + W + J, W being ones between the places of a channel's window and J ones between all
inputs of an output, the error of an output is

    e^T H e  =  sum e^2  +  sum over channels (sum of their window's e)^2  +  (sum of all e)^2

Nearest rounding makes the first term the least and leaves the others to chance. Here the one number that
lowers the whole the most is moved by one level, again and again: first within every window, then within every
output. J stands for mean^2 over variance, which is about a half behind a ReLU, hence its weight where windows
are single numbers and W is I (after Guo et al., "SQuant: On-the-Fly Data-Free Quantization via Diagonal
Hessian Approximation", 2022).
"""

from __future__ import annotations

import dataclasses

import numpy as np

from .weight_forms import Encoded

# Rows that are worked on at a time hold about this many numbers.
_CHUNK = 1 << 20
_MOST_MOVES = 128


def keep_sums(encoded: Encoded, matrix: np.ndarray, window: int, groups: int = 1) -> Encoded:
    """Other codes whose errors cancel over the window of each channel and over what each output sums.

    Args:
        encoded: how `matrix` was rounded; scales, zero points and levels stay.
        matrix: float32 `[rows, columns]`.
        window: neighbouring columns that belong to one channel; it divides the columns of a group.
        groups: equal parts of a row that different outputs sum over.

    Returns:
        Codes that were moved by few steps; 8-bit floats and half precision come back as they are.
    """
    codes = encoded.codes
    levels = _levels(encoded)
    if levels is None or not codes.size:
        return encoded
    lowest = 0 if encoded.levels is not None else int(levels[0])
    rows, columns = codes.shape
    moved = codes.copy()
    step = max(1, _CHUNK // max(columns, 1))
    for start in range(0, rows, step):
        part = slice(start, start + step)
        index = codes[part].astype(np.int32) - lowest
        scales = _spread(encoded.scales, part, encoded.block, columns, 1.0)
        zeros = _spread(encoded.zero_points, part, encoded.block, columns, 0.0)
        rounding = _Rounding(index, scales, (levels[index] - zeros) * scales - matrix[part], levels)
        before = rounding.losses(window, columns // groups)
        if window > 1:
            rounding.settle(window, among=window)
        rounding.settle(window, among=columns // groups)
        # What is least within windows is rarely a bad start for the whole.
        worse = np.repeat(rounding.losses(window, columns // groups) > before, columns // groups)
        chosen = np.where(worse.reshape(index.shape), index, rounding.index)
        moved[part] = (chosen + lowest).astype(np.int8 if lowest < 0 else np.uint8)
    return dataclasses.replace(encoded, codes=moved)


class _Rounding:
    """Some rows: indices of levels, scales and errors, `[rows, columns]` each."""

    def __init__(self, index: np.ndarray, scales: np.ndarray, errors: np.ndarray, levels: np.ndarray):
        # Contiguous, so that reshaping gives views.
        self.index = np.array(index, order="C")
        self._scales = np.ascontiguousarray(np.broadcast_to(scales, index.shape))
        self._errors = np.ascontiguousarray(errors, np.float32)
        # By how much a number grows that goes one level up; next to nothing is beyond the last.
        self._up = np.append(np.diff(levels), np.inf).astype(np.float32)

    def losses(self, window: int, among: int) -> np.ndarray:
        """What is minimized, of every `among` neighbouring columns."""
        by_window = self._errors.reshape(-1, among // window, window).sum(axis=-1, dtype=np.float64)
        total = np.square(by_window).sum(axis=-1)
        if among != window:
            total = total + np.square(by_window.sum(axis=-1))
        return total + np.square(self._errors, dtype=np.float64).reshape(-1, among).sum(axis=-1)

    def settle(self, window: int, among: int) -> None:
        """Move one number of every `among` neighbouring columns at a time until nothing lowers the error."""
        shape = (-1, among)
        index, scales = self.index.reshape(shape), self._scales.reshape(shape)
        errors = self._errors.reshape(shape)
        active = np.arange(len(index))
        for _ in range(_MOST_MOVES):
            here, error = index[active], errors[active]
            by_window = error.reshape(len(active), -1, window).sum(axis=-1)
            total = by_window.sum(axis=-1, keepdims=True)
            slope = 2.0 * (error + np.repeat(by_window, window, axis=-1))
            if among != window:
                slope = slope + 2.0 * total
            terms = 2.0 if among == window else 3.0
            down = (slope > 0.0) == (scales[active] > 0.0)
            gap = np.where(down, self._up[here - 1], self._up[here])
            gap = np.where(down & (here == 0), np.inf, gap)
            change = np.where(down, -gap, gap) * scales[active]
            with np.errstate(invalid="ignore"):
                gain = np.where(np.isfinite(change), change * (slope + terms * change), np.inf)
            best = gain.argmin(axis=-1)
            lines = np.arange(len(active))
            helps = gain[lines, best] < -1e-6 * np.square(change[lines, best])
            if not helps.any():
                return
            active, best, lines = active[helps], best[helps], lines[helps]
            index[active, best] += np.where(down[lines, best], -1, 1)
            errors[active, best] += change[lines, best]


def _levels(encoded: Encoded) -> np.ndarray | None:
    """The numbers that codes can be, ascending; None where they are floats themselves."""
    if encoded.levels is not None:
        return encoded.levels
    name = encoded.codes.dtype.name
    if name not in ("int4", "int8", "uint4", "uint8"):
        return None
    bits = int(name.removeprefix("u").removeprefix("int"))
    if name.startswith("u"):
        return np.arange(2**bits, dtype=np.float32)
    last = 2 ** (bits - 1) - 1
    lowest = min(-last, int(encoded.codes.astype(np.int32).min(initial=0)))
    return np.arange(lowest, last + 1, dtype=np.float32)


def _spread(
    parameters: np.ndarray | None, part: slice, block: int, columns: int, otherwise: float
) -> np.ndarray:
    if parameters is None:
        return np.float32(otherwise) * np.ones((1, columns), np.float32)
    return np.repeat(parameters[part].astype(np.float32), block, axis=1)[:, :columns]
