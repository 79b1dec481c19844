"""Products of int8 activations and constant int8 weights for CUDA: four at a time by `dp4a`, exactly.

Weights become 32-bit words of four neighbours along the reduction when a model is compiled, activations when
they are read. What fills the last word is zero on the side of the weights.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from tvm import te, tirx

from .anchors import conv_window, transpose_window
from .expressions import cast
from .integer_ops import CONV, CONV_TRANSPOSE, MATMUL
from .lazy import Index, Lazy, immediate
from .op import Derived, Op
from .plain import biased, padded_image, phase_biased, reached, reduce_axes, stage
from .spec import Derive, GroupSpec

_DEPTH = 4
_WORDS = "int32"


def dot_anchor(spec: GroupSpec, derive: Derive, args: list[Lazy | None]) -> Lazy | None:
    """The value of an integer anchor; None where its operands are not int8 or its weights not constant."""
    op, refs = spec.anchor_op, spec.members[spec.anchor].inputs
    if (
        op.type not in (CONV, CONV_TRANSPOSE, MATMUL)
        or len(refs) < 2
        or refs[1] is None
        or not refs[1].is_external
    ):
        return None
    x, bias = args[0], args[2] if len(args) > 2 else None
    axis, groups = -1 if op.attr("transB", 0) else 0, op.attr("group", 1)
    if op.type != MATMUL:
        axis = 1
    elif len(op.input(1).shape) != 2:
        return None
    types = {op.input(0).dtype, op.input(1).dtype}
    if x is None or types != {"int8"} or not spec.externals[refs[1].external].constant:
        return None

    def pack(weights: np.ndarray) -> np.ndarray:
        if op.type == CONV_TRANSPOSE:
            weights = weights.reshape(groups, -1, *weights.shape[1:])
        return pack_words(weights, axis)

    return _VALUES[op.type](op, x, derive(Derived((refs[1].external,), pack)), bias)


def pack_words(weights: np.ndarray, axis: int) -> np.ndarray:
    """Weights of int8 with four neighbours along an axis as one int32, the first in its lowest bits."""
    last = np.moveaxis(weights, axis, -1)
    whole = np.pad(last, [(0, 0)] * (last.ndim - 1) + [(0, -last.shape[-1] % _DEPTH)])
    words = np.ascontiguousarray(whole).view("<i4")
    return np.ascontiguousarray(np.moveaxis(words, -1, axis))


def _word(read: Any, first: Any, size: int) -> Any:
    """Four values from `first` on as one word; beyond `size` any will do."""
    word = immediate(0, _WORDS)
    for number in range(_DEPTH):
        at = first + number if size % _DEPTH == 0 else tirx.min(first + number, size - 1)
        byte = cast(read(at), _WORDS) & immediate(255, _WORDS)
        word = word | tirx.shift_left(byte, immediate(8 * number, _WORDS))
    return word


def _dot(one: Any, other: Any) -> Any:
    return tirx.call_pure_extern(_WORDS, "__dp4a", one, other, immediate(0, _WORDS))


def _channel_words(x: Lazy, groups: int, steps: int) -> Lazy:
    """Images with four channels of a group as one word."""
    depth = x.shape[1] // groups

    def packed(index: Index) -> Any:
        group, step = index[1] // steps * depth, index[1] % steps
        return _word(lambda at: x.read((index[0], group + at, *index[2:])), step * _DEPTH, depth)

    return stage((x.shape[0], groups * steps, *x.shape[2:]), packed, "words", _WORDS)


def _convolution(op: Op, x: Lazy, words: Lazy, bias: Lazy | None) -> Lazy:
    window, groups = conv_window(op), op.attr("group", 1)
    steps, per_group = words.shape[1], words.shape[0] // groups
    data = _channel_words(padded_image(x, window, op.attr("zero_point", 0)), groups, steps)
    taps = reduce_axes((steps, *window.kernel))

    def value(index: Index) -> Any:
        places = [
            at * stride + tap * dilation
            for at, stride, tap, dilation in zip(
                index[2:], window.strides, taps[1:], window.dilations, strict=True
            )
        ]
        own = data.read((index[0], index[1] // per_group * steps + taps[0], *places))
        return te.sum(_dot(own, words.read((index[1], *taps))), axis=taps)

    return biased(stage(op.outputs[0].shape, value, "conv", _WORDS), bias, 1, _WORDS)


def _transposed(op: Op, x: Lazy, words: Lazy, bias: Lazy | None) -> Lazy:
    window, groups = transpose_window(op), op.attr("group", 1)
    steps, per_group = words.shape[1], words.shape[2]
    data = _channel_words(x, groups, steps)
    taps = reduce_axes((steps, *window.kernel))
    byte = op.attr("zero_point", 0) & 255
    outside = immediate(int(np.array([byte] * _DEPTH, np.uint8).view("<i4")[0]), _WORDS)

    def value(index: Index) -> Any:
        places, meets, inside = reached(window, x.shape[2:], index[2:], taps[1:])
        group, own = index[1] // per_group, index[1] % per_group
        word = tirx.if_then_else(inside, data.read((index[0], group * steps + taps[0], *places)), outside)
        sums = _dot(word, words.read((group, taps[0], own, *taps[1:])))
        return te.sum(tirx.if_then_else(meets, sums, immediate(0, _WORDS)), axis=taps)

    return phase_biased(stage(op.outputs[0].shape, value, "conv_transpose", _WORDS), bias, window, op)


def _product(op: Op, x: Lazy, words: Lazy, bias: Lazy | None) -> Lazy:
    flip, depth = bool(op.attr("transB", 0)), x.shape[-1]
    steps = words.shape[1 if flip else 0]
    shape = (*x.shape[:-1], steps)
    data = stage(
        shape,
        lambda index: _word(lambda at: x.read((*index[:-1], at)), index[-1] * _DEPTH, depth),
        "words",
        _WORDS,
    )
    (k,) = reduce_axes((steps,))

    def value(index: Index) -> Any:
        weight = words.read((index[-1], k) if flip else (k, index[-1]))
        return te.sum(_dot(data.read((*index[:-1], k)), weight), axis=[k])

    return biased(stage(op.outputs[0].shape, value, "matmul", _WORDS), bias, -1, _WORDS)


_VALUES = {CONV: _convolution, CONV_TRANSPOSE: _transposed, MATMUL: _product}
