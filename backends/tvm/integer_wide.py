"""Products of 16-bit activations by 8-bit weights, exactly, with the instructions there are.

Either the bytes of activations are multiplied apart, by what multiplies four bytes at a time, or the numbers
as they are, by what multiplies two of 16 bits: then int32 must hold the sums, which the weights tell.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from ...ir.static import static_shape
from ...passes.rewriter import Rewriter
from .integer_bytes import BASE, HIGH, LOW, WHOLE, part_of
from .integer_ops import DOMAIN, FLOAT_KEY

if TYPE_CHECKING:
    from ..target import Target

_LIMIT = (1 << 31) - 1
_TOO_LARGE = "in float: int32 may not hold sums of 16-bit products, and bytes apart take longer here"
_QUICKER = "in float: minimal filtering takes fewer products"
_FEWEST_ROWS = 4
"""With fewer rows weights that come from memory decide, which bytes read twice."""


@dataclass(frozen=True)
class _Costs:
    """What two products of bytes and one of 16-bit numbers take, in cycles or instructions.

    Attributes:
        whole: products of 16-bit numbers per unit.
        twice: products of both bytes per unit.
        output: of writing and reading the sums of one byte.
        input: of taking a number apart.
    """

    whole: float
    twice: float
    output: float
    input: float

    def prefer_bytes(self, product: Product) -> bool:
        """Whether two products are estimated to be quicker than one."""
        count = product.rows * product.weights.shape[product.axis]
        numbers = int(np.prod(static_shape(product.value) or ()))
        products = count * product.depth
        twice = products / self.twice + self.output * count + self.input * numbers
        return twice < products / self.whole


_TILES = _Costs(33.0, 128.0, 1.8, 1.0)
"""Fitted to MobileNetV2 and ResNet-18 with `tdpbusd` and `vpdpwssd`."""
_SDOT = _Costs(4.0, 8.0, 2.0, 1.0)
"""Of `smlal` and `sdot`, counted."""


@dataclass(frozen=True)
class Part:
    """One of the products that add up to a product of 16-bit activations.

    Attributes:
        value: the activations' bytes, or they themselves as int16.
        offset: their zero point.
        bias: int32, per output channel, its share of the zero point taken off; None where it is nothing.
    """

    value: ir.Value
    offset: int
    bias: np.ndarray | None


@dataclass(frozen=True)
class Product:
    """What is multiplied: 16-bit activations by weights.

    Attributes:
        value: the activations.
        offset: their zero point.
        weights: without theirs, int8 or int16.
        axis: of the weights, of output channels.
        own: int32 bias on the scale of the sums, per output channel.
        rows: of activations that meet the same weights.
        groups: of channels.
    """

    value: ir.Value
    offset: int
    weights: np.ndarray
    axis: int
    own: np.ndarray | None
    rows: int
    groups: int = 1

    @property
    def depth(self) -> int:
        """Products per sum."""
        return self.weights.size // max(self.weights.shape[self.axis], 1)

    def _summed(self, weights: np.ndarray) -> np.ndarray:
        others = tuple(each for each in range(weights.ndim) if each != self.axis)
        return np.asarray(weights.sum(axis=others, dtype=np.int64))

    def fits_whole(self) -> bool:
        """Whether int32 holds every sum."""
        assert self.value.dtype is not None
        info = np.iinfo(self.value.dtype.numpy())
        positive, negative = (
            self._summed(np.maximum(sign * self.weights.astype(np.int32), 0)) for sign in (1, -1)
        )
        above, below = int(info.max) - self.offset, self.offset - int(info.min)
        own = np.zeros(1, np.int64) if self.own is None else self.own.astype(np.int64)
        return bool(
            (positive * above + negative * below + own <= _LIMIT).all()
            and (positive * below + negative * above - own <= _LIMIT).all()
        )

    def fits_bytes(self) -> bool:
        """Whether int32 holds every sum of products of bytes, a byte of the bias included."""
        own = 0 if self.own is None else int(np.abs(self.own.astype(np.int64) // BASE).max(initial=0)) + BASE
        most = self._summed(np.abs(self.weights.astype(np.int32))).max(initial=0)
        return bool((BASE - 1) * int(most) + own <= _LIMIT)

    def parts(self, rewriter: Rewriter, node: ir.Node, kinds: list[int], stored: ir.DataType) -> list[Part]:
        """The products, of the highest parts first; `stored` is the type of bytes."""
        share = self._summed(self.weights)
        found = []
        for kind in kinds:
            dtype = ir.DataType.INT16 if kind == WHOLE else stored
            assert self.value.dtype is not None
            offset = part_of(self.offset, kind, self.value.dtype.numpy(), dtype.numpy())
            own = np.zeros(1, np.int64) if self.own is None else self.own.astype(np.int64)
            own = {WHOLE: own, HIGH: own // BASE, LOW: own % BASE}[kind]
            # Sums of stored numbers may leave int32 and come back: it wraps.
            total = (own - share * offset).astype(np.int64)
            bias = ((total + (1 << 31)) % (1 << 32) - (1 << 31)).astype(np.int32)
            found.append(
                Part(_part(self.value, kind, dtype, rewriter, node), offset, bias if total.any() else None)
            )
        return found


def _part(value: ir.Value, kind: int, dtype: ir.DataType, rewriter: Rewriter, node: ir.Node) -> ir.Value:
    """A part of a value in front of `node`; one that was made before is used again."""
    if kind == WHOLE and value.dtype == dtype:
        return value
    for user, _ in value.uses():
        is_part = user.op_type == "Part" and user.domain == DOMAIN
        if is_part and user.attributes.get_int("part") == kind and user.outputs[0].dtype == dtype:
            return user.outputs[0]
    (made,) = rewriter.insert_before(node, "Part", [value], {"part": kind}, domain=DOMAIN)
    made.type, made.shape = ir.TensorType(dtype), value.shape
    return made


def wide_parts(
    product: Product, target: Target, rewriter: Rewriter, node: ir.Node, signed: bool, quick_in_float: bool
) -> list[Part] | None:
    """The products of integers that `product` is made of; None where floats are quicker or sums too large.

    Args:
        product: what is multiplied.
        target: what the code will run on.
        rewriter: of the model.
        node: the operator, in front of which parts are made; it remembers why it stays in float.
        signed: whether the target multiplies int8 rather than uint8.
        quick_in_float: whether there is an algorithm with fewer products for floats.
    """
    kinds = _kinds(product, target, signed, quick_in_float)
    if isinstance(kinds, str):
        node.metadata_props[FLOAT_KEY] = kinds
        return None
    return product.parts(rewriter, node, kinds, ir.DataType.INT8 if signed else ir.DataType.UINT8)


def _kinds(product: Product, target: Target, signed: bool, quick_in_float: bool) -> list[int] | str:
    """The parts that are multiplied, or why none are."""
    whole = product.fits_whole()
    in_bytes = product.weights.dtype == np.int8 and product.fits_bytes()
    if target.kind != "llvm":
        return [HIGH, LOW] if in_bytes else [WHOLE] if whole else _TOO_LARGE
    from .kernels.arithmetic import integer_arithmetic
    from .kernels.tile_registers import has_tiles

    dots = integer_arithmetic("int8" if signed else "uint8", "int8", target).depth == 4
    if not dots and quick_in_float:
        return _QUICKER
    if in_bytes and dots and product.rows >= _FEWEST_ROWS:
        costs = None
        if product.groups == 1:
            costs = _TILES if has_tiles(target) else _SDOT if target.family == "arm" else None
        if not whole or (costs is not None and costs.prefer_bytes(product)):
            return [HIGH, LOW]
    return [WHOLE] if whole else _TOO_LARGE


def rows_of(value: ir.Value, axis: int) -> int:
    """Rows of a product or pixels of a convolution: all elements of an output but those along one axis.

    Args:
        value: the output.
        axis: position of that of channels, from the end if negative.
    """
    shape = static_shape(value) or ()
    return int(np.prod([size for number, size in enumerate(shape) if number != axis % max(len(shape), 1)]))
