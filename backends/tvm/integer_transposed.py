"""Quantized transposed convolutions become sums of integers, as `integer.py` says of convolutions."""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from ...ir.static import input_of, static_shape
from .anchors import Window, transpose_window
from .integer_ops import DOMAIN, MOST_TERMS
from .op import Op, type_of

if TYPE_CHECKING:
    from .integer import _Builder

_MOST_DEPTHWISE = 16
"""Phases of a depthwise one, each a sweep of its own, whose code is small enough."""
_MOST_PHASES = 4096


def transposed(build: _Builder) -> None:
    """Rewrite a ConvTranspose of quantized operands, or leave it."""
    from .integer import centred

    node = build.node
    data, weight = build.data(0), build.operand(1)
    if data is None or weight is None or weight.axis not in (None, 1):
        return
    if data.value.dtype not in (ir.DataType.INT8, ir.DataType.UINT8):
        return
    array, out = build.contents(weight.value), static_shape(node.outputs[0])
    if array is None or out is None or array.size == 0:
        return
    groups, window = build.attributes.get("group", 1), _window(build)
    weights = centred(array, weight)
    channels = groups * weights.shape[1]
    if weights.shape[0] // groups * prod(weights.shape[2:]) > MOST_TERMS or not _is_small(
        weights, groups, window
    ):
        return
    bias = input_of(node, 2)
    scale = weight.scale * data.scale
    if scale.ndim:
        scale = np.tile(scale, groups)
    own = build.int_bias(bias, scale, channels)
    total = _total_bias(weights, groups, window, data.offset, own)
    if total is None and (data.offset or own is not None):
        return
    inputs: list[ir.Value | None] = [data.value, build.constant("weights", weights)]
    if total is not None:
        inputs.append(build.constant("sums_bias", total))
    attributes = {**build.attributes, "zero_point": data.offset}
    sums = build.insert("ConvTranspose", inputs, ir.DataType.INT32, attributes, DOMAIN)
    build.finish(sums, scale, 1, None if own is not None else bias, [1, channels, *([1] * (len(out) - 2))])


def _window(build: _Builder) -> Window:
    """The window, what the shape of the output says of its padding resolved."""
    node = build.node
    data, weight = node.inputs[0], node.inputs[1]
    assert data is not None and weight is not None
    types = (type_of(data), type_of(weight))
    op = Op("ConvTranspose", node.name or "", build.attributes, types, (type_of(node.outputs[0]),))
    return transpose_window(op)


def _is_small(weights: np.ndarray, groups: int, window: Window) -> bool:
    """Whether there are few enough phases for code, and for a bias of each."""
    phases = prod(window.strides)
    depthwise = groups > 1 and weights.shape[0] == groups and weights.shape[1] == 1
    return phases <= (_MOST_DEPTHWISE if depthwise else _MOST_PHASES)


def _meets(window: Window, axis: int) -> np.ndarray:
    """Of each tap and phase of an axis whether outputs of the phase read the tap, `[taps, phases]`."""
    stride = window.strides[axis]
    taps = np.arange(window.kernel[axis])[:, None] * window.dilations[axis]
    return np.asarray((np.arange(stride) + window.before(axis) - taps) % stride == 0, np.int64)


def _total_bias(
    weights: np.ndarray, groups: int, window: Window, offset: int, own: np.ndarray | None
) -> np.ndarray | None:
    """The int32 bias: its own part, and the share of the data's zero point that each phase's taps have.

    Returns:
        One number per channel, or (phases of each axis..., channels) where the zero point is not 0.
    """
    if not offset:
        return own
    per_group = weights.shape[1]
    per_tap = weights.reshape(groups, -1, *weights.shape[1:]).sum(axis=1, dtype=np.int64)
    share = per_tap.reshape(groups * per_group, *weights.shape[2:])
    for axis in range(window.rank):
        share = np.tensordot(share, _meets(window, axis), axes=(1, 0))
    total = (own.astype(np.int64) if own is not None else 0) - np.moveaxis(share, 0, -1) * offset
    if np.abs(total).max(initial=0) >= 1 << 31:
        return None
    return np.asarray(total, np.int32)
