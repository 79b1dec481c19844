"""Forms in which weights alone are stored, activations staying float: levels, scales, codes; no graphs.

A weight matrix `[rows, columns]` (columns are what a product sums over) is cut into blocks along its rows.
Every number of a block is one of few levels times the block's scale; what is stored is which one.

    int8, int4          evenly spaced levels, symmetric (scales of either sign) or with a zero point per block
    int2                {-3, -1, 1, 3}: four levels that are symmetric, at the price of having no zero
    ternary, binary     {-1, 0, 1} and {-1, 1}: the scale that loses least is known in closed form (TWN, XNOR)
    nf4                 quantiles of a normal distribution (QLoRA, arXiv:2305.14314, appendix E)
    fp4                 the floating-point numbers of E2M1
    power-of-two        zero and signed powers of two, scale included: products are shifts
    kmeans              levels that the weights themselves ask for (Deep Compression, arXiv:1510.00149)
    fp8-e4m3, fp8-e5m2  8-bit floating point
    float16, bfloat16   half precision, no scale
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import ml_dtypes
import numpy as np

from .kmeans import kmeans_levels
from .signed_scales import least_error_scales

Rule = Literal["search", "absmax", "ternary", "binary", "power-of-two"]

# Rows that are encoded at a time hold about this many numbers, so that copies stay small beside the model.
_CHUNK = 1 << 21
_TINY = float(np.finfo(np.float32).tiny)
_FEW_LEVELS = 16
_NF4 = (
    *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635),
    *(-0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725),
    *(0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941),
    *(0.7229568362236023, 1.0),
)
_FP4 = (0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)


@dataclass(frozen=True)
class WeightForm:
    """How the numbers of a weight are stored.

    Attributes:
        name: what pipelines call it.
        storage: numpy or ml_dtypes name of the stored type, or "packed" for several codes to a byte.
        levels: what the codes stand for, ascending, before the scale; None where the storage type says it or
            the weights decide.
        block: numbers that share a scale by default; 0 for a whole row, None where there is no scale.
        rule: how scales are chosen.
        asymmetric: storage with a zero point per block, or None where there is none.
    """

    name: str
    storage: str
    levels: tuple[float, ...] | None = None
    block: int | None = 0
    rule: Rule = "search"
    asymmetric: str | None = None

    @property
    def is_cast(self) -> bool:
        """Whether the weights are rounded to another floating-point type and nothing else."""
        return self.storage in ("float16", "bfloat16")

    @property
    def is_evenly_spaced(self) -> bool:
        """Whether the levels are neighbouring integers, so that rounding finds the nearest."""
        return self.levels is not None and len(self.levels) == self.levels[-1] - self.levels[0] + 1


def _integers(low: int, high: int) -> tuple[float, ...]:
    return tuple(float(i) for i in range(low, high + 1))


_FORMS = (
    # By magnitude, symmetric grids leave out the lowest integer: clipping one side more than the other shifts
    # the mean of a row, and errors of one sign add up (ResNet-18 in int4: 8.5 dB with -8, 13.0 without).
    WeightForm("int8", "int8", _integers(-127, 127), asymmetric="uint8"),
    WeightForm("int4", "int4", _integers(-7, 7), block=64, asymmetric="uint4"),
    WeightForm("int2", "packed", (-3.0, -1.0, 1.0, 3.0), block=64),
    WeightForm("ternary", "packed", (-1.0, 0.0, 1.0), block=64, rule="ternary"),
    WeightForm("binary", "packed", (-1.0, 1.0), block=64, rule="binary"),
    WeightForm("kmeans", "packed", None, block=None),
    WeightForm("power-of-two", "packed", None, rule="power-of-two"),
    WeightForm("nf4", "packed", _NF4, block=64, rule="absmax"),
    WeightForm("fp4", "packed", (*(-x for x in reversed(_FP4)), 0.0, *_FP4), block=64),
    WeightForm("fp8-e4m3", "float8_e4m3fn", rule="absmax"),
    WeightForm("fp8-e5m2", "float8_e5m2", rule="absmax"),
    WeightForm("float16", "float16", block=None),
    WeightForm("bfloat16", "bfloat16", block=None),
)
WEIGHT_FORMS: Mapping[str, WeightForm] = {form.name: form for form in _FORMS}
"""The forms by name."""


@dataclass(frozen=True)
class Encoded:
    """A weight matrix in its stored form.

    Attributes:
        codes: `[rows, columns]`: the stored numbers themselves, or (packed) uint8 indices of `levels`.
        scales: float32 `[rows, blocks]`, or None.
        zero_points: `[rows, blocks]` of the type of `codes`, or None.
        levels: float32, what indices stand for; None where the codes are the numbers.
        block: columns that share a scale; the last block of a row may be shorter.
    """

    codes: np.ndarray
    scales: np.ndarray | None
    zero_points: np.ndarray | None
    levels: np.ndarray | None
    block: int

    def decode(self) -> np.ndarray:
        """The float32 numbers `[rows, columns]` that a runtime computes from the stored form."""
        numbers = self.levels[self.codes] if self.levels is not None else self.codes.astype(np.float32)
        if self.scales is None:
            return numbers
        spread = np.repeat(self.scales, self.block, axis=1)[:, : numbers.shape[1]]
        if self.zero_points is not None:
            zeros = np.repeat(self.zero_points.astype(np.float32), self.block, axis=1)
            numbers = numbers - zeros[:, : numbers.shape[1]]
        return numbers * spread


def encode(
    matrix: np.ndarray,
    form: WeightForm,
    *,
    block: int | None = None,
    symmetric: bool = True,
    bits: int = 4,
    rule: Rule | None = None,
    signed_scales: bool = True,
) -> Encoded:
    """Rounds weights to a form.

    Args:
        matrix: finite float32 `[rows, columns]`, columns summed over.
        form: one of `WEIGHT_FORMS`.
        block: columns per scale, 0 for whole rows; None takes the form's own.
        symmetric: False gives each block a zero point, where the form has one.
        bits: of k-means and power-of-two: there are at most 2^bits levels.
        rule: how scales are chosen where the form leaves it open: "search" (least squared error) or "absmax".
        signed_scales: whether searched symmetric scales of few levels may be negative, which errs less.
    """
    rows, columns = matrix.shape
    if form.is_cast:
        return Encoded(matrix.astype(np.dtype(form.storage)), None, None, None, max(columns, 1))
    wanted = form.block if block is None else block
    size = block_size(columns, wanted or 0, exact=form.storage == "packed")
    levels = _levels(matrix, form, bits, size if wanted is not None else None)
    rule = form.rule if rule is None or form.rule not in ("search", "absmax") else rule
    if wanted is None:
        assert levels is not None
        return Encoded(_nearest(matrix, levels), None, None, levels, max(columns, 1))
    storage = form.storage if symmetric or form.asymmetric is None else form.asymmetric
    parts = []
    step = max(1, _CHUNK // max(columns, 1))
    for start in range(0, rows, step):
        chunk = _blocks(matrix[start : start + step], size)
        parts.append(_encode_blocks(chunk, form, storage, levels, rule, signed_scales))
    codes = np.concatenate([part[0] for part in parts]).reshape(rows, -1)[:, :columns]
    zeros = None if parts[0][2] is None else np.concatenate([part[2] for part in parts])
    indexed = levels if form.storage == "packed" else None
    return Encoded(codes, np.concatenate([part[1] for part in parts]), zeros, indexed, size)


def block_size(columns: int, wanted: int, *, exact: bool) -> int:
    """How many columns share a scale.

    Args:
        columns: length of a row.
        wanted: block size asked for, 0 for whole rows.
        exact: whether blocks must divide a row evenly; then the nearest divisor between half and twice the
            size is taken, or else the whole row.
    """
    if wanted <= 0 or wanted >= columns:
        return max(columns, 1)
    if not exact or columns % wanted == 0:
        return wanted
    divisors = [d for d in range(wanted // 2, 2 * wanted + 1) if d and columns % d == 0]
    return min(divisors, key=lambda d: abs(d - wanted), default=columns)


def codes_per_byte(levels: int) -> int:
    """How many codes of so many levels go into a byte: 8 of up to two, 5 of three, 2 of sixteen."""
    levels = max(levels, 2)
    count = 1
    while levels ** (count + 1) <= 256:
        count += 1
    return count


def pack(codes: np.ndarray, levels: int) -> np.ndarray:
    """Packs codes (any shape) into bytes, the first one in the lowest digit; the end is filled with zeros."""
    per_byte = codes_per_byte(levels)
    flat = codes.reshape(-1).astype(np.uint8)
    padded = np.zeros(-(-flat.size // per_byte) * per_byte, np.uint8)
    padded[: flat.size] = flat
    # A byte holds any such number.
    packed = padded[::per_byte].copy()
    for place in range(1, per_byte):
        packed += padded[place::per_byte] * np.uint8(levels**place)
    return packed


def byte_table(levels: np.ndarray) -> np.ndarray:
    """What each byte stands for: `[len(levels) ** per_byte, per_byte]` of the type of `levels`."""
    count, per_byte = len(levels), codes_per_byte(len(levels))
    bytes_ = np.arange(count**per_byte)
    digits = np.stack([bytes_ // count**i % count for i in range(per_byte)], axis=1)
    return levels[digits]


def _blocks(chunk: np.ndarray, size: int) -> np.ndarray:
    """`[rows, columns]` as float32 `[rows, blocks, size]`, the last block filled up with zeros."""
    rows, columns = chunk.shape
    padded = -(-columns // size) * size
    if padded != columns:
        chunk = np.concatenate([chunk, np.zeros((rows, padded - columns), chunk.dtype)], axis=1)
    return chunk.astype(np.float32).reshape(rows, -1, size)


def _encode_blocks(
    blocks: np.ndarray, form: WeightForm, storage: str, levels: np.ndarray | None, rule: Rule, signed: bool
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """(codes as `blocks`, scales `[rows, blocks]`, zero points or None)."""
    if storage == form.asymmetric:
        return _encode_asymmetric(blocks, storage, search=rule == "search")
    scales = _scales(blocks, form, levels, rule)
    scaled = blocks / scales[..., None]
    if form.storage.startswith("float8"):
        dtype = np.dtype(form.storage)
        limit = np.float32(ml_dtypes.finfo(dtype).max)
        return np.clip(scaled, -limit, limit).astype(dtype), scales, None
    assert levels is not None
    if form.storage == "packed":
        return _nearest(scaled, levels), scales, None
    low = levels[0]
    if signed and rule == "search" and len(levels) <= _FEW_LEVELS:
        # Of many levels one more is worth nothing.
        scales = least_error_scales(blocks, scales, float(levels[-1]), _factors(len(levels), True))
        scaled, low = blocks / scales[..., None], low - 1.0
    stored = np.clip(np.rint(scaled), low, levels[-1]).astype(np.int8)
    return stored.astype(np.dtype(storage)), scales, None


def _encode_asymmetric(
    blocks: np.ndarray, storage: str, *, search: bool
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    top = 15 if storage == "uint4" else 255
    low = np.minimum(blocks.min(axis=-1), 0.0)
    high = np.maximum(blocks.max(axis=-1), 0.0)
    best: tuple[np.ndarray, np.ndarray, np.ndarray] | None = None
    for factor in _factors(top + 1, search):
        scale = _positive((high - low) * np.float32(factor / top))
        zero = np.clip(np.rint(-low * np.float32(factor) / scale), 0, top)
        steps = np.clip(np.rint(blocks / scale[..., None]) + zero[..., None], 0, top)
        error = (((steps - zero[..., None]) * scale[..., None] - blocks) ** 2).sum(axis=-1)
        if best is None:
            best = error, scale, zero
        else:
            better = error < best[0]
            best = (
                np.where(better, error, best[0]),
                np.where(better, scale, best[1]),
                np.where(better, zero, best[2]),
            )
    assert best is not None
    _, scale, zero = best
    steps = np.clip(np.rint(blocks / scale[..., None]) + zero[..., None], 0, top)
    dtype = np.dtype(storage)
    return steps.astype(np.uint8).astype(dtype), scale, zero.astype(np.uint8).astype(dtype)


def _scales(blocks: np.ndarray, form: WeightForm, levels: np.ndarray | None, rule: Rule) -> np.ndarray:
    """Scale of each block, float32 `[rows, blocks]`, positive."""
    magnitudes = np.abs(blocks)
    if rule == "binary":
        return _positive(magnitudes.mean(axis=-1, dtype=np.float64), of_zeros=_TINY)
    if rule == "ternary":
        return _positive(_ternary_scales(magnitudes))
    peak = magnitudes.max(axis=-1)
    if form.name == "kmeans":
        # Its levels were learned from blocks brought to magnitude 1; zero need not be among them.
        return _positive(peak, of_zeros=_TINY)
    if form.storage.startswith("float8"):
        return _positive(peak / np.float32(ml_dtypes.finfo(np.dtype(form.storage)).max))
    assert levels is not None
    if 0.0 not in levels:
        # The scale of a block of zeros must be next to nothing.
        peak = np.maximum(peak, np.float32(_TINY * levels[-1]))
    reach = np.float32(np.abs(levels).max())
    if rule == "absmax":
        return _positive(peak / np.float32(levels[-1] if form.storage != "packed" else reach))
    if rule == "power-of-two":
        candidates = [np.exp2(np.round(np.log2(_positive(peak))) - shift) for shift in (-1, 0, 1)]
    else:
        candidates = [_positive(peak * np.float32(f) / reach) for f in _factors(len(levels), True)]
        candidates.insert(0, _positive(peak / np.float32(levels[-1])))
    look_up = _rough_rounding(levels)
    best, least = candidates[0], np.full(peak.shape, np.inf, np.float32)
    for scale in candidates:
        scaled = blocks / scale[..., None]
        if form.is_evenly_spaced:
            near = np.clip(np.rint(scaled), levels[0], levels[-1])
        else:
            near = look_up(scaled)
        error = ((near - scaled) ** 2).sum(axis=-1) * scale**2
        best = np.where(error < least, scale, best)
        least = np.minimum(error, least)
    return (best if 0.0 in levels else _fitted(blocks, best, levels)).astype(np.float32)


def _fitted(blocks: np.ndarray, scales: np.ndarray, levels: np.ndarray) -> np.ndarray:
    """Scales of least error at the levels that these choose: without a zero, outliers want tiny ones."""
    near = levels[_nearest(blocks / scales[..., None], levels)]
    fitted = (near * blocks).sum(axis=-1) / np.square(near).sum(axis=-1)
    return np.where(fitted >= _TINY, fitted, scales)


def _factors(levels: int, search: bool) -> np.ndarray:
    """Shares of a block's largest magnitude that its levels may reach to; the fewer levels, the less."""
    smallest = 0.9 if levels > 64 else 0.6 if levels > 8 else 0.25
    return np.linspace(1.0, smallest, 5 if levels > 64 else 14) if search else np.ones(1)


def _ternary_scales(magnitudes: np.ndarray) -> np.ndarray:
    """The exact optimum: with the k largest kept, the error falls by (their sum)^2 / k."""
    ordered = -np.sort(-magnitudes, axis=-1)
    sums = np.cumsum(ordered, axis=-1, dtype=np.float64)
    counts = np.arange(1, ordered.shape[-1] + 1)
    kept = np.argmax(sums**2 / counts, axis=-1)
    total = np.take_along_axis(sums, kept[..., None], axis=-1)[..., 0]
    return (total / (kept + 1)).astype(np.float32)


def _positive(scales: np.ndarray, of_zeros: float = 1.0) -> np.ndarray:
    """Scales as normal float32 numbers; a block of zeros gets `of_zeros`."""
    scales = scales.astype(np.float32)
    return np.where(scales > 0.0, np.maximum(scales, _TINY), np.float32(of_zeros)).astype(np.float32)


def _levels(matrix: np.ndarray, form: WeightForm, bits: int, size: int | None) -> np.ndarray | None:
    """Levels, ascending float32; k-means learns them, from weights brought to one scale if in blocks."""
    if form.levels is not None:
        return np.asarray(form.levels, np.float32)
    if form.name == "power-of-two":
        # Zero, and as many powers on each side.
        powers = np.exp2(-np.arange(2 ** (bits - 1) - 1, dtype=np.float32))
        return np.concatenate([-powers, [0.0], powers[::-1]]).astype(np.float32)
    if form.name != "kmeans":
        return None
    if size is None:
        return kmeans_levels(matrix, 2**bits)
    blocks = _blocks(matrix, size)
    return kmeans_levels(blocks / _positive(np.abs(blocks).max(axis=-1))[..., None], 2**bits)


def _rough_rounding(levels: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """Rounding to the nearest level by a table over a fine grid: fast, wrong only between two levels."""
    cells = 4096
    centres = np.linspace(levels[0], levels[-1], cells, dtype=np.float32)
    table = levels[_nearest(centres, levels)]
    per_unit = np.float32((cells - 1) / max(float(levels[-1] - levels[0]), 1e-30))

    def rounded(numbers: np.ndarray) -> np.ndarray:
        index = np.clip(np.rint((numbers - levels[0]) * per_unit), 0, cells - 1)
        return table[index.astype(np.int16)]

    return rounded


def _nearest(numbers: np.ndarray, levels: np.ndarray) -> np.ndarray:
    """Index of the nearest level of each number, uint8."""
    return np.searchsorted((levels[1:] + levels[:-1]) / 2, numbers).astype(np.uint8)
