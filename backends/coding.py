"""Float weights that a file holds as codes: a few bits each, restored once when an artifact is read.

    weight = (level[code] - zero[j]) * scale[j],       j = step * (f // block) + g

Codes lie in the order in which a kernel reads its weights. f, the place along what a product sums over, and
g, the place among all else, are sums of multiples of the indices of that order, so that nothing but codes,
scales and a dozen integers needs to be stored. Convolutions by minimal filtering read transformed weights:
there the codes are those of the weights themselves, and the transform is applied to what they stand for. Half
precision is stored as it is. What is restored is what was compiled, bit for bit (transforms: to the last bits
of float32).

Payload of such a tensor in `weights.bin`, little-endian::

    uint32 kind (0 codes, 1 float16, 2 bfloat16, 3 pieces one behind the other)
    uint32 rank, levels, codes per byte        of the codes
    int64  sizes[rank], f strides[rank], g strides[rank]
    int64  block, step, number of scales, 1 if there are zeros, where f and g start
    int64  products, taps, out channels, in channels, lanes of a panel    of the transform; 0 without one
    float64 transform[products][taps]
    float32 levels[], scales[], zeros[]
    codes

Of pieces, `levels` is their number, and each follows as uint64 bytes and its own payload.
"""

from __future__ import annotations

import dataclasses
import itertools
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np

from ..passes.quantization.weight_forms import codes_per_byte, pack

CODES, FLOAT16, BFLOAT16, PIECES = 0, 1, 2, 3
_CHUNK = 1 << 20
# Finding the order takes some ten times the memory of the weights.
_MOST = 1 << 27


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

    def restore(self) -> np.ndarray:
        """The float32 array."""
        numbers = self._numbers() if self.kind == CODES else self._halves()
        return numbers if self.transform is None else self.transform.apply(numbers)

    def _halves(self) -> np.ndarray:
        dtype = np.float16 if self.kind == FLOAT16 else ml_dtypes.bfloat16
        return self.codes.view(dtype).astype(np.float32).reshape(self.shape)

    def _numbers(self) -> np.ndarray:
        count = int(np.prod(self.shape))
        numbers = np.empty(count, np.float32)
        per_byte = codes_per_byte(len(self.levels))
        digits = _digits(len(self.levels), per_byte)
        chunk = _CHUNK // per_byte * per_byte
        for start in range(0, count, chunk):
            stop = min(start + chunk, count)
            bytes_ = self.codes[start // per_byte : -(-stop // per_byte)]
            places = self._places(start, stop)
            found = self.levels[digits[bytes_].reshape(-1)[: stop - start]]
            if self.zeros.size:
                found = found - self.zeros[places]
            numbers[start:stop] = found * self.scales[places]
        return numbers.reshape(self.shape)

    def _places(self, start: int, stop: int) -> np.ndarray:
        """Which scale belongs to each number of a range."""
        return _places(self, np.unravel_index(np.arange(start, stop), self.shape))

    def to_bytes(self) -> bytes:
        """The payload, see above."""
        made = self.transform
        matrix = np.zeros((0, 0)) if made is None else made.matrix
        sizes = (0, 0, 0) if made is None else (made.outputs, made.inputs, made.lanes)
        per_byte = codes_per_byte(len(self.levels)) if self.kind == CODES else 0
        rank = len(self.shape)
        header = struct.pack("<4I", self.kind, rank, len(self.levels), per_byte)
        header += struct.pack(f"<{3 * rank}q", *self.shape, *self.f_strides, *self.g_strides)
        header += struct.pack(
            "<6q", self.block, self.step, len(self.scales), int(self.zeros.size > 0), *self.starts
        )
        header += struct.pack("<5q", *matrix.shape, *sizes)
        arrays = (matrix, self.levels, self.scales, self.zeros, self.codes)
        return header + b"".join(np.ascontiguousarray(array).tobytes() for array in arrays)

    @classmethod
    def from_bytes(cls, data: Any) -> Coding:
        """What `to_bytes` wrote.

        Raises:
            ValueError: the payload contradicts itself.
        """
        reader = _Reader(memoryview(data))
        kind, rank, levels, per_byte = reader.integers("I", 4)
        if kind > BFLOAT16 or rank > 32 or levels > 1 << 16:
            raise ValueError("a coded tensor is of an unknown kind")
        shape, f_strides, g_strides = (reader.integers("q", rank) for _ in range(3))
        block, step, scales, has_zeros, *starts = reader.integers("q", 6)
        products, taps, outputs, inputs, lanes = reader.integers("q", 5)
        matrix = reader.array("<f8", products * taps).reshape(products, taps)
        table, factors = reader.array("<f4", levels), reader.array("<f4", scales)
        zeros = reader.array("<f4", scales if has_zeros else 0)
        count = int(np.prod(shape))
        if kind == CODES:
            if levels < 1 or scales < 1 or block < 1 or per_byte != codes_per_byte(levels):
                raise ValueError("a coded tensor has no levels or no scales")
            codes = reader.array("u1", -(-count // codes_per_byte(levels)))
        else:
            codes = reader.array("<u2", count)
        transform = Transform(matrix, outputs, inputs, lanes) if products else None
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

    def restore(self) -> np.ndarray:
        """The float32 array, on one axis."""
        return np.concatenate([part.restore().reshape(-1) for part in self.parts])

    def to_bytes(self) -> bytes:
        """The payload, see above."""
        payloads = [part.to_bytes() for part in self.parts]
        head = struct.pack("<4I", PIECES, 0, len(payloads), 0)
        return head + b"".join(struct.pack("<Q", len(each)) + each for each in payloads)


def read_coding(data: Any) -> Coding | Pieces:
    """What `to_bytes` wrote.

    Raises:
        ValueError: the payload contradicts itself.
        struct.error: it is truncated.
    """
    kind, _, count, _ = struct.unpack_from("<4I", data, 0)
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


class CodedArray(np.ndarray):
    """A float32 array that knows how a file may hold it; what is computed from it does not."""

    coding: Coding | Pieces | None = None

    @classmethod
    def of(cls, array: np.ndarray, coding: Coding | Pieces) -> CodedArray:
        """The array, with its coding."""
        made = array.view(cls)
        made.coding = coding
        return made


def coding_of(array: np.ndarray) -> Coding | Pieces | None:
    """How a file may hold an array, if it knows."""
    return getattr(array, "coding", None)


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
    reached = _places(draft, tuple(corners))
    most = int(reached.max())
    if reached.min() < 0 or most > 4 * len(scales) + 4096:
        return None
    missing = max(most + 1 - len(scales), 0)
    whole = dataclasses.replace(
        draft,
        scales=np.pad(draft.scales, (0, missing)),
        zeros=np.pad(draft.zeros, (0, missing)) if draft.zeros.size else draft.zeros,
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


def _places(coding: Coding, index: Any) -> np.ndarray:
    zero = np.zeros_like(index[0]) if len(index) else np.zeros(1, np.int64)
    f = sum(
        (i * step for i, step in zip(index, coding.f_strides, strict=True)), start=zero + coding.starts[0]
    )
    g = sum(
        (i * step for i, step in zip(index, coding.g_strides, strict=True)), start=zero + coding.starts[1]
    )
    return f // coding.block * coding.step + g


def _strides(shape: tuple[int, ...]) -> list[int]:
    strides = [1] * len(shape)
    for axis in range(len(shape) - 2, -1, -1):
        strides[axis] = strides[axis + 1] * shape[axis + 1]
    return strides


def _digits(levels: int, per_byte: int) -> np.ndarray:
    """The codes in every byte, `[256, per_byte]`."""
    return np.stack([np.arange(256) // levels**i % levels for i in range(per_byte)], axis=1)


class _Reader:
    def __init__(self, data: memoryview):
        self._data, self._at = data, 0

    def integers(self, kind: str, count: int) -> tuple[int, ...]:
        size = struct.calcsize(f"<{count}{kind}")
        found = struct.unpack_from(f"<{count}{kind}", self._data, self._at)
        self._at += size
        return found

    def array(self, dtype: str, count: int) -> np.ndarray:
        size = np.dtype(dtype).itemsize * count
        if count < 0 or self._at + size > len(self._data):
            raise ValueError("a coded tensor is truncated")
        found = np.frombuffer(self._data, dtype, count, self._at)
        self._at += size
        return found
