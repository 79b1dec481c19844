"""Writes a quantization plan into the graph."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from ...ir.constants import constant_array
from ...ir.provenance import NAME_SCOPES_KEY
from ..base import PassContext
from ..leftovers import drop_unread
from ..rewriter import FROM_KEY, PASS_KEY, Rewriter
from .arithmetic import Grid, fit_scales, quantize, quantize_bias, weight_scales
from .operators import WeightedNode
from .placement import Plan
from .scales import Scale
from .tables import Table


def emit(
    model: ir.Model,
    plan: Plan,
    scales: dict[ir.Value, Scale],
    table: Table,
    reduce_range: bool | None,
    context: PassContext,
) -> None:
    """Inserts the pairs, stores weights and biases as integers, and drops the float originals nobody reads.

    Args:
        model: the model, changed through the context's rewriter.
        plan: what to quantize.
        scales: scale of every value in the plan.
        table: the target's number formats.
        reduce_range: see `Table.weight_grid`.
        context: rewriter and statistics.
    """
    rewriter = context.rewriter(model)
    weights = _WeightStore(rewriter, table.weight_grid(reduce_range))
    weights.settle(plan, scales)
    activations = _ActivationStore(rewriter, table.activations.grid.dtype)
    for matched in plan.weighted:
        weights.attach(matched, scales[matched.data])
        context.count(f"quantized {matched.node.op_type}")
    for follower in plan.followers:
        context.count(f"quantized {follower.node.op_type}")
    readers: dict[ir.Value, list[ir.Node]] = {value: [] for value in plan.values}
    written = {matched.result for matched in plan.weighted}
    for matched in plan.weighted:
        readers[matched.data].append(matched.node)
    for follower in plan.followers:
        written.update(follower.results)
        for value in follower.inputs:
            readers[value].append(follower.node)
    for value in plan.values:
        activations.attach(value, scales[value], readers[value], everywhere=value in written)
        context.count("quantized activations")
    drop_unread(rewriter, [value for part in plan.weighted for value in (part.weight, part.bias)])


class _ActivationStore:
    """Puts pairs behind values; values of one scale share the constants."""

    def __init__(self, rewriter: Rewriter, dtype: str):
        self._rewriter = rewriter
        self._dtype = dtype
        self._constants: dict[int, tuple[ir.Value, ir.Value]] = {}

    def attach(self, value: ir.Value, scale: Scale, readers: list[ir.Node], *, everywhere: bool) -> None:
        """Quantizes a value.

        Args:
            value: what an integer node reads or writes.
            scale: its group's scale.
            readers: integer nodes that read it.
            everywhere: whether an integer kernel makes it; then nobody sees the float number any more,
                otherwise only `readers` see the quantized one.
        """
        rewriter = self._rewriter
        operands = self._operands(value, scale)
        producer = value.producer()
        name = f"{value.name}_quantized"
        if producer is not None:
            (quantized,) = rewriter.insert_after(producer, "QuantizeLinear", [value, *operands], name=name)
        else:
            assert isinstance(value.graph, ir.Graph)
            (quantized,) = rewriter.insert_before(
                value.graph[0], "QuantizeLinear", [value, *operands], name=name
            )
        node = quantized.producer()
        assert node is not None
        keep_only_the_module(node)
        quantized.type = ir.TensorType(ir.DataType.from_numpy(np.dtype(self._dtype)))
        quantized.shape = value.shape
        (restored,) = rewriter.insert_after(
            node, "DequantizeLinear", [quantized, *operands], name=f"{value.name}_dequantized"
        )
        restored.type, restored.shape = value.type, value.shape
        keep_only_the_module(restored.producer())
        if everywhere:
            rewriter.replace_uses(value, restored)
            rewriter.set_input(node, 0, value)
            return
        for reader in dict.fromkeys(readers):
            for index, operand in enumerate(reader.inputs):
                if operand is value:
                    rewriter.set_input(reader, index, restored)

    def _operands(self, value: ir.Value, scale: Scale) -> tuple[ir.Value, ir.Value]:
        if id(scale) not in self._constants:
            self._constants[id(scale)] = (
                self._rewriter.initializer(f"{value.name}_scale", np.asarray(scale.scale, np.float32)),
                self._rewriter.initializer(
                    f"{value.name}_zero_point", np.asarray(scale.zero_point, self._dtype)
                ),
            )
        return self._constants[id(scale)]


@dataclass(frozen=True)
class _Key:
    """One quantized copy of a weight tensor: shared by all nodes that use it in the same way."""

    weight: ir.Value
    axis: int | None
    factor: float


class _WeightStore:
    """Quantizes weights once per tensor and biases once per node."""

    def __init__(self, rewriter: Rewriter, grid: Grid):
        self._rewriter = rewriter
        self._grid = grid
        self._scales: dict[_Key, np.ndarray] = {}
        self._made: dict[_Key, ir.Value] = {}

    def settle(self, plan: Plan, scales: dict[ir.Value, Scale]) -> None:
        """Fixes the scales of all weights, so that the biases of all their users fit."""
        for matched in plan.weighted:
            key = _key(matched)
            if key not in self._scales:
                self._scales[key] = weight_scales(_weights(key), key.axis, self._grid)
            bias = matched.bias_array() if matched.kind.bias == "int32" else None
            needed = None if bias is None else matched.per_weight_channel(bias)
            self._scales[key] = fit_scales(self._scales[key], float(scales[matched.data].scale), needed)

    def attach(self, matched: WeightedNode, input_scale: Scale) -> None:
        """Lets a node read int8 weights and an int32 bias."""
        key = _key(matched)
        if key not in self._made:
            self._made[key] = self._dequantized_weights(key, matched.node)
        scales = self._scales[key]
        self._rewriter.set_input(matched.node, 1, self._made[key])
        if matched.weight_factor != 1.0:
            self._rewriter.set_attribute(matched.node, "alpha", 1.0)
        if matched.bias is None or matched.kind.bias != "int32":
            return
        restored = self._dequantized_bias(matched, input_scale, scales)
        if matched.bias_factor != 1.0:
            self._rewriter.set_attribute(matched.node, "beta", 1.0)
        assert matched.bias_node is not None
        self._rewriter.set_input(matched.bias_node, matched.bias_index, restored)

    def _dequantized_weights(self, key: _Key, before: ir.Node) -> ir.Value:
        scales, hint = self._scales[key], key.weight.name
        stored = quantize(_weights(key), scales, 0, self._grid, key.axis)
        return self._dequantize(before, stored, scales, str(hint), key.axis)

    def _dequantized_bias(self, matched: WeightedNode, input_scale: Scale, scales: np.ndarray) -> ir.Value:
        bias = matched.bias_array()
        assert bias is not None and matched.bias is not None
        products = matched.per_channel(np.asarray(scales * input_scale.scale, np.float32))
        stored = quantize_bias(bias, products)
        return self._dequantize(matched.node, stored, products, str(matched.bias.name), 0)

    def _dequantize(
        self, before: ir.Node, stored: np.ndarray, scales: np.ndarray, hint: str, axis: int | None
    ) -> ir.Value:
        rewriter = self._rewriter
        operands = [
            rewriter.initializer(f"{hint}_quantized", stored),
            rewriter.initializer(f"{hint}_scale", scales),
            rewriter.initializer(f"{hint}_zero_point", np.zeros(scales.shape, stored.dtype)),
        ]
        attributes = {} if axis is None else {"axis": axis}
        (restored,) = rewriter.insert_before(
            before, "DequantizeLinear", operands, attributes, name=f"{hint}_dequantized"
        )
        restored.type, restored.shape = ir.TensorType(ir.DataType.FLOAT), ir.Shape(list(stored.shape))
        keep_only_the_module(restored.producer())
        return restored


def keep_only_the_module(node: ir.Node | None) -> None:
    """Drops what torch says about the neighbour that a pair was inserted at, all but its module path.

    A pair is no torch operator, and in small models the texts would outweigh the int8 weights.
    """
    assert node is not None
    ours = {PASS_KEY, FROM_KEY, NAME_SCOPES_KEY}
    for key in [key for key in node.metadata_props if key not in ours]:
        del node.metadata_props[key]


def _key(matched: WeightedNode) -> _Key:
    return _Key(matched.weight, matched.axis if matched.kind.per_channel else None, matched.weight_factor)


def _weights(key: _Key) -> np.ndarray:
    array = constant_array(key.weight)
    assert array is not None
    return array if key.factor == 1.0 else array.astype(np.float64) * key.factor
