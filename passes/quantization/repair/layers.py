"""Layers whose weights are stored as integers, beside the float layers they were made from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from ....ir.constants import constant_array
from ....ir.errors import PassError
from ....ir.static import input_of, producer_of, static_shape
from ...pruning.layers import LinearLayer

_LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
_INTEGERS = (
    ir.DataType.INT8,
    ir.DataType.UINT8,
    ir.DataType.INT16,
    ir.DataType.UINT16,
    ir.DataType.INT4,
    ir.DataType.UINT4,
    ir.DataType.INT2,
    ir.DataType.UINT2,
)


@dataclass(frozen=True)
class StoredWeight:
    """Integers that stand for a weight: scale * (q - zero), matrices `[outputs, features]`.

    Attributes:
        integers: The initializer that holds q.
        scale: The initializer that holds the scales.
        codes: q, int32.
        scales: Scale of every number, float64.
        zeros: Zero point of every number, int32.
        low, high: The integers that are used.
        block: Features that share a scale, 0 for all of a row.
    """

    integers: ir.Value
    scale: ir.Value
    codes: np.ndarray
    scales: np.ndarray
    zeros: np.ndarray
    low: int
    high: int
    block: int

    def decode(self, codes: np.ndarray | None = None) -> np.ndarray:
        """The numbers that codes stand for, float64 `[outputs, features]`."""
        return self.scales * ((self.codes if codes is None else codes) - self.zeros)


@dataclass(frozen=True)
class QuantizedLayer:
    """A layer of the quantized model and the one it was made from.

    Attributes:
        node: In the quantized model.
        original: In the float model.
        linear: The quantized one as a matrix product, to get rows of its input.
        weight: Float weights, float64 `[outputs, features]`.
        stored: The integers; None where only the input is quantized.
    """

    node: ir.Node
    original: ir.Node
    linear: LinearLayer
    weight: np.ndarray
    stored: StoredWeight

    @property
    def source(self) -> str:
        """Name of the value that the quantized layer reads."""
        return str(self.linear.source.name)

    @property
    def result(self) -> str:
        """Name of what it computes."""
        return str(self.node.outputs[0].name)

    @property
    def float_source(self) -> str:
        """Name of the value that the float layer reads."""
        return str(self.original.inputs[0].name)  # type: ignore[union-attr]

    @property
    def float_result(self) -> str:
        """Name of what it computes."""
        return str(self.original.outputs[0].name)

    def stored_form(self, codes: np.ndarray) -> np.ndarray:
        """Codes `[outputs, features]` in shape and type of the initializer."""
        tensor = self.stored.integers.const_value
        assert tensor is not None
        shape, kept = static_shape(self.linear.weight), static_shape(self.stored.integers)
        assert shape is not None and kept is not None
        whole = codes.T if self.linear.output_axis else codes
        if self.node.op_type == "ConvTranspose":
            parts = codes.reshape(self.linear.groups, shape[1], shape[0] // self.linear.groups, -1)
            whole = np.moveaxis(parts, 2, 1)
        return np.ascontiguousarray(whole.reshape(kept)).astype(tensor.dtype.numpy())


def find_layers(
    model: ir.Model,
    original: ir.Model,
    selects: Callable[[ir.Node], bool],
    leave: Callable[[ir.Node, str], None],
) -> list[QuantizedLayer]:
    """Layers with integer weights, in graph order.

    Args:
        model: The quantized model.
        original: The float one.
        selects: Which nodes the user lets be touched.
        leave: Told of layers with quantized weights that cannot be worked on.

    Raises:
        PassError: Layers have other shapes than in the float model.
    """
    known = {str(node.name): node for node in original.graph}
    found = []
    for node in model.graph:
        if node.op_type not in _LAYERS or node.domain not in ("", "ai.onnx"):
            continue
        if not selects(node) or dequantizer_of(input_of(node, 1)) is None:
            continue
        layer = _match(node, known.get(str(node.name)))
        if isinstance(layer, str):
            leave(node, layer)
        else:
            found.append(layer)
    return found


def dequantizer_of(value: ir.Value | None) -> ir.Node | None:
    """The DequantizeLinear that makes a constant weight, directly or through a Reshape."""
    reshape = producer_of(value, "Reshape")
    node = producer_of(reshape.inputs[0] if reshape is not None else value, "DequantizeLinear")
    return node if node is not None and constant_array(input_of(node, 1)) is not None else None


def _match(node: ir.Node, original: ir.Node | None) -> QuantizedLayer | str:
    if original is None or original.op_type != node.op_type:
        return "the float model has no layer of its name"
    linear = _linear(node)
    if isinstance(linear, str):
        return linear
    array = constant_array(original.inputs[1])
    if array is None:
        return "the float model has no constant weight for it"
    if array.shape != static_shape(linear.weight):
        # Means and errors of the others would be compared with another model's, too.
        raise PassError(
            f"weights of '{node.name}' are {list(static_shape(linear.weight) or ())}, in the float model "
            f"{list(array.shape)}: prune before quantizing, or repair before pruning"
        )
    restored = dequantizer_of(node.inputs[1])
    assert restored is not None
    if len(linear.weight.uses()) > 1:
        return "it shares its weight with other nodes"
    stored = _stored(restored, linear)
    if isinstance(stored, str):
        return stored
    factor = original.attributes.get_float("alpha", 1.0) / node.attributes.get_float("alpha", 1.0)
    weight = _matrix(array.astype(np.float64), linear) * factor
    if not np.isfinite(weight).all():
        return "NaN or infinity in its weights"
    return QuantizedLayer(node, original, linear, weight, stored)


def _linear(node: ir.Node) -> LinearLayer | str:
    source, weight = node.inputs[0], node.inputs[1]
    shape = static_shape(weight)
    if source is None or weight is None or shape is None or 0 in shape or source.shape is None:
        return "the shape of its input or weight is not known"
    if node.op_type == "Conv":
        groups = node.attributes.get_int("group", 1)
        axis, channels, outputs = 0, 1, shape[0]
        features = int(np.prod(shape[1:]))
    elif node.op_type == "ConvTranspose":
        if node.attributes.get_string("auto_pad", "NOTSET") != "NOTSET" or "output_shape" in node.attributes:
            return "it chooses its padding by the size of its result"
        groups = node.attributes.get_int("group", 1)
        axis, channels, outputs = 1, 1, shape[1] * groups
        features = int(np.prod(shape)) // shape[1] // groups
    elif len(shape) != 2:
        return "its weight is not a matrix"
    else:
        groups, channels = 1, max(len(source.shape), 1) - 1
        flipped = node.op_type == "Gemm" and node.attributes.get_int("transB", 0) == 1
        axis = 0 if flipped else 1
        features, outputs = shape[1 - axis], shape[axis]
    return LinearLayer(
        node=node,
        source=source,
        weight=weight,
        groups=groups,
        features=features,
        outputs=outputs,
        output_axis=axis,
        channel_axis=channels,
        bias_operand=None if node.op_type == "MatMul" else 2,
    )


def _stored(restored: ir.Node, linear: LinearLayer) -> StoredWeight | str:
    integers, scale = restored.inputs[0], restored.inputs[1]
    codes, scales = constant_array(integers), constant_array(scale)
    if integers is None or scale is None or codes is None or scales is None:
        return "its integers are stored packed"
    if not integers.is_initializer() or integers.dtype not in _INTEGERS:
        return f"its weights are stored as {integers.dtype}, not as integers"
    if len(integers.uses()) > 1:
        return "it shares its weight with other nodes"
    zeros = constant_array(input_of(restored, 2))
    block = restored.attributes.get_int("block_size", 0)
    axis = restored.attributes.get_int("axis", 1)
    wide = codes.astype(np.int32)
    zeros = np.zeros(scales.shape, np.int32) if zeros is None else zeros.astype(np.int32)
    return StoredWeight(
        integers,
        scale,
        _matrix(wide, linear),
        _matrix(_spread(scales.astype(np.float64), wide.shape, axis, block), linear),
        _matrix(_spread(zeros, wide.shape, axis, block), linear),
        int(wide.min()),
        int(wide.max()),
        block,
    )


def _spread(parameters: np.ndarray, shape: tuple[int, ...], axis: int, block: int) -> np.ndarray:
    """Scales or zero points of a DequantizeLinear, one for every number."""
    if parameters.size == 1:
        return np.broadcast_to(parameters.reshape(()), shape)
    axis %= len(shape)
    if block:
        repeated = parameters.repeat(block, axis=axis)
        return np.take(repeated, np.arange(shape[axis]), axis=axis)
    dims = [1] * len(shape)
    dims[axis] = -1
    return np.broadcast_to(parameters.reshape(dims), shape)


def _matrix(array: np.ndarray, linear: LinearLayer) -> np.ndarray:
    """A weight, in any shape with its elements in order, as `[outputs, features]`."""
    shape = static_shape(linear.weight)
    assert shape is not None
    if linear.node.op_type == "ConvTranspose":
        # [inputs, outputs of a group, window], the groups one after the other along the inputs.
        parts = array.reshape(linear.groups, shape[0] // linear.groups, shape[1], -1)
        return np.moveaxis(parts, 2, 1).reshape(linear.outputs, -1)
    whole = array.reshape(shape)
    return whole.reshape(linear.outputs, -1) if linear.output_axis == 0 else whole.T
