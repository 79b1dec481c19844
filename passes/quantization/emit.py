"""Writes a quantization plan into the graph."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from ...ir.constants import constant_array
from ...ir.provenance import NAME_SCOPES_KEY
from ..base import PassContext
from ..fold_constants import STORAGE_KEY
from ..leftovers import drop_unread
from ..rewriter import FROM_KEY, PASS_KEY, Rewriter
from .arithmetic import (
    Grid,
    best_weight_scales,
    dtype_named,
    fit_scales,
    quantize,
    quantize_bias,
    weight_ends,
    weight_scales,
    zero_points,
)
from .mixing import Mixture
from .operators import WeightedNode, clip_bounds
from .placement import Plan
from .precisions import Formats
from .scales import Scale, Scales
from .signed import moved_results, widen_bias
from .tables import Table

# Of a bias with a scale of its own: rounded far below float32, with room for corrections.
_BIAS_BITS = 28


def emit(
    model: ir.Model,
    plan: Plan,
    scales: Scales,
    mixture: Mixture,
    formats: Formats,
    context: PassContext,
    selects: Callable[[ir.Node], bool] = lambda node: True,
) -> None:
    """Inserts the pairs, stores weights and biases as integers, and drops the float originals nobody reads.

    Args:
        model: the model, changed through the context's rewriter.
        plan: what to quantize.
        scales: scale of every value in the plan.
        mixture: grid of every value in the plan.
        formats: number formats of the layers' weights.
        context: rewriter and statistics.
        selects: whether the user lets a node be quantized.
    """
    rewriter = context.rewriter(model)
    weights = _WeightStore(rewriter, formats)
    inputs = {part.node: scales.read_by(part.node, part.data, mixture) for part in plan.weighted}
    weights.settle(plan, inputs)
    activations = _ActivationStore(rewriter, formats.table.restore_floats)
    for matched in plan.weighted:
        weights.attach(matched, inputs[matched.node])
        if matched.node.op_type == "MatMul" and inputs[matched.node].grid.dtype == "int8":
            widen_bias(matched, rewriter)
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
    for before, behind in _unfitting_tails(plan, scales, formats.table):
        activations.attach(before, scales.of[behind], [], everywhere=True)
        context.count("pairs in front of activations")
    moving: list[tuple[ir.Value, Scale]] = []
    for value in plan.values:
        restored = activations.attach(value, scales.of[value], readers[value], everywhere=value in written)
        context.count("quantized activations")
        for (extra, grid), nodes in mixture.extras.items():
            if extra is value:
                activations.attach(restored, scales.extra[value, grid], nodes, everywhere=False)
                context.count("requantized activations")
        if value in written and scales.of[value].grid.dtype == "int8":
            moving.append((restored, scales.of[value]))
    while moving:
        restored, scale = moving.pop()
        for result in moved_results(restored, formats.table, selects):
            moving.append((activations.attach(result, scale, [], everywhere=True), scale))
            context.count("integers moved on")
    drop_unread(rewriter, [value for part in plan.weighted for value in (part.weight, part.bias)])


def _unfitting_tails(plan: Plan, scales: Scales, table: Table) -> list[tuple[ir.Value, ir.Value]]:
    """What kernels leave in front of a Relu or Clip that the grid behind it does not imply, and that behind.

    ONNX Runtime drops an activation whose bounds are those of the grid, and only then sees an integer kernel.
    Where zero lies inside the grid, a pair of the same scale in front of the activation makes it see one, and
    changes no number: rounding and clipping commute. TensorRT fuses activations as they are.
    """
    if table.restore_floats != "cast":
        return []
    found = []
    tails = [*(part.tail for part in plan.weighted), *(part.tail for part in plan.followers)]
    for tail in tails:
        behind = tail[-1].outputs[0] if tail else None
        if behind is None or behind not in scales.of or tail[-1].op_type not in ("Relu", "Clip"):
            continue
        scale, limits, before = scales.of[behind], clip_bounds(tail[-1]), tail[-1].inputs[0]
        if limits is None or before is None or scale.grid.is_float or scale.grid.steps > 255:
            continue
        low, high = (
            (end - scale.zero_point) * float(scale.scale) for end in (scale.grid.low, scale.grid.high)
        )
        # Half a step of rounding apart, as the runtime looks at it.
        half = 0.5 * float(scale.scale)
        if low < limits[0] - half or high > limits[1] + half:
            found.append((before, behind))
    return found


class _ActivationStore:
    """Puts pairs behind values; values of one scale share the constants."""

    def __init__(self, rewriter: Rewriter, restore_floats: str):
        self._rewriter = rewriter
        self._restore_floats = restore_floats
        self._constants: dict[int, tuple[ir.Value, ir.Value]] = {}

    def attach(self, value: ir.Value, scale: Scale, readers: list[ir.Node], *, everywhere: bool) -> ir.Value:
        """Quantizes a value and returns what is restored from it.

        Args:
            value: what an integer node reads or writes.
            scale: its group's scale.
            readers: integer nodes that read it.
            everywhere: whether an integer kernel makes it; then nobody sees the float number any more,
                otherwise only `readers` see the quantized one.
        """
        rewriter = self._rewriter
        operands = self._operands(value, scale)
        if scale.grid.is_float and self._restore_floats == "cast":
            first, restored = self._narrowed_and_restored(value, scale, operands[0])
        else:
            first, restored = self._pair(value, scale, operands)
        restored.type, restored.shape = value.type, value.shape
        if everywhere:
            rewriter.replace_uses(value, restored)
            rewriter.set_input(first, 0, value)
            return restored
        for reader in dict.fromkeys(readers):
            for index, operand in enumerate(reader.inputs):
                if operand is value:
                    rewriter.set_input(reader, index, restored)
        return restored

    def _pair(
        self, value: ir.Value, scale: Scale, operands: tuple[ir.Value, ir.Value]
    ) -> tuple[ir.Node, ir.Value]:
        """QuantizeLinear and DequantizeLinear; the first node and what comes out behind."""
        quantized = self._insert(value, "QuantizeLinear", [value, *operands], f"{value.name}_quantized")
        first = quantized.producer()
        assert first is not None
        quantized.type = ir.TensorType(ir.DataType.from_numpy(dtype_named(scale.grid.dtype)))
        (restored,) = self._rewriter.insert_after(
            first, "DequantizeLinear", [quantized, *operands], name=f"{value.name}_dequantized"
        )
        keep_only_the_module(restored.producer())
        return first, restored

    def _narrowed_and_restored(
        self, value: ir.Value, scale: Scale, factor: ir.Value
    ) -> tuple[ir.Node, ir.Value]:
        """The same for 8-bit floats by Div, Cast, Cast and Mul; see `Table.restore_floats`."""
        scaled = self._insert(value, "Div", [value, factor], f"{value.name}_scaled")
        first = scaled.producer()
        assert first is not None
        first.metadata_props[STORAGE_KEY] = "stores"
        scaled.type = value.type
        to = ir.DataType.from_numpy(dtype_named(scale.grid.dtype))
        (narrow,) = self._rewriter.insert_after(
            first, "Cast", [scaled], {"to": int(to), "saturate": 1}, name=f"{value.name}_quantized"
        )
        narrow.type, narrow.shape = ir.TensorType(to), value.shape
        cast = narrow.producer()
        assert cast is not None
        keep_only_the_module(cast)
        return first, restore_by_cast(self._rewriter, cast, narrow, factor, str(value.name), after=True)

    def _insert(self, value: ir.Value, op_type: str, inputs: list[ir.Value], name: str) -> ir.Value:
        """A node right behind the value."""
        producer = value.producer()
        if producer is not None:
            (result,) = self._rewriter.insert_after(producer, op_type, inputs, name=name)
        else:
            assert isinstance(value.graph, ir.Graph)
            (result,) = self._rewriter.insert_before(value.graph[0], op_type, inputs, name=name)
        keep_only_the_module(result.producer())
        result.shape = value.shape
        return result

    def _operands(self, value: ir.Value, scale: Scale) -> tuple[ir.Value, ir.Value]:
        if id(scale) not in self._constants:
            self._constants[id(scale)] = (
                self._rewriter.initializer(f"{value.name}_scale", np.asarray(scale.scale, np.float32)),
                self._rewriter.initializer(
                    f"{value.name}_zero_point", np.asarray(scale.zero_point, dtype_named(scale.grid.dtype))
                ),
            )
        return self._constants[id(scale)]


@dataclass(frozen=True)
class _Key:
    """One quantized copy of a weight tensor: shared by all nodes that use it in the same way."""

    weight: ir.Value
    axis: int | None
    factor: float
    grid: Grid


class _WeightStore:
    """Quantizes weights once per tensor and biases once per node."""

    def __init__(self, rewriter: Rewriter, formats: Formats):
        self._rewriter = rewriter
        self._formats = formats
        self._scales: dict[_Key, np.ndarray] = {}
        self._made: dict[_Key, ir.Value] = {}

    def settle(self, plan: Plan, inputs: Mapping[ir.Node, Scale]) -> None:
        """Fixes the scales of all weights, so that the biases of all their users fit."""
        for matched in plan.weighted:
            key = self._key(matched)
            if key not in self._scales:
                self._scales[key] = _first_scales(key)
            bias = matched.bias_array() if matched.kind.bias == "int32" else None
            needed = None if bias is None else matched.per_weight_channel(bias)
            self._scales[key] = fit_scales(self._scales[key], float(inputs[matched.node].scale), needed)

    def _key(self, matched: WeightedNode) -> _Key:
        axis = matched.axis if matched.kind.per_channel else None
        grid = self._formats.weights(matched.node, matched.kind)
        return _Key(matched.weight, axis, matched.weight_factor, grid)

    def attach(self, matched: WeightedNode, input_scale: Scale) -> None:
        """Lets a node read int8 weights and an int32 bias."""
        key = self._key(matched)
        if key not in self._made:
            self._made[key] = self._dequantized_weights(key, matched.node)
        scales = self._scales[key]
        self._rewriter.set_input(matched.node, 1, self._made[key])
        if matched.weight_factor != 1.0:
            self._rewriter.set_attribute(matched.node, "alpha", 1.0)
        restored = self._restored_bias(matched, input_scale, scales)
        if restored is None:
            return
        if matched.bias_factor != 1.0:
            self._rewriter.set_attribute(matched.node, "beta", 1.0)
        assert matched.bias_node is not None
        self._rewriter.set_input(matched.bias_node, matched.bias_index, restored)

    def _dequantized_weights(self, key: _Key, before: ir.Node) -> ir.Value:
        scales, hint = self._scales[key], key.weight.name
        array = _weights(key)
        zeros: np.ndarray | int = key.grid.middle
        if not key.grid.symmetric:
            zeros = zero_points(weight_ends(array, key.axis)[0], scales, key.grid)
        stored = quantize(array, scales, zeros, key.grid, key.axis)
        if key.grid.is_float and self._formats.table.restore_floats == "cast":
            return self._cast(before, stored, scales, str(hint), key.axis)
        return self._dequantize(before, stored, scales, str(hint), key.axis, zeros)

    def _cast(
        self, before: ir.Node, stored: np.ndarray, scales: np.ndarray, hint: str, axis: int | None
    ) -> ir.Value:
        """Weights in 8-bit floats by Cast and Mul; see `Table.restore_floats`."""
        rewriter = self._rewriter
        if axis is not None:
            scales = np.expand_dims(scales, [i for i in range(stored.ndim) if i != axis % stored.ndim])
        held = rewriter.initializer(f"{hint}_quantized", stored)
        factor = rewriter.initializer(f"{hint}_scale", scales)
        return restore_by_cast(rewriter, before, held, factor, hint, after=False)

    def _restored_bias(
        self, matched: WeightedNode, input_scale: Scale, scales: np.ndarray
    ) -> ir.Value | None:
        """The bias as int32; None where it stays as it is."""
        bias = matched.bias_array()
        if bias is None or matched.bias is None:
            return None
        if matched.kind.bias == "int32":
            products = matched.per_channel(np.asarray(scales * input_scale.scale, np.float32))
        elif self._formats.weights(matched.node, matched.kind).is_float or not np.isfinite(bias).all():
            return None
        else:
            # ONNX Runtime rounds a float bias between integers to the product of their scales, which 32 bits
            # do not hold where both have 16 bits. At a scale of its own it is left alone.
            largest = float(np.abs(bias).max(initial=0.0))
            products = np.asarray(largest * 2.0**-_BIAS_BITS if largest > 0.0 else 1.0, np.float32)
            products = np.asarray(np.maximum(products, np.finfo(np.float32).tiny))
        stored = quantize_bias(bias, products)
        axis = 0 if products.ndim else None
        return self._dequantize(matched.node, stored, products, str(matched.bias.name), axis)

    def _dequantize(
        self,
        before: ir.Node,
        stored: np.ndarray,
        scales: np.ndarray,
        hint: str,
        axis: int | None,
        zeros: np.ndarray | int = 0,
    ) -> ir.Value:
        rewriter = self._rewriter
        # By way of bytes where the type is smaller than one.
        whole = np.broadcast_to(np.asarray(zeros, np.float32), scales.shape).astype(np.int32)
        operands = [
            rewriter.initializer(f"{hint}_quantized", stored),
            rewriter.initializer(f"{hint}_scale", scales),
            rewriter.initializer(f"{hint}_zero_point", whole.astype(stored.dtype)),
        ]
        attributes = {} if axis is None else {"axis": axis}
        (restored,) = rewriter.insert_before(
            before, "DequantizeLinear", operands, attributes, name=f"{hint}_dequantized"
        )
        restored.type, restored.shape = ir.TensorType(ir.DataType.FLOAT), ir.Shape(list(stored.shape))
        keep_only_the_module(restored.producer())
        return restored


def restore_by_cast(
    rewriter: Rewriter, anchor: ir.Node, stored: ir.Value, scale: ir.Value, hint: str, *, after: bool
) -> ir.Value:
    """Restores 8-bit floats by Cast and Mul, behind a node or in front of it."""
    insert = rewriter.insert_after if after else rewriter.insert_before
    (wide,) = insert(anchor, "Cast", [stored], {"to": int(ir.DataType.FLOAT)}, name=f"{hint}_cast")
    cast = wide.producer()
    assert cast is not None
    (restored,) = rewriter.insert_after(cast, "Mul", [wide, scale], name=f"{hint}_dequantized")
    for value in (wide, restored):
        value.type, value.shape = ir.TensorType(ir.DataType.FLOAT), stored.shape
        node = value.producer()
        assert node is not None
        keep_only_the_module(node)
        node.metadata_props[STORAGE_KEY] = "restores"
    return restored


def keep_only_the_module(node: ir.Node | None) -> None:
    """Drops what torch says about the neighbour that a pair was inserted at, all but its module path.

    A pair is no torch operator, and in small models the texts would outweigh the int8 weights.
    """
    assert node is not None
    ours = {PASS_KEY, FROM_KEY, NAME_SCOPES_KEY}
    for key in [key for key in node.metadata_props if key not in ours]:
        del node.metadata_props[key]


def _first_scales(key: _Key) -> np.ndarray:
    """Scales of the weights alone, float64 `[channels]` or 0-d; 0 where all are zero."""
    array = _weights(key)
    if not key.grid.symmetric:
        low, high = weight_ends(array, key.axis)
        scales = (high - low) / (key.grid.high - key.grid.low)
        positive = scales[scales > 0.0]
        return np.where(scales > 0.0, scales, positive.min() if positive.size else 0.0)
    few_bits = not key.grid.is_float and key.grid.steps < 100
    return (best_weight_scales if few_bits else weight_scales)(array, key.axis, key.grid)


def _weights(key: _Key) -> np.ndarray:
    array = constant_array(key.weight)
    assert array is not None
    return array if key.factor == 1.0 else array.astype(np.float64) * key.factor
