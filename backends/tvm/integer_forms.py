"""Other ways of saying integer in ONNX: QLinear operators become QDQ, others what the lowering uses.

QLinearConv and QLinearMatMul hold their quantizers in themselves. ConvInteger and MatMulInteger give int32
sums of operands whose zero points may only be known when the model runs (DynamicQuantizeLinear finds them):
their share is the zero point times the sum of each output channel's weights, taken off behind the kernel.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir

from ...ir.constants import constant_array
from ...ir.static import input_of, static_shape
from ...passes.rewriter import Rewriter
from .integer_ops import DOMAIN, MOST_TERMS
from .op import attributes_of

FORMS = frozenset({"QLinearConv", "QLinearMatMul", "ConvInteger", "MatMulInteger", "DynamicQuantizeLinear"})
_PRODUCTS = ("ConvInteger", "MatMulInteger")


def normalize_forms(model: ir.Model, rewriter: Rewriter, signed: bool = False) -> None:
    """Rewrite these operators in place; what has no such form is left alone.

    Args:
        model: the model about to be lowered.
        rewriter: of the model.
        signed: whether the target multiplies int8, so that what is quantized at run time should be.
    """
    for node in list(model.graph):
        if signed and node.op_type == "DynamicQuantizeLinear" and _only_products_read(node):
            _dynamic(node, rewriter, ir.DataType.INT8)
            continue
        make = _FORMS.get(node.op_type) if node.domain in ("", "ai.onnx") else None
        if make is not None and static_shape(node.outputs[0]) is not None:
            make(node, rewriter)


def put_before(
    rewriter: Rewriter,
    node: ir.Node,
    op_type: str,
    inputs: list[ir.Value | None],
    dtype: ir.DataType,
    like: ir.Value | None = None,
    domain: str = "",
    **attributes: Any,
) -> ir.Value:
    """A node in front of another, with the shape of `like`."""
    (value,) = rewriter.insert_before(node, op_type, inputs, attributes, domain=domain)
    value.type = ir.TensorType(dtype)
    if like is not None:
        value.shape = like.shape
    return value


def _qlinear(op_type: str, axis: int) -> Callable[[ir.Node, Rewriter], None]:
    """DequantizeLinear -> operator -> QuantizeLinear; weights have their channels along `axis`."""

    def rewrite(node: ir.Node, rewriter: Rewriter) -> None:
        x, x_scale, x_zero, w, w_scale, w_zero, scale, zero = list(node.inputs)[:8]
        bias = input_of(node, 8)
        number = ir.DataType.FLOAT
        data = put_before(rewriter, node, "DequantizeLinear", [x, x_scale, x_zero], number, x)
        rank = len(static_shape(w) or ())
        own: dict[str, Any] = {"axis": axis % rank} if rank and len(static_shape(w_scale) or ()) == 1 else {}
        weights = put_before(rewriter, node, "DequantizeLinear", [w, w_scale, w_zero], number, w, **own)
        inputs: list[ir.Value | None] = [data, weights]
        if bias is not None:
            sums_scale = put_before(rewriter, node, "Mul", [x_scale, w_scale], number, w_scale)
            known = constant_array(x_scale), constant_array(w_scale)
            if known[0] is not None and known[1] is not None:
                product = np.asarray(known[0].reshape(()) * known[1])
                rewriter.erase_unread(sums_scale.producer())
                channels = (static_shape(bias) or (1,))[0]
                wide = np.array(np.broadcast_to(product.reshape(-1), (channels,)))
                sums_scale = rewriter.initializer(f"{node.name}/sums_scale", wide)
            inputs.append(
                put_before(rewriter, node, "DequantizeLinear", [bias, sums_scale], number, bias, axis=0)
            )
        output = node.outputs[0]
        made = put_before(rewriter, node, op_type, inputs, number, output, **attributes_of(node))
        assert output.dtype is not None
        result = put_before(rewriter, node, "QuantizeLinear", [made, scale, zero], output.dtype, output)
        rewriter.replace(node, [result])

    return rewrite


def _weights(node: ir.Node) -> np.ndarray | None:
    """Constant weights without their zero point."""
    array, given = constant_array(node.inputs[1]), input_of(node, 3)
    zero_point = np.zeros((), np.int32) if given is None else constant_array(given)
    if array is None or zero_point is None:
        return None
    zero_point = zero_point.astype(np.int32)
    if zero_point.size == 1:
        zero_point = zero_point.reshape(())
    elif node.op_type == "ConvInteger":
        zero_point = zero_point.reshape(-1, *[1] * (array.ndim - 1))
    wide = array.astype(np.int32) - zero_point
    fits = wide.size == 0 or (wide.min() >= -128 and wide.max() <= 127)
    return wide.astype(np.int8 if fits else np.int16)


def _integer(node: ir.Node, rewriter: Rewriter) -> None:
    weights, zero = _weights(node), input_of(node, 2)
    is_conv = node.op_type == "ConvInteger"
    if weights is None or (not is_conv and weights.ndim != 2) or np.prod(static_shape(zero) or ()) != 1:
        return
    data, rank = node.inputs[0], len(static_shape(node.inputs[0]) or ())
    terms = int(np.prod(weights.shape[1:] if is_conv else weights.shape[:1]))
    if data is None or data.dtype is None or rank < 2 or terms == 0 or terms > MOST_TERMS:
        return
    known = np.zeros(()) if zero is None else constant_array(zero)
    offset = int(known.reshape(-1)[0]) if known is not None else 0
    attributes = attributes_of(node)
    if is_conv:
        padded = any(attributes.get("pads", ())) or attributes.get("auto_pad", "NOTSET").startswith("SAME")
        if padded and known is None:
            pads = _pads(node, weights.shape[2:], attributes)
            attributes = {key: each for key, each in attributes.items() if key not in ("pads", "auto_pad")}
            data = _with_padding(node, data, zero, pads, rewriter)
        attributes["zero_point"] = offset if padded else 0
    constant = rewriter.initializer(f"{node.name}/weights", weights)
    output, name = node.outputs[0], "Conv" if is_conv else "MatMul"
    sums = put_before(rewriter, node, name, [data, constant], ir.DataType.INT32, output, DOMAIN, **attributes)
    totals = weights.sum(axis=tuple(range(1, weights.ndim)) if is_conv else 0, dtype=np.int64)
    totals = np.asarray(totals.reshape(-1, *[1] * (rank - 2)) if is_conv else totals, np.int32)
    if known is None or offset:
        sums = _without_share(node, sums, zero, totals, rewriter)
    rewriter.replace(node, [sums])


def _pads(node: ir.Node, kernel: tuple[int, ...], attributes: dict[str, Any]) -> tuple[int, ...]:
    """The padding of a convolution, all begins and then all ends."""
    mode = attributes.get("auto_pad", "NOTSET")
    if not mode.startswith("SAME"):
        return tuple(attributes["pads"])
    sizes, results = static_shape(node.inputs[0]) or (), static_shape(node.outputs[0]) or ()
    strides = attributes.get("strides") or (1,) * len(kernel)
    dilations = attributes.get("dilations") or (1,) * len(kernel)
    totals = [
        max(0, (result - 1) * stride + (taps - 1) * dilation + 1 - size)
        for size, result, taps, stride, dilation in zip(
            sizes[2:], results[2:], kernel, strides, dilations, strict=True
        )
    ]
    less, more = [total // 2 for total in totals], [total - total // 2 for total in totals]
    return (*less, *more) if mode == "SAME_UPPER" else (*more, *less)


def _with_padding(
    node: ir.Node, data: ir.Value, zero: ir.Value | None, pads: tuple[int, ...], rewriter: Rewriter
) -> ir.Value:
    """The data with its zero point around it."""
    spatial = len(pads) // 2
    amounts = np.array([0, 0, *pads[:spatial], 0, 0, *pads[spatial:]], np.int64)
    value = rewriter.initializer(f"{node.name}/pads", amounts)
    assert data.dtype is not None
    scalar = put_before(
        rewriter, node, "Reshape", [zero, rewriter.initializer("none", np.zeros(0, np.int64))], data.dtype
    )
    scalar.shape = ir.Shape([])
    made = put_before(rewriter, node, "Pad", [data, value, scalar], data.dtype)
    shape = static_shape(data) or ()
    made.shape = ir.Shape([size + int(amounts[i] + amounts[i + len(shape)]) for i, size in enumerate(shape)])
    return made


def _without_share(
    node: ir.Node, sums: ir.Value, zero: ir.Value | None, totals: np.ndarray, rewriter: Rewriter
) -> ir.Value:
    """The sums less the zero point times what the weights add up to."""
    wide = put_before(rewriter, node, "Cast", [zero], ir.DataType.INT32, zero, to=int(ir.DataType.INT32))
    constant = rewriter.initializer(f"{node.name}/totals", totals)
    share = put_before(rewriter, node, "Mul", [wide, constant], ir.DataType.INT32)
    share.shape = ir.Shape(totals.shape)
    return put_before(rewriter, node, "Sub", [sums, share], ir.DataType.INT32, node.outputs[0])


def _only_products_read(node: ir.Node) -> bool:
    """Whether integers and zero point go to products alone, to which it is one where both lie 128 lower."""
    if node.domain not in ("", "ai.onnx") or static_shape(node.outputs[0]) is None:
        return False
    for output, place in ((node.outputs[0], 0), (node.outputs[2], 2)):
        uses = list(output.uses())
        if output.is_graph_output() or not uses:
            return False
        if any(each.node.op_type not in _PRODUCTS or each.idx != place for each in uses):
            return False
        if any(constant_array(each.node.inputs[1]) is None for each in uses):
            return False
    # A product that took only one of the two would see them differ.
    return {each.node for each in node.outputs[0].uses()} == {each.node for each in node.outputs[2].uses()}


def _dynamic(node: ir.Node, rewriter: Rewriter, dtype: ir.DataType = ir.DataType.UINT8) -> None:
    """Range, scale and zero point as reductions and scalars, so that the quantization is element-wise."""
    number, x = ir.DataType.FLOAT, node.inputs[0]

    def scalar(value: float) -> ir.Value:
        return rewriter.initializer(f"{node.name}/constant", np.asarray(value, np.float32))

    def new(
        op_type: str, *inputs: ir.Value | None, dtype: ir.DataType = number, **attributes: Any
    ) -> ir.Value:
        value = put_before(rewriter, node, op_type, list(inputs), dtype, **attributes)
        value.shape = ir.Shape([])
        return value

    zero = scalar(0)
    low = new("Min", new("ReduceMin", x, keepdims=0), zero)
    high = new("Max", new("ReduceMax", x, keepdims=0), zero)
    same = new("Equal", low, high, dtype=ir.DataType.BOOL)
    scale = new("Where", same, scalar(1), new("Div", new("Sub", high, low), scalar(255)))
    place = new("Round", new("Sub", zero, new("Div", low, scale)))
    clipped = new("Clip", place, zero, scalar(255))
    if dtype == ir.DataType.INT8:
        clipped = new("Sub", clipped, scalar(128))
    point = new("Cast", clipped, dtype=dtype, to=int(dtype))
    stored = put_before(rewriter, node, "QuantizeLinear", [x, scale, point], dtype, node.outputs[0])
    rewriter.replace(node, [stored, scale, point])


_FORMS: dict[str, Callable[[ir.Node, Rewriter], None]] = {
    "QLinearConv": _qlinear("Conv", 0),
    "QLinearMatMul": _qlinear("MatMul", -1),
    "ConvInteger": _integer,
    "MatMulInteger": _integer,
    "DynamicQuantizeLinear": _dynamic,
}
