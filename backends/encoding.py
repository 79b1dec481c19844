"""Finds the codes behind packed float weights: what a model restores them from."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable
from dataclasses import dataclass

import ml_dtypes
import numpy as np

from ..passes.quantization.weight_forms import pack
from .coding import BFLOAT16, CODES, FLOAT16, Coding, Transform, places_of

# Finding the order takes some ten times the memory of the weights.
_MOST = 1 << 27


@dataclass(frozen=True)
class Source:
    """Weights as a model stores them, in their own order.

    Attributes:
        shape: of the weights.
        view: the shape with the same elements in which scales broadcast.
        numbers: what the codes stand for before scaling, float32, in the shape `view`.
        scales, zeros: float32 of the rank of `view`, each axis as long or 1, or along `axis` one per block;
            `zeros` may be None.
        axis, block: where numbers share a scale in runs; `block` 0 if nowhere.
    """

    shape: tuple[int, ...]
    view: tuple[int, ...]
    numbers: np.ndarray
    scales: np.ndarray
    zeros: np.ndarray | None = None
    axis: int = 0
    block: int = 0


def encode_packed(
    packed: np.ndarray, source: Source, packing: Callable[[np.ndarray], np.ndarray]
) -> Coding | None:
    """The coding of packed weights, proven to restore them; None where there is none.

    Args:
        packed: float32, what the kernel reads.
        source: the weights it was made from.
        packing: brings an array of the weights' shape into the kernel's order.
    """
    if packed.size > _MOST:
        return None
    levels, codes = np.unique(source.numbers, return_inverse=True)
    if len(levels) > 256 or packed.dtype != np.float32:
        return None
    order = _order(source, packing, codes.reshape(source.shape))
    if order is None:
        return None
    found, f, g, starts = order
    if found.size != packed.size:
        return None
    zero = int(np.searchsorted(levels, 0.0))
    filling = zero if zero < len(levels) and levels[zero] == 0.0 else 0
    scales = source.scales.reshape(-1)
    zeros = np.zeros(0, np.float32) if source.zeros is None else source.zeros.reshape(-1)
    draft = Coding(
        CODES,
        tuple(found.shape),
        pack(np.where(found < 0, filling, found), len(levels)),
        levels.astype(np.float32),
        scales.astype(np.float32),
        zeros.astype(np.float32),
        f,
        g,
        source.block or 1 << 40,
        _strides(source.scales.shape)[source.axis] if source.block else 0,
        starts,
    )
    # Filling reaches beyond the last scale: there it is zero.
    corners = np.array(list(itertools.product(*[{0, size - 1} for size in found.shape]))).T
    reached = places_of(draft, tuple(corners))
    most = int(reached.max())
    if reached.min() < 0 or most > 4 * len(scales) + 4096:
        return None
    # A piece of weights keeps its own share of the scales.
    missing, least = max(most + 1 - len(scales), 0), int(reached.min())
    share = slice(least, most + 1)
    whole = dataclasses.replace(
        draft,
        scales=np.pad(draft.scales, (0, missing))[share],
        zeros=np.pad(draft.zeros, (0, missing))[share] if draft.zeros.size else draft.zeros,
        starts=(starts[0], starts[1] - least),
    )
    if len(whole.to_bytes()) >= packed.nbytes:
        return None
    return whole if np.array_equal(whole.restore(), packed.reshape(found.shape)) else None


def encode_halves(array: np.ndarray) -> Coding | None:
    """The coding of float32 numbers that all have a half-precision form; None where they have not."""
    if array.dtype != np.float32:
        return None
    nothing = np.zeros(0, np.float32)
    rank = array.ndim
    for kind, dtype in ((FLOAT16, np.float16), (BFLOAT16, ml_dtypes.bfloat16)):
        with np.errstate(over="ignore"):
            halves = np.ascontiguousarray(array).astype(dtype)
        if np.array_equal(halves.astype(np.float32), array):
            codes = halves.reshape(-1).view(np.uint16)
            return Coding(kind, array.shape, codes, nothing, nothing, nothing, (0,) * rank, (0,) * rank, 1, 0)
    return None


def transformed(plain: Coding, transform: Transform, packed: np.ndarray) -> Coding | None:
    """The coding of transformed weights from that of the weights; None where it does not restore them."""
    made = dataclasses.replace(plain, transform=transform)
    largest = float(np.abs(packed).max(initial=0.0))
    return made if np.allclose(made.restore(), packed, rtol=1e-6, atol=1e-7 * largest) else None


def _order(
    source: Source, packing: Callable[[np.ndarray], np.ndarray], codes: np.ndarray
) -> tuple[np.ndarray, tuple[int, ...], tuple[int, ...], tuple[int, int]] | None:
    """Codes as packed, -1 where it fills up, strides and starts of f and g; None where they have none."""
    strides = _strides(source.scales.shape)
    f, g = np.zeros(source.view, np.int32), np.zeros(source.view, np.int32)
    for axis, size in enumerate(source.view):
        along = np.arange(size, dtype=np.int32).reshape(
            [-1 if k == axis else 1 for k in range(len(source.view))]
        )
        if source.block and axis == source.axis:
            f = f + along
        elif source.scales.shape[axis] > 1:
            g = g + along * strides[axis]
    found = []
    for array in (codes, f, g):
        moved = packing(np.ascontiguousarray(array.reshape(source.shape).astype(np.int32) + 1))
        if moved.dtype != np.int32:
            return None
        found.append(moved - 1)
    real = found[0] >= 0
    if not real.size or not real.reshape(-1)[0]:
        return None
    strides_of = []
    for array in found[1:]:
        steps = _affine(array)
        index = np.full(array.shape, array.reshape(-1)[0], np.int32)
        for axis, step in enumerate(steps):
            shape = [-1 if k == axis else 1 for k in range(array.ndim)]
            along = (step * np.arange(array.shape[axis])).astype(np.int32)
            index = index + along.reshape(shape)
        if not np.array_equal(index[real], array[real]):
            return None
        strides_of.append(steps)
    starts = (int(found[1].reshape(-1)[0]), int(found[2].reshape(-1)[0]))
    return found[0], strides_of[0], strides_of[1], starts


def _affine(array: np.ndarray) -> tuple[int, ...]:
    """Per axis how much one step changes; 0 along axes of one, and into filling."""
    first = array[(0,) * array.ndim]
    steps = []
    for axis, size in enumerate(array.shape):
        at = [0] * array.ndim
        at[axis] = 1
        steps.append(int(array[tuple(at)] - first) if size > 1 and array[tuple(at)] >= 0 else 0)
    return tuple(steps)


def _strides(shape: tuple[int, ...]) -> list[int]:
    strides = [1] * len(shape)
    for axis in range(len(shape) - 2, -1, -1):
        strides[axis] = strides[axis + 1] * shape[axis + 1]
    return strides
