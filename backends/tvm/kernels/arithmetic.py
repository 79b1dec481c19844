"""What a register tile multiplies and how: floats one at a time, or several small integers per instruction.

A step of a reduction takes `depth` neighbouring values of the data and, per output channel, the same number
of weights: four uint8 by int8 for `vpdpbusd`, four int8 by int8 for `sdot`, two int16 for `vpdpwssd` and
`vpmaddwd`. All add into 32 bits without saturating, so sums are exact whatever the order.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import tvm
from tvm import tirx

from . import emit
from .tile import lanes_of

Combine = Callable[[Any, Any, Any, int], Any]
"""(accumulators, one value for all lanes, one column per lane, lanes) -> new accumulators."""


@dataclass(frozen=True)
class Arithmetic:
    """One way to multiply and add.

    Attributes:
        name: for reports.
        depth: values of the reduction per step.
        data: element type of the data as tiles read it.
        weights: element type of packed weights.
        accumulator: element type of sums.
        value: type of the variable that holds the values of a step.
        column: element type, per lane, of the register that holds the weights of a step.
        combine: the instruction.
    """

    name: str
    depth: int
    data: str
    weights: str
    accumulator: str
    value: str
    column: str
    combine: Combine = field(compare=False)

    @property
    def is_integer(self) -> bool:
        """Whether sums are integers."""
        return self.accumulator == "int32"

    @property
    def spare(self) -> int:
        """Registers of a step besides sums, columns and value: products that are added apart need one."""
        return 1 if self.name == "vpmaddwd" else 0

    def read(self, source: Any, step: Any) -> Any:
        """The values of one step; `source` is flat and `step` counts steps from its beginning."""
        if self.depth == 1:
            return cast(emit.load(source, [step]), self.value, 1)
        return tirx.reinterpret(self.value, emit.load(source, [step * self.depth], self.depth))

    def columns(self, source: Any, position: Any, lanes: int) -> Any:
        """A vector of columns; `position` counts columns from the beginning of the flat `source`."""
        loaded = emit.load(source, [position * self.depth], lanes * self.depth)
        if self.depth == 1:
            return cast(loaded, self.column, lanes)
        small = "int16" if self.depth == 2 else self.weights
        return tirx.reinterpret(_vector(self.column, lanes), cast(loaded, small, lanes * self.depth))


def _vector(dtype: str, lanes: int) -> str:
    return dtype if lanes == 1 else f"{dtype}x{lanes}"


def cast(value: Any, dtype: str, lanes: int) -> Any:
    """A vector of another element type."""
    wanted = _vector(dtype, lanes)
    return value if str(value.ty.dtype) == wanted else tirx.Cast(wanted, value)


def _multiply_add(total: Any, value: Any, column: Any, lanes: int) -> Any:
    return total + emit.splat(value, lanes) * column


FLOAT = Arithmetic("fma", 1, "float32", "float32", "float32", "float32", "float32", _multiply_add)


def _widening(total: Any, value: Any, column: Any, lanes: int) -> Any:
    wide = _vector("int32", lanes)
    return total + tirx.Cast(wide, emit.splat(value, lanes)) * tirx.Cast(wide, column)


def intrinsic(name: str, result: str, *arguments: Any) -> Any:
    """A call of an LLVM intrinsic without side effects."""
    number = tvm.target.codegen.llvm_lookup_intrinsic_id(name)
    return tirx.call_llvm_pure_intrin(result, tirx.const(number, "uint32"), *arguments)


def _dot(name: str, data: str, weights: str, depth: int) -> Combine:
    """An instruction that multiplies `depth` pairs per lane and adds them to the lane's sum."""

    def combine(total: Any, value: Any, column: Any, lanes: int) -> Any:
        return intrinsic(
            name,
            _vector("int32", lanes),
            total,
            tirx.reinterpret(_vector(data, lanes * depth), emit.splat(value, lanes)),
            tirx.reinterpret(_vector(weights, lanes * depth), column),
        )

    return combine


def _pair_products(target: Any, bits: int) -> tuple[str, Combine] | None:
    """Name and use of what multiplies vectors of pairs of int16 and adds both products, where x86 has it."""
    fused = _has_vnni(target, bits)
    if not fused and (getattr(target, "arch", "") != "x86_64" or bits not in _PAIRS):
        return None
    name = f"llvm.x86.avx512.vpdpwssd.{bits}" if fused else _PAIRS[bits]

    def add(total: Any, one: Any, other: Any, lanes: int) -> Any:
        pairs = [tirx.reinterpret(_vector("int16", lanes * 2), each) for each in (one, other)]
        wide = _vector("int32", lanes)
        return intrinsic(name, wide, total, *pairs) if fused else total + intrinsic(name, wide, *pairs)

    return "vpdpwssd" if fused else "vpmaddwd", add


_PAIRS = {128: "llvm.x86.sse2.pmadd.wd", 256: "llvm.x86.avx2.pmadd.wd", 512: "llvm.x86.avx512.pmaddw.d.512"}


def integer_arithmetic(data: str, weights: str, target: Any) -> Arithmetic:
    """The fastest exact way to multiply integers of two element types on a target.

    Args:
        data: element type of the data in memory, int8, uint8 or int16.
        weights: int8, or int16 for weights that do not fit it without their zero point.
        target: vector width and ISA features; one without features gets code for any machine.

    Returns:
        Arithmetic whose `data` may differ from the type in memory; the kernel then widens a copy first.
    """
    bits = 32 * lanes_of(target)
    if weights == "int8" and data == "uint8" and _has_vnni(target, bits):
        combine = _dot(f"llvm.x86.avx512.vpdpbusd.{bits}", "uint8", "int8", 4)
        return Arithmetic("vpdpbusd", 4, "uint8", "int8", "int32", "int32", "int32", combine)
    if weights == "int8" and data == "int8" and has_features(target, "dotprod") and bits == 128:
        combine = _dot("llvm.aarch64.neon.sdot", "int8", "int8", 4)
        return Arithmetic("sdot", 4, "int8", "int8", "int32", "int32", "int32", combine)
    pairs = _pair_products(target, bits)
    if pairs is not None:
        name, add = pairs

        def multiply_add(total: Any, value: Any, column: Any, lanes: int) -> Any:
            return add(total, emit.splat(value, lanes), column, lanes)

        return Arithmetic(name, 2, "int16", weights, "int32", "int32", "int32", multiply_add)
    return Arithmetic("widening", 1, data, weights, "int32", "int16", "int16", _widening)


def wide_arithmetic(target: Any) -> Arithmetic:
    """The arithmetic for two operands that are both only known at run time, as int16."""
    return integer_arithmetic("int16", "int16", target)


def has_features(target: Any, *features: str) -> bool:
    """Whether code for a target may use some features of its instruction set."""
    return set(features) <= set(getattr(target, "features", ()))


def _has_vnni(target: Any, bits: int) -> bool:
    if bits == 512:
        return has_features(target, "avx512vnni")
    return has_features(target, "avxvnni") or has_features(target, "avx512vnni", "avx512vl")


def lane_arithmetic(data: str, weights: str, target: Any) -> Arithmetic:
    """Multiply-add of a vector of values by a vector of weights, both widened to int32.

    The dot instructions serve with one value per lane where the lane's other values are zero, whatever the
    weights hold there: `lane_value` widens data so.
    """
    bits = 32 * lanes_of(target)
    if data == "uint8" and weights == "int8" and _has_vnni(target, bits):
        dot = f"llvm.x86.avx512.vpdpbusd.{bits}"

        def multiply_add(total: Any, value: Any, column: Any, lanes: int) -> Any:
            if lanes * 32 != bits:
                return total + value * column
            return intrinsic(
                dot,
                _vector("int32", lanes),
                total,
                tirx.reinterpret(f"uint8x{4 * lanes}", value),
                tirx.reinterpret(f"int8x{4 * lanes}", column),
            )

        return Arithmetic("vpdpbusd", 1, data, weights, "int32", "int32", "int32", multiply_add)
    found = _pair_products(target, bits) if data in ("uint8", "int16") else None
    if found is not None:
        name, add = found

        def pairs(total: Any, value: Any, column: Any, lanes: int) -> Any:
            if lanes * 32 == bits:
                return add(total, value, column, lanes)
            if data == "int16":
                up = emit.constant(16, lanes, "int32")
                value = tirx.shift_right(tirx.shift_left(value, up), up)
            return total + value * column

        return Arithmetic(name, 1, data, weights, "int32", "int32", "int32", pairs)
    return Arithmetic(
        "multiply", 1, data, weights, "int32", "int32", "int32", lambda t, x, w, lanes: t + x * w
    )


def lane_value(loaded: Any, arithmetic: Arithmetic) -> Any:
    """Data, one value per lane of 32 bits, as `lane_arithmetic` multiplies them."""
    dtype = str(loaded.ty.dtype)
    lanes = int(dtype.partition("x")[2] or 1)
    if dtype.startswith("int16") and arithmetic.name in ("vpdpwssd", "vpmaddwd"):
        # The upper half holds nothing, not the sign.
        loaded = tirx.reinterpret(f"u{dtype}", loaded)
    return tirx.Cast(_vector("int32", lanes), loaded)
