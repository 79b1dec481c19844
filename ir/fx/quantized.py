"""Quantize and dequantize; pairs have straight-through gradients (Bengio et al. 2013)."""

from __future__ import annotations

import operator
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
import torch.nn.functional as F

from ..fake_quantize import DOMAIN, GRIDS, OP_TYPE
from .dtypes import bounds, carrier
from .emitter import Emitter, Form, refusal

_FLOATS8 = (torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e4m3fnuz, torch.float8_e5m2fnuz)


def spread(scale: torch.Tensor, x: torch.Tensor, axis: int, block: int) -> torch.Tensor:
    """A scale or zero point as it broadcasts to `x`: for all, per slice of an axis, or per block."""
    if scale.dim() == 0 or scale.numel() == 1:
        return scale.reshape(()) if scale.numel() == 1 else scale
    if block:
        return torch.narrow(torch.repeat_interleave(scale, block, axis), axis, 0, x.shape[axis])
    shape = [1] * x.dim()
    shape[axis] = scale.numel()
    return scale.reshape(shape)


def quantize(
    x: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor | None, axis: int, block: int,
    low: int, high: int, dtype: torch.dtype,
) -> torch.Tensor:  # fmt: skip
    """round(x / scale) + zero point, half to even, saturated; for 8-bit floats a cast."""
    scaled = x.to(torch.float32) / spread(scale.to(torch.float32), x, axis, block)
    if dtype in _FLOATS8:
        largest = torch.finfo(dtype).max
        return torch.clamp(scaled, -largest, largest).to(dtype)
    rounded = torch.round(scaled)
    if zero is not None:
        rounded = rounded + spread(zero, x, axis, block).to(torch.float32)
    return torch.clamp(rounded, low, high).to(dtype)


def dequantize(
    q: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor | None, axis: int, block: int
) -> torch.Tensor:
    """(q - zero point) * scale."""
    if q.dtype in _FLOATS8:
        return q.to(torch.float32).to(scale.dtype) * spread(scale, q, axis, block)
    number = q.to(torch.int32)
    if zero is not None:
        number = number - spread(zero.to(torch.int32), q, axis, block)
    return number.to(torch.float32).to(scale.dtype) * spread(scale, q, axis, block)


class _StraightThrough(torch.autograd.Function):
    """Forwards the quantized numbers; backwards the gradient, but where the input was cut off."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, made: torch.Tensor, inside: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(inside)
        return made

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        (inside,) = ctx.saved_tensors
        return grads[0] * inside, None, None


def fake_quantize(
    x: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor | None, axis: int, block: int,
    low: int, high: int, dtype: torch.dtype,
) -> torch.Tensor:  # fmt: skip
    """Quantizes and dequantizes; the gradient passes straight through where nothing saturates."""
    if torch.compiler.is_exporting() and dtype not in _FLOATS8 and (low, high) in GRIDS:
        if zero is not None and dtype in _PLAIN and not block and (low, high) == _limits(dtype):
            return _as_nodes(x, scale, zero, axis, dtype)
        operands = (x, scale) if zero is None else (x, scale, zero)
        attributes: dict[str, Any] = {"low": low, "high": high, "axis": axis, "block_size": block}
        name = f"{DOMAIN}::{OP_TYPE}"
        return torch.onnx.ops.symbolic(name, operands, attributes, dtype=x.dtype, shape=x.shape, version=1)
    made = dequantize(quantize(x, scale, zero, axis, block, low, high, dtype), scale, zero, axis, block).to(
        x.dtype
    )
    if not (torch.is_grad_enabled() and x.requires_grad):
        return made
    wide = spread(scale, x, axis, block)
    if dtype in _FLOATS8:
        inside = torch.abs(x) <= torch.finfo(dtype).max * wide
    else:
        offset = 0.0 if zero is None else spread(zero, x, axis, block).to(torch.float32)
        inside = (x >= (low - 0.5 - offset) * wide) & (x <= (high + 0.5 - offset) * wide)
    return _StraightThrough.apply(x, made.detach(), inside)


_PLAIN = (torch.int8, torch.uint8)
_OPSET = 19
"""In which the exporter is given the pair: not above the one that it writes."""


def _limits(dtype: torch.dtype) -> tuple[int, int]:
    return torch.iinfo(dtype).min, torch.iinfo(dtype).max


def _as_nodes(
    x: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor, axis: int, dtype: torch.dtype
) -> torch.Tensor:
    """The pair as the two nodes that it came from, for torch's ONNX exporter."""

    def node(name: str, operand: torch.Tensor, kind: torch.dtype) -> torch.Tensor:
        return torch.onnx.ops.symbolic(
            name, (operand, scale, zero), {"axis": axis}, dtype=kind, shape=operand.shape, version=_OPSET
        )

    return node("DequantizeLinear", node("QuantizeLinear", x, dtype), x.dtype)


def _grid(emitter: Emitter, node: ir.Node) -> tuple[Any, Any, int, int]:
    zero = node.inputs[2] if len(node.inputs) > 2 else None
    known = emitter.literal(zero)
    plain = known is not None and not np.any(known.astype(np.float32))
    axis, block = node.attributes.get_int("axis", 1), node.attributes.get_int("block_size", 0)
    return emitter.tensor(node.inputs[1]), None if plain else emitter.tensor(zero), axis, block


def _range(kind: ir.DataType | None) -> tuple[int, int]:
    return bounds(kind) if kind is not None and kind.is_integer() else (0, 0)


def _quantize(emitter: Emitter, node: ir.Node) -> Any:
    kind = node.outputs[0].dtype
    readers = [use.node for use in node.outputs[0].uses()]
    if readers and not node.outputs[0].is_graph_output() and all(_undoes(each, node) for each in readers):
        # Its readers emit the pair as one.
        return None
    return emitter.call(
        quantize, emitter.tensor(node.inputs[0]), *_grid(emitter, node), *_range(kind), carrier(kind)
    )


def _undoes(reader: ir.Node, node: ir.Node) -> bool:
    if reader.op_type != "DequantizeLinear" or list(reader.inputs[1:]) != list(node.inputs[1:]):
        return False
    same = ("axis", 1), ("block_size", 0)
    return all(reader.attributes.get_int(*each) == node.attributes.get_int(*each) for each in same)


def _dequantize(emitter: Emitter, node: ir.Node) -> Any:
    source = node.inputs[0]
    assert source is not None
    producer = source.producer()
    scale, zero, axis, block = _grid(emitter, node)
    kind = source.dtype
    paired = producer is not None and producer.op_type == "QuantizeLinear" and not emitter.is_made(source)
    if paired and producer is not None:
        return emitter.call(
            fake_quantize,
            emitter.tensor(producer.inputs[0]),
            scale,
            zero,
            axis,
            block,
            *_range(kind),
            carrier(kind),
        )
    master = _master(emitter, node)
    if master is not None:
        if kind == ir.DataType.INT32:
            return master
        return emitter.call(fake_quantize, master, scale, zero, axis, block, *_range(kind), carrier(kind))
    made = emitter.call(dequantize, emitter.tensor(source), scale, zero, axis, block)
    out = node.outputs[0].dtype
    if out is not None and node.inputs[1] is not None and node.inputs[1].dtype not in (None, out):
        return emitter.call(torch.Tensor.to, made, carrier(out))
    return made


def _master(emitter: Emitter, node: ir.Node) -> Any:
    """Weights that are stored as integers, as a float parameter that training can change; else None."""
    source, scale = node.inputs[0], node.inputs[1]
    zero = node.inputs[2] if len(node.inputs) > 2 else None
    values = [emitter.literal(each) for each in (source, scale)]
    if any(each is None for each in values) or (zero is not None and emitter.literal(zero) is None):
        return None
    assert source is not None and scale is not None
    if not source.is_initializer() or len(source.uses()) != 1 or source.is_graph_output():
        return None
    axis, block = node.attributes.get_int("axis", 1), node.attributes.get_int("block_size", 0)
    q, s = (emitter.weight(each) for each in (source, scale))
    z = None if zero is None else emitter.weight(zero)
    name = str(source.name).removesuffix("_quantized").removesuffix("_int8")
    return emitter.parameter(name, dequantize(q, s, z, axis, block))


def dynamic_quantize(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """To uint8 on a grid from the least to the largest number, 0 among them: values, scale, zero point."""
    low = torch.clamp(torch.amin(x), max=0.0)
    high = torch.clamp(torch.amax(x), min=0.0)
    scale = (high - low) / 255.0
    scale = torch.where(scale == 0, torch.ones_like(scale), scale)
    zero = torch.clamp(torch.round(-low / scale), 0, 255).to(torch.uint8)
    return quantize(x, scale, zero, 0, 0, 0, 255, torch.uint8), scale, zero


def _dynamic_quantize(emitter: Emitter, node: ir.Node) -> Any:
    made = emitter.call(dynamic_quantize, emitter.tensor(node.inputs[0]))
    return [emitter.call(operator.getitem, made, index) for index in range(3)]


def integer_product(
    a: torch.Tensor, b: torch.Tensor, a_zero: torch.Tensor | None, b_zero: torch.Tensor | None
) -> torch.Tensor:
    """A product of integer matrices without their zero points, exact in int32."""
    left, right = a.to(torch.int64), b.to(torch.int64)
    if a_zero is not None:
        left = left - (a_zero.reshape(-1, 1) if a_zero.dim() == 1 and a_zero.numel() > 1 else a_zero).to(
            torch.int64
        )
    if b_zero is not None:
        right = right - b_zero.to(torch.int64)
    return torch.matmul(left, right).to(torch.int32)


def integer_convolution(
    x: torch.Tensor, w: torch.Tensor, x_zero: torch.Tensor | None, w_zero: torch.Tensor | None,
    bias: torch.Tensor | None,
    strides: list[int], spread_pads: list[int], dilations: list[int], groups: int,
) -> torch.Tensor:  # fmt: skip
    """A convolution of integers without their zero points; float64 holds the sums exactly."""
    count = x.dim() - 2
    image, kernel = x.to(torch.float64), w.to(torch.float64)
    if x_zero is not None:
        image = image - x_zero.reshape(()).to(torch.float64)
    if w_zero is not None:
        kernel = kernel - w_zero.to(torch.float64).reshape([-1] + [1] * (w.dim() - 1))
    function: Any = (F.conv1d, F.conv2d, F.conv3d)[count - 1]
    made = function(F.pad(image, spread_pads), kernel, None, strides, 0, dilations, groups)
    if bias is not None:
        made = made + bias.reshape([1, -1] + [1] * count).to(torch.float64)
    return made.to(torch.int32)


def _matmul_integer(emitter: Emitter, node: ir.Node) -> Any:
    tensors = [*emitter.tensors(node), None, None][:4]
    return emitter.call(integer_product, *tensors)


def _window(node: ir.Node, weight: ir.Value | None) -> tuple[list[int], list[int], list[int], int]:
    from .convolution import Window

    if weight is None or weight.shape is None or not weight.shape.is_static():
        raise refusal(node, "the kernel's size is not known")
    window = Window(node, [int(size) for size in weight.shape.numpy()[2:]])
    return window.strides, window.spread, window.dilations, node.attributes.get_int("group", 1)


def _conv_integer(emitter: Emitter, node: ir.Node) -> Any:
    x, w, x_zero, w_zero = [*emitter.tensors(node), None, None][:4]
    return emitter.call(integer_convolution, x, w, x_zero, w_zero, None, *_window(node, node.inputs[1]))


def requantize(
    total: torch.Tensor, x_scale: torch.Tensor, w_scale: torch.Tensor, y_scale: torch.Tensor,
    y_zero: torch.Tensor,
    axis: int, low: int, high: int, dtype: torch.dtype,
) -> torch.Tensor:  # fmt: skip
    """An int32 sum on the output's grid."""
    scale = spread(x_scale * w_scale, total, axis, 0) / y_scale.reshape(())
    rounded = torch.round(total.to(torch.float32) * scale) + y_zero.reshape(()).to(torch.float32)
    return torch.clamp(rounded, low, high).to(dtype)


def _qlinear_conv(emitter: Emitter, node: ir.Node) -> Any:
    x, x_scale, x_zero, w, w_scale, w_zero, y_scale, y_zero, *bias = emitter.tensors(node)
    kind = node.outputs[0].dtype
    total = emitter.call(
        integer_convolution, x, w, x_zero, w_zero, bias[0] if bias else None, *_window(node, node.inputs[3])
    )
    return emitter.call(requantize, total, x_scale, w_scale, y_scale, y_zero, 1, *_range(kind), carrier(kind))


def _qlinear_matmul(emitter: Emitter, node: ir.Node) -> Any:
    a, a_scale, a_zero, b, b_scale, b_zero, y_scale, y_zero = emitter.tensors(node)
    kind = node.outputs[0].dtype
    total = emitter.call(integer_product, a, b, a_zero, b_zero)
    return emitter.call(
        requantize, total, a_scale, b_scale, y_scale, y_zero, -1, *_range(kind), carrier(kind)
    )


FORMS: dict[str, Form] = {
    "QuantizeLinear": _quantize,
    "DequantizeLinear": _dequantize,
    "DynamicQuantizeLinear": _dynamic_quantize,
    "MatMulInteger": _matmul_integer,
    "ConvInteger": _conv_integer,
    "QLinearConv": _qlinear_conv,
    "QLinearMatMul": _qlinear_matmul,
}
