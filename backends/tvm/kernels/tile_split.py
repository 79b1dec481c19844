"""float32 in the form that tile registers multiply: two planes of bfloat16, the second holding what is left.

A copy is made ahead of the product, padded where windows reach over the border. Infinite numbers leave NaN in
the second plane: a sum that would be infinite is NaN.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any

from tvm import tirx

from . import emit
from .arithmetic import intrinsic
from .emit import Statements
from .interface import Conv2dSpec
from .product import SERIAL_FLOPS
from .tile import blocks

_LANES = 16
_LINE = 32
"""Elements of a cache line."""
_LEAST = 1 << 13
"""Elements per task of a copy."""
STAGED_PER_CYCLE = 3.0
"""Numbers that one core reads, splits and writes per cycle, from and to its second-level cache."""


@dataclass(frozen=True)
class Planes:
    """Split numbers: a flat uint16 buffer, elements from one plane to the next, and what fills both."""

    flat: Any
    plane: int
    statements: Statements


def allocate_planes(name: str, size: int, slack: int = 0) -> tuple[Any, int, Statements]:
    """A buffer for two planes of `size` numbers, its plane size, and its allocation; `slack` zeros follow."""
    plane = blocks(size, _LINE) * _LINE
    flat, allocation = emit.allocate_whole(name, 2 * plane + max(slack, 1), "uint16", "global")
    zero = tirx.const(0, "uint16")
    clear = emit.loop("i", slack, lambda i: emit.store(flat, zero, [2 * plane + i])) if slack else []
    return flat, plane, [*allocation, clear]


def split(value: Any, lanes: int) -> tuple[list[tuple[Any, Any]], Any, Any]:
    """Vectors of uint16 for both planes, and the variables with values that they use.

    Args:
        value: a float32 vector (or scalar) of `lanes`.
        lanes: how many; sixteen use the CPU's own conversion.
    """
    vector = "" if lanes == 1 else f"x{lanes}"
    held: list[tuple[Any, Any]] = []

    def keep(name: str, given: Any, dtype: str) -> Any:
        variable = tirx.Var(name, f"{dtype}{vector}")
        held.append((variable, given))
        return variable

    def narrow(name: str, given: Any) -> Any:
        if lanes == _LANES:
            # TVM's passes fail on its own bfloat16; a type of the same size, cast to another, is a bit cast.
            made = intrinsic("llvm.x86.avx512bf16.cvtneps2bf16.512", f"int16{vector}", given)
            return keep(name, tirx.reinterpret(f"uint16{vector}", made), "uint16")
        bits = keep(f"{name}_bits", tirx.reinterpret(f"uint32{vector}", given), "uint32")
        odd = (bits >> emit.constant(16, lanes, "uint32")) & emit.constant(1, lanes, "uint32")
        rounded = (bits + emit.constant(0x7FFF, lanes, "uint32") + odd) >> emit.constant(16, lanes, "uint32")
        return keep(name, tirx.Cast(f"uint16{vector}", rounded), "uint16")

    x = keep("x", value, "float32")
    high = narrow("high", x)
    wide = tirx.Cast(f"uint32{vector}", high) << emit.constant(16, lanes, "uint32")
    rest = keep("rest", x - tirx.reinterpret(f"float32{vector}", wide), "float32")
    return held, high, narrow("low", rest)


def split_run(source: Any, at: Any, target: Any, to: Any, plane: int, count: int) -> Statements:
    """Split `count` neighbours from `at` of a flat buffer to `to` of the planes."""

    def part(place: Any, lanes: int) -> Statements:
        held, high, low = split(emit.load(source, [at + place], lanes), lanes)
        return [
            *(tirx.Bind(variable, value) for variable, value in held),
            emit.store(target, high, [to + place], lanes),
            emit.store(target, low, [to + plane + place], lanes),
        ]

    if count < _LANES:
        return [emit.loop("i", count, lambda i: part(i, 1))]
    whole, rest = divmod(count, _LANES)
    # The last vector ends with the run: what it shares with the one before is written twice.
    return [
        emit.loop("i", whole, lambda i: part(i * _LANES, _LANES)),
        *(part(count - _LANES, _LANES) if rest else []),
    ]


def split_rows(source: Any, rows: int, row: Any, length: int) -> Planes:
    """Planes of (rows, length); `row` gives the place of a row in the flat buffer `source`."""
    flat, plane, allocation = allocate_planes("split", rows * length)
    each = max(1, min(rows, _LEAST // length))

    def task(t: Any) -> Any:
        def one(i: Any) -> Statements:
            number = emit.minimum(t * each, rows - each) + i
            return split_run(source, row(number), flat, number * length, plane, length)

        return emit.loop("r", each, one)

    enabled = rows * length > SERIAL_FLOPS
    return Planes(flat, plane, [*allocation, emit.parallel("stage", blocks(rows, each), task, enabled)])


def split_image(source: Any, spec: Conv2dSpec, slack: int) -> Planes:
    """Planes of (N, H + pads, W + pads, C); padding is zero.

    Args:
        source: the data as one axis.
        spec: the convolution that reads them.
        slack: zeros behind the planes, for what reads beyond a window.
    """
    top, left, bottom, right = spec.pads
    channels = spec.in_channels
    height, width = spec.height + top + bottom, spec.width + left + right
    lines = spec.batch * height
    flat, plane, allocation = allocate_planes("split", lines * width * channels, slack)
    zero = tirx.const(0, "uint16")

    def blank(at: Any, count: int) -> Statements:
        if not count:
            return []
        return [
            emit.loop("i", count * channels, lambda i: emit.store(flat, zero, [at + i])),
            emit.loop("i", count * channels, lambda i: emit.store(flat, zero, [at + plane + i])),
        ]

    def line(t: Any) -> Any:
        n, h = emit.unravel(t, (spec.batch, height))
        begin = t * (width * channels)
        own = (n * spec.height + h - top) * (spec.width * channels)
        body = [
            *blank(begin, left),
            *split_run(source, own, flat, begin + left * channels, plane, spec.width * channels),
            *blank(begin + (left + spec.width) * channels, right),
        ]
        if not top and not bottom:
            return body
        return emit.when(emit.all_of(h >= top, h < top + spec.height), body, blank(begin, width))

    enabled = prod(spec.data_shape) > SERIAL_FLOPS
    return Planes(flat, plane, [*allocation, emit.parallel("stage", lines, line, enabled)])
