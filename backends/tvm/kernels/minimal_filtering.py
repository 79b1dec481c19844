"""Minimal filtering F(m, 3): the three transforms of Winograd convolution and code that applies them.

With a tile d of m + 2 inputs and a filter g of 3 taps, the m outputs are `A^T [(G g) * (B^T d)]`, which takes
m + 2 multiplications in place of 3 m (Winograd, 1980; for images Lavin and Gray, 2016, arXiv:1509.09308).
The points are 0, 1, -1 and infinity for F(2, 3), with 2 and -2 added for F(4, 3).
"""

from __future__ import annotations

import itertools
import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from tvm import tirx

from .emit import Statements, constant

TAPS = 3


@dataclass(frozen=True)
class MinimalFilter:
    """F(outputs, 3) along one axis."""

    outputs: int
    data: tuple[tuple[float, ...], ...]
    """B^T, (m + 2, m + 2)."""
    filter: tuple[tuple[float, ...], ...]
    """G, (m + 2, 3)."""
    result: tuple[tuple[float, ...], ...]
    """A^T, (m, m + 2)."""

    @property
    def size(self) -> int:
        """Inputs of a tile along one axis, and multiplications."""
        return self.outputs + TAPS - 1

    @property
    def products(self) -> int:
        """Products of matrices that a convolution in two dimensions becomes."""
        return self.size**2

    def transform_weights(self, weights: np.ndarray) -> np.ndarray:
        """(O, C, 3, 3) -> float64 (m + 2, m + 2, C, O): G g G^T."""
        matrix = np.array(self.filter, "f8")
        return np.einsum("ei,ocij,fj->efco", matrix, weights.astype("f8"), matrix, optimize=True)


F2 = MinimalFilter(
    2,
    ((1, 0, -1, 0), (0, 1, 1, 0), (0, -1, 1, 0), (0, -1, 0, 1)),
    ((1, 0, 0), (0.5, 0.5, 0.5), (0.5, -0.5, 0.5), (0, 0, 1)),
    ((1, 1, 1, 0), (0, 1, -1, 1)),
)
F4 = MinimalFilter(
    4,
    (
        (4, 0, -5, 0, 1, 0),
        (0, -4, -4, 1, 1, 0),
        (0, 4, -4, -1, 1, 0),
        (0, -2, -1, 2, 1, 0),
        (0, 2, -1, -2, 1, 0),
        (0, 4, 0, -5, 0, 1),
    ),
    (
        (1 / 4, 0, 0),
        (-1 / 6, -1 / 6, -1 / 6),
        (-1 / 6, 1 / 6, -1 / 6),
        (1 / 24, 1 / 12, 1 / 6),
        (1 / 24, -1 / 12, 1 / 6),
        (0, 0, 1),
    ),
    ((1, 1, 1, 1, 1, 0), (0, 1, -1, 2, -2, 0), (0, 1, 1, 4, 4, 0), (0, 1, -1, 8, -8, 1)),
)


def multiply(
    matrix: Sequence[Sequence[float]], values: Sequence[Any], lanes: int, name: str, dtype: str = "float32"
) -> tuple[list[Any], Statements]:
    """The product of a constant matrix and a column of vectors, as variables and the statements binding them.

    Sums that two rows or two columns share up to sign are formed once.
    """
    program = _Program(lanes, name, dtype)
    rows = [np.array(row, "f8") for row in matrix]
    columns, values = _pair_columns(np.array(matrix, "f8"), list(values), program)
    rows = list(columns)
    results: dict[int, Any] = {}
    for first, second in itertools.combinations(range(len(rows)), 2):
        if first in results or second in results:
            continue
        even, odd = (rows[first] + rows[second]) / 2, (rows[first] - rows[second]) / 2
        if _terms(even) + _terms(odd) + 2 < _terms(rows[first]) + _terms(rows[second]):
            a, b = program.combine(even, values), program.combine(odd, values)
            results[first], results[second] = program.bind(a + b), program.bind(a - b)
    for row, coefficients in enumerate(rows):
        if row not in results:
            results[row] = program.combine(coefficients, values)
    return [results[row] for row in range(len(rows))], program.statements


class _Program:
    """Collects bindings of vector variables."""

    def __init__(self, lanes: int, name: str, dtype: str):
        self.statements: Statements = []
        self._dtype = dtype
        self._lanes = lanes
        self._name = name

    def bind(self, value: Any) -> Any:
        dtype = self._dtype if self._lanes == 1 else f"{self._dtype}x{self._lanes}"
        variable = tirx.Var(f"{self._name}{len(self.statements)}", dtype)
        self.statements.append(tirx.Bind(variable, value))
        return variable

    def combine(self, coefficients: np.ndarray, values: Sequence[Any]) -> Any:
        """Sum of coefficient times value over the coefficients that are not zero."""
        terms = [(c, v) for c, v in zip(coefficients.tolist(), values, strict=True) if c]
        # A sum begins with a term that needs no sign.
        terms.sort(key=lambda term: term[0] != 1)
        total: Any = None
        for factor, value in terms:
            if total is None:
                total = value if factor == 1 else value * constant(factor, self._lanes, self._dtype)
            elif abs(factor) == 1:
                total = (operator.add if factor > 0 else operator.sub)(total, value)
            else:
                total = total + value * constant(factor, self._lanes, self._dtype)
        return self.bind(total)


def _terms(row: np.ndarray) -> int:
    return int(np.count_nonzero(row))


def _pair_columns(matrix: np.ndarray, values: list[Any], program: _Program) -> tuple[np.ndarray, list[Any]]:
    """Replace pairs of values by their sum and difference where that leaves fewer terms."""
    matrix = matrix.copy()
    paired: set[int] = set()
    for first, second in itertools.combinations(range(matrix.shape[1]), 2):
        if first in paired or second in paired:
            continue
        plus = (matrix[:, first] + matrix[:, second]) / 2
        minus = (matrix[:, first] - matrix[:, second]) / 2
        if _terms(plus) + _terms(minus) + 2 < _terms(matrix[:, first]) + _terms(matrix[:, second]):
            a, b = values[first], values[second]
            values[first], values[second] = program.bind(a + b), program.bind(a - b)
            matrix[:, first], matrix[:, second] = plus, minus
            paired |= {first, second}
    return matrix, values
