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
from .integer_ops import DOMAIN

if TYPE_CHECKING:
    from ..target import Target

_LIMIT = (1 << 31) - 1
_FOUR_BYTES = {"x86": ("avx512vnni", "avxvnni"), "arm": ("dotprod",)}
_TILES = ("amx-tile", "amx-int8", "avx512vnni")
_FEWEST_ROWS = 4


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


def wide_parts(product: Product, target: Target, rewriter: Rewriter, node: ir.Node) -> list[Part] | None:
    """The products of integers that `product` is made of; None where floats are quicker or sums too large.

    Args:
        product: what is multiplied.
        target: what the code will run on.
        rewriter: of the model.
        node: the operator, in front of which parts are made.
    """
    kinds = _kinds(product, target)
    if kinds is None:
        return None
    signed = target.family != "x86"
    return product.parts(rewriter, node, kinds, ir.DataType.INT8 if signed else ir.DataType.UINT8)


def _kinds(product: Product, target: Target) -> list[int] | None:
    whole, in_bytes = product.fits_whole(), product.fits_bytes()
    is_small = product.weights.dtype == np.int8
    words = set(getattr(target, "features", ()))
    tiles = set(_TILES) <= words and product.groups == 1 and product.rows >= _FEWEST_ROWS
    if tiles and in_bytes and is_small:
        return [HIGH, LOW]
    if whole and target.kind == "llvm":
        return [WHOLE]
    has_dots = target.kind != "llvm" or words & set(_FOUR_BYTES.get(target.family, ()))
    return [HIGH, LOW] if in_bytes and is_small and has_dots else None


def rows_of(value: ir.Value, axes: int) -> int:
    """Rows of a product or pixels of a convolution: all elements of an output but those along one axis.

    Args:
        value: the output.
        axes: position of the axis of channels.
    """
    shape = static_shape(value) or ()
    return int(np.prod([size for axis, size in enumerate(shape) if axis != axes % max(len(shape), 1)]))
