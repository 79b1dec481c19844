"""Pairs of QuantizeLinear and DequantizeLinear in forms that torch's exporter does not write.

A torch module made by `to_torch` exports such a pair (4 or 16 bits, blocks, no zero point) as one of ours,

    FakeQuantize(x, scale[, zero point]; low, high, axis, block_size)

and `trace` makes the pair of it once the graph is in the canonical opset.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from .constants import constant_array

DOMAIN, OP_TYPE = "graphwright", "FakeQuantize"

_TYPES = {
    (-2, 1): ir.DataType.INT2,
    (0, 3): ir.DataType.UINT2,
    (-8, 7): ir.DataType.INT4,
    (0, 15): ir.DataType.UINT4,
    (-128, 127): ir.DataType.INT8,
    (0, 255): ir.DataType.UINT8,
    (-32768, 32767): ir.DataType.INT16,
    (0, 65535): ir.DataType.UINT16,
}
GRIDS = frozenset(_TYPES)
"""Least and largest integer of the types that a pair may have."""


def restore_pairs(model: ir.Model) -> None:
    """Replace every FakeQuantize of the model, in place."""
    for node in list(model.graph):
        if node.op_type == OP_TYPE and node.domain == DOMAIN:
            _restore(node, model.graph)
    model.graph.opset_imports.pop(DOMAIN, None)


def _restore(node: ir.Node, graph: ir.Graph) -> None:
    x, scale, *given = node.inputs
    output = node.outputs[0]
    low, high = (node.attributes.get_int(name, 0) for name in ("low", "high"))
    dtype = _TYPES[low, high]
    made: list[ir.Node] = []
    zero = _as_type(given[0], dtype, made) if given and given[0] is not None else None
    attributes = {"axis": node.attributes.get_int("axis", 1)}
    block = node.attributes.get_int("block_size", 0)
    if block:
        attributes["block_size"] = block
    own = attributes if zero is not None else {**attributes, "output_dtype": int(dtype)}
    operands = [scale] if zero is None else [scale, zero]
    quantize = ir.node("QuantizeLinear", [x, *operands], own, name=f"{node.name}_quantize")
    integers = quantize.outputs[0]
    integers.name, integers.shape = f"{output.name}_quantized", output.shape
    integers.type = ir.TensorType(dtype)
    restore = ir.node("DequantizeLinear", [integers, *operands], attributes, name=node.name)
    result = restore.outputs[0]
    result.name, result.shape, result.type = output.name, output.shape, output.type
    for each in (quantize, restore):
        each.metadata_props.update(node.metadata_props)
    graph.insert_before(node, [*made, quantize, restore])
    ir.convenience.replace_all_uses_with(output, result, replace_graph_outputs=True)
    graph.remove(node, safe=True)


def _as_type(zero: ir.Value, dtype: ir.DataType, made: list[ir.Node]) -> ir.Value:
    """A zero point in the type of the grid; torch holds it in a wider one."""
    if zero.dtype == dtype:
        return zero
    array = constant_array(zero)
    if array is None:
        node = ir.node("Cast", [zero], {"to": int(dtype)}, name=f"{zero.name}_cast")
    else:
        stored = ir.tensor(
            np.asarray(array.astype(np.int64).astype(dtype.numpy())), name=f"{zero.name}_narrow"
        )
        node = ir.node("Constant", [], {"value": stored}, name=f"{zero.name}_narrow")
    value = node.outputs[0]
    value.name, value.shape, value.type = f"{node.name}_value", zero.shape, ir.TensorType(dtype)
    made.append(node)
    return value
