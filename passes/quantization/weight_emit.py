"""Writes weights in their stored form into a graph, with the few operators that restore them.

    evenly spaced   w8, w4         -> DequantizeLinear(axis, block_size)                      (-> Reshape)
    packed          bytes          -> Cast -> Gather(table of what a byte stands for) -> Reshape
                    integer levels    -> DequantizeLinear(axis, block_size)                   (-> Reshape)
                    other levels      -> Mul(scales) -> Reshape
    16 levels       uint4          -> Cast -> Gather(levels) -> Mul(scales) -> Reshape
    half precision  w16            -> Cast

All of it is standard ONNX of opset 21, which ONNX Runtime runs without contrib operators.
"""

from __future__ import annotations

from dataclasses import dataclass

import ml_dtypes
import numpy as np
import onnx_ir as ir

from ...ir.tensors import tensor_of
from ..fold_constants import STORAGE_KEY
from ..rewriter import Rewriter
from .emit import keep_only_the_module
from .weight_forms import Encoded, WeightForm, byte_table, codes_per_byte, pack


@dataclass(frozen=True)
class Layout:
    """How a weight tensor becomes a matrix `[rows, columns]`, columns summed over.

    Attributes:
        shape: of the tensor.
        view: shape in which one axis is all that is summed over.
        axis: that axis, in `view`, not negative.
    """

    shape: tuple[int, ...]
    view: tuple[int, ...]
    axis: int

    def matrix(self, array: np.ndarray) -> np.ndarray:
        """The tensor as `[rows, columns]`."""
        moved = np.moveaxis(array.reshape(self.view), self.axis, -1)
        return moved.reshape(-1, self.view[self.axis])

    def tensor(self, matrix: np.ndarray) -> np.ndarray:
        """`[rows, n]` as `view` with `n` in the place of the axis."""
        others = [size for i, size in enumerate(self.view) if i != self.axis]
        return np.ascontiguousarray(np.moveaxis(matrix.reshape(*others, -1), -1, self.axis))


class WeightWriter:
    """Puts stored weights into one graph; tables that several weights use are stored once."""

    def __init__(self, rewriter: Rewriter):
        self._rewriter = rewriter
        self._tables: dict[bytes, ir.Value] = {}
        self._small: dict[tuple[int, ...], ir.Value] = {}

    def restore(
        self, before: ir.Node, hint: str, encoded: Encoded, layout: Layout, form: WeightForm
    ) -> ir.Value:
        """Adds the initializers and the operators in front of `before`; returns the float32 weights."""
        if form.is_cast:
            stored = self._rewriter.initializer(
                f"{hint}_{form.storage}", layout.tensor(encoded.codes).reshape(layout.shape)
            )
            return self._op(before, "Cast", [stored], {"to": int(ir.DataType.FLOAT)}, hint, layout.shape)
        if encoded.levels is None:
            return self._dequantize(before, hint, encoded, layout)
        codes = layout.tensor(encoded.codes)
        if encoded.scales is not None and _whole(encoded.levels):
            return self._dequantize_packed(before, hint, codes, encoded, layout)
        numbers = self._lookup(before, hint, codes, encoded.levels)
        if encoded.scales is None:
            return self._reshape(before, numbers, layout.shape, hint)
        blocks = encoded.scales.shape[1]
        split = (*layout.view[: layout.axis], blocks, encoded.block, *layout.view[layout.axis + 1 :])
        scales = np.expand_dims(layout.tensor(encoded.scales), layout.axis + 1)
        numbers = self._reshape(before, numbers, split, hint)
        stored = self._rewriter.initializer(f"{hint}_scale", scales)
        return self._reshape(
            before, self._op(before, "Mul", [numbers, stored], {}, hint, split), layout.shape, hint
        )

    def restore_rows(
        self, before: ir.Node, indices: ir.Value, hint: str, encoded: Encoded, form: WeightForm
    ) -> ir.Value | None:
        """Rows of an embedding table, gathered in their stored form; None where they cannot be.

        Args:
            before: the Gather, which reads along axis 0 of a matrix.
            indices: what it reads.
            hint: name to start from.
            encoded: the table, rows as they are.
            form: the form of the table.
        """
        rows, columns = encoded.codes.shape
        if encoded.scales is not None and encoded.block * encoded.scales.shape[1] != columns:
            return None
        rewriter = self._rewriter
        if form.is_cast:
            stored = rewriter.initializer(f"{hint}_{form.storage}", encoded.codes)
            picked = self._op(before, "Gather", [stored, indices], {}, hint, None, stored.dtype)
            return self._op(before, "Cast", [picked], {"to": int(ir.DataType.FLOAT)}, hint, None)
        if encoded.zero_points is not None:
            return None
        to_float = {"to": int(ir.DataType.FLOAT)}
        codes, levels = encoded.codes, encoded.levels
        if codes.dtype == ml_dtypes.int4:
            codes, levels = codes.astype(np.int8) + 8, np.arange(-8, 8, dtype=np.float32)
        if levels is None:
            if codes.dtype != np.int8:
                return None
            stored = rewriter.initializer(f"{hint}_quantized", codes)
            picked = self._op(before, "Gather", [stored, indices], {}, hint, None, stored.dtype)
            numbers = self._op(before, "Cast", [picked], to_float, hint, None)
        elif columns % codes_per_byte(len(levels)) == 0:
            packed = pack(codes, len(levels)).reshape(rows, -1)
            stored = rewriter.initializer(f"{hint}_packed", packed)
            picked = self._op(before, "Gather", [stored, indices], {}, hint, None, stored.dtype)
            if _whole(levels):
                numbers = self._table(before, hint, picked, byte_table(levels.astype(np.int8)))
                numbers = self._op(before, "Cast", [numbers], to_float, hint, None)
            else:
                numbers = self._table(before, hint, picked, byte_table(np.arange(len(levels), dtype=np.int8)))
                numbers = self._table(before, hint, numbers, levels)
        else:
            return None
        if encoded.scales is not None:
            blocks = encoded.scales.shape[1]
            scales = rewriter.initializer(f"{hint}_scale", encoded.scales[..., None])
            picked = self._op(before, "Gather", [scales, indices], {}, hint, None)
            scaled = self._constant([-1, blocks, encoded.block])
            picked = self._op(before, "Reshape", [picked, self._constant([-1, blocks, 1])], {}, hint, None)
            numbers = self._op(before, "Reshape", [numbers, scaled], {}, hint, None)
            numbers = self._op(before, "Mul", [numbers, picked], {}, hint, None)
        return self._like_indices(before, numbers, indices, columns, hint)

    def _like_indices(
        self, before: ir.Node, rows: ir.Value, indices: ir.Value, columns: int, hint: str
    ) -> ir.Value:
        """The numbers of some rows as `[*indices.shape, columns]`."""
        count = self._op(before, "Shape", [indices], {}, hint, None, ir.DataType.INT64)
        width = self._constant([columns])
        shape = self._op(before, "Concat", [count, width], {"axis": 0}, hint, None, ir.DataType.INT64)
        return self._op(before, "Reshape", [rows, shape], {}, hint, None)

    def _dequantize(self, before: ir.Node, hint: str, encoded: Encoded, layout: Layout) -> ir.Value:
        assert encoded.scales is not None
        stored = layout.tensor(encoded.codes)
        return self._scaled(
            before,
            hint,
            self._rewriter.initializer(f"{hint}_quantized", self._natural(stored, encoded, layout)),
            encoded,
            layout,
        )

    def _natural(self, stored: np.ndarray, encoded: Encoded, layout: Layout) -> np.ndarray:
        """In the weight's own shape where the scales go along its first axis."""
        return stored.reshape(layout.shape) if _per_channel(encoded, layout) else stored

    def _dequantize_packed(
        self, before: ir.Node, hint: str, codes: np.ndarray, encoded: Encoded, layout: Layout
    ) -> ir.Value:
        assert encoded.levels is not None
        shape = layout.shape if _per_channel(encoded, layout) else layout.view
        numbers = self._lookup(before, hint, codes, encoded.levels.astype(np.int8))
        return self._scaled(before, hint, self._reshape(before, numbers, shape, hint), encoded, layout)

    def _scaled(
        self, before: ir.Node, hint: str, stored: ir.Value, encoded: Encoded, layout: Layout
    ) -> ir.Value:
        assert encoded.scales is not None
        per_channel = _per_channel(encoded, layout)
        attributes: dict[str, int] = (
            {"axis": 0} if per_channel else {"axis": layout.axis, "block_size": encoded.block}
        )

        def shaped(matrix: np.ndarray) -> np.ndarray:
            return matrix.reshape(-1) if per_channel else layout.tensor(matrix)

        operands = [stored, self._rewriter.initializer(f"{hint}_scale", shaped(encoded.scales))]
        if encoded.zero_points is not None:
            zeros = shaped(encoded.zero_points)
            operands.append(self._rewriter.initializer(f"{hint}_zero_point", zeros))
        shape = layout.shape if per_channel else layout.view
        restored = self._op(before, "DequantizeLinear", operands, attributes, hint, shape)
        return self._reshape(before, restored, layout.shape, hint)

    def _lookup(self, before: ir.Node, hint: str, codes: np.ndarray, levels: np.ndarray) -> ir.Value:
        """What codes stand for; a flat or byte-wise result that holds the numbers in the order of `codes`."""
        rewriter = self._rewriter
        if levels.dtype == np.float32 and codes_per_byte(len(levels)) <= 2:
            # Four bits are stored as such, so that a table of a few levels is all there is beside them.
            dtype = np.dtype(np.uint8) if len(levels) > 16 else np.dtype(ml_dtypes.uint4)
            stored = rewriter.initializer(f"{hint}_codes", codes.astype(dtype))
            return self._table(before, hint, stored, levels)
        if levels.dtype == np.float32:
            # Bytes are taken apart by a table that all weights share, the levels are this weight's own.
            digits = self._lookup(before, hint, codes, np.arange(len(levels), dtype=np.int8))
            return self._table(before, hint, digits, levels)
        packed = rewriter.initializer(f"{hint}_packed", pack(codes, len(levels)))
        numbers = self._table(before, hint, packed, byte_table(levels))
        filled = packed.const_value.size * codes_per_byte(len(levels)) if packed.const_value else 0
        if filled == codes.size:
            return numbers
        dtype = ir.DataType.from_numpy(levels.dtype)
        flat = self._op(before, "Reshape", [numbers, self._constant([-1])], {}, hint, (filled,), dtype)
        ends = [self._constant([0]), self._constant([codes.size])]
        return self._op(before, "Slice", [flat, *ends], {}, hint, (codes.size,), dtype)

    def _table(self, before: ir.Node, hint: str, stored: ir.Value, table: np.ndarray) -> ir.Value:
        key = table.dtype.str.encode() + repr(table.shape).encode() + table.tobytes()
        if key not in self._tables:
            self._tables[key] = self._rewriter.initializer(f"{hint}_table", table)
        to = {"to": int(ir.DataType.INT32)}
        index = self._op(before, "Cast", [stored], to, hint, None, ir.DataType.INT32)
        shape = None if stored.shape is None else (*_sizes(stored.shape), *table.shape[1:])
        dtype = ir.DataType.from_numpy(table.dtype)
        return self._op(before, "Gather", [self._tables[key], index], {}, hint, shape, dtype)

    def _reshape(self, before: ir.Node, value: ir.Value, shape: tuple[int, ...], hint: str) -> ir.Value:
        if value.shape is not None and tuple(value.shape) == tuple(shape):
            return value
        dtype = value.dtype or ir.DataType.FLOAT
        return self._op(before, "Reshape", [value, self._constant(list(shape))], {}, hint, shape, dtype)

    def _constant(self, integers: list[int]) -> ir.Value:
        key = tuple(integers)
        if key not in self._small:
            self._small[key] = self._rewriter.initializer("shape", np.asarray(integers, np.int64))
        return self._small[key]

    def _op(
        self,
        before: ir.Node,
        op_type: str,
        inputs: list[ir.Value],
        attributes: dict[str, int],
        hint: str,
        shape: tuple[int, ...] | None,
        dtype: ir.DataType | None = ir.DataType.FLOAT,
    ) -> ir.Value:
        (result,) = self._rewriter.insert_before(
            before, op_type, inputs, attributes, name=f"{hint}_{op_type.lower()}"
        )
        result.type = None if dtype is None else ir.TensorType(dtype)
        result.shape = None if shape is None else ir.Shape(list(shape))
        node = result.producer()
        keep_only_the_module(node)
        assert node is not None
        node.metadata_props[STORAGE_KEY] = "restores"
        return result


def stored_bytes(arrays: list[np.ndarray | None]) -> int:
    """Bytes that arrays take in a file, types below a byte packed."""
    return sum(tensor_of(array).nbytes for array in arrays if array is not None)


def _sizes(shape: ir.Shape) -> tuple[int, ...]:
    """Dimensions of a constant, which are all numbers."""
    return tuple(int(dim) for dim in shape)  # type: ignore[arg-type]


def _whole(levels: np.ndarray) -> bool:
    return bool(np.all(levels == np.rint(levels)))


def _per_channel(encoded: Encoded, layout: Layout) -> bool:
    """Whether one scale per index of the first axis says it all."""
    assert encoded.scales is not None
    one_block = encoded.scales.shape[1] == 1
    return one_block and len(layout.view) == 2 and layout.axis == 1
