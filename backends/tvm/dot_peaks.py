"""Loops of nothing but one dot instruction: what kernels are measured by that are made of it.

`vpdpbusd`, `vpdpwssd`, `vpmaddwd` and `sdot` multiply and add several small integers per lane, `tdpb**d` and
`tdpbf16ps` whole tiles (`kernels.arithmetic`, `kernels.tile_registers`). A kernel's note says which it uses.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..target import Target

_IN_NOTES = re.compile(
    r"\b(?:(tdpbf16ps|tdpb[su][su]d|vpdpbusd|vpdpwssd|vpmaddwd|sdot)(?: x(\d))?|bf16x(\d))\b"
)
_INTEGER_TILES, _FLOAT_TILES = "tdpbusd", "tdpbf16ps"
"""The first stands for all signs, which take the same time."""
_VECTORS = {
    "vpdpbusd": ("uint8", "int8"),
    "vpdpwssd": ("int16", "int16"),
    "vpmaddwd": ("int16", "int16"),
    "sdot": ("int8", "int8"),
}
"""Element types of data and weights of each instruction on vectors."""
_CHAINS = 14
"""Independent sums: enough for an addition behind a product, and for two instructions per cycle."""
_STEPS = 100_000
_TILE_STEPS = 10_000
_TILE_ROWS = 16


@dataclass(frozen=True)
class DotLoop:
    """A function that repeats one instruction.

    Attributes:
        function: takes one int32 buffer.
        shape: shape of the buffer.
        operations: of one call, multiplications and additions.
    """

    function: Any
    shape: tuple[int, ...]
    operations: int


def instruction_of(note: str) -> tuple[str, int]:
    """The dot instruction that a kernel's note names, and how many of them make one product.

    Float32 takes several products of bfloat16 ("tdpbf16ps x3", "bf16x3"). ("", 1) where a kernel multiplies
    floats one by one.
    """
    found = _IN_NOTES.search(note)
    if found is None:
        return "", 1
    if found[3]:
        return _FLOAT_TILES, int(found[3])
    name = _INTEGER_TILES if found[1].startswith("tdpb") and found[1] != _FLOAT_TILES else found[1]
    return name, int(found[2] or 1)


def dot_loop(name: str, threads: int, target: Target) -> DotLoop | None:
    """The loop for an instruction on some threads; None where the target does not have it."""
    if name not in _VECTORS:
        return _tiles(name, threads, target)
    from .kernels.arithmetic import integer_arithmetic

    arithmetic = integer_arithmetic(*_VECTORS[name], target)
    return _vectors(arithmetic, threads, target) if arithmetic.name == name else None


def _vectors(arithmetic: Any, threads: int, target: Target) -> DotLoop:
    from .kernels import emit

    lanes = target.vector_bits // 32
    shape = (threads, _CHAINS * lanes)
    out = emit.buffer("out", shape, "int32")

    def task(t: Any) -> Any:
        sums, allocated = emit.allocate("sums", (_CHAINS * lanes,), "int32")
        value, value_bound = emit.hold("value", emit.load(out, [t, 0]), 1, "int32")
        column, column_bound = emit.hold("column", emit.load(out, [t, 0], lanes), lanes, "int32")

        def chain(i: Any) -> Any:
            total = emit.load(sums, [i * lanes], lanes)
            # A product that is added apart must differ in every step, or it does not stay in the loop.
            factor = total if arithmetic.depth == 2 else column
            return emit.store(sums, arithmetic.combine(total, value, factor, lanes), [i * lanes], lanes)

        return [allocated, value_bound, column_bound, *in_registers(sums, out, t, lanes, _STEPS, chain)]

    function = emit.function(arithmetic.name, [out], [emit.parallel("t", threads, task)])
    return DotLoop(function, shape, 2 * arithmetic.depth * lanes * _CHAINS * _STEPS * threads)


def in_registers(
    sums: Any, out: Any, task: Any, lanes: int, steps: int, chain: Callable[[Any], Any]
) -> list[Any]:
    """`chain` of every vector of `sums` repeatedly; they come from the task's row of `out` and go back."""
    from .kernels import emit

    count = int(out.shape[1]) // lanes

    def start(i: Any) -> Any:
        return emit.store(sums, emit.load(out, [task, i * lanes], lanes), [i * lanes], lanes)

    def finish(i: Any) -> Any:
        return emit.store(out, emit.load(sums, [i * lanes], lanes), [task, i * lanes], lanes)

    return [
        emit.unrolled("i", count, start),
        emit.loop("step", steps, lambda step: emit.unrolled("i", count, chain)),
        emit.unrolled("i", count, finish),
    ]


def _tiles(name: str, threads: int, target: Target) -> DotLoop | None:
    from .kernels import emit
    from .kernels import tile_registers as tiles

    is_float = name == _FLOAT_TILES
    if not (tiles.has_float_tiles(target) if is_float else tiles.has_tiles(target)):
        return None
    form = (
        tiles.Format("uint16", "uint16", name, "float32", 2)
        if is_float
        else tiles.Format("uint8", "int8", name)
    )
    registers = tiles.Registers(_TILE_ROWS, form.most, 2, 2, form)
    shape = (threads, registers.row_count * registers.block)
    out = emit.buffer("out", shape, "int32")
    dots = [tiles.dot(form, sums, 4 + sums // 2, 6 + sums % 2) for sums in range(4)]

    def task(t: Any) -> Any:
        sums, allocation = emit.allocate_whole("sums", shape[1], "int32")
        return [
            *allocation,
            *registers.configure(),
            *(tiles.clear(number) for number in range(tiles.REGISTERS)),
            emit.loop("step", _TILE_STEPS, lambda _: dots),
            *registers.store(sums),
            tiles.release(),
            emit.store(out, emit.load(sums, [0]), [t, 0]),
        ]

    function = emit.function(name, [out], [emit.parallel("t", threads, task)])
    products = len(dots) * _TILE_STEPS * threads
    return DotLoop(function, shape, 2 * _TILE_ROWS * tiles.LANES * form.most * products)
