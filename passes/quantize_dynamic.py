"""Dynamic quantization: ranges are taken from each input as it comes, so no calibration is needed.

    MatMul(x, W)   ->   x8, sx, zx = DynamicQuantizeLinear(x)
                        Cast(MatMulInteger(x8, W8, zx)) * (sx * sw)

ONNX Runtime makes one kernel of the five nodes. It suits transformers, whose ranges change from input to
input; convolutions are better off calibrated (`insert-qdq`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import onnx_ir as ir

from ..ir.bodies import all_graphs
from ..ir.constants import constant_array
from .base import Pass, PassContext
from .functions import flatten_functions
from .leftovers import drop_unread
from .quantization.arithmetic import Grid, quantize, weight_scales
from .quantization.embeddings import quantize_embeddings
from .quantization.emit import keep_only_the_module
from .quantization.operators import DEFAULT_DOMAINS, WeightedNode, match_weighted
from .quantization.tables import Table, Weighted, find_table
from .quantization.transposed import turn_weights
from .registry import register
from .rewriter import Rewriter

_KERNELS = Table(
    name="dynamic",
    purpose="operators with an integer form that takes any operand",
    weighted={op: Weighted(result="any", bias="float") for op in ("MatMul", "Gemm", "Conv")},
    tails=(),
)

_NO_FORM = "ONNX has no integer form of it"
_WITHOUT_INTEGER_FORM = {
    "ConvTranspose": _NO_FORM,
    **dict.fromkeys(
        ("LSTM", "GRU", "RNN"), f"{_NO_FORM}; quantize-weights stores its weights in 8 bits or fewer"
    ),
}


@register
@dataclass(frozen=True)
class QuantizeDynamic(Pass):
    """Quantize MatMul, Gemm and Conv to int8 with ranges measured at run time (no calibration).

    Weights become int8, symmetric, one scale per output channel; activations uint8, one scale for each tensor
    that flows in, found by DynamicQuantizeLinear; sums are exact, biases stay in float. Left alone, and
    reported: operators without constant float32 weights, weights that are not finite, what is quantized
    already. Lossy.
    """

    name: ClassVar[str] = "quantize-dynamic"
    lossless: ClassVar[bool] = False

    target: str | None = None
    """Quantization table that says whether weights are reduced to 7 bits; see `insert-qdq`."""
    reduce_range: bool | None = None
    """Use 7 bits for weights, against sums that saturate on x86 without VNNI; by default the table says."""
    per_channel: bool = True
    """One weight scale per output channel instead of one per tensor."""
    min_size: int = 1024
    """Weights with fewer numbers stay in float: quantizing the input would cost more than is won."""

    embeddings: Literal["quantize", "float"] = "quantize"
    """Whether constant tables that Gather reads (embeddings) become int8, one scale per row or column."""

    def apply(self, model: ir.Model, context: PassContext) -> None:
        """Replace each operator by its integer form; inputs that several read are quantized once."""
        flatten_functions(model, context)
        grid = find_table(self.target, context.target).weight_grid(self.reduce_range)
        writer = _Writer(context.rewriter(model), grid, self.per_channel)
        for graph in all_graphs(model):
            turn_weights(graph, self.selects, writer.rewriter)
            for node in list(graph):
                if node.domain not in DEFAULT_DOMAINS or not self.selects(node):
                    continue
                if node.op_type in _WITHOUT_INTEGER_FORM:
                    context.leave(node, _WITHOUT_INTEGER_FORM[node.op_type])
                if node.op_type not in _KERNELS.weighted:
                    continue
                matched = self._match(node)
                if isinstance(matched, str):
                    context.leave(node, matched)
                    continue
                context.count(f"quantized {node.op_type}")
                writer.replace(matched)
        drop_unread(writer.rewriter, writer.originals)
        if self.embeddings == "quantize":
            quantize_embeddings(model, lambda node: "int8", self.selects, context)

    def _match(self, node: ir.Node) -> WeightedNode | str:
        matched = match_weighted(node, _KERNELS)
        if isinstance(matched, str):
            return matched
        array = constant_array(matched.weight)
        assert array is not None
        if array.size < self.min_size:
            return f"its weights are {array.size} numbers, fewer than min_size={self.min_size}"
        return matched


class _Writer:
    """Writes integer operators into graphs."""

    def __init__(self, rewriter: Rewriter, grid: Grid, per_channel: bool):
        self.rewriter = rewriter
        self.originals: list[ir.Value | None] = []
        self._grid = grid
        self._per_channel = per_channel
        self._inputs: dict[tuple[ir.Value, ir.Graph | None], list[ir.Value]] = {}
        self._weights: dict[tuple[ir.Value, int, float], tuple[ir.Value, ir.Value]] = {}

    def replace(self, matched: WeightedNode) -> None:
        """Puts the integer form in the place of one operator."""
        node = matched.node
        data = matched.data
        if node.op_type == "Gemm" and node.attributes.get_int("transA", 0) == 1:
            data = self._op(node, "Transpose", [data], {"perm": [1, 0]}, data.dtype)[0]
        numbers, scale, zero = self._quantized(data, node)
        weights, weight_scale = self._quantized_weights(matched)
        integer = "ConvInteger" if node.op_type == "Conv" else "MatMulInteger"
        attributes = dict(node.attributes) if node.op_type == "Conv" else {}
        total = self._op(node, integer, [numbers, weights, zero], attributes, ir.DataType.INT32)
        restored = self._op(node, "Cast", total, {"to": int(ir.DataType.FLOAT)})
        factor = self._op(node, "Mul", [scale, weight_scale])
        result = self._op(node, "Mul", [*restored, *factor])
        bias = self._bias(matched)
        if bias is not None:
            result = self._op(node, "Add", [*result, bias])
        self.originals.extend((matched.weight, *([matched.bias] if node.op_type != "MatMul" else [])))
        self.rewriter.replace(node, result)

    def _quantized(self, data: ir.Value, before: ir.Node) -> list[ir.Value]:
        """(uint8 numbers, scale, zero point) of a value."""
        key = data, before.graph
        if key not in self._inputs:
            self._inputs[key] = self._op(
                before, "DynamicQuantizeLinear", [data], {}, ir.DataType.UINT8, outputs=3
            )
            for value, dtype in zip(
                self._inputs[key][1:], (ir.DataType.FLOAT, ir.DataType.UINT8), strict=True
            ):
                value.type, value.shape = ir.TensorType(dtype), ir.Shape([])
            self._inputs[key][0].shape = data.shape
        return self._inputs[key]

    def _quantized_weights(self, matched: WeightedNode) -> tuple[ir.Value, ir.Value]:
        """int8 weights as the integer operator wants them, and their scales, shaped for its result."""
        node = matched.node
        transposed = node.op_type == "Gemm" and node.attributes.get_int("transB", 0) == 1
        key = matched.weight, 1 if transposed else 0, matched.weight_factor
        if key not in self._weights:
            array = constant_array(matched.weight)
            assert array is not None
            array = np.asarray(array * np.float32(matched.weight_factor), np.float32)
            axis = matched.axis if self._per_channel else None
            scales = weight_scales(array, axis, self._grid)
            scales = np.where(scales > 0.0, np.maximum(scales, 1e-37), 1.0).astype(np.float32)
            stored = quantize(array, scales, 0, self._grid, axis)
            if node.op_type == "Conv" and scales.ndim:
                scales = scales.reshape(-1, *[1] * (array.ndim - 2))
            name = str(matched.weight.name)
            self._weights[key] = (
                self.rewriter.initializer(f"{name}_quantized", stored.T.copy() if transposed else stored),
                self.rewriter.initializer(f"{name}_scale", scales),
            )
        return self._weights[key]

    def _bias(self, matched: WeightedNode) -> ir.Value | None:
        """The bias in float, shaped for the result; that of a MatMul is an Add of its own already."""
        node = matched.node
        if node.op_type == "MatMul" or matched.bias is None:
            return None
        array = constant_array(matched.bias)
        if node.op_type == "Gemm" and matched.bias_factor != 1.0:
            if array is None:
                factor = self.rewriter.initializer("beta", np.asarray(matched.bias_factor, np.float32))
                return self._op(node, "Mul", [matched.bias, factor])[0]
            array = np.asarray(array * np.float32(matched.bias_factor), np.float32)
            return self.rewriter.initializer(f"{matched.bias.name}_scaled", array)
        if node.op_type == "Gemm":
            return matched.bias
        assert matched.weight.shape is not None
        shape = [-1, *[1] * (len(matched.weight.shape) - 2)]
        if array is not None:
            return self.rewriter.initializer(f"{matched.bias.name}_shaped", array.reshape(shape))
        target = self.rewriter.initializer("shape", np.asarray(shape, np.int64))
        return self._op(node, "Reshape", [matched.bias, target])[0]

    def _op(
        self,
        before: ir.Node,
        op_type: str,
        inputs: list[ir.Value],
        attributes: dict | None = None,
        dtype: ir.DataType | None = ir.DataType.FLOAT,
        outputs: int = 1,
    ) -> list[ir.Value]:
        results = self.rewriter.insert_before(before, op_type, inputs, attributes, num_outputs=outputs)
        if dtype is not None:
            results[0].type = ir.TensorType(dtype)
        keep_only_the_module(results[0].producer())
        return results
