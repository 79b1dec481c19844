"""Several batch sizes in one library: which of them serve a batch, and cutting it up and joining it again.

A batch of a size that the library has no program for runs in pieces: the largest size that fits, again and
again, and at the end the smallest size with the last row repeated where fewer rows are left (sizes 1, 4, 8:
a batch of 13 is 8 + 4 + 1). That is right only if rows do not depend on each other, which compiling proves on
the reference; where it does not hold, other sizes are refused.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..ir.errors import CompileError, ModelError
from .manifest import ENTRY

SIZES_FUNCTION, AXES_FUNCTION, PIECES_FUNCTION = "batch_sizes", "batch_axes", "batch_pieces"
"""Functions of the library, without parameters, by which programs in C++ learn what is there."""

NO_BATCH = -1


@dataclass(frozen=True)
class Piece:
    """Rows `start` to `start + rows` of a batch, run by the program for `size` rows."""

    size: int
    start: int
    rows: int


@dataclass(frozen=True)
class Batches:
    """The batch sizes of a library.

    Attributes:
        symbol: name of the batch dimension.
        sizes: in ascending order.
        input_axes: the batch axis of each input, `NO_BATCH` for inputs that have none.
        output_axes: likewise for outputs.
        refusal: why other sizes cannot run in pieces; "" if they can.
    """

    symbol: str
    sizes: tuple[int, ...]
    input_axes: tuple[int, ...]
    output_axes: tuple[int, ...]
    refusal: str = ""

    @property
    def entries(self) -> dict[int, str]:
        """Name of the program for each size."""
        return {size: f"{ENTRY}_{size}" for size in self.sizes}

    @property
    def functions(self) -> dict[str, tuple[int, ...]]:
        """What the library says of itself."""
        return {
            SIZES_FUNCTION: self.sizes,
            AXES_FUNCTION: self.input_axes,
            PIECES_FUNCTION: (int(not self.refusal),),
        }

    def size_of(self, arrays: Sequence[np.ndarray]) -> int:
        """The batch size of inputs in order."""
        position = next(index for index, axis in enumerate(self.input_axes) if axis != NO_BATCH)
        return int(arrays[position].shape[self.input_axes[position]])

    def plan(self, rows: int) -> tuple[Piece, ...]:
        """The pieces that a batch is run in; one where there is a program for it.

        Raises:
            ModelError: the batch is empty, or cannot be cut up.
        """
        there = ", ".join(map(str, self.sizes))
        if rows < 1:
            raise ModelError(f"a batch of {rows} was given; the model was compiled for batches of {there}")
        if rows in self.sizes:
            return (Piece(rows, 0, rows),)
        if self.refusal:
            raise ModelError(
                f"a batch of {rows} was given; the model was compiled for batches of {there}, and "
                f"{self.refusal}"
            )
        return self._cut(rows)

    def _cut(self, rows: int) -> tuple[Piece, ...]:
        pieces: list[Piece] = []
        start = 0
        while start < rows:
            left = rows - start
            size = max((each for each in self.sizes if each <= left), default=self.sizes[0])
            pieces.append(Piece(size, start, min(size, left)))
            start += size
        return tuple(pieces)

    def run(
        self, arrays: Sequence[np.ndarray], run: Callable[[int, list[np.ndarray]], list[np.ndarray]]
    ) -> list[np.ndarray]:
        """Outputs of a batch; `run(size, arrays)` runs one program on arrays of its size.

        Raises:
            ModelError: as for `plan`.
        """
        pieces = self.plan(self.size_of(arrays))
        if len(pieces) == 1 and pieces[0].rows == pieces[0].size:
            return run(pieces[0].size, list(arrays))
        parts = [run(piece.size, self.cut(arrays, piece)) for piece in pieces]
        return [
            np.concatenate([part[index][: piece.rows] for part, piece in zip(parts, pieces, strict=True)])
            for index in range(len(self.output_axes))
        ]

    def cut(self, arrays: Sequence[np.ndarray], piece: Piece) -> list[np.ndarray]:
        """Inputs of a piece: views where it is full, with the last row repeated where it is not."""
        return [
            array if axis == NO_BATCH else _rows(array, piece)
            for array, axis in zip(arrays, self.input_axes, strict=True)
        ]

    def describe(self, rows: int) -> str:
        """A batch's pieces in words: "4 + 1", "4 + 4 (1 used)"."""
        return " + ".join(
            str(piece.size) if piece.rows == piece.size else f"{piece.size} ({piece.rows} used)"
            for piece in self.plan(rows)
        )

    def to_json(self) -> dict[str, Any]:
        """A JSON-able dictionary; `from_json` restores it."""
        return {
            "symbol": self.symbol,
            "sizes": list(self.sizes),
            "input_axes": list(self.input_axes),
            "output_axes": list(self.output_axes),
            "refusal": self.refusal,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Batches:
        """What `to_json` wrote, as `read_manifest` lets it through."""
        return cls(
            data["symbol"],
            tuple(data["sizes"]),
            tuple(data["input_axes"]),
            tuple(data["output_axes"]),
            data["refusal"],
        )


def checked_sizes(sizes: Sequence[int]) -> tuple[int, ...]:
    """Batch sizes in ascending order, each once.

    Raises:
        CompileError: there is none, or one is not a positive integer.
    """
    if isinstance(sizes, int | str) or not sizes:
        raise CompileError(f"batch_sizes takes sizes such as (1, 4, 8), not {sizes!r}")
    wrong = [size for size in sizes if isinstance(size, bool) or not isinstance(size, int) or size < 1]
    if wrong:
        raise CompileError(f"a batch size must be a positive integer, not {wrong[0]!r}")
    return tuple(sorted(set(sizes)))


def _rows(array: np.ndarray, piece: Piece) -> np.ndarray:
    found = array[piece.start : piece.start + piece.rows]
    if piece.rows == piece.size:
        return found
    return np.concatenate([found, np.repeat(found[-1:], piece.size - piece.rows, axis=0)])
