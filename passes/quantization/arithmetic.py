"""The arithmetic of uniform quantization, in one place and free of graphs.

A real number r stands as the integer q with

    q = clamp(round_half_even(r / scale) + zero_point, low, high)        r ~ scale * (q - zero_point)

Symmetric grids have zero_point 0 (weights) and use [-high, high], so that -r is representable where r is.
Asymmetric grids place zero exactly on an integer: padding, ReLU and dead channels stay exact. Scales are
float32, because that is what QuantizeLinear stores; everything before the final rounding is computed in
float64.
"""

from __future__ import annotations

from dataclasses import dataclass

import ml_dtypes
import numpy as np

# Largest magnitude a quantized bias may take: half of int32, the other half is left to the sum of products.
BIAS_LIMIT = 2.0**30
# Products of scales stay normal float32 numbers above this.
_SMALLEST_PRODUCT = 1e-37
# Within these magnitudes every product and quotient of scales is a normal float32 number.
SMALLEST_RANGE, LARGEST_RANGE = 1e-18, 1e18
_SMALLEST_SCALE = float(np.finfo(np.float32).tiny)
_LARGEST_SCALE = float(np.finfo(np.float32).max)


_FLOATS = ("float8_e4m3fn", "float8_e5m2")
_BELOW_A_BYTE = ("int4", "uint4")


def dtype_named(name: str) -> np.dtype:
    """A numpy type by name, those of ml_dtypes included.

    Raises:
        TypeError: there is no such type.
    """
    return np.dtype(getattr(ml_dtypes, name) if name in (*_FLOATS, *_BELOW_A_BYTE) else name)


@dataclass(frozen=True)
class Grid:
    """The numbers that a type can store: integers, or the floating-point numbers of 8 bits.

    Attributes:
        dtype: numpy or ml_dtypes name of the type that is stored.
        low: smallest number used.
        high: largest number used.
        symmetric: whether the zero point is fixed in the middle (0 for signed types).
    """

    dtype: str
    low: int
    high: int
    symmetric: bool

    def __post_init__(self) -> None:
        lowest, highest = _limits(self.dtype)
        if not lowest <= self.low < self.high <= highest:
            raise ValueError(f"[{self.low}, {self.high}] is no range of {self.dtype}")
        if self.symmetric and lowest < 0 and self.low != -self.high:
            raise ValueError(f"the symmetric grid [{self.low}, {self.high}] is not symmetric around 0")
        if self.is_float and not self.symmetric:
            raise ValueError(f"{self.dtype} is symmetric, it has no zero point")

    @classmethod
    def make(cls, dtype: str, *, symmetric: bool, bits: int | None = None) -> Grid:
        """Builds the grid of a type, or of its `bits` lowest bits.

        A symmetric signed grid drops the most negative integer: [-127, 127] for int8. With fewer bits than
        the type has, it spans [-2^(bits-1), 2^(bits-1)]: [-64, 64] for 7 bits in int8, the largest magnitude
        at which two products with uint8 still fit the 16-bit sums of x86 without VNNI (2 * 255 * 64 < 2^15).
        """
        lowest, highest = _limits(dtype)
        if dtype in _FLOATS:
            if bits is not None:
                raise ValueError(f"{dtype} has no use for a number of bits")
            return cls(dtype, lowest, highest, symmetric)
        has = (highest - lowest).bit_length()
        used = has if bits is None else bits
        if not 2 <= used <= has:
            raise ValueError(f"{dtype} cannot hold {used} bits")
        if lowest == 0:
            return cls(dtype, 0, 2**used - 1, symmetric)
        if not symmetric:
            return cls(dtype, -(2 ** (used - 1)), 2 ** (used - 1) - 1, False)
        high = highest if used == has else 2 ** (used - 1)
        return cls(dtype, -high, high, True)

    @property
    def is_float(self) -> bool:
        """Whether the numbers are floating-point ones of 8 bits."""
        return self.dtype in _FLOATS

    @property
    def steps(self) -> int:
        """How many steps there are from the smallest number to the largest; 8-bit floats count as 255."""
        return 255 if self.is_float else self.high - self.low

    @property
    def width(self) -> tuple[int, float]:
        """What orders grids by how much they keep: bits, then the range of floats against even spacing."""
        if self.is_float:
            return 8, -float(self.high)
        return (self.high - self.low).bit_length(), 0.0

    @property
    def middle(self) -> int:
        """Zero point of a symmetric grid: 0, or half of an unsigned range (128 for uint8)."""
        return 0 if self.low < 0 else (self.high + 1) // 2


def _limits(dtype: str) -> tuple[int, int]:
    if dtype in _FLOATS:
        highest = int(ml_dtypes.finfo(dtype_named(dtype)).max)
        return -highest, highest
    info = ml_dtypes.iinfo(dtype_named(dtype))
    return int(info.min), int(info.max)


def widen_to_zero(low: float, high: float) -> tuple[float, float]:
    """Returns the range extended so that it contains zero."""
    return min(low, 0.0), max(high, 0.0)


def range_problem(low: float, high: float) -> str | None:
    """Says why a range cannot be quantized, or None if it can."""
    if not (np.isfinite(low) and np.isfinite(high)):
        return f"its range [{low:g}, {high:g}] is not finite"
    if low > high:
        return f"its range [{low:g}, {high:g}] is empty"
    magnitude = max(abs(low), abs(high))
    if 0.0 < magnitude < SMALLEST_RANGE:
        return f"its range [{low:g}, {high:g}] is too small for a float32 scale"
    if magnitude > LARGEST_RANGE:
        return f"its range [{low:g}, {high:g}] is too large for a float32 scale"
    return None


def array_problem(array: np.ndarray, what: str) -> str | None:
    """Says why a constant cannot be quantized, or None if it can; `what` names it."""
    if not array.size:
        return None
    # NaN goes through both, and nothing as large as the array is made.
    low, high = float(array.min()), float(array.max())
    if not (np.isfinite(low) and np.isfinite(high)):
        return f"NaN or infinity in {what}"
    return f"numbers beyond {LARGEST_RANGE:g} in {what}" if max(-low, high) > LARGEST_RANGE else None


def activation_parameters(low: float, high: float, grid: Grid) -> tuple[np.float32, int]:
    """Scale and zero point for values in [low, high].

    Args:
        low: smallest value; zero is always included.
        high: largest value.
        grid: the integers to map to.

    Returns:
        (scale, zero point). An all-zero range gives scale 1, so that zero is exact.

    Raises:
        ValueError: the range is not finite, empty, or too small (`range_problem` tells beforehand).
    """
    problem = range_problem(low, high)
    if problem is not None:
        raise ValueError(problem)
    low, high = widen_to_zero(float(low), float(high))
    if grid.symmetric:
        magnitude = max(-low, high)
        steps = min(grid.high - grid.middle, grid.middle - grid.low)
        return _float32_scale(magnitude / steps if magnitude else 1.0), grid.middle
    if low == high:
        return np.float32(1.0), min(max(0, grid.low), grid.high)
    scale = _float32_scale((high - low) / (grid.high - grid.low))
    zero_point = round(grid.low - low / float(scale))
    return scale, min(max(zero_point, grid.low), grid.high)


def weight_scales(weights: np.ndarray, axis: int | None, grid: Grid) -> np.ndarray:
    """Symmetric scales of a weight tensor.

    Args:
        weights: float array, finite.
        axis: channel axis, or None for one scale of the whole tensor.
        grid: a symmetric grid.

    Returns:
        float64 `[channels]`, or `[]` (0-d) where axis is None. A channel of zeros takes the smallest scale of
        the others; 0.0 means that the whole tensor is zero and any scale will do.
    """
    steps = grid.high - grid.middle
    if axis is None:
        return np.asarray(_magnitude(weights, None) / steps)
    others = tuple(i for i in range(weights.ndim) if i != axis % weights.ndim)
    scales = _magnitude(weights, others) / steps
    positive = scales[scales > 0.0]
    return np.where(scales > 0.0, scales, positive.min() if positive.size else 0.0)


def weight_ends(weights: np.ndarray, axis: int | None) -> tuple[np.ndarray, np.ndarray]:
    """Smallest and largest weight of each channel, zero included, float64 `[channels]` or 0-d."""
    others = None if axis is None else tuple(i for i in range(weights.ndim) if i != axis % weights.ndim)
    low = np.minimum(weights.min(axis=others, initial=0.0), 0.0).astype(np.float64)
    return low, np.maximum(weights.max(axis=others, initial=0.0), 0.0).astype(np.float64)


def best_weight_scales(weights: np.ndarray, axis: int | None, grid: Grid) -> np.ndarray:
    """Symmetric scales like `weight_scales`, clipping as much as makes the squared error least.

    With few bits the steps are so wide that the largest weights are better cut.
    """
    widest = weight_scales(weights, axis, grid)
    others = None if axis is None else tuple(i for i in range(weights.ndim) if i != axis % weights.ndim)
    best, least = widest, np.full(widest.shape, np.inf)
    for factor in np.linspace(1.0, 0.5, 14):
        scales = np.where(widest > 0.0, widest * factor, 1.0)
        along = _along(scales, weights.ndim, axis).astype(np.float32)
        restored = np.clip(np.rint(weights / along), grid.low, grid.high) * along
        error = np.square(restored - weights, dtype=np.float64).sum(axis=others)
        best = np.where(error < least, widest * factor, best)
        least = np.minimum(error, least)
    return best


def zero_points(low: np.ndarray, scales: np.ndarray, grid: Grid) -> np.ndarray:
    """Integers that stand for zero, so that `low` comes to lie at the lower end of the grid."""
    return np.clip(np.rint(grid.low - low / scales.astype(np.float64)), grid.low, grid.high)


def fit_scales(scales: np.ndarray, input_scale: float, bias: np.ndarray | None) -> np.ndarray:
    """Raises weight scales until the products with `input_scale` are good scales for the bias.

    The bias is stored as int32 with scale `input_scale * scales`. Where that cannot hold it, the weights of
    the channel are so small beside the bias that coarser ones cost nothing.

    Args:
        scales: float64 `[channels]` or 0-d, from `weight_scales`; zeros mean "not decided yet".
        input_scale: scale of the activations.
        bias: float `[channels]`, or None.

    Returns:
        float32 scales of the same shape.

    Raises:
        ValueError: no float32 scale serves.
    """
    largest = np.zeros(scales.shape)
    if bias is not None:
        magnitudes = np.abs(bias.astype(np.float64))
        largest = magnitudes if scales.ndim else np.asarray(magnitudes.max(initial=0.0))
    floor = np.maximum(largest / BIAS_LIMIT, _SMALLEST_PRODUCT) / input_scale
    undecided = np.where(largest > 0.0, largest / 2.0**22 / input_scale, 1.0)
    fitted = np.maximum(np.where(scales > 0.0, scales, undecided), floor)
    # Rounding to float32 may go down; one step up keeps the bias inside its limit.
    fitted = np.maximum(fitted, _SMALLEST_SCALE)
    if not np.all(np.isfinite(fitted)) or np.any(fitted * input_scale > _LARGEST_SCALE):
        raise ValueError("the product of its scales does not fit float32")
    return np.asarray(fitted, dtype=np.float32)


def quantize(
    array: np.ndarray,
    scale: np.ndarray | float,
    zero_point: np.ndarray | int,
    grid: Grid,
    axis: int | None = None,
) -> np.ndarray:
    """Rounds an array onto the grid.

    Args:
        array: finite float array.
        scale: one scale, or `[channels]` along `axis`.
        zero_point: the integer that stands for zero, one or `[channels]`.
        grid: the numbers to map to.
        axis: channel axis of the scales.

    Returns:
        Array of `grid.dtype`, shape as `array`.
    """
    # In the precision of the array, as the operator does it; weights may be too large for a float64 copy.
    steps = np.asarray(array / _along(scale, array.ndim, axis).astype(array.dtype))
    dtype = dtype_named(grid.dtype)
    if grid.is_float:
        return np.clip(steps, grid.low, grid.high, out=steps).astype(dtype)
    np.rint(steps, out=steps)
    steps += _along(zero_point, array.ndim, axis).astype(array.dtype)
    np.clip(steps, grid.low, grid.high, out=steps)
    # Types below a byte are cast from one: ml_dtypes takes no floats.
    return steps.astype(np.int8).astype(dtype) if grid.dtype in _BELOW_A_BYTE else steps.astype(dtype)


def dequantize(
    array: np.ndarray, scale: np.ndarray | float, zero_point: np.ndarray | int, axis: int | None = None
) -> np.ndarray:
    """The float32 numbers that the integers stand for; arguments as for `quantize`."""
    steps = array.astype(np.float64) - _along(zero_point, array.ndim, axis)
    return (steps * _along(scale, array.ndim, axis)).astype(np.float32)


def quantize_bias(bias: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """Rounds a bias to int32 with scale input scale times weight scale, `[channels]` each.

    Raises:
        ValueError: a bias does not fit; `fit_scales` prevents that.
    """
    steps = np.rint(bias.astype(np.float64) / scale.astype(np.float64))
    if not np.all(np.abs(steps) < 2.0**31):
        raise ValueError("its bias does not fit 32 bits at this scale")
    return steps.astype(np.int32)


def _magnitude(weights: np.ndarray, axes: tuple[int, ...] | None) -> np.ndarray:
    """The largest magnitude over the axes, float64, without a copy of the weights."""
    high = weights.max(axis=axes, initial=0.0).astype(np.float64)
    return np.maximum(high, -weights.min(axis=axes, initial=0.0).astype(np.float64))


def _along(scale: np.ndarray | float | int, ndim: int, axis: int | None) -> np.ndarray:
    scales = np.asarray(scale, dtype=np.float64)
    if scales.ndim == 0 or axis is None:
        return scales
    shape = [1] * ndim
    shape[axis % ndim] = -1
    return scales.reshape(shape)


def _float32_scale(scale: float) -> np.float32:
    return np.float32(max(scale, _SMALLEST_SCALE))
