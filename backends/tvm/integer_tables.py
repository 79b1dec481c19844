"""Functions of one 8-bit number become tables of 256.

    DequantizeLinear -> Sigmoid -> Mul -> QuantizeLinear   ->   integer::Table(x, table)

What element-wise operators make of a quantized tensor and constants is known for all 256 numbers when a model
is compiled. The reference computes the table, so results are its results to the bit.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from ...ir.constants import constant_array, evaluate_values, is_deterministic_alone
from ...ir.static import static_shape
from ...passes.rewriter import Rewriter
from .expressions import ELEMENTWISE, EXPENSIVE
from .integer_ops import DOMAIN
from .op import attributes_of

_MOST_NODES = 24
"""Operators in one table, at most: longer chains are cut where they are quantized."""
_SMALL = (ir.DataType.INT8, ir.DataType.UINT8)
_QUANTIZERS = frozenset({"QuantizeLinear", "DequantizeLinear"})


@dataclass(frozen=True)
class _Function:
    """A value as a function of an 8-bit tensor: the tensor, and the nodes in between, first to last."""

    of: ir.Value
    nodes: tuple[ir.Node, ...] = ()


def tabulate(model: ir.Model, rewriter: Rewriter) -> None:
    """Replace what is worth it, in place: chains that hold something more expensive than a look-up."""
    found = {}
    functions: dict[ir.Value, _Function] = {}
    for node in model.graph:
        function = _function(node, functions)
        if function is None:
            continue
        output = node.outputs[0]
        functions[output] = function
        if node.op_type == "QuantizeLinear" and any(each.op_type in EXPENSIVE for each in function.nodes):
            found[node] = function
    read = {node: function for node, function in found.items() if _is_read_outside(node, found)}
    tables = _contents(list(read.values()))
    replaced: dict[ir.Value, ir.Value] = {}
    for (node, function), table in zip(read.items(), tables, strict=True):
        stored = rewriter.initializer(f"{node.name}/table", table)
        data, output, source = replaced.get(function.of, function.of), node.outputs[0], node.inputs[0]
        (made,) = rewriter.insert_before(node, "Table", [data, stored], {}, domain=DOMAIN)
        made.type, made.shape = output.type, output.shape
        rewriter.replace(node, [made])
        replaced[output] = made
        rewriter.erase_unread(source.producer() if source is not None else None)


def _function(node: ir.Node, functions: dict[ir.Value, _Function]) -> _Function | None:
    """What the output of a node is a function of; None where it depends on more than one 8-bit tensor."""
    quantizer = node.op_type in _QUANTIZERS
    if node.domain not in ("", "ai.onnx") or not (quantizer or node.op_type in ELEMENTWISE):
        return None
    if len(node.outputs) != 1 or not is_deterministic_alone(node):
        return None
    data = node.inputs[0]
    if node.op_type == "DequantizeLinear" and data is not None and data.dtype in _SMALL:
        operands = [functions.get(data, _Function(data))] if constant_array(data) is None else []
        constants = list(node.inputs[1:])
    else:
        constants = [each for each in node.inputs if each is not None and constant_array(each) is not None]
        given = [each for each in node.inputs if each is not None and constant_array(each) is None]
        if any(each not in functions for each in given):
            return None
        operands = [functions[each] for each in given]
    if node.op_type == "QuantizeLinear" and node.outputs[0].dtype not in _SMALL:
        return None
    sizes = [constant_array(each, 1) for each in constants if each is not None]
    if not operands or any(each is None or each.size != 1 for each in sizes):
        return None
    if len({each.of for each in operands}) != 1 or _grows(node, operands[0].of):
        return None
    nodes = dict.fromkeys(each for operand in operands for each in operand.nodes)
    if len(nodes) >= _MOST_NODES:
        # The chain begins anew at the integers that are read here.
        return _Function(data, (node,)) if data is not None and data.dtype in _SMALL else None
    return _Function(operands[0].of, (*nodes, node))


def _grows(node: ir.Node, root: ir.Value) -> bool:
    """Whether a constant of several axes gives the output a shape of its own."""
    shape = static_shape(node.outputs[0])
    return shape is None or shape != static_shape(root)


def _is_read_outside(node: ir.Node, found: dict[ir.Node, _Function]) -> bool:
    """Whether a table is needed for more than a longer one that goes on from it."""
    value = node.outputs[0]
    if value.is_graph_output():
        return True
    pending = [user for user, _ in value.uses()]
    inside = {each for function in found.values() for each in function.nodes if node in function.nodes}
    seen = set()
    while pending:
        user = pending.pop()
        if user in found:
            continue
        if user not in inside or user.outputs[0].is_graph_output():
            return True
        if user not in seen:
            seen.add(user)
            pending.extend(each for each, _ in user.outputs[0].uses())
    return False


def _contents(functions: list[_Function]) -> list[np.ndarray]:
    """The table of each function, by the bits of the number it is asked for."""
    ends = []
    for number, function in enumerate(functions):
        dtype = function.of.dtype
        assert dtype is not None
        every = np.arange(256, dtype=np.uint8).view(dtype.numpy())
        held = {function.of: _constant(every, f"every{number}")}
        for place, node in enumerate(function.nodes):
            inputs = [_copied(each, held, f"c{number}_{place}_{i}") for i, each in enumerate(node.inputs)]
            attributes = attributes_of(node)
            if node.op_type in _QUANTIZERS:
                attributes.pop("axis", None)
            copy = ir.node(node.op_type, inputs, attributes, name=f"n{number}_{place}")
            copy.outputs[0].name = f"v{number}_{place}"
            held[node.outputs[0]] = copy.outputs[0]
        ends.append(held[function.nodes[-1].outputs[0]])
    return [array.reshape(256) for array in evaluate_values(None, ends)]


def _copied(value: ir.Value | None, held: dict[ir.Value, ir.Value], name: str) -> ir.Value | None:
    if value is None or value in held:
        return held[value] if value is not None else None
    array = constant_array(value)
    assert array is not None
    return _constant(array.reshape(()), name)


def _constant(array: np.ndarray, name: str) -> ir.Value:
    node = ir.node("Constant", [], {"value": ir.tensor(np.array(array), name=name)})
    node.outputs[0].name = name
    return node.outputs[0]
