"""Operators that only move data, as index functions over lazies."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import Any

from .indexing import INDEXING
from .lazy import (
    Index,
    Lazy,
    broadcast,
    choose,
    equal,
    floordiv,
    floormod,
    immediate,
    merge_cuts,
    scalar,
    simplify,
    zero,
)
from .op import Op

Movement = Callable[..., list[Lazy]]


def reshape_to(x: Lazy, shape: Sequence[int]) -> Lazy:
    """The same elements in the same order with another shape."""
    shape = tuple(shape)
    if shape == x.shape:
        return x
    blocks = _matching_blocks(x.shape, shape)

    def read(index: Index) -> Any:
        return x.read(_reindex(index, blocks, x.shape, shape))

    return Lazy(shape, x.dtype, read, _kept_cuts(x, shape, blocks))


def _matching_blocks(old: Sequence[int], new: Sequence[int]) -> list[tuple[range, range]]:
    """Axes of `old` and of `new` in runs of equal size, as short as possible, so that indices stay simple."""
    blocks, i, j = [], 0, 0
    while i < len(old) or j < len(new):
        start_i, start_j, size_i, size_j = i, j, 1, 1
        while True:
            if size_i <= size_j and i < len(old) and (size_i < size_j or i == start_i):
                size_i *= old[i]
                i += 1
            elif j < len(new) and (size_j < size_i or j == start_j):
                size_j *= new[j]
                j += 1
            else:
                break
        blocks.append((range(start_i, i), range(start_j, j)))
    return blocks


def _reindex(
    index: Index, blocks: Sequence[tuple[range, range]], old: Sequence[int], new: Sequence[int]
) -> Index:
    result: list[Any] = []
    for old_axes, new_axes in blocks:
        wide_new = [axis for axis in new_axes if new[axis] != 1]
        wide_old = [axis for axis in old_axes if old[axis] != 1]
        if len(wide_old) == len(wide_new) <= 1:
            result.extend(index[wide_new[0]] if axis in wide_old else zero() for axis in old_axes)
            continue
        flat = zero()
        for axis in new_axes:
            flat = flat * new[axis] + index[axis]
        flat = simplify(flat)
        for axis in old_axes:
            inner = prod(old[each] for each in old_axes if each > axis)
            part = floordiv(flat, inner) if inner != 1 else flat
            first = all(old[each] == 1 for each in old_axes if each < axis)
            result.append(
                zero() if old[axis] == 1 else simplify(part if first else floormod(part, old[axis]))
            )
    return tuple(result)


def _kept_cuts(
    x: Lazy, shape: Sequence[int], blocks: Sequence[tuple[range, range]]
) -> tuple[tuple[int, ...], ...]:
    cuts: list[tuple[int, ...]] = [()] * len(shape)
    for old_axes, new_axes in blocks:
        wide_old = [axis for axis in old_axes if x.shape[axis] != 1]
        wide_new = [axis for axis in new_axes if shape[axis] != 1]
        if len(wide_old) == len(wide_new) == 1:
            cuts[wide_new[0]] = x.cuts_of(wide_old[0])
    return tuple(cuts)


def _reshape(op: Op, x: Lazy, *rest: Any) -> list[Lazy]:
    return [reshape_to(x, op.outputs[0].shape)]


def transposed(x: Lazy, perm: Sequence[int]) -> Lazy:
    """The axes of `x` in another order: axis i of the result is axis perm[i] of `x`."""

    def read(index: Index) -> Any:
        source: list[Any] = [None] * len(perm)
        for position, axis in enumerate(perm):
            source[axis] = index[position]
        return x.read(tuple(source))

    return Lazy(tuple(x.shape[axis] for axis in perm), x.dtype, read, tuple(x.cuts_of(axis) for axis in perm))


def _transpose(op: Op, x: Lazy) -> list[Lazy]:
    return [transposed(x, op.attr("perm") or tuple(reversed(range(op.rank))))]


def _expand(op: Op, x: Lazy, *rest: Any) -> list[Lazy]:
    return [broadcast(x, op.outputs[0].shape)]


def sliced(x: Lazy, starts: Sequence[int], steps: Sequence[int], shape: Sequence[int]) -> Lazy:
    """Elements start, start + step, ... along each axis."""

    def read(index: Index) -> Any:
        pairs = zip(index, starts, steps, strict=True)
        return x.read(
            tuple(each * step + start if step != 1 else each + start for each, start, step in pairs)
        )

    cuts = tuple(
        tuple(cut - starts[axis] for cut in x.cuts_of(axis) if 0 < cut - starts[axis] < shape[axis])
        if steps[axis] == 1
        else ()
        for axis in range(len(shape))
    )
    return Lazy(tuple(shape), x.dtype, read, cuts)


def _slice(op: Op, x: Lazy, *rest: Any) -> list[Lazy]:
    begin, axes, strides = op.ints(1) or [], op.ints(3), op.ints(4)
    axes = list(range(len(begin))) if axes is None else [axis % op.rank for axis in axes]
    strides = [1] * len(begin) if strides is None else strides
    starts, steps = [0] * op.rank, [1] * op.rank
    for axis, start, step in zip(axes, begin, strides, strict=True):
        size = x.shape[axis]
        start = start + size if start < 0 else start
        starts[axis] = min(max(start, 0), size if step > 0 else size - 1)
        steps[axis] = step
    return [sliced(x, starts, steps, op.outputs[0].shape)]


def _split(op: Op, x: Lazy, *rest: Any) -> list[Lazy]:
    axis, start, parts = op.axis(), 0, []
    even = -(-x.shape[axis] // len(op.outputs))
    for size in op.ints(1) or [even] * len(op.outputs):
        shape = list(x.shape)
        shape[axis] = min(size, x.shape[axis] - start)
        starts = [start if each == axis else 0 for each in range(op.rank)]
        parts.append(sliced(x, starts, [1] * op.rank, shape))
        start += size
    return parts


def concatenated(parts: Sequence[Lazy], axis: int) -> Lazy:
    """The parts one after another along an axis."""
    parts = [part for part in parts if part.shape[axis]] or list(parts[:1])
    starts = [sum(part.shape[axis] for part in parts[:i]) for i in range(len(parts))]
    shape = list(parts[0].shape)
    shape[axis] = starts[-1] + parts[-1].shape[axis]

    def read(index: Index) -> Any:
        return pick(index, 0, len(parts))

    def pick(index: Index, low: int, high: int) -> Any:
        if high - low == 1:
            inner = simplify(index[axis] - starts[low])
            return parts[low].read((*index[:axis], inner, *index[axis + 1 :]))
        middle = (low + high) // 2
        return choose(
            index[axis] < starts[middle],
            lambda: pick(index, low, middle),
            lambda: pick(index, middle, high),
        )

    cuts = list(merge_cuts(parts, len(shape)))
    own = {start + cut for part, start in zip(parts, starts, strict=True) for cut in (0, *part.cuts_of(axis))}
    cuts[axis] = tuple(sorted(own - {0}))
    return Lazy(tuple(shape), parts[0].dtype, read, tuple(cuts))


def _concat(op: Op, *parts: Lazy) -> list[Lazy]:
    return [concatenated(parts, op.axis())]


def _pad(op: Op, x: Lazy, *rest: Any) -> list[Lazy]:
    rank, pads, axes = op.rank, op.ints(1) or [], op.ints(3)
    axes = list(range(rank)) if axes is None else [axis % rank for axis in axes]
    before, after = [0] * rank, [0] * rank
    for position, axis in enumerate(axes):
        before[axis], after[axis] = pads[position], pads[position + len(axes)]
    fill = rest[1] if len(rest) > 1 else None
    return [padded(x, before, after, op.attr("mode", "constant"), fill)]


def padded(x: Lazy, before: Sequence[int], after: Sequence[int], mode: str, fill: Lazy | None = None) -> Lazy:
    """`x` with elements added in front and behind (removed where negative), by ONNX's modes."""
    shape = tuple(b + size + a for b, size, a in zip(before, x.shape, after, strict=True))
    touched = [axis for axis in range(len(shape)) if before[axis] or after[axis]]

    def outside() -> Any:
        return fill.read((zero(),) * len(fill.shape)) if fill is not None else immediate(0, x.dtype)

    def read(index: Index) -> Any:
        inner = list(index)
        for axis in touched:
            inner[axis] = simplify(index[axis] - before[axis])
        if mode != "constant":
            for axis in touched:
                inner[axis] = _folded(inner[axis], x.shape[axis], mode)
            return x.read(tuple(inner))
        return _guarded(inner, [a for a in touched if before[a] > 0 or after[a] > 0], x, outside)

    cuts = tuple(
        tuple(
            sorted(
                cut
                for cut in {before[axis], before[axis] + size, *(c + before[axis] for c in x.cuts_of(axis))}
                if 0 < cut < shape[axis]
            )
        )
        for axis, size in enumerate(x.shape)
    )
    return Lazy(shape, x.dtype, read, cuts)


def _guarded(inner: list[Any], axes: list[int], x: Lazy, outside: Callable[[], Any]) -> Any:
    """`x` inside its bounds along `axes`, checked one after another; `outside()` elsewhere."""
    if not axes:
        return x.read(tuple(inner))
    axis, rest = axes[0], axes[1:]
    return choose(
        inner[axis] >= 0,
        lambda: choose(inner[axis] < x.shape[axis], lambda: _guarded(inner, rest, x, outside), outside),
        outside,
    )


def _folded(position: Any, size: int, mode: str) -> Any:
    """A position outside 0 .. size-1 brought back by reflection, clamping or wrapping around."""
    from tvm import tirx

    if mode == "edge":
        return tirx.max(tirx.min(position, size - 1), 0)
    if mode == "wrap":
        return floormod(position, size)
    if size == 1:
        return zero()
    period = 2 * (size - 1)
    wrapped = floormod(position, period)
    return tirx.min(wrapped, period - wrapped)


def _tile(op: Op, x: Lazy, *rest: Any) -> list[Lazy]:
    shape = op.outputs[0].shape

    def read(index: Index) -> Any:
        source = [
            each if shape[axis] == size else zero() if size == 1 else floormod(each, size)
            for axis, (each, size) in enumerate(zip(index, x.shape, strict=True))
        ]
        return x.read(tuple(source))

    return [Lazy(shape, x.dtype, read)]


def _depth_to_space(op: Op, x: Lazy) -> list[Lazy]:
    n, c, h, w = x.shape
    b = op.attr("blocksize")
    if op.attr("mode", "DCR") == "CRD":
        blocks, perm = (n, c // (b * b), b, b, h, w), (0, 1, 4, 2, 5, 3)
    else:
        blocks, perm = (n, b, b, c // (b * b), h, w), (0, 3, 4, 1, 5, 2)
    return [reshape_to(transposed(reshape_to(x, blocks), perm), op.outputs[0].shape)]


def _space_to_depth(op: Op, x: Lazy) -> list[Lazy]:
    n, c, h, w = x.shape
    b = op.attr("blocksize")
    blocks = reshape_to(x, (n, c, h // b, b, w // b, b))
    perm = (0, 1, 3, 5, 2, 4) if op.attr("mode", "DCR") == "CRD" else (0, 3, 5, 1, 2, 4)
    return [reshape_to(transposed(blocks, perm), op.outputs[0].shape)]


def _trilu(op: Op, x: Lazy, *rest: Any) -> list[Lazy]:
    from tvm import tirx

    offset = (op.ints(1) or [0])[0]
    upper = op.attr("upper", 1)

    def read(index: Index) -> Any:
        distance = index[-1] - index[-2] - offset
        keep = distance >= 0 if upper else distance <= 0
        return tirx.Select(keep, x.read(index), immediate(0, x.dtype))

    return [Lazy(x.shape, x.dtype, read)]


def _eye_like(op: Op, x: Lazy) -> list[Lazy]:
    from tvm import tirx

    dtype, offset = op.outputs[0].dtype, op.attr("k", 0)

    def read(index: Index) -> Any:
        return tirx.Select(equal(index[1] - index[0], offset), immediate(1, dtype), immediate(0, dtype))

    return [Lazy(op.outputs[0].shape, dtype, read)]


def _constant_of_shape(op: Op, *rest: Any) -> list[Lazy]:
    value = op.attr("value")
    fill = value.reshape(-1)[0] if value is not None else 0.0
    return [scalar(fill, op.outputs[0].dtype, op.outputs[0].shape)]


# Every element of the output is one element of the input, read once; only the index is computed.
VIEWS = frozenset({"Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity", "Dropout"})

MOVEMENT: dict[str, Movement] = {
    **INDEXING,
    "Concat": _concat,
    "ConstantOfShape": _constant_of_shape,
    "DepthToSpace": _depth_to_space,
    "Expand": _expand,
    "EyeLike": _eye_like,
    "Flatten": _reshape,
    "Pad": _pad,
    "Reshape": _reshape,
    "Slice": _slice,
    "SpaceToDepth": _space_to_depth,
    "Split": _split,
    "Squeeze": _reshape,
    "Tile": _tile,
    "Transpose": _transpose,
    "Trilu": _trilu,
    "Unsqueeze": _reshape,
}
