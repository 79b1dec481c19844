"""float32 in the form that tile registers multiply: planes of bfloat16, each holding what those before leave.

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
STAGED_PER_CYCLE = 3.0
"""Numbers that one core reads, splits and writes per cycle, from and to its second-level cache."""


@dataclass(frozen=True)
class Planes:
    """Split numbers: a flat buffer, elements from one plane to the next, and what fills them."""

    flat: Any
    plane: int
    statements: Statements


def allocate_planes(name: str, size: int, parts: int, slack: int = 0) -> tuple[Any, int, Statements]:
    """A buffer for planes of `size` numbers, its plane size, and its allocation; `slack` zeros follow.

    What lies between planes is zero, too: a window may reach there, and zero weights do not silence NaN.
    """
    plane = blocks(size, _LINE) * _LINE
    flat, allocation = emit.allocate_whole(name, parts * plane + max(slack, 1), "uint16", "global")
    gaps = [zeros(flat, part * plane + size, plane - size) for part in range(parts)]
    return flat, plane, [*allocation, *gaps, zeros(flat, parts * plane, slack)]


def split(value: Any, lanes: int, parts: int) -> tuple[list[tuple[Any, Any]], list[Any]]:
    """Vectors of uint16 per plane, behind the variables with values that they use.

    Args:
        value: a float32 vector (or scalar) of `lanes`.
        lanes: how many; sixteen use the CPU's own conversion.
        parts: how many planes.
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

    rest = keep("x", value, "float32")
    found = []
    for part in range(parts):
        found.append(narrow("part", rest))
        if part < parts - 1:
            wide = tirx.Cast(f"uint32{vector}", found[-1]) << emit.constant(16, lanes, "uint32")
            rest = keep("rest", rest - tirx.reinterpret(f"float32{vector}", wide), "float32")
    return held, found


def split_run(source: Any, at: Any, target: Any, to: Any, plane: int, parts: int, count: int) -> Statements:
    """Split `count` neighbours from `at` of a flat buffer to `to` of the planes."""

    def vector(place: Any, lanes: int) -> Statements:
        held, found = split(emit.load(source, [at + place], lanes), lanes, parts)
        return [
            *(tirx.Bind(variable, value) for variable, value in held),
            *(
                emit.store(target, part, [to + number * plane + place], lanes)
                for number, part in enumerate(found)
            ),
        ]

    if count < _LANES:
        return [emit.loop("i", count, lambda i: vector(i, 1))]
    whole, rest = divmod(count, _LANES)
    # The last vector ends with the run: what it shares with the one before is written twice.
    return [
        emit.loop("i", whole, lambda i: vector(i * _LANES, _LANES)),
        *(vector(count - _LANES, _LANES) if rest else []),
    ]


def split_image(source: Any, spec: Conv2dSpec, parts: int, slack: int) -> Planes:
    """Planes of (N, H + pads, W + pads, C); padding is zero.

    Args:
        source: the data as one axis.
        spec: the convolution that reads them.
        parts: how many planes.
        slack: zeros behind the planes, for what reads beyond a window.
    """
    top, left, bottom, right = spec.pads
    channels = spec.in_channels
    height, width = spec.height + top + bottom, spec.width + left + right
    lines = spec.batch * height
    flat, plane, allocation = allocate_planes("split", lines * width * channels, parts, slack)

    def blank(at: Any, count: int) -> Statements:
        return [zeros(flat, at + part * plane, count * channels) for part in range(parts)]

    def line(t: Any) -> Any:
        n, h = emit.unravel(t, (spec.batch, height))
        begin = t * (width * channels)
        own = (n * spec.height + h - top) * (spec.width * channels)
        body = [
            *blank(begin, left),
            *split_run(source, own, flat, begin + left * channels, plane, parts, spec.width * channels),
            *blank(begin + (left + spec.width) * channels, right),
        ]
        if not top and not bottom:
            return body
        return emit.when(emit.all_of(h >= top, h < top + spec.height), body, blank(begin, width))

    enabled = prod(spec.data_shape) > SERIAL_FLOPS
    return Planes(flat, plane, [*allocation, emit.parallel("stage", lines, line, enabled)])


def zeros(flat: Any, begin: Any, count: int) -> Any:
    """Set `count` elements from `begin` on to zero."""
    return emit.loop("i", count, lambda i: emit.store(flat, tirx.const(0, "uint16"), [begin + i]))
