"""ONNX Runtime's own quantized operators (domain com.microsoft) become QDQ, as QLinearConv does.

Files in its "QOperator" format hold them, and graphs that it has optimized and written.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from ...ir.constants import constant_array
from ...ir.static import input_of, static_shape
from ...passes.rewriter import Rewriter
from .integer_forms import put_before
from .op import attributes_of

_DOMAIN = "com.microsoft"
_UNARY = {
    "QLinearSigmoid": "Sigmoid",
    "QLinearLeakyRelu": "LeakyRelu",
    "QLinearAveragePool": "AveragePool",
    "QLinearGlobalAveragePool": "GlobalAveragePool",
}
_BINARY = {"QLinearAdd": "Add", "QLinearMul": "Mul"}


def expand_contributed(model: ir.Model, rewriter: Rewriter) -> None:
    """Rewrite these operators in place, those on channels that come last left alone.

    Args:
        model: the model about to be lowered, shapes static where they can be.
        rewriter: of the model.
    """
    for node in list(model.graph):
        if node.domain != _DOMAIN or attributes_of(node).get("channels_last", 0):
            continue
        given = list(node.inputs)
        if node.op_type == "QLinearSoftmax" and attributes_of(node).get("opset", 1) >= 13 and len(given) >= 4:
            _expand(node, rewriter, "Softmax", [given[:3]], given[3], input_of(node, 4))
        elif node.op_type in _UNARY and len(given) >= 4:
            _expand(node, rewriter, _UNARY[node.op_type], [given[:3]], given[3], input_of(node, 4))
        elif node.op_type in _BINARY and len(given) >= 7:
            kind = _BINARY[node.op_type]
            _expand(node, rewriter, kind, [given[:3], given[3:6]], given[6], input_of(node, 7))
        elif node.op_type == "QLinearConcat":
            triples = [given[index : index + 3] for index in range(2, len(given), 3)]
            _expand(node, rewriter, "Concat", triples, given[0], given[1])
        elif node.op_type == "QGemm":
            _gemm(node, rewriter)


def _expand(
    node: ir.Node,
    rewriter: Rewriter,
    op_type: str,
    operands: Sequence[Sequence[ir.Value | None]],
    scale: ir.Value | None,
    zero: ir.Value | None,
) -> None:
    """DequantizeLinear of every operand (integers, scale, zero point) -> operator -> QuantizeLinear."""
    number, output = ir.DataType.FLOAT, node.outputs[0]
    numbers: list[ir.Value | None] = [
        put_before(rewriter, node, "DequantizeLinear", list(triple), number, triple[0]) for triple in operands
    ]
    own = ("channels_last", "opset")
    attributes = {key: each for key, each in attributes_of(node).items() if key not in own}
    result = put_before(rewriter, node, op_type, numbers, number, output, **attributes)
    _finish(node, rewriter, result, scale, zero)


def _finish(
    node: ir.Node, rewriter: Rewriter, result: ir.Value, scale: ir.Value | None, zero: ir.Value | None
) -> None:
    output = node.outputs[0]
    if scale is not None:
        assert output.dtype is not None
        result = put_before(rewriter, node, "QuantizeLinear", [result, scale, zero], output.dtype, output)
    rewriter.replace(node, [result])


def _gemm(node: ir.Node, rewriter: Rewriter) -> None:
    """The bias is int32 at the scale of the sums, alpha included; without a scale the result is float."""
    x, x_scale, x_zero, w, w_scale, w_zero = node.inputs[:6]
    bias, number = input_of(node, 6), ir.DataType.FLOAT
    attributes = attributes_of(node)
    alpha = np.float32(attributes.get("alpha", 1.0))
    scales, shape = (constant_array(x_scale), constant_array(w_scale)), static_shape(bias)
    if scales[0] is None or scales[1] is None or (bias is not None and shape is None):
        return
    per_channel = len(static_shape(w_scale) or ()) == 1
    own: dict[str, Any] = {"axis": 0 if attributes.get("transB", 0) else 1} if per_channel else {}
    inputs: list[ir.Value | None] = [
        put_before(rewriter, node, "DequantizeLinear", [x, x_scale, x_zero], number, x),
        put_before(rewriter, node, "DequantizeLinear", [w, w_scale, w_zero], number, w, **own),
    ]
    if bias is not None and shape is not None:
        product = alpha * scales[0].reshape(()) * scales[1].reshape(-1)
        wide = np.broadcast_shapes(shape, product.shape)
        if wide != shape:
            # A number for all channels, whose scales differ.
            sizes = rewriter.initializer(f"{node.name}/bias_shape", np.array(wide, np.int64))
            bias = put_before(rewriter, node, "Expand", [bias, sizes], ir.DataType.INT32)
            bias.shape = ir.Shape(wide)
        sums_scale = np.array(np.broadcast_to(product.astype(np.float32), wide[-1:]))
        held = rewriter.initializer(f"{node.name}/sums_scale", sums_scale)
        axis = len(wide) - 1
        inputs.append(put_before(rewriter, node, "DequantizeLinear", [bias, held], number, bias, axis=axis))
    result = put_before(rewriter, node, "Gemm", inputs, number, node.outputs[0], **attributes)
    _finish(node, rewriter, result, input_of(node, 7), input_of(node, 8))
