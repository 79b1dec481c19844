"""Transposing matrices in memory: squares of vectors are turned in registers.

Loops that gather element by element touch a line of memory for each; this reads and writes whole lines.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

from . import emit
from .tile import blocks
from .transpose import transpose

_LEAST = 4
_PARALLEL_MIN = 1 << 14
_STRIPE = 16
"""Squares along the rows that one task turns."""


def as_matrices(shape: Sequence[int], perm: Sequence[int]) -> tuple[int, int, int] | None:
    """(count, rows, columns) where a permutation is that of matrices; None where it is something else.

    Axes of size one are left out and axes that stay neighbours are one.
    """
    wide = [axis for axis in perm if shape[axis] != 1]
    order = sorted(wide)
    runs: list[list[int]] = []
    for axis in wide:
        follows = runs and order.index(axis) == order.index(runs[-1][-1]) + 1
        if follows:
            runs[-1].append(axis)
        else:
            runs.append([axis])
    sizes = [prod(shape[axis] for axis in run) for run in runs]
    first = [run[0] for run in runs]
    if len(runs) == 2 and first[0] > first[1]:
        return 1, sizes[1], sizes[0]
    if len(runs) == 3 and first[0] < first[2] < first[1]:
        return sizes[0], sizes[2], sizes[1]
    return None


def side_of(rows: int, columns: int, lanes: int) -> int:
    """Lanes of the squares; 0 where the matrices are too narrow for any."""
    side = lanes
    while side > min(rows, columns):
        side //= 2
    return side if side >= _LEAST else 0


def transposed_matrices(
    shape: tuple[int, ...], out_shape: tuple[int, ...], matrices: tuple[int, int, int], side: int, dtype: str
) -> Any:
    """A function (data, out) that stores every matrix (rows, columns) as (columns, rows).

    Squares at the end of rows and columns are moved back to end with them.
    """
    count, rows, columns = matrices
    data, out = emit.buffer("data", shape, dtype), emit.buffer("out", out_shape, dtype)
    source, declare_source = emit.flat_view(data, prod(shape))
    target, declare_target = emit.flat_view(out, prod(out_shape))
    stripes, across = blocks(rows, side * _STRIPE), blocks(columns, side)

    def square(base: Any, row: Any, column: Any) -> Any:
        statements, loaded = [], []
        for lane in range(side):
            at = base + (row + lane) * columns + column
            name, bound = emit.hold(f"row{lane}", emit.load(source, [at], side), side, dtype)
            loaded.append(name)
            statements.append(bound)
        turned, made = transpose(loaded, dtype=dtype)
        stores = [
            emit.store(target, each, [base + (column + lane) * rows + row], side)
            for lane, each in enumerate(turned)
        ]
        return [*statements, *made, *stores]

    def task(t: Any) -> Any:
        n, stripe = emit.unravel(t, (count, stripes))

        def one(s: Any, c: Any) -> Any:
            row, bind_row = emit.bind("row", emit.minimum((stripe * _STRIPE + s) * side, rows - side))
            column, bind_column = emit.bind("column", emit.minimum(c * side, columns - side))
            return [*bind_row, *bind_column, square(n * (rows * columns), row, column)]

        squares = min(_STRIPE, blocks(rows, side))
        return emit.loop("c", across, lambda c: emit.loop("s", squares, lambda s: one(s, c)))

    body = emit.parallel("task", count * stripes, task, enabled=prod(shape) > _PARALLEL_MIN)
    return emit.function("transpose", [data, out], [declare_source, declare_target, body])
