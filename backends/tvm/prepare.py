"""What is known when the model is compiled: constants evaluated, everything else as operators."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from ...ir.constants import constant_array, evaluate_values, is_deterministic
from ...ir.errors import CompileError
from ...ir.shapes import infer_shapes
from ...passes.rewriter import Rewriter
from .elementwise import ELEMENTWISE_TYPES
from .op import Op, Type, attributes_of, static_positions, type_of
from .roles import is_scalar_static

_MAX_ROUNDS = 8
_NOTHING = Type((), "float32")


@dataclass
class Prepared:
    """A graph that holds only work to be done at run time.

    Attributes:
        graph: the graph; nodes that are constant are still in it but not in `ops`.
        ops: the operators to lower, in execution order.
        constants: contents of every constant value that is read by them or is a graph output.
    """

    graph: ir.Graph
    ops: dict[ir.Node, Op]
    constants: dict[ir.Value, np.ndarray]


def prepare(model: ir.Model) -> Prepared:
    """Evaluate what depends on constants only and describe the rest as operators.

    Raises:
        CompileError: a node has a subgraph or calls a function of the model.
        ShapeError: a shape is not static.
    """
    graph = model.graph
    _resolve_shape_queries(model)
    known = _constant_values(graph)
    live = _live_nodes(graph, known)
    constants = _contents(model, graph, known, live)
    ops = {node: describe(node, constants) for node in graph if node in live}
    return Prepared(graph, ops, constants)


def _constant_values(graph: ir.Graph) -> set[ir.Value]:
    """Values that do not depend on inputs of the model."""
    inputs = set(graph.inputs)
    known = {value for value in graph.initializers.values() if value not in inputs}
    for node in graph:
        if not is_deterministic(node) or _has_graphs(node):
            continue
        if all(value is None or value in known for value in node.inputs):
            known.update(node.outputs)
    return known


def _has_graphs(node: ir.Node) -> bool:
    kinds = (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)
    return any(attribute.type in kinds for attribute in node.attributes.values())


def _live_nodes(graph: ir.Graph, known: set[ir.Value]) -> set[ir.Node]:
    """Nodes that outputs depend on and that are not constant."""
    live: set[ir.Node] = set()
    stack = [value for value in graph.outputs if value not in known]
    while stack:
        node = stack.pop().producer()
        if node is None or node in live:
            continue
        if _has_graphs(node):
            raise CompileError(
                f"node '{node.name}' ({node.op_type}) has a body that depends on data; "
                "the TVM backend compiles straight-line graphs only"
            )
        live.add(node)
        stack.extend(value for value in node.inputs if value is not None and value not in known)
    return live


def _contents(
    model: ir.Model, graph: ir.Graph, known: set[ir.Value], live: set[ir.Node]
) -> dict[ir.Value, np.ndarray]:
    wanted = [value for node in graph if node in live for value in node.inputs if value in known]
    wanted = list(dict.fromkeys([*wanted, *(value for value in graph.outputs if value in known)]))
    constants: dict[ir.Value, np.ndarray] = {}
    computed = []
    for value in wanted:
        array = constant_array(value)
        if array is None:
            computed.append(value)
        else:
            constants[value] = array
    if computed:
        constants.update(zip(computed, evaluate_values(model, computed), strict=True))
    return constants


def _resolve_shape_queries(model: ir.Model) -> None:
    """Put constants in the place of Shape and Size, then find the shapes that depended on them.

    Every round may make further shapes known that queries wait for.
    """
    for _ in range(_MAX_ROUNDS):
        rewriter = Rewriter(model, origin="lowering")
        for node in list(model.graph):
            array = _answer(node)
            if array is not None:
                rewriter.replace(node, [rewriter.initializer(f"{node.outputs[0].name}_known", array)])
        unknown = [value for node in model.graph for value in node.outputs if not _has_static_shape(value)]
        if not rewriter.changes or not unknown:
            return
        _fold_static_inputs(model, rewriter)
        infer_shapes(model)


def _fold_static_inputs(model: ir.Model, rewriter: Rewriter) -> None:
    """Store constants that decide shapes, so that shape inference sees them."""
    known = _constant_values(model.graph)
    wanted = {
        value: None
        for node in model.graph
        for position in static_positions(node.op_type)
        if position < len(node.inputs) and (value := node.inputs[position]) is not None
        if value in known and constant_array(value) is None
    }
    for value, array in zip(wanted, evaluate_values(model, list(wanted)), strict=True):
        rewriter.replace_uses(value, rewriter.initializer(f"{value.name}_known", array))


def _has_static_shape(value: ir.Value) -> bool:
    return value.shape is not None and all(isinstance(dim, int) for dim in value.shape)


def _answer(node: ir.Node) -> np.ndarray | None:
    """The result of Shape or Size on a value of static shape."""
    if node.op_type not in {"Shape", "Size"} or node.domain not in ("", "ai.onnx"):
        return None
    source = node.inputs[0]
    if source is None or not _has_static_shape(source):
        return None
    shape = np.array(type_of(source).shape, np.int64)
    if node.op_type == "Size":
        return np.array(shape.prod(), np.int64)
    attributes = attributes_of(node)
    return shape[slice(attributes.get("start", 0), attributes.get("end"))]


def describe(node: ir.Node, constants: dict[ir.Value, np.ndarray]) -> Op:
    """A node as an operator."""
    static = {}
    wanted = static_positions(node.op_type)
    for position, value in enumerate(node.inputs):
        if value is None or value not in constants:
            continue
        array = constants[value]
        scalar = node.op_type in ELEMENTWISE_TYPES and is_scalar_static(node.op_type, position, array)
        if position in wanted or scalar:
            static[position] = array
    return Op(
        node.op_type if node.domain in ("", "ai.onnx") else f"{node.domain}::{node.op_type}",
        node.name or node.op_type,
        attributes_of(node),
        tuple(type_of(value) if value is not None else None for value in node.inputs),
        tuple(
            type_of(value) if value.uses() or value.is_graph_output() else _NOTHING for value in node.outputs
        ),
        static,
        frozenset(i for i, value in enumerate(node.inputs) if value is not None and value in constants),
        used_outputs=tuple(bool(value.uses()) or value.is_graph_output() for value in node.outputs),
    )


def _output_type(value: ir.Value) -> Type:
    """The type of an output; what nobody reads may be unknown."""
    unused = not value.uses() and not value.is_graph_output()
    return _NOTHING if unused and (value.dtype is None or not _has_static_shape(value)) else type_of(value)
