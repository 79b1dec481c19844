"""Depthwise convolution with one output per channel; weights are stored [KH, KW, C]."""

from __future__ import annotations

from typing import Any

import numpy as np

from . import emit
from .channelwise import Sweep, choose_channel_tile
from .emit import Statements
from .interface import Conv2dSpec, Epilogue, Kernel, nhwc
from .microkernel import Accumulators, Writer
from .tile import TargetNumbers
from .window import MAX_BORDER_TILES, border_tiles, pad_stage, padded_spec


def pack_depthwise_weights(weights: np.ndarray) -> np.ndarray:
    """(C, 1, KH, KW) -> (KH, KW, C)."""
    return np.ascontiguousarray(weights[:, 0].transpose(1, 2, 0))


def depthwise(spec: Conv2dSpec, epilogue: Epilogue | None, target: TargetNumbers) -> Kernel:
    """A convolution in which every channel is a group of its own.

    Buffers: data (N, H, W, C), packed weights, extra inputs, output (N, OH, OW, C).
    """
    channels, taps = spec.in_channels, spec.kernel[1]
    writer = Writer(epilogue, spec.out_shape, nhwc)
    data = source = emit.buffer("data", spec.data_shape)
    weights = emit.buffer("weights", (*spec.kernel, channels))
    tile = choose_channel_tile(spec, channels, taps, target)
    padding: Statements = []
    if border_tiles(spec, tile.pixels) > MAX_BORDER_TILES:
        source, padding = pad_stage(spec, channels, data)
        spec = padded_spec(spec)

    def prepare(kh: Any, channel: Any) -> tuple[Any, Statements]:
        held: list[list[Any]] = []
        statements: Statements = []
        for kw in range(taps):
            vectors = range(tile.vectors)
            loads = [emit.load(weights, [kh, kw, channel + v * tile.lanes], tile.lanes) for v in vectors]
            pairs = [emit.hold(f"w{kw}_{v}", value, tile.lanes) for v, value in enumerate(loads)]
            held.append([name for name, _ in pairs])
            statements.extend(bound for _, bound in pairs)
        return held, statements

    def combine(accumulators: Accumulators, pixel: int, vector: int, value: Any, kw: int, held: Any) -> Any:
        return accumulators.update(pixel, vector, value * held[kw][vector])

    sweep = Sweep(spec, channels, tile, source, 0.0, prepare, combine, lambda *_: [])
    func = emit.function(
        "depthwise", [data, weights, *writer.extras, writer.output], [*padding, sweep.body(writer)]
    )
    return Kernel(func, (pack_depthwise_weights,), spec.flops, f"depthwise {tile}")
