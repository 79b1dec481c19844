"""Weight-only quantization: weights small in the file, everything else in float.

    MatMul(x, W)   ->   MatMul(x, DequantizeLinear(W4, scales, axis=0, block_size=64))

No calibration is needed, any runtime of opset 21 runs the result, and memory traffic is what it saves.
Forms and their arithmetic stand in `quantization/weight_forms.py`, the operators that restore weights in
`quantization/weight_emit.py`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import onnx_ir as ir

from ..ir.bodies import all_graphs
from ..ir.constants import constant_array, constant_tensor
from ..ir.errors import PassError
from .base import Pass, PassContext
from .functions import flatten_functions
from .leftovers import drop_unread
from .quantization.arithmetic import array_problem
from .quantization.one_sided import one_sided_window
from .quantization.operators import DEFAULT_DOMAINS
from .quantization.original import remember_original
from .quantization.transposed import turn_weights
from .quantization.weight_emit import Layout, WeightWriter, stored_bytes
from .quantization.weight_forms import WEIGHT_FORMS, Encoded, Rule, WeightForm, encode
from .quantization.weight_sums import keep_sums
from .registry import register
from .rewriter import Rewriter

_RECURRENT = ("LSTM", "GRU", "RNN")
_CONVOLUTIONS = ("Conv", "ConvTranspose")
_OPERATORS = ("MatMul", "Gemm", "Conv", "ConvTranspose", "Gather", *_RECURRENT)


@register
@dataclass(frozen=True)
class QuantizeWeights(Pass):
    """Store weights in few bits (int8, int4, int2, ternary, binary, codebooks, ...); compute in float.

    Weights of MatMul, Gemm, Conv, ConvTranspose, recurrent operators and embedding tables (Gather). A block
    of numbers along what a product sums over shares one scale. Left alone, and reported: weights that are
    not constant, not float32, not finite, or smaller than `min_size`. Needs no calibration. Lossy.
    """

    name: ClassVar[str] = "quantize-weights"
    lossless: ClassVar[bool] = False

    form: Literal[
        "int8", "int4", "int2", "ternary", "binary", "kmeans", "power-of-two", "nf4", "fp4",
        "fp8-e4m3", "fp8-e5m2", "float16", "bfloat16",
    ] = "int8"  # fmt: skip
    """How weights are stored."""
    block: int | None = None
    """Numbers that share a scale, 0 for a whole row (per channel); by default 64 below 8 bits, else 0."""
    symmetric: bool = True
    """Whether zero stands in the middle; false gives every block a zero point (int8 and int4)."""
    bits: int = 4
    """With `form=kmeans` (1 to 8) and `form=power-of-two` (2 to 8): there are at most 2^bits levels."""
    scale: Literal["auto", "search", "absmax"] = "auto"
    """How scales are chosen: by the least squared error of a few candidates, by the largest magnitude, or
    (auto) by magnitude for convolutions in int8, int4 and nf4 and by error for all else."""
    sums: bool = True
    """Round some weights of convolutions, and of products behind a ReLU or the like, the other way, so that
    the errors of an output cancel."""
    signed_scales: bool = True
    """Let searched symmetric int4 scales be negative where that errs less; false for runtimes that refuse
    them, such as TensorRT."""
    min_size: int = 1024
    """Weights with fewer numbers stay in float: a scale and a table would weigh as much."""

    def __post_init__(self) -> None:
        super().__post_init__()
        lowest = 2 if self.form == "power-of-two" else 1
        if not lowest <= self.bits <= 8:
            raise PassError(f"{self.name}: option 'bits' must be {lowest} to 8, not {self.bits}")
        if self.block is not None and self.block < 0:
            raise PassError(f"{self.name}: option 'block' must be 0 or more, not {self.block}")
        if not self.symmetric and WEIGHT_FORMS[self.form].asymmetric is None:
            raise PassError(f"{self.name}: symmetric=false is there for int8 and int4, not for {self.form}")
        if self.block and WEIGHT_FORMS[self.form].is_cast:
            raise PassError(f"{self.name}: {self.form} has no scales, so 'block' means nothing")

    def apply(self, model: ir.Model, context: PassContext) -> None:
        """Encode each weight once and let its readers read what restores it."""
        flatten_functions(model, context)
        remember_original(model)
        store = _Store(self, context.rewriter(model), context)
        for graph in all_graphs(model):
            turn_weights(graph, self.selects, store.rewriter)
            for node in list(graph):
                if node.domain in DEFAULT_DOMAINS and node.op_type in _OPERATORS and self.selects(node):
                    self._visit(node, store, context)
        drop_unread(store.rewriter, store.originals)
        context.details.update(
            {"form": self.form, "weights": store.records, "bytes": [store.before, store.after]}
        )

    def _visit(self, node: ir.Node, store: _Store, context: PassContext) -> None:
        for index in _weight_inputs(node):
            weight = node.inputs[index]
            if constant_tensor(weight) is None:
                if node.op_type != "Gather":
                    context.leave(node, "its weights are not constant")
                continue
            assert weight is not None
            problem = self._problem(weight)
            if problem is not None:
                if node.op_type != "Gather" or weight.dtype == ir.DataType.FLOAT:
                    context.leave(node, problem)
                continue
            store.attach(node, index, weight)

    def _problem(self, weight: ir.Value) -> str | None:
        if weight.dtype != ir.DataType.FLOAT:
            return f"its weights are {weight.dtype}, not float32"
        tensor = constant_tensor(weight)
        assert tensor is not None
        if tensor.size < max(self.min_size, 1):
            return f"its weights are {tensor.size} numbers, fewer than min_size={self.min_size}"
        if len(tensor.shape) < 2:
            return "its weights are a vector"
        array = constant_array(weight)
        assert array is not None
        return array_problem(array, "its weights")


class _Store:
    """Encodes each weight once."""

    def __init__(self, options: QuantizeWeights, rewriter: Rewriter, context: PassContext):
        self.rewriter = rewriter
        self.originals: list[ir.Value] = []
        self.records: dict[str, dict[str, float | str]] = {}
        self.before = self.after = 0
        self._options = options
        self._form: WeightForm = WEIGHT_FORMS[options.form]
        self._context = context
        self._row_wise: set[ir.Value] = set()
        self._writer = WeightWriter(rewriter)
        self._encoded: dict[ir.Value, tuple[Encoded, Layout]] = {}
        self._restored: dict[tuple[ir.Value, ir.Graph | None], ir.Value] = {}

    def attach(self, node: ir.Node, index: int, weight: ir.Value) -> None:
        """Lets a node read a weight in its stored form."""
        encoded, layout = self._encode(node, index, weight)
        self._context.count(f"quantized {node.op_type}")
        if node.op_type == "Gather" and weight in self._row_wise:
            indices = node.inputs[1]
            assert indices is not None
            rows = self._writer.restore_rows(node, indices, str(weight.name), encoded, self._form)
            if rows is not None:
                self.rewriter.replace(node, [rows])
                return
        key = weight, node.graph
        if key not in self._restored:
            self._restored[key] = self._writer.restore(node, str(weight.name), encoded, layout, self._form)
        self.rewriter.set_input(node, index, self._restored[key])

    def _encode(self, node: ir.Node, index: int, weight: ir.Value) -> tuple[Encoded, Layout]:
        if weight not in self._encoded:
            array = constant_array(weight)
            assert array is not None
            options = self._options
            layout = _layout(node, index, array.shape)
            matrix = layout.matrix(array)
            encoded = encode(
                matrix,
                self._form,
                block=options.block,
                symmetric=options.symmetric,
                bits=options.bits,
                rule=_rule(options, node),
                signed_scales=options.signed_scales,
            )
            window = one_sided_window(node, index, array.shape) if options.sums else 0
            if window:
                encoded = keep_sums(encoded, matrix, window, _groups(node))
            self._encoded[weight] = encoded, layout
            # Rows can be picked in their stored form where nobody else wants the table.
            if len(array.shape) == 2 and len(weight.uses()) == 1 and node.attributes.get_int("axis", 0) == 0:
                self._row_wise.add(weight)
            self.originals.append(weight)
            self._record(weight, matrix, encoded)
        return self._encoded[weight]

    def _record(self, weight: ir.Value, matrix: np.ndarray, encoded: Encoded) -> None:
        noise = float(np.square(encoded.decode() - matrix, dtype=np.float64).sum())
        signal = float(np.square(matrix, dtype=np.float64).sum())
        sqnr = math.inf if noise == 0.0 else 10.0 * math.log10(signal / noise) if signal else -math.inf
        codes = encoded.codes
        bits = 8 * codes.dtype.itemsize if encoded.levels is None else math.log2(max(len(encoded.levels), 2))
        packed = codes.size * bits / 8 if encoded.levels is not None else stored_bytes([codes])
        self.before += matrix.nbytes
        self.after += math.ceil(packed) + stored_bytes([encoded.scales, encoded.zero_points])
        self.records[str(weight.name)] = {"sqnr_db": sqnr, "numbers": codes.size}


def _weight_inputs(node: ir.Node) -> tuple[int, ...]:
    """Which inputs of a node are weights."""
    if node.op_type == "Gather":
        return (0,)
    if node.op_type in _RECURRENT:
        return (1, 2)
    if node.op_type in ("MatMul", "Gemm") and constant_tensor(node.inputs[1]) is None:
        return (0,) if constant_tensor(node.inputs[0]) is not None else (1,)
    return (1,)


def _rule(options: QuantizeWeights, node: ir.Node) -> Rule:
    """Large weights of trained windows matter by more than their squares: cut off, they cost outputs more."""
    if options.scale != "auto":
        return options.scale
    largest = node.op_type in _CONVOLUTIONS and options.form in ("int8", "int4", "nf4")
    return "absmax" if largest else "search"


def _groups(node: ir.Node) -> int:
    """Parts of a row of the weight matrix that different outputs sum over."""
    return node.attributes.get_int("group", 1) if node.op_type == "ConvTranspose" else 1


def _layout(node: ir.Node, index: int, shape: tuple[int, ...]) -> Layout:
    """The axis that a product sums over; the kernel of a convolution is part of it."""
    shape = tuple(int(size) for size in shape)
    if node.op_type == "Conv":
        view = (shape[0], math.prod(shape[1:]))
        return Layout(shape, view, 1)
    if node.op_type == "ConvTranspose":
        return Layout(shape, shape, 0)
    if node.op_type == "MatMul":
        return Layout(shape, shape, len(shape) - 2 if index == 1 else len(shape) - 1)
    if node.op_type == "Gemm":
        flag = node.attributes.get_int("transB" if index == 1 else "transA", 0)
        return Layout(shape, shape, (1 if flag else 0) if index == 1 else (0 if flag else 1))
    # Embedding tables and recurrent weights `[directions, gates, inputs]`.
    return Layout(shape, shape, len(shape) - 1)
