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

import numpy as np

# Largest magnitude a quantized bias may take: half of int32, the other half is left to the sum of products.
BIAS_LIMIT = 2.0**30
# Products of scales stay normal float32 numbers above this.
_SMALLEST_PRODUCT = 1e-37
# Within these magnitudes every product and quotient of scales is a normal float32 number.
SMALLEST_RANGE, LARGEST_RANGE = 1e-18, 1e18
_SMALLEST_SCALE = float(np.finfo(np.float32).tiny)
_LARGEST_SCALE = float(np.finfo(np.float32).max)


@dataclass(frozen=True)
class Grid:
    """An integer grid.

    Attributes:
        dtype: numpy name of the integer type that is stored.
        low: smallest integer used.
        high: largest integer used.
        symmetric: whether the zero point is fixed in the middle (0 for signed types).
    """

    dtype: str
    low: int
    high: int
    symmetric: bool

    def __post_init__(self) -> None:
        info = np.iinfo(self.dtype)
        if not info.min <= self.low < self.high <= info.max:
            raise ValueError(f"[{self.low}, {self.high}] is no range of {self.dtype}")
        if self.symmetric and info.min < 0 and self.low != -self.high:
            raise ValueError(f"the symmetric grid [{self.low}, {self.high}] is not symmetric around 0")

    @classmethod
    def make(cls, dtype: str, *, symmetric: bool, bits: int | None = None) -> Grid:
        """Builds the grid of a type, or of its `bits` lowest bits.

        A symmetric signed grid drops the most negative integer: [-127, 127] for int8. With fewer bits than
        the type has, it spans [-2^(bits-1), 2^(bits-1)]: [-64, 64] for 7 bits in int8, the largest magnitude
        at which two products with uint8 still fit the 16-bit sums of x86 without VNNI (2 * 255 * 64 < 2^15).
        """
        info = np.iinfo(dtype)
        used = info.bits if bits is None else bits
        if not 2 <= used <= info.bits:
            raise ValueError(f"{dtype} cannot hold {used} bits")
        if info.min == 0:
            return cls(dtype, 0, 2**used - 1, symmetric)
        if not symmetric:
            return cls(dtype, -(2 ** (used - 1)), 2 ** (used - 1) - 1, False)
        high = info.max if used == info.bits else 2 ** (used - 1)
        return cls(dtype, -high, high, True)

    @property
    def middle(self) -> int:
        """Zero point of a symmetric grid: 0, or half of an unsigned range (128 for uint8)."""
        return 0 if self.low < 0 else (self.high + 1) // 2


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
    array: np.ndarray, scale: np.ndarray | float, zero_point: int, grid: Grid, axis: int | None = None
) -> np.ndarray:
    """Rounds an array onto the grid.

    Args:
        array: finite float array.
        scale: one scale, or `[channels]` along `axis`.
        zero_point: the integer that stands for zero.
        grid: the integers to map to.
        axis: channel axis of the scales.

    Returns:
        Array of `grid.dtype`, shape as `array`.
    """
    # In the precision of the array, as the operator does it; weights may be too large for a float64 copy.
    steps = np.asarray(array / _along(scale, array.ndim, axis).astype(array.dtype))
    np.rint(steps, out=steps)
    steps += zero_point
    return np.clip(steps, grid.low, grid.high, out=steps).astype(grid.dtype)


def dequantize(
    array: np.ndarray, scale: np.ndarray | float, zero_point: int, axis: int | None = None
) -> np.ndarray:
    """The float32 numbers that the integers stand for; arguments as for `quantize`."""
    steps = array.astype(np.float64) - zero_point
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


def _along(scale: np.ndarray | float, ndim: int, axis: int | None) -> np.ndarray:
    scales = np.asarray(scale, dtype=np.float64)
    if scales.ndim == 0 or axis is None:
        return scales
    shape = [1] * ndim
    shape[axis % ndim] = -1
    return scales.reshape(shape)


def _float32_scale(scale: float) -> np.float32:
    return np.float32(max(scale, _SMALLEST_SCALE))
