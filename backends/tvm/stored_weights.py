"""Finds, behind constants that are restored from few bits, what they are restored from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import onnx_ir as ir

from ...ir.constants import constant_array, evaluate_values
from ...ir.static import input_of, static_shape
from ..coding import CodedArray, Coding, Pieces
from ..encoding import Source, encode_halves, encode_packed, transformed
from ..split_coding import Panels, Split
from .op import attributes_of

_FEWEST = 1024
_VIEWS = ("Reshape", "Identity", "Flatten", "Squeeze", "Unsqueeze")


def coded(
    packed: np.ndarray, value: ir.Value, array: np.ndarray, packing: Callable[[np.ndarray], np.ndarray]
) -> np.ndarray:
    """A packed weight with its coding, where it has one that is shorter; else the weight itself.

    Args:
        packed: what a kernel reads.
        value: the constant that it was packed from.
        array: what that holds.
        packing: what packed it.
    """
    if packed.size < _FEWEST or value.producer() is None or array.dtype != np.float32:
        return packed
    if packed.dtype == np.uint16:
        return _coded_parts(packed, value, array, packing)
    coding = _any_coding(packed, value, array, packing) if packed.dtype == np.float32 else None
    return packed if coding is None else CodedArray.of(packed, coding)


def _coded_parts(
    packed: np.ndarray, value: ir.Value, array: np.ndarray, packing: Callable[[np.ndarray], np.ndarray]
) -> np.ndarray:
    """Numbers split into bfloat16: those of other types are packed in the same order, but not split."""
    order = packing(np.arange(1, array.size + 1, dtype=np.int64).reshape(array.shape))
    panels = _panels(order)
    if panels is None or packed.size % order.size:
        return packed

    per_run = _steps_per_run(panels.straightened(order)[0, :, 0, 0, 0, 0])

    def straight(given: np.ndarray) -> np.ndarray:
        wide = given.astype(np.float64) if given.dtype == np.float32 else given
        made = panels.straightened(packing(wide)).astype(given.dtype)
        return made.reshape(len(made), -1, per_run, *made.shape[2:])

    plain = _any_coding(straight(array), value, array, straight)
    if plain is None:
        return packed
    coding = Split(plain, packed.size // order.size, panels)
    return CodedArray.of(packed, coding) if np.array_equal(coding.restore(), packed.reshape(-1)) else packed


def _steps_per_run(firsts: np.ndarray) -> int:
    """After how many steps windows go on to their next tap, by the first number of every step."""
    for count in range(len(firsts), 0, -1):
        if len(firsts) % count:
            continue
        runs = firsts.reshape(-1, count)
        if np.array_equal(runs, runs[:1, :1] + (runs[:1] - runs[0, 0]) + (runs[:, :1] - runs[0, 0])) and all(
            len(np.unique(np.diff(each))) < 2 for each in (runs[0], runs[:, 0])
        ):
            return count
    return 1


def _panels(order: np.ndarray) -> Panels | None:
    """The order of packed panels from where each number went, 0 where nothing did."""
    if order.ndim != 6:
        return None
    _, steps, across, words, _, word = order.shape
    depth = words * word
    empty = ~order.any(axis=(0, 2, 4)).reshape(steps, depth)
    gaps = [int(np.argmin(row)) if not row.all() else 0 for row in empty]
    moved = [step for step, gap in enumerate(gaps) if gap]
    if not moved:
        return Panels(depth, across, word)
    period, gap = moved[0] + 1, gaps[moved[0]]
    return Panels(depth, across, word, period, gap) if steps % period == 0 else None


def _any_coding(
    packed: np.ndarray, value: ir.Value, array: np.ndarray, packing: Callable[[np.ndarray], np.ndarray]
) -> Coding | Pieces | None:
    transform, pieces = getattr(packing, "transform", None), getattr(packing, "pieces", ())
    if transform is not None:
        plain = _coding(array, value, array, lambda given: given)
        return None if plain is None else transformed(plain, transform, packed)
    if not pieces:
        return _coding(packed, value, array, packing)
    parts = [_coding(piece(array), value, array, piece) for piece in pieces]
    known = tuple(part for part in parts if part is not None)
    return Pieces(known) if len(known) == len(parts) else None


def _coding(
    packed: np.ndarray, value: ir.Value, array: np.ndarray, packing: Callable[[np.ndarray], np.ndarray]
) -> Coding | None:
    for find in (_dequantized, _scaled, _looked_up):
        source = find(value, array)
        coding = None if source is None else encode_packed(packed, source, packing)
        if coding is not None:
            return coding
    return encode_halves(packed)


def _maker(value: ir.Value) -> ir.Node | None:
    """What makes a constant, views of it passed over."""
    node = value.producer()
    while node is not None and node.op_type in _VIEWS and node.domain == "" and node.inputs[0] is not None:
        node = node.inputs[0].producer()
    return node if node is not None and node.domain == "" else None


def _dequantized(value: ir.Value, array: np.ndarray) -> Source | None:
    node = _maker(value)
    if node is None or node.op_type != "DequantizeLinear" or node.inputs[0] is None:
        return None
    shape, scale = static_shape(node.outputs[0]), constant_array(node.inputs[1])
    if shape is None or scale is None or scale.dtype != np.float32:
        return None
    given, attributes = input_of(node, 2), attributes_of(node)
    zeros = None if given is None else constant_array(given)
    if given is not None and zeros is None:
        return None
    (numbers,) = evaluate_values(None, [node.inputs[0]])
    axis, block = attributes.get("axis", 1) % max(len(shape), 1), attributes.get("block_size", 0)
    if scale.size == 1:
        wide, block = (1,) * len(shape), 0
    elif block:
        wide = scale.shape
    else:
        wide = tuple(size if k == axis else 1 for k, size in enumerate(shape))
    points = None if zeros is None or not zeros.astype(np.float32).any() else zeros.astype(np.float32)
    if points is not None and points.size != scale.size:
        return None
    return Source(
        array.shape,
        shape,
        numbers.astype(np.float32),
        scale.reshape(wide),
        None if points is None else points.reshape(wide),
        axis,
        block,
    )


def _scaled(value: ir.Value, array: np.ndarray) -> Source | None:
    node = _maker(value)
    if node is None or node.op_type != "Mul":
        return None
    shape = static_shape(node.outputs[0])
    for whole, factor in (node.inputs, node.inputs[::-1]):
        scale = constant_array(factor)
        if whole is None or scale is None or shape is None or scale.dtype != np.float32:
            continue
        if static_shape(whole) != shape or scale.size >= array.size:
            continue
        (numbers,) = evaluate_values(None, [whole])
        wide = (1,) * (len(shape) - scale.ndim) + scale.shape
        source = Source(array.shape, shape, numbers.astype(np.float32), scale.reshape(wide))
        return _blocks_as_one(source)
    return None


def level_source(value: ir.Value, array: np.ndarray) -> Source | None:
    """Of a constant matrix that is looked up in a table: numbers and scales, or numbers alone."""
    return _scaled(value, array) or _looked_up(value, array)


def _blocks_as_one(source: Source) -> Source:
    """Blocks on one axis and their numbers on the next, seen as one axis in blocks."""
    sizes, wide = source.view, source.scales.shape
    for axis in range(len(sizes) - 1, 0, -1):
        if wide[axis] == 1 < sizes[axis] and wide[axis - 1] == sizes[axis - 1]:
            view = (*sizes[: axis - 1], sizes[axis - 1] * sizes[axis], *sizes[axis + 1 :])
            scales = source.scales.reshape(*wide[:axis], *wide[axis + 1 :])
            return replace(source, view=view, scales=scales, axis=axis - 1, block=sizes[axis])
    return source


def _looked_up(value: ir.Value, array: np.ndarray) -> Source | None:
    """Few different numbers: a factor of one per channel says where the filling begins."""
    sample = array.reshape(-1)[:: max(array.size // 4096, 1)]
    if array.ndim == 0 or len(np.unique(sample)) > 256 or len(np.unique(array)) > 256:
        return None
    axis = 1 if array.ndim > 1 and array.shape[1] > array.shape[0] else 0
    shape = tuple(size if k == axis else 1 for k, size in enumerate(array.shape))
    return Source(array.shape, array.shape, array, np.ones(shape, np.float32))
