"""Every byte of a tensor looked up in a table of 256.

Permutations of bytes do it in registers where a target has them: `vpermi2b` finds 64 bytes among 128 (AVX-512
VBMI), `tbl` and `tbx` sixteen among 64 (NEON). Elsewhere it is one load per byte.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tvm import tirx

from . import emit
from .arithmetic import has_features, intrinsic
from .emit import Statements
from .interface import Kernel
from .tile import TargetNumbers, blocks

_TASK = 1 << 14
"""Bytes of one task: below, starting the worker threads costs more than they save."""
_VBMI, _NEON = 64, 16


def integer_table(
    size: int, shapes: tuple[tuple[int, ...], ...], types: tuple[str, str], target: TargetNumbers
) -> Kernel:
    """The output is table[data], the table ordered by the bits of what it is asked for.

    Buffers: data, table (256), output.

    Args:
        size: bytes of data.
        shapes: of data and output as they are stored.
        types: element types of data and output, of 8 bits each.
        target: decides about the instructions.
    """
    data, out = emit.buffer("data", shapes[0], types[0]), emit.buffer("out", shapes[1], types[1])
    table = emit.buffer("table", (256,), types[1])
    flat_data, declare_data = emit.flat_view(data, size)
    flat_out, declare_out = emit.flat_view(out, size)
    lanes, name, hold, find = _method(table, types, target)
    if size < lanes:
        lanes, name, hold, find = _by_loads(table)

    def piece(start: Any) -> Any:
        found = find(emit.load(flat_data, [start], lanes))
        return emit.store(flat_out, found, [start], lanes)

    def task(t: Any) -> Any:
        vectors = min(_TASK, size) // lanes
        first = t * _TASK if size > _TASK else 0

        def vector(i: Any) -> Any:
            start: Any = first + i * lanes
            # The last ones are moved back to end with the data.
            return piece(emit.minimum(start, size - lanes) if size % _TASK else start)

        rest = size % lanes and size < _TASK
        return [*hold, emit.loop("i", vectors, vector), piece(size - lanes) if rest else []]

    body = emit.parallel("task", blocks(size, _TASK), task)
    func = emit.function("integer_table", [data, table, out], [declare_data, declare_out, body])
    return Kernel(func, (), 0, f"int8 table {name}")


Find = Callable[[Any], Any]


def _method(table: Any, types: tuple[str, str], target: TargetNumbers) -> tuple[int, str, Statements, Find]:
    """Bytes at a time, a name, statements that hold the table, and (bytes) -> what is found."""
    if has_features(target, "avx512vbmi"):
        return _by_permutation(table, types)
    if has_features(target, "neon"):
        return _by_neon(table, types)
    return _by_loads(table)


def _by_loads(table: Any) -> tuple[int, str, Statements, Find]:
    def find(value: Any) -> Any:
        return emit.load(table, [tirx.Cast("int32", tirx.reinterpret("uint8", value))])

    return 1, "loads", [], find


def _parts(table: Any, width: int, dtype: str) -> tuple[list[Any], Statements]:
    """The table in registers of `width` bytes."""
    held = [
        emit.hold(f"table{part}", emit.load(table, [part * width], width), width, dtype)
        for part in range(256 // width)
    ]
    return [name for name, _ in held], [bound for _, bound in held]


def _by_permutation(table: Any, types: tuple[str, str]) -> tuple[int, str, Statements, Find]:
    parts, hold = _parts(table, _VBMI, types[1])
    wide, permute = f"{types[1]}x{_VBMI}", "llvm.x86.avx512.vpermi2var.qi.512"

    def find(value: Any) -> Any:
        numbers, bound = emit.hold("numbers", value, _VBMI, types[0])
        signed = tirx.reinterpret(f"int8x{_VBMI}", numbers)
        at = tirx.reinterpret(wide, numbers)
        low, high = (intrinsic(permute, wide, parts[i], at, parts[i + 1]) for i in (0, 2))
        return tirx.Let(
            bound.var, bound.value, tirx.Select(signed < emit.constant(0, _VBMI, "int8"), high, low)
        )

    return _VBMI, "vpermi2b", hold, find


def _by_neon(table: Any, types: tuple[str, str]) -> tuple[int, str, Statements, Find]:
    parts, hold = _parts(table, _NEON, types[1])
    wide, number = f"{types[1]}x{_NEON}", f"uint8x{_NEON}"

    def find(value: Any) -> Any:
        numbers, bound = emit.hold("numbers", tirx.reinterpret(number, value), _NEON, "uint8")
        found = intrinsic("llvm.aarch64.neon.tbl4.v16i8", wide, *parts[:4], numbers)
        for quarter in range(1, 4):
            # Where the number is outside of the quarter the result stays what it is.
            own = parts[4 * quarter : 4 * quarter + 4]
            at = numbers - emit.constant(64 * quarter, _NEON, "uint8")
            found = intrinsic("llvm.aarch64.neon.tbx4.v16i8", wide, found, *own, at)
        return tirx.Let(bound.var, bound.value, found)

    return _NEON, "tbl", hold, find
