"""Intel AMX: eight registers of up to 16 rows by 64 bytes, and products of two of them added to a third.

`tdpb**d` multiplies 16 x 64 bytes by 64 x 16 and adds to 16 x 16 int32, without saturating; `tdpbf16ps` does
the same with 16 x 32 bfloat16, and adds to float32. The right register holds rows of 16 columns by the
neighbours along the reduction that fill four bytes, as `vpdpbusd` reads them.

float32 is multiplied as the sum of two or three bfloat16, without the products that matter least. Three of
four are left ("bf16x3"), which leaves out some 2^-16 of a product at most, or six of nine ("bf16x6"), which
is as exact as float32 itself (Henry et al., 2019, arXiv:1904.06376).

Registers are named by immediates, so nothing allocates them; every thread configures its own before it uses
them (Intel 64 and IA-32 Architectures Software Developer's Manual, volume 1, chapter 18). They are volatile
across calls.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import tvm
from tvm import tirx

from . import emit
from .emit import Statements
from .tile import TargetNumbers

ROWS, LANES, BYTES = 16, 16, 64
"""Rows of a register, int32 columns of one, and bytes of a row."""
WORD = 4
"""Bytes that neighbours along the reduction fill."""
REGISTERS = 8
_PALETTE = 1
_CONFIGURATION_WORDS = 16
FEATURES = ("amx-tile", "amx-int8", "avx512f", "avx512vnni")
"""What a target needs for integers; finished sums are read back as 512-bit vectors."""
FLOAT_FEATURES = ("amx-tile", "amx-bf16", "avx512f", "avx512bf16")
"""What it needs for float32."""


def has_tiles(target: TargetNumbers) -> bool:
    """Whether code for a target may multiply integers with these registers."""
    return _may_use(FEATURES, target)


def has_float_tiles(target: TargetNumbers) -> bool:
    """Whether code for a target may multiply split float32 with them."""
    return _may_use(FLOAT_FEATURES, target)


def _may_use(features: tuple[str, ...], target: TargetNumbers) -> bool:
    return set(features) <= set(getattr(target, "features", ())) and target.vector_bits == 512


@dataclass(frozen=True)
class Format:
    """What registers multiply.

    Attributes:
        left: element type of the left operand in memory.
        right: the same of the right one.
        dot: the instruction.
        sums: element type of the sums.
        size: bytes of an element.
        parts: how many elements one number is the sum of, the largest first.
        pairs: the parts of left and right that are multiplied; of neighbours only one differs, so that few
            registers are loaded.
    """

    left: str
    right: str
    dot: str
    sums: str = "int32"
    size: int = 1
    parts: int = 1
    pairs: tuple[tuple[int, int], ...] = ((0, 0),)

    @property
    def word(self) -> int:
        """Neighbours along the reduction that lie together."""
        return WORD // self.size

    @property
    def most(self) -> int:
        """Elements of the reduction that one register holds."""
        return BYTES // self.size


def integer_format(left: str, right: str) -> Format:
    """Two 8-bit element types: "tdpbusd" for uint8 by int8."""
    signs = {"int8": "s", "uint8": "u"}
    return Format(left, right, f"tdpb{signs[left]}{signs[right]}d")


_BFLOAT16 = ("uint16", "uint16", "tdpbf16ps", "float32", 2)
"""The bits of bfloat16 are kept in integers."""
BF16X3 = Format(*_BFLOAT16, 2, ((0, 1), (0, 0), (1, 0)))
BF16X6 = Format(*_BFLOAT16, 3, ((0, 2), (0, 1), (1, 1), (1, 0), (2, 0), (0, 0)))


def float_format(target: TargetNumbers) -> Format | None:
    """How a target multiplies float32 with these registers; None where it does not."""
    if not has_float_tiles(target):
        return None
    return BF16X6 if getattr(target, "float_parts", 0) == 3 else BF16X3


@dataclass(frozen=True)
class Registers:
    """What registers hold: `down * across` sums, `down` the left operand, the rest the right one.

    Attributes:
        rows: rows of each register of sums, and of the left operand.
        depth: elements of the reduction per product, which fill whole words.
        down: registers of sums below each other.
        across: the same, side by side.
        format: what is multiplied.
    """

    rows: int
    depth: int
    down: int
    across: int
    format: Format

    @property
    def row_count(self) -> int:
        """Rows of all sums."""
        return self.rows * self.down

    @property
    def block(self) -> int:
        """Columns of all sums."""
        return LANES * self.across

    @property
    def right_size(self) -> int:
        """Elements of one register of the right operand as it is stored, all parts of its numbers."""
        return self.depth * LANES * self.format.parts

    def configure(self) -> Statements:
        """Declare the shapes of the registers, in this thread."""
        columns, rows = [], []
        sums, left = self.down * self.across, self.down
        for number in range(REGISTERS):
            is_left, is_right = sums <= number < sums + left, number >= sums + left
            columns.append(self.depth * self.format.size if is_left else BYTES)
            rows.append(self.depth // self.format.word if is_right else self.rows)
        return declare(rows, columns)

    def clear(self) -> Statements:
        """Set all sums to zero."""
        return [clear(number) for number, _ in self._places()]

    def multiply_add(
        self,
        left: Callable[[int, int], tuple[Any, Any, int]],
        right: Callable[[int, int], tuple[Any, Any]],
    ) -> Statements:
        """The products of one step, for every register of sums.

        Args:
            left: (register, part) -> (flat buffer, its first element, elements between rows).
            right: (register, part) -> (flat buffer, its first element).
        """
        sums = [[row * self.across + column for column in range(self.across)] for row in range(self.down)]
        return products(self.format, sums, self.down * self.across, left, right, self.format.size)

    def store(self, target: Any, begin: Any = 0) -> Statements:
        """Write all sums to a flat buffer from `begin` on, as `row_count` rows of `block`."""
        return [store(number, target, begin + place, WORD * self.block) for number, place in self._places()]

    def load(self, source: Any, begin: Any) -> Statements:
        """Read all sums back."""
        return [load(number, source, begin + place, WORD * self.block) for number, place in self._places()]

    def _places(self) -> list[tuple[int, int]]:
        """Registers of sums, and where each begins among their rows."""
        return [
            (row * self.across + column, row * self.rows * self.block + column * LANES)
            for row in range(self.down)
            for column in range(self.across)
        ]


def declare(rows: Sequence[int], row_bytes: Sequence[int]) -> Statements:
    """Declare the shape of every register, in this thread."""
    columns, heights = [*row_bytes, *[0] * (ROWS - REGISTERS)], [*rows, *[0] * (ROWS - REGISTERS)]
    words = [_PALETTE, 0, 0, 0]
    words += [columns[i] | columns[i + 1] << 16 for i in range(0, ROWS, 2)]
    words += [sum(heights[i + place] << 8 * place for place in range(4)) for i in range(0, ROWS, 4)]
    configuration, allocation = emit.allocate("configuration", (_CONFIGURATION_WORDS,), "int32")
    stores = [emit.store(configuration, tirx.const(word, "int32"), [i]) for i, word in enumerate(words)]
    return [allocation, *stores, _call("ldtilecfg", _address(configuration, 0))]


def release() -> Any:
    """Give the registers back, so that the thread's state is small again."""
    return _call("tilerelease")


def clear(register: int) -> Any:
    """Set a register to zero."""
    return _call("tilezero", _number(register))


def load(register: int, buffer: Any, place: Any, stride: int) -> Any:
    """Read a register from element `place` of a flat buffer on, `stride` bytes between rows."""
    return _call("tileloadd64", _number(register), _address(buffer, place), _size(stride))


def store(register: int, buffer: Any, place: Any, stride: int) -> Any:
    """Write one, likewise."""
    return _call("tilestored64", _number(register), _address(buffer, place), _size(stride))


def dot(form: Format, sums: int, left: int, right: int) -> Any:
    """Multiply two registers and add to a third."""
    return _call(form.dot, *map(_number, (sums, left, right)))


def products(
    form: Format,
    sums: Sequence[Sequence[int]],
    first_left: int,
    left: Callable[[int, int], tuple[Any, Any, int]],
    right: Callable[[int, int], tuple[Any, Any]],
    size: int,
) -> Statements:
    """One step of all products; a register of sums comes again after all others, when it is ready.

    Args:
        form: what is multiplied.
        sums: registers of sums, rows of columns.
        first_left: the first register of the left operand, one for each row; the right one has all behind.
        left: (row of registers, part) -> (flat buffer, its first element, elements between rows).
        right: (column of registers, part) -> (flat buffer, its first element).
        size: bytes of an element of the left buffer.
    """
    first_right = first_left + len(sums)
    held: dict[int, tuple[int, int]] = {}
    done: Statements = []

    def missing(register: int, what: tuple[int, int]) -> bool:
        old, held[register] = held.get(register), what
        return old != what

    for part, other in form.pairs:
        for column in range(len(sums[0])):
            own = first_right + column % (REGISTERS - first_right)
            if missing(own, (column, other)):
                done.append(load(own, *right(column, other), BYTES))
            for row, numbers in enumerate(sums):
                above = first_left + row
                if missing(above, (row, part)):
                    buffer, first, stride = left(row, part)
                    done.append(load(above, buffer, first, stride * size))
                done.append(dot(form, numbers[column], above, own))
    return done


def _address(buffer: Any, place: Any) -> Any:
    return tirx.address_of(tirx.BufferLoad(buffer, [place]))


def _number(register: int) -> Any:
    return tirx.const(register, "int8")


def _size(count: int) -> Any:
    return tirx.const(count, "int64")


def _call(name: str, *arguments: Any) -> Any:
    number = tvm.target.codegen.llvm_lookup_intrinsic_id(f"llvm.x86.{name}")
    return tirx.Evaluate(tirx.call_llvm_intrin("void", tirx.const(number, "uint32"), *arguments))
