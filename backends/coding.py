"""Float weights that a file holds as codes: a few bits each, restored once when an artifact is read.

    weight = (level[code] - zero[j]) * scale[j],       j = step * (f // block) + g

Codes lie in the order in which a kernel reads its weights. f, the place along what a product sums over, and
g, the place among all else, are sums of multiples of the indices of that order, so that nothing but codes,
scales and a dozen integers needs to be stored. Convolutions by minimal filtering read transformed weights:
there the codes are those of the weights themselves, and the transform is applied to what they stand for. Half
precision is stored as it is. What is restored is what was compiled, bit for bit (transforms: to the last bits
of float32).

Payload of such a tensor in `weights.bin`, little-endian::

    uint32 kind (0 codes, 1 float16, 2 bfloat16, 3 pieces one behind the other, 4 split, 5 compact codes)
    uint32 rank, levels, codes per byte        of the codes
    int64  sizes[rank], f strides[rank], g strides[rank]
    int64  block, step, number of scales, 1 if there are zeros, where f and g start
    int64  products, taps, out channels, in channels, lanes of a panel    of the transform; 0 without one
    float64 transform[products][taps]
    float32 levels[], scales[], zeros[]
    codes

Compact codes have the same fields in fewer bytes, see `coding_fields.py`; their fourth number is 0. Of
pieces, `levels` is their number, and each follows as uint64 bytes and its own payload. Split numbers are
uint16, see `split_coding.py`.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import ml_dtypes
import numpy as np

from ..passes.quantization.weight_forms import byte_table, codes_per_byte
from .coding_fields import (
    CompactReader,
    PlainReader,
    can_be_compact,
    compact_codes,
    compact_integers,
    compact_scales,
)
from .split_coding import SPLIT, Split, read_split

if TYPE_CHECKING:
    from .lossless import Lossless

CODES, FLOAT16, BFLOAT16, PIECES, COMPACT = 0, 1, 2, 3, 5
_CHUNK = 1 << 17
_MOST_NUMBERS, _FARTHEST = 1 << 40, 1 << 31
_MOST_LANES, _MOST_PRODUCTS_PER_TAP = 256, 16
"""Of transforms, by which restored weights are larger than their codes."""


@dataclass(frozen=True)
class Transform:
    """What minimal filtering makes of weights `[O, C, taps]`: `[products * panels, C, lanes]`.

    Attributes:
        matrix: float64 `[products, taps]`.
        outputs, inputs: O and C.
        lanes: outputs of a panel, the last one filled up with zeros.
    """

    matrix: np.ndarray
    outputs: int
    inputs: int
    lanes: int

    @property
    def size(self) -> int:
        """Numbers of what `apply` makes."""
        return len(self.matrix) * -(-self.outputs // self.lanes) * self.lanes * self.inputs

    def apply(self, weights: np.ndarray) -> np.ndarray:
        """The transformed weights, float32."""
        products, taps = self.matrix.shape
        panels = -(-self.outputs // self.lanes)
        made = np.zeros((products, self.inputs, panels * self.lanes), np.float32)
        flat = weights.reshape(self.outputs, self.inputs, taps).astype(np.float64)
        made[:, :, : self.outputs] = np.einsum("pt,oct->pco", self.matrix, flat, optimize=True)
        split = made.reshape(products, self.inputs, panels, self.lanes).transpose(0, 2, 1, 3)
        return np.ascontiguousarray(split).reshape(products * panels, self.inputs, self.lanes)


@dataclass(frozen=True)
class Coding:
    """How a float32 array is restored.

    Attributes:
        kind: CODES, FLOAT16 or BFLOAT16.
        shape: of what the codes stand for, before the transform.
        codes: uint8, packed; the halves themselves, uint16, in the other kinds.
        levels: float32.
        scales, zeros: float32 vectors; `zeros` may be empty.
        f_strides, g_strides: of the sums that find the scale of a number, per axis of `shape`.
        starts: what f and g are at index 0.
        block, step: the rest of it.
        transform: of what was restored, or None.
    """

    kind: int
    shape: tuple[int, ...]
    codes: np.ndarray
    levels: np.ndarray
    scales: np.ndarray
    zeros: np.ndarray
    f_strides: tuple[int, ...]
    g_strides: tuple[int, ...]
    block: int
    step: int
    starts: tuple[int, int] = (0, 0)
    transform: Transform | None = None

    @property
    def size(self) -> int:
        """Numbers of what `restore` makes."""
        made = self.transform
        return math.prod(self.shape) if made is None else made.size

    def restore(self) -> np.ndarray:
        """The float32 array.

        Raises:
            ValueError: a number has no scale.
        """
        numbers = self._numbers() if self.kind == CODES else self._halves()
        return numbers if self.transform is None else self.transform.apply(numbers)

    def _halves(self) -> np.ndarray:
        dtype = np.float16 if self.kind == FLOAT16 else ml_dtypes.bfloat16
        return self.codes.view(dtype).astype(np.float32).reshape(self.shape)

    def _numbers(self) -> np.ndarray:
        count = math.prod(self.shape)
        numbers = np.empty(count, np.float32)
        per_byte = codes_per_byte(len(self.levels))
        table = byte_table(self.levels)
        if self.codes.size and self.codes.max() >= len(table):
            raise ValueError("a coded tensor has codes beyond its levels")
        start = 0
        for places in self._places() if count else ():
            stop, first = start + places.size, start // per_byte
            found = table[self.codes[first : -(-stop // per_byte)]].reshape(-1)
            found = found[start - first * per_byte :][: places.size]
            if self.zeros.size:
                found = found - self.zeros[places]
            numbers[start:stop] = found * self.scales[places]
            start = stop
        return numbers.reshape(self.shape)

    def _places(self) -> Iterator[np.ndarray]:
        """Which scale belongs to each number, some at a time."""
        axis = next(a for a in range(len(self.shape) + 1) if math.prod(self.shape[a:]) <= _CHUNK)
        start_f, start_g = self.starts
        outer = _sums(self.shape[:axis], self.g_strides[:axis], start_g)
        g = _sums(self.shape[axis:], self.g_strides[axis:], 0)
        ends = [step * (size - 1) for step, size in zip(self.f_strides, self.shape, strict=True)]
        first, last = (
            (start_f + sum(pick(end, 0) for end in ends)) // self.block * self.step for pick in (min, max)
        )
        outer_f = f = np.zeros(1, np.int64)
        if first != last:
            outer_f = _sums(self.shape[:axis], self.f_strides[:axis], start_f)
            f = _sums(self.shape[axis:], self.f_strides[axis:], 0)
        rows = max(_CHUNK // g.size, 1)
        for start in range(0, outer.size, rows):
            places = outer[start : start + rows, None] + (g + first if first == last else g)
            if first != last:
                places += (outer_f[start : start + rows, None] + f) // self.block * self.step
            if places.min() < 0 or places.max() >= len(self.scales):
                raise ValueError("a coded tensor reads beyond its scales")
            yield places.reshape(-1)

    def to_bytes(self) -> bytes:
        """The payload, see above."""
        if self.kind == CODES and can_be_compact(len(self.levels)):
            return self._compact_bytes()
        per_byte = codes_per_byte(len(self.levels)) if self.kind == CODES else 0
        integers = self._integers()
        header = struct.pack("<4I", self.kind, len(self.shape), len(self.levels), per_byte)
        header += struct.pack(f"<{len(integers)}q", *integers)
        arrays = (self._matrix(), self.levels, self.scales, self.zeros, self.codes)
        return header + b"".join(np.ascontiguousarray(array).tobytes() for array in arrays)

    def _compact_bytes(self) -> bytes:
        levels = len(self.levels)
        parts = [struct.pack("<4I", COMPACT, len(self.shape), levels, 0), compact_integers(self._integers())]
        parts += [np.ascontiguousarray(array).tobytes() for array in (self._matrix(), self.levels)]
        parts += [compact_scales(self.scales), compact_scales(self.zeros)]
        return b"".join([*parts, compact_codes(self.codes, math.prod(self.shape), levels)])

    def _matrix(self) -> np.ndarray:
        return np.zeros((0, 0)) if self.transform is None else self.transform.matrix

    def _integers(self) -> list[int]:
        made = self.transform
        sizes = (0, 0, 0) if made is None else (made.outputs, made.inputs, made.lanes)
        scales = (self.block, self.step, len(self.scales), int(self.zeros.size > 0), *self.starts)
        return [*self.shape, *self.f_strides, *self.g_strides, *scales, *self._matrix().shape, *sizes]

    @classmethod
    def from_bytes(cls, data: Any) -> Coding:
        """What `to_bytes` wrote.

        Raises:
            ValueError: the payload contradicts itself.
            struct.error: it is truncated.
        """
        stored, rank, levels, per_byte = struct.unpack_from("<4I", data, 0)
        if stored not in (CODES, FLOAT16, BFLOAT16, COMPACT) or rank > 32 or levels > 1 << 16:
            raise ValueError("a coded tensor is of an unknown kind")
        reader = (CompactReader if stored == COMPACT else PlainReader)(memoryview(data), 16)
        kind = CODES if stored == COMPACT else stored
        shape, f_strides, g_strides = (reader.integers(rank) for _ in range(3))
        block, step, scales, has_zeros, *starts = reader.integers(6)
        products, taps, outputs, inputs, lanes = reader.integers(5)
        _check_numbers(shape, (f_strides, g_strides), starts, block, step)
        matrix = reader.array("<f8", products * taps).reshape(products, taps)
        table, factors = reader.array("<f4", levels), reader.scales(scales)
        zeros = reader.scales(scales if has_zeros else 0)
        count = math.prod(shape)
        if kind == CODES:
            expected = 0 if stored == COMPACT else codes_per_byte(levels)
            if levels < 1 or scales < 1 or block < 1 or per_byte != expected:
                raise ValueError("a coded tensor has no levels or no scales")
            codes = reader.codes(count, levels)
        else:
            codes = reader.array("<u2", count)
        transform = Transform(matrix, outputs, inputs, lanes) if products else None
        if transform is not None:
            _check_transform(transform, count)
        start_f, start_g = starts
        return cls(
            kind,
            shape,
            codes,
            table,
            factors,
            zeros,
            f_strides,
            g_strides,
            block,
            step,
            (start_f, start_g),
            transform,
        )


@dataclass(frozen=True)
class Pieces:
    """Codings of parts that lie one behind the other."""

    parts: tuple[Coding, ...]

    @property
    def size(self) -> int:
        """Numbers of what `restore` makes."""
        return sum(part.size for part in self.parts)

    def restore(self) -> np.ndarray:
        """The float32 array, on one axis."""
        return np.concatenate([part.restore().reshape(-1) for part in self.parts])

    def to_bytes(self) -> bytes:
        """The payload, see above."""
        payloads = [part.to_bytes() for part in self.parts]
        head = struct.pack("<4I", PIECES, 0, len(payloads), 0)
        return head + b"".join(struct.pack("<Q", len(each)) + each for each in payloads)


def read_coding(data: Any, size: int) -> Coding | Pieces | Split:
    """What `to_bytes` wrote.

    Nothing larger than the payload is taken for it here; restoring takes `size` numbers, some thousands of
    times the payload at most.

    Args:
        data: the payload.
        size: numbers that it must stand for.

    Raises:
        ValueError: the payload contradicts itself or `size`.
        struct.error: it is truncated.
    """
    found = _read_parts(data)
    if found.size != size:
        raise ValueError("a coded tensor contradicts its own size")
    return found


def _read_parts(data: Any) -> Coding | Pieces | Split:
    kind, _, count, _ = struct.unpack_from("<4I", data, 0)
    if kind == SPLIT:
        return read_split(data, _read_parts)
    if kind != PIECES:
        return Coding.from_bytes(data)
    at, parts = 16, []
    for _ in range(count):
        (length,) = struct.unpack_from("<Q", data, at)
        if length > len(data) - at - 8:
            raise ValueError("a coded tensor is truncated")
        parts.append(Coding.from_bytes(data[at + 8 : at + 8 + length]))
        at += 8 + length
    if not parts:
        raise ValueError("a coded tensor has no pieces")
    return Pieces(tuple(parts))


def _sums(shape: Sequence[int], strides: Sequence[int], start: int) -> np.ndarray:
    """The multiples of the indices of an array of that shape, added to `start`, on one axis."""
    total = np.full(1, start, np.int64)
    for size, stride in zip(shape, strides, strict=True):
        total = (total[:, None] + np.arange(size) * stride).reshape(-1)
    return total


def _check_numbers(
    shape: Sequence[int],
    strides: Sequence[Sequence[int]],
    starts: Sequence[int],
    block: int,
    step: int,
) -> None:
    """Raises ValueError unless finding scales stays within 64 bits."""
    if min(shape, default=1) < 0 or math.prod(shape) > _MOST_NUMBERS:
        raise ValueError("a coded tensor contradicts its own size")
    reaches = [
        abs(start) + sum(abs(each) * max(size - 1, 0) for each, size in zip(steps, shape, strict=True))
        for steps, start in zip(strides, starts, strict=True)
    ]
    if max(*reaches, abs(step)) > _FARTHEST or block < 1:
        raise ValueError("a coded tensor has strides that no weights have")


def _check_transform(transform: Transform, count: int) -> None:
    """Raises ValueError for a transform that does not belong to `count` numbers, or no kernel reads."""
    products, taps = transform.matrix.shape
    sizes = transform.outputs, transform.inputs, transform.lanes, taps
    if min(sizes) < 1 or count != transform.outputs * transform.inputs * taps:
        raise ValueError("a coded tensor contradicts its own size")
    if transform.lanes > _MOST_LANES or products > _MOST_PRODUCTS_PER_TAP * taps:
        raise ValueError("a coded tensor has a transform that no kernel reads")


class CodedArray(np.ndarray):
    """An array that knows how a file may hold it; what is computed from it does not."""

    coding: Coding | Pieces | Split | Lossless | None = None

    @classmethod
    def of(cls, array: np.ndarray, coding: Coding | Pieces | Split | Lossless) -> CodedArray:
        """The array, with its coding."""
        made = array.view(cls)
        made.coding = coding
        return made


def coding_of(array: np.ndarray) -> Coding | Pieces | Split | Lossless | None:
    """How a file may hold an array, if it knows."""
    return getattr(array, "coding", None)


def places_of(coding: Coding, index: Any) -> np.ndarray:
    """Which scale belongs to each number, whose indices are given per axis."""
    zero = np.zeros_like(index[0]) if len(index) else np.zeros(1, np.int64)
    f = sum(
        (i * step for i, step in zip(index, coding.f_strides, strict=True)), start=zero + coding.starts[0]
    )
    g = sum(
        (i * step for i, step in zip(index, coding.g_strides, strict=True)), start=zero + coding.starts[1]
    )
    return f // coding.block * coding.step + g
