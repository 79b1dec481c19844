"""Quantized parts of a graph become operators on integers.

The file stays what it is, DequantizeLinear -> operator -> QuantizeLinear. Here, when it is lowered, operators
that read dequantized values take the integers themselves and leave int32 sums, which a DequantizeLinear with
the product of the scales turns into numbers. That and all that follows up to the next QuantizeLinear are
element-wise and end in the same kernel. Operators that only move data move integers.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from ...ir.constants import constant_array, evaluate_values
from ...ir.static import static_shape
from ...passes.rewriter import Rewriter
from .integer_contributed import expand_contributed
from .integer_forms import FORMS, normalize_forms
from .integer_moves import move_integers, share_signs
from .integer_ops import DOMAIN, FLOAT_KEY, MOST_TERMS
from .integer_speed import quicker_in_float
from .integer_tables import tabulate
from .integer_tails import shorten_tails
from .integer_transposed import transposed
from .integer_weights import keep_levels_small, keep_weights_small
from .integer_wide import Part, Product, rows_of, wide_parts
from .op import attributes_of

if TYPE_CHECKING:
    from ..target import Target

_SIGNED = {"x86": False, "arm": True, "cuda": True}
"""Whether the dot instructions of a family read signed data: `sdot` and `dp4a` do, `vpdpbusd` does not."""
_SMALL = (ir.DataType.INT8, ir.DataType.UINT8)
_WIDE = (ir.DataType.INT16, ir.DataType.UINT16)
_SMALLER = (ir.DataType.INT4, ir.DataType.UINT4, ir.DataType.INT2, ir.DataType.UINT2)
"""Of weights alone: kernels read them as int8, `weights.bin` holds them in fewer bits."""


@dataclass(frozen=True)
class Quantized:
    """What a DequantizeLinear reads: integers, their scale (one, or one per index of an axis), zero point."""

    value: ir.Value
    scale: np.ndarray
    zero_point: np.ndarray
    axis: int | None

    @property
    def offset(self) -> int:
        """The zero point of a tensor with one scale."""
        return int(self.zero_point.reshape(-1)[0])


def integerize(model: ir.Model, target: Target) -> None:
    """Rewrite what is quantized, in place.

    Args:
        model: the model about to be lowered, shapes static where they can be.
        target: decides whether activations that nobody sees are stored as int8 or as uint8.
    """
    rewriter = Rewriter(model, origin="lowering")
    if target.kind == "llvm":
        from .kernels.tables import has_look_up

        if has_look_up(target):
            keep_levels_small(model, rewriter)
    expand_contributed(model, rewriter)
    if not any(node.op_type in {"DequantizeLinear", *FORMS} for node in model.graph):
        return
    normalize_forms(model, rewriter, _SIGNED.get(target.family, False))
    move_integers(model, rewriter)
    if target.family in _SIGNED:
        share_signs(model, rewriter, _SIGNED[target.family])
    tabulate(model, rewriter)
    for node in list(model.graph):
        make = _RULES.get(node.op_type) if node.domain in ("", "ai.onnx") else None
        if make is not None:
            make(_Builder(model, rewriter, node, target))
    shorten_tails(model, rewriter)


def quantized(model: ir.Model, value: ir.Value | None) -> Quantized | None:
    """What `value` is the dequantization of, if the scale is constant and the integers have up to 16 bits.

    Integers of fewer than 8 bits must be constant, those of 16 must not.
    """
    node = value.producer() if value is not None else None
    if node is None or node.op_type != "DequantizeLinear" or node.domain not in ("", "ai.onnx"):
        return None
    source = node.inputs[0]
    if source is None or source.dtype not in (*_SMALL, *_SMALLER, *_WIDE):
        return None
    if source.dtype not in _SMALL and _is_constant(source) == (source.dtype in _WIDE):
        return None
    return parameters(model, node)


def parameters(model: ir.Model, node: ir.Node) -> Quantized | None:
    """Integers, scale and zero point of a DequantizeLinear with float32 results; None where not constant."""
    source, scale = node.inputs[0], constant_array(node.inputs[1])
    attributes = attributes_of(node)
    if source is None or source.dtype is None or scale is None or scale.dtype != np.float32:
        return None
    if attributes.get("block_size", 0) or not (np.isfinite(scale).all() and (scale > 0).all()):
        return None
    given = node.inputs[2] if len(node.inputs) > 2 else None
    zero_point = np.zeros(scale.shape, source.dtype.numpy()) if given is None else constant_array(given)
    shape = static_shape(source)
    if zero_point is None or shape is None or zero_point.size not in (1, scale.size):
        return None
    if scale.size == 1:
        return Quantized(source, scale.reshape(()), zero_point, None)
    axis = attributes.get("axis", 1)
    return Quantized(source, scale, zero_point, axis + len(shape) if axis < 0 else axis)


class _Builder:
    """Rewrites one operator, or leaves it."""

    def __init__(self, model: ir.Model, rewriter: Rewriter, node: ir.Node, target: Target):
        self.model, self.rewriter, self.node, self.target = model, rewriter, node, target
        self.attributes = attributes_of(node)

    def operand(self, position: int) -> Quantized | None:
        """The integers behind an input."""
        inputs = self.node.inputs
        return quantized(self.model, inputs[position]) if position < len(inputs) else None

    def data(self, position: int) -> Quantized | None:
        """The same for an activation: one scale."""
        found = self.operand(position)
        if found is None or found.axis is not None or found.value.dtype not in (*_SMALL, *_WIDE):
            return None
        return found

    def contents(self, value: ir.Value) -> np.ndarray | None:
        """The array behind a constant, computed if need be."""
        array = constant_array(value)
        if array is None and _is_constant(value):
            (array,) = evaluate_values(self.model, [value])
        return array

    @property
    def is_padded(self) -> bool:
        """Whether a convolution may read padding."""
        mode = self.attributes.get("auto_pad", "NOTSET")
        return any(self.attributes.get("pads", ())) or mode.startswith("SAME")

    def constant(self, name: str, array: np.ndarray) -> ir.Value:
        """A new initializer."""
        return self.rewriter.initializer(f"{self.node.name}/{name}", np.asarray(array))

    def insert(
        self,
        op_type: str,
        inputs: list[ir.Value | None],
        dtype: ir.DataType,
        attributes: dict[str, object],
        domain: str = "",
    ) -> ir.Value:
        """A node with the shape of this one's output."""
        (made,) = self.rewriter.insert_before(self.node, op_type, inputs, attributes, domain=domain)
        made.type, made.shape = ir.TensorType(dtype), self.node.outputs[0].shape
        return made

    def parts(
        self, data: Quantized, weights: np.ndarray, axis: int, own: np.ndarray | None, groups: int = 1
    ) -> list[Part] | None:
        """What is multiplied by weights, output channels along `axis`: one operand, or bytes of it."""
        if data.value.dtype in _WIDE:
            rows = rows_of(self.node.outputs[0], 1 if self.node.op_type == "Conv" else -1)
            product = Product(data.value, data.offset, weights, axis, own, rows, groups)
            signed, filters = _SIGNED.get(self.target.family, True), self._can_filter(weights)
            return wide_parts(product, self.target, self.rewriter, self.node, signed, filters)
        terms = weights.size // max(weights.shape[axis], 1)
        total = _total_bias(weights, axis, data.offset, own)
        if terms > MOST_TERMS or (total is None and (data.offset or own is not None)):
            return None
        return [Part(data.value, data.offset, total)]

    def _can_filter(self, weights: np.ndarray) -> bool:
        """Whether a convolution of floats by these weights can be one of minimal filtering."""
        from .kernels.minimal_filtering import TAPS
        from .kernels.winograd_plan import LEAST_CHANNELS

        ones = [value for name in ("strides", "dilations") for value in self.attributes.get(name, ())]
        return (
            self.node.op_type == "Conv"
            and weights.shape[2:] == (TAPS, TAPS)
            and set(ones) <= {1}
            and self.attributes.get("group", 1) == 1
            and min(weights.shape[:2]) >= LEAST_CHANNELS
        )

    def join(self, sums: list[ir.Value], data: Quantized) -> ir.Value:
        """Sums of the whole from those of parts, the highest first; float64 for 16-bit activations."""
        if data.value.dtype not in _WIDE:
            return sums[0]
        return self.insert("Join", list(sums), ir.DataType.DOUBLE, {}, DOMAIN)

    def finish(
        self, sums: ir.Value, scale: np.ndarray, axis: int, bias: ir.Value | None, shape: list[int]
    ) -> None:
        """Scale the sums, add what of the bias is still to be added, and stand in for the node."""
        wide = self.constant(
            "scale", scale.astype(np.float64 if sums.dtype == ir.DataType.DOUBLE else np.float32)
        )
        attributes: dict[str, object] = {"axis": axis} if scale.ndim else {}
        result = self.insert("DequantizeLinear", [sums, wide], ir.DataType.FLOAT, attributes)
        if bias is not None:
            array = self.contents(bias)
            if array is not None and shape:
                bias = self.constant("bias", array.reshape(shape))
            result = self.insert("Add", [result, bias], ir.DataType.FLOAT, {})
        self.stand_in(result)

    def stand_in(self, result: ir.Value) -> None:
        """Put a value in the place of the node's output."""
        operands = [value.producer() for value in self.node.inputs if value is not None]
        self.rewriter.replace(self.node, [result])
        for operand in operands:
            self.rewriter.erase_unread(operand)

    def int_bias(self, bias: ir.Value | None, scale: np.ndarray, channels: int) -> np.ndarray | None:
        """A bias that is stored as int32 with the scale of the sums."""
        node = bias.producer() if bias is not None else None
        if node is None or node.op_type != "DequantizeLinear" or node.inputs[0] is None:
            return None
        found = parameters(self.model, node)
        if found is None or found.value.dtype != ir.DataType.INT32 or np.any(found.zero_point):
            return None
        array = self.contents(found.value)
        if array is None or array.size != channels or not np.allclose(found.scale, scale, rtol=1e-5, atol=0):
            return None
        return array.reshape(-1)


def _is_constant(value: ir.Value) -> bool:
    stack, seen = [value], set()
    while stack:
        each = stack.pop()
        if each.const_value is not None:
            continue
        node = each.producer()
        if node is None:
            return False
        if node not in seen:
            seen.add(node)
            stack.extend(given for given in node.inputs if given is not None)
    return True


def centred(array: np.ndarray, found: Quantized) -> np.ndarray:
    """Weights without their zero points: int8, or int16 where that does not hold them."""
    zero_point = found.zero_point.astype(np.int32)
    if found.axis is not None and zero_point.size > 1:
        zero_point = zero_point.reshape([-1 if axis == found.axis else 1 for axis in range(array.ndim)])
    elif zero_point.size == 1:
        zero_point = zero_point.reshape(())
    wide = array.astype(np.int32) - zero_point
    fits = wide.size == 0 or (wide.min() >= -128 and wide.max() <= 127)
    return wide.astype(np.int8 if fits else np.int16)


def _total_bias(weights: np.ndarray, axis: int, offset: int, own: np.ndarray | None) -> np.ndarray | None:
    """The int32 bias: its own part, and the share of the data's zero point taken off."""
    if not offset and own is None:
        return None
    others = tuple(each for each in range(weights.ndim) if each != axis)
    share = weights.sum(axis=others, dtype=np.int64) * offset
    total = (own.astype(np.int64) if own is not None else 0) - share
    if np.abs(total).max(initial=0) >= 1 << 31:
        return None
    return np.asarray(total, np.int32)


def _conv(build: _Builder) -> None:
    data, weight = build.data(0), build.operand(1)
    if data is None or weight is None or weight.axis not in (None, 0):
        return
    array = build.contents(weight.value)
    if array is None or static_shape(build.node.outputs[0]) is None:
        return
    weights = centred(array, weight)
    channels = weights.shape[0]
    bias = build.node.inputs[2] if len(build.node.inputs) > 2 else None
    quicker = quicker_in_float(weights, build.attributes.get("group", 1), build.target)
    if quicker is not None:
        build.node.metadata_props[FLOAT_KEY] = quicker
        return
    scale = weight.scale * data.scale.astype(np.float64)
    own = build.int_bias(bias, scale, channels)
    parts = build.parts(data, weights, 0, own, build.attributes.get("group", 1)) if weights.size else None
    if parts is None:
        return
    constant, sums = build.constant("weights", weights), []
    for part in parts:
        inputs: list[ir.Value | None] = [part.value, constant]
        if part.bias is not None:
            inputs.append(build.constant("sums_bias", part.bias))
        attributes = {**build.attributes, "zero_point": part.offset if build.is_padded else 0}
        sums.append(build.insert("Conv", inputs, ir.DataType.INT32, attributes, DOMAIN))
    rank = len(static_shape(build.node.outputs[0]) or ())
    shape = [1, channels, *([1] * (rank - 2))]
    build.finish(build.join(sums, data), scale, 1, None if own is not None else bias, shape)


def _product(build: _Builder) -> None:
    gemm = build.node.op_type == "Gemm"
    left, right = build.data(0), build.operand(1)
    out = static_shape(build.node.outputs[0])
    if left is None or right is None:
        keep_weights_small(build.node, build.rewriter)
    if left is None or right is None or out is None:
        return
    shapes = static_shape(left.value), static_shape(right.value)
    if shapes[0] is None or shapes[1] is None or min(len(shapes[0]), len(shapes[1])) < 2:
        return
    array = build.contents(right.value)
    if array is not None and array.ndim == 2:
        _by_weights(build, left, right, array)
        if left.value.dtype in _WIDE and build.node.graph is not None:
            keep_weights_small(build.node, build.rewriter)
    elif right.axis is None and not gemm and shapes[0][-1] <= MOST_TERMS:
        if not {left.value.dtype, right.value.dtype} <= set(_SMALL):
            return
        attributes = {"zero_point": left.offset, "right_zero_point": right.offset}
        total = build.insert("MatMul", [left.value, right.value], ir.DataType.INT32, dict(attributes), DOMAIN)
        build.finish(total, left.scale * right.scale, 0, None, [])


def _by_weights(build: _Builder, left: Quantized, right: Quantized, array: np.ndarray) -> None:
    flip = bool(build.attributes.get("transB", 0))
    columns = 0 if flip else 1
    if right.axis not in (None, columns):
        return
    weights = centred(array, right)
    alpha, beta = build.attributes.get("alpha", 1.0), build.attributes.get("beta", 1.0)
    bias = build.node.inputs[2] if len(build.node.inputs) > 2 else None
    scale = right.scale * left.scale.astype(np.float64)
    if build.attributes.get("transA", 0):
        left = _turned(build, left)
    own = build.int_bias(bias, scale, weights.shape[columns]) if alpha == beta == 1.0 else None
    parts = build.parts(left, weights, columns, own)
    if parts is None:
        build.rewriter.erase_unread(left.value.producer())
        return
    constant, sums = build.constant("weights", weights), []
    for part in parts:
        inputs: list[ir.Value | None] = [part.value, constant]
        if part.bias is not None:
            inputs.append(build.constant("sums_bias", part.bias))
        sums.append(build.insert("MatMul", inputs, ir.DataType.INT32, {"transB": int(flip)}, DOMAIN))
    if bias is not None and own is None and beta != 1.0:
        (bias,) = build.rewriter.insert_before(
            build.node, "Mul", [bias, build.constant("beta", np.asarray(beta, np.float32))]
        )
        bias.type, bias.shape = ir.TensorType(ir.DataType.FLOAT), build.node.inputs[2].shape  # type: ignore[union-attr]
    rank = len(static_shape(build.node.outputs[0]) or ())
    scale = np.asarray(scale * np.float32(alpha))
    build.finish(build.join(sums, left), scale, rank - 1, None if own is not None else bias, [])


def _turned(build: _Builder, data: Quantized) -> Quantized:
    """A matrix of integers transposed, which kernels read by rows."""
    turned = build.insert("Transpose", [data.value], data.value.dtype or ir.DataType.INT8, {"perm": [1, 0]})
    rows, columns = static_shape(data.value) or (None, None)
    turned.shape = ir.Shape([columns, rows])
    return dataclasses.replace(data, value=turned)


def _average(build: _Builder) -> None:
    data = build.data(0)
    if data is None or static_shape(build.node.outputs[0]) is None:
        return
    attributes = {**build.attributes, "zero_point": data.offset}
    means = build.insert("AveragePool", [data.value], ir.DataType.FLOAT, attributes, DOMAIN)
    scale = build.constant("scale", data.scale)
    build.stand_in(build.insert("Mul", [means, scale], ir.DataType.FLOAT, {}))


_RULES: dict[str, Callable[[_Builder], None]] = {
    "Conv": _conv,
    "ConvTranspose": transposed,
    "Gemm": _product,
    "MatMul": _product,
    "AveragePool": _average,
}
