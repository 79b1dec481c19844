"""How far two results are apart.

With expected values a and actual values b (all computed in double precision):

    max_abs = max |a - b|
    max_rel = max |a - b| / max |a|                     (of the largest value, not value by value)
    sqnr_db = 10 log10( sum a^2 / sum (a - b)^2 )       (+inf when equal)
    cosine  = sum a b / sqrt( sum a^2 sum b^2 )         (1 when both are all zero)

NaN and infinities must stand in the same places; if they do they are left out of the sums, if they do not the
results count as infinitely far apart.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .errors import ModelError

_TINY = float(np.finfo(np.float64).tiny)


@dataclass(frozen=True)
class Comparison:
    """The distance between two results; over several outputs it holds the worst of each figure.

    Attributes:
        max_abs: largest absolute difference.
        max_rel: `max_abs` relative to the largest expected magnitude of that output.
        sqnr_db: signal to quantization-noise ratio in decibels; +inf when equal.
        cosine: cosine similarity.
        equal: same dtype and the same value everywhere (0.0 equals -0.0, NaN equals NaN).
        worst: name of the output with the largest `max_rel`; empty when plain arrays were compared.
        outputs: the comparison of each output by name; empty when plain arrays were compared.
    """

    max_abs: float
    max_rel: float
    sqnr_db: float
    cosine: float
    equal: bool
    worst: str = ""
    outputs: Mapping[str, Comparison] = field(default_factory=dict, repr=False)

    def __str__(self) -> str:
        if self.equal:
            return "equal"
        where = f" at '{self.worst}'" if self.worst else ""
        return (
            f"max relative error {self.max_rel:.2e}{where}, max absolute error {self.max_abs:.2e}, "
            f"SQNR {self.sqnr_db:.1f} dB, cosine {self.cosine:.6f}"
        )

    def to_json(self) -> dict[str, Any]:
        """The figures as plain JSON values; infinities become the strings "inf" and "-inf"."""
        figures: dict[str, Any] = {
            name: _json_float(getattr(self, name)) for name in ("max_abs", "max_rel", "sqnr_db", "cosine")
        }
        figures["equal"] = self.equal
        if self.outputs:
            figures["worst"] = self.worst
            figures["outputs"] = {name: each.to_json() for name, each in self.outputs.items()}
        return figures


def compare(
    expected: np.ndarray | Mapping[str, np.ndarray], actual: np.ndarray | Mapping[str, np.ndarray]
) -> Comparison:
    """Compares two arrays of equal shape, or two dicts of them with equal names.

    Raises:
        ModelError: names or shapes differ, so that a number would mean nothing.
    """
    if not isinstance(expected, Mapping) or not isinstance(actual, Mapping):
        if isinstance(expected, Mapping) or isinstance(actual, Mapping):
            raise ModelError("cannot compare an array with a dict of arrays")
        return _compare_arrays("result", np.asarray(expected), np.asarray(actual))
    if expected.keys() != actual.keys():
        missing, extra = sorted(expected.keys() - actual.keys()), sorted(actual.keys() - expected.keys())
        raise ModelError(f"the results have different outputs: missing {missing}, unexpected {extra}")
    outputs = {name: _compare_values(f"output '{name}'", expected[name], actual[name]) for name in expected}
    return _worst(outputs)


def _compare_values(what: str, expected: Any, actual: Any) -> Comparison:
    if not isinstance(expected, list) or not isinstance(actual, list):
        return _compare_arrays(what, np.asarray(expected), np.asarray(actual))
    if len(expected) != len(actual):
        raise ModelError(f"{what} is a sequence of {len(actual)} where {len(expected)} are expected")
    items = {
        str(index): _compare_values(f"{what}[{index}]", *pair)
        for index, pair in enumerate(zip(expected, actual, strict=True))
    }
    return _worst(items)


def _worst(outputs: dict[str, Comparison]) -> Comparison:
    if not outputs:
        return Comparison(0.0, 0.0, math.inf, 1.0, True)
    worst = max(outputs, key=lambda name: outputs[name].max_rel)
    each = outputs.values()
    return Comparison(
        max_abs=max(one.max_abs for one in each),
        max_rel=outputs[worst].max_rel,
        sqnr_db=min(one.sqnr_db for one in each),
        cosine=min(one.cosine for one in each),
        equal=all(one.equal for one in each),
        worst=worst,
        outputs=outputs,
    )


def _compare_arrays(what: str, expected: np.ndarray, actual: np.ndarray) -> Comparison:
    if expected.shape != actual.shape:
        raise ModelError(f"{what} has shape {list(actual.shape)} where {list(expected.shape)} is expected")
    if expected.dtype.kind in "OSU" or actual.dtype.kind in "OSU":
        return _compare_text(expected, actual)
    return _compare_numbers(expected, actual)


def _compare_text(expected: np.ndarray, actual: np.ndarray) -> Comparison:
    if np.array_equal(expected, actual):
        return Comparison(0.0, 0.0, math.inf, 1.0, True)
    return Comparison(math.inf, math.inf, -math.inf, 0.0, False)


def _compare_numbers(expected: np.ndarray, actual: np.ndarray) -> Comparison:
    if expected.dtype == actual.dtype and expected.dtype.kind in "iub" and np.array_equal(expected, actual):
        # Exact for 64-bit integers, which double precision cannot tell apart.
        return Comparison(0.0, 0.0, math.inf, 1.0, True)
    a, b = _wide(expected), _wide(actual)
    finite = np.isfinite(a)
    same_special = np.array_equal(finite, np.isfinite(b)) and np.array_equal(
        a[~finite], b[~finite], equal_nan=True
    )
    if not same_special:
        return Comparison(math.inf, math.inf, -math.inf, 0.0, False)
    a, b = a[finite], b[finite]
    if a.size == 0:
        return Comparison(0.0, 0.0, math.inf, 1.0, expected.dtype == actual.dtype)
    difference = np.abs(a - b)
    max_abs = float(difference.max())
    # Scaled by the largest magnitude so that squares of doubles neither overflow nor vanish.
    largest = max(float(np.abs(a).max()), float(np.abs(b).max()), _TINY)
    signal = float(np.sum(np.abs(a / largest) ** 2))
    noise = float(np.sum((difference / largest) ** 2))
    other = float(np.sum(np.abs(b / largest) ** 2))
    dot = float(np.real(np.sum((a / largest) * np.conj(b / largest))))
    return Comparison(
        max_abs=max_abs,
        max_rel=max_abs / max(float(np.abs(a).max()), _TINY),
        sqnr_db=_decibels(signal, noise),
        cosine=_cosine(dot, signal, other),
        equal=max_abs == 0.0 and expected.dtype == actual.dtype and expected.dtype.kind not in "iu",
    )


def _wide(array: np.ndarray) -> np.ndarray:
    return array.astype(np.complex128 if array.dtype.kind == "c" else np.float64)


def _decibels(signal: float, noise: float) -> float:
    if noise == 0.0:
        return math.inf
    return 10.0 * math.log10(signal / noise) if signal > 0.0 else -math.inf


def _cosine(dot: float, signal: float, other: float) -> float:
    if signal == 0.0 or other == 0.0:
        return 1.0 if signal == other else 0.0
    return min(1.0, dot / math.sqrt(signal * other))


def _json_float(number: float) -> float | str:
    return number if math.isfinite(number) else str(number)
