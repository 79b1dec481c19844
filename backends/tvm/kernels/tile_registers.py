"""Intel AMX: eight registers of up to 16 rows by 64 bytes, and products of two of them added to a third.

`tdpb**d` multiplies 16 x 64 bytes by 64 x 16 and adds to 16 x 16 int32, without saturating. The right
register holds rows of 16 columns by four neighbours along the reduction, as `vpdpbusd` reads them.
Registers are named by immediates, so nothing allocates them; every thread configures its own before it uses
them (Intel 64 and IA-32 Architectures Software Developer's Manual, volume 1, chapter 18). They are volatile
across calls.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import tvm
from tvm import tirx

from . import emit
from .emit import Statements
from .tile import TargetNumbers

ROWS, LANES, BYTES = 16, 16, 64
"""Rows of a register, int32 columns of one, and bytes of a row."""
DEPTH = 4
"""Neighbours along the reduction that lie together."""
REGISTERS = 8
_PALETTE = 1
_CONFIGURATION_WORDS = 16
FEATURES = ("amx-tile", "amx-int8", "avx512f", "avx512vnni")
"""What a target needs; finished sums are read back as 512-bit vectors."""


def has_tiles(target: TargetNumbers) -> bool:
    """Whether code for a target may use these registers."""
    return set(FEATURES) <= set(getattr(target, "features", ())) and target.vector_bits == 512


def dot_name(left: str, right: str) -> str:
    """The instruction that multiplies two 8-bit element types: "tdpbusd" for uint8 by int8."""
    signs = {"int8": "s", "uint8": "u"}
    return f"tdpb{signs[left]}{signs[right]}d"


@dataclass(frozen=True)
class Registers:
    """What registers hold: `down * across` sums, `down` the left operand, the rest the right one.

    Attributes:
        rows: rows of each register of sums, and of the left operand.
        depth: bytes of the reduction per product, a multiple of four.
        down: registers of sums below each other.
        across: the same, side by side.
        dot: the instruction.
    """

    rows: int
    depth: int
    down: int
    across: int
    dot: str

    @property
    def row_count(self) -> int:
        """Rows of all sums."""
        return self.rows * self.down

    @property
    def block(self) -> int:
        """Columns of all sums."""
        return LANES * self.across

    @property
    def right_bytes(self) -> int:
        """Bytes of one register of the right operand as it is stored."""
        return self.depth * LANES

    def configure(self) -> Statements:
        """Declare the shapes of the registers, in this thread."""
        columns, rows = [0] * ROWS, [0] * ROWS
        sums, left = self.down * self.across, self.down
        for number in range(REGISTERS):
            is_left, is_right = sums <= number < sums + left, number >= sums + left
            columns[number] = self.depth if is_left else BYTES
            rows[number] = self.depth // DEPTH if is_right else self.rows
        words = [_PALETTE, 0, 0, 0]
        words += [columns[i] | columns[i + 1] << 16 for i in range(0, ROWS, 2)]
        words += [sum(rows[i + place] << 8 * place for place in range(4)) for i in range(0, ROWS, 4)]
        configuration, allocation = emit.allocate("configuration", (_CONFIGURATION_WORDS,), "int32")
        stores = [emit.store(configuration, tirx.const(word, "int32"), [i]) for i, word in enumerate(words)]
        return [allocation, *stores, _call("ldtilecfg", _address(configuration, 0))]

    def release(self) -> Any:
        """Give the registers back, so that the thread's state is small again."""
        return _call("tilerelease")

    def clear(self) -> Statements:
        """Set all sums to zero."""
        return [_call("tilezero", _number(i)) for i in range(self.down * self.across)]

    def multiply_add(
        self,
        left: Callable[[int], tuple[Any, Any, int]],
        right: Callable[[int], tuple[Any, Any]],
    ) -> Statements:
        """One product per register of sums.

        Args:
            left: register -> (flat buffer, its first element, bytes between rows).
            right: register -> (flat buffer, its first element).
        """
        sums, free = self.down * self.across, REGISTERS - self.down * self.across - self.down
        done: Statements = []
        for column in range(self.across):
            own = sums + self.down + column % free
            buffer, place = right(column)
            done.append(_load(own, buffer, place, BYTES))
            for row in range(self.down):
                if not column:
                    source, first, stride = left(row)
                    done.append(_load(sums + row, source, first, stride))
                numbers = [_number(row * self.across + column), _number(sums + row), _number(own)]
                done.append(_call(self.dot, *numbers))
        return done

    def store(self, target: Any) -> Statements:
        """Write all sums to a flat int32 buffer as `row_count` rows of `block`."""
        stride = _size(4 * self.block)
        return [
            _call(
                "tilestored64",
                _number(row * self.across + column),
                _address(target, row * self.rows * self.block + column * LANES),
                stride,
            )
            for row in range(self.down)
            for column in range(self.across)
        ]


def _load(register: int, buffer: Any, place: Any, stride: int) -> Any:
    return _call("tileloadd64", _number(register), _address(buffer, place), _size(stride))


def _address(buffer: Any, place: Any) -> Any:
    return tirx.address_of(tirx.BufferLoad(buffer, [place]))


def _number(register: int) -> Any:
    return tirx.const(register, "int8")


def _size(count: int) -> Any:
    return tirx.const(count, "int64")


def _call(name: str, *arguments: Any) -> Any:
    number = tvm.target.codegen.llvm_lookup_intrinsic_id(f"llvm.x86.{name}")
    return tirx.Evaluate(tirx.call_llvm_intrin("void", tirx.const(number, "uint32"), *arguments))
