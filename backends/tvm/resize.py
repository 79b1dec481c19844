"""Resize (and old Upsample) as an expression per output element."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from math import floor
from typing import Any

import numpy as np

from .expressions import cast
from .lazy import Index, Lazy, floordiv
from .op import Op


def resize(op: Op, x: Lazy, *rest: Any) -> list[Lazy]:
    """Nearest, linear or cubic resampling; what each output reads is computed here, not at run time.

    Along every axis an output position reads `taps` input positions with fixed weights. They are found with
    ONNX's own formulas in float64 and passed as constant tables.

    Raises:
        CompileError: `tf_crop_and_resize`, antialiasing, or scales that are not known.
    """
    unsupported = [name for name in ("antialias", "exclude_outside") if op.attr(name, 0)]
    mode = op.attr("coordinate_transformation_mode", "half_pixel")
    if mode == "tf_crop_and_resize":
        unsupported.append("tf_crop_and_resize")
    if unsupported:
        raise op.error(f"{', '.join(unsupported)} is not supported by the TVM backend")
    result = x
    for axis, size in enumerate(op.outputs[0].shape):
        table = _table(op, axis, x.shape[axis], size, mode)
        if table is not None:
            result = _along(op, result, axis, size, *table)
    return [result]


def _table(op: Op, axis: int, old: int, new: int, mode: str) -> tuple[np.ndarray, np.ndarray] | None:
    """Per output position: the input positions read and their weights, both of shape (new, taps)."""
    scale = _scale(op, axis, old, new)
    if old == new and scale == 1.0:
        return None
    to_old = _coordinates(mode, scale, old, new)
    places = [to_old(position) for position in range(new)]
    kind = op.attr("mode", "nearest")
    if kind == "nearest":
        rounding = _rounding(op.attr("nearest_mode", "round_prefer_floor"))
        positions = np.array([[rounding(place)] for place in places], np.int64)
        weights = np.ones((new, 1))
    elif kind == "linear":
        base = np.floor(places).astype(np.int64)
        ratio = np.array(places) - base
        positions = np.stack([base, base + 1], 1)
        weights = np.stack([1 - ratio, ratio], 1)
    else:
        base = np.floor(places).astype(np.int64)
        positions = base[:, None] + np.arange(-1, 3)
        weights = _cubic(np.array(places) - base, op.attr("cubic_coeff_a", -0.75))
    return np.clip(positions, 0, old - 1), weights


def _scale(op: Op, axis: int, old: int, new: int) -> float:
    axes = op.attr("axes")
    position = axis if axes is None else _position(axes, axis, op.rank)
    if position is None:
        return 1.0
    sizes = op.static.get(3) if op.type == "Resize" else None
    if sizes is None or not sizes.size:
        scales = op.static[2 if op.type == "Resize" else 1]
        return float(scales.reshape(-1)[position])
    policy = op.attr("keep_aspect_ratio_policy", "stretch")
    if policy == "stretch":
        return new / old
    shape = op.input(0).shape
    resized = range(op.rank) if axes is None else [each % op.rank for each in axes]
    ratios = [int(size) / shape[each] for size, each in zip(sizes, resized, strict=True)]
    ratio = min(ratios) if policy == "not_larger" else max(ratios)
    if floor(ratio * old + 0.5) != new:
        raise op.error(f"its output has size {new} along axis {axis} where {policy} gives {ratio * old:g}")
    return ratio


def _position(axes: tuple[int, ...], axis: int, rank: int) -> int | None:
    wanted = [each % rank for each in axes]
    return wanted.index(axis) if axis in wanted else None


def _coordinates(mode: str, scale: float, old: int, new: int) -> Callable[[int], float]:
    forms: dict[str, Callable[[int], float]] = {
        "asymmetric": lambda x: x / scale,
        "half_pixel": lambda x: (x + 0.5) / scale - 0.5,
        "pytorch_half_pixel": lambda x: (x + 0.5) / scale - 0.5 if new > 1 else 0.0,
        "align_corners": lambda x: x * (old - 1) / (new - 1) if new > 1 else 0.0,
        "half_pixel_symmetric": lambda x: _symmetric(x, scale, old, new),
    }
    return forms[mode]


def _symmetric(x: int, scale: float, old: int, new: int) -> float:
    adjustment = new / (scale * old)
    return old / 2 * (1 - adjustment) + (x + 0.5) / scale - 0.5


def _rounding(mode: str) -> Callable[[float], int]:
    return {
        "round_prefer_floor": lambda x: -floor(-(x - 0.5)),
        "round_prefer_ceil": lambda x: floor(x + 0.5),
        "floor": lambda x: floor(x),
        "ceil": lambda x: -floor(-x),
    }[mode]


def _cubic(ratio: np.ndarray, a: float) -> np.ndarray:
    def near(t: np.ndarray) -> np.ndarray:
        return ((a + 2) * t - (a + 3)) * t * t + 1

    def far(t: np.ndarray) -> np.ndarray:
        return ((a * t - 5 * a) * t + 8 * a) * t - 4 * a

    return np.stack([far(ratio + 1), near(ratio), near(1 - ratio), far(2 - ratio)], 1)


def _along(op: Op, x: Lazy, axis: int, size: int, positions: np.ndarray, weights: np.ndarray) -> Lazy:
    shape = (*x.shape[:axis], size, *x.shape[axis + 1 :])
    regular = _regular(positions)
    place = op.table(positions.astype(np.int64)) if regular is None else None
    factor = None if np.all(weights == 1) else op.table(weights.astype(_table_dtype(x.dtype)))
    taps = positions.shape[1]
    formula = regular or (lambda position: position)

    def read(index: Index) -> Any:
        total = None
        for tap in range(taps):
            at = (index[axis], tap)
            source = place.read(at) if place is not None else formula(index[axis])
            value = x.read((*index[:axis], source, *index[axis + 1 :]))
            if factor is not None:
                value = cast(value, factor.dtype) * factor.read(at)
            total = value if total is None else total + value
        return cast(total, x.dtype)

    return Lazy(shape, x.dtype, read)


def _table_dtype(dtype: str) -> str:
    return "float64" if dtype == "float64" else "float32"


def _divided(factor: int, index: Any) -> Any:
    return floordiv(index, factor)


def _multiplied(factor: int, index: Any) -> Any:
    return index * factor


def _regular(positions: np.ndarray) -> Callable[[Any], Any] | None:
    """A formula for nearest-neighbour positions where there is one: whole-number scaling up or down."""
    if positions.shape[1] != 1:
        return None
    flat, count = positions[:, 0], np.arange(len(positions))
    for factor in range(1, 9):
        if np.array_equal(flat, count // factor):
            return partial(_divided, factor)
        if np.array_equal(flat, count * factor):
            return partial(_multiplied, factor)
    return None
