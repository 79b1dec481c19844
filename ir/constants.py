"""Values that are known before a model runs: stored ones, and those computed by the reference."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from . import numpy_operators, ort
from .errors import ModelError
from .opset import CANONICAL_OPSET
from .tensors import element_type, tensor_of

# Same inputs, other result: never a constant.
_RANDOM = frozenset(
    {"RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Multinomial", "Bernoulli"}
)
_CONSTANT_LISTS = {
    "value_float": np.float32,
    "value_floats": np.float32,
}


def constant_array(value: ir.Value | None, limit: int | None = None) -> np.ndarray | None:
    """The contents of a stored constant: an initializer or the output of a `Constant` node.

    Args:
        value: any value, or None for an absent optional input.
        limit: largest number of elements wanted; a bigger constant gives None and is not read.

    Returns:
        A read-only view where possible (do not write to it), or None if the value is not a stored constant.
        A graph input with a default is not one: the caller of the model may override it.
    """
    tensor = constant_tensor(value)
    if tensor is None:
        return None
    if type(tensor) is ir.Tensor:
        array = tensor.raw
        if type(array) is np.ndarray:
            return array if limit is None or array.size <= limit else None
    return tensor.numpy() if limit is None or tensor.size <= limit else None


def constant_tensor(value: ir.Value | None) -> ir.TensorProtocol | None:
    """Like `constant_array` but without reading the data: dtype, shape and size are at hand."""
    # Asked more often than anything else; so without the properties.
    if value is None or value._is_graph_input:
        return None
    node = value._producer
    if node is None:
        return value._const_value if value._is_initializer else None
    if node._op_type != "Constant" or node._domain not in ("", "ai.onnx"):
        return None
    return _constant_node_tensor(node)


def _constant_node_tensor(node: ir.Node) -> ir.TensorProtocol | None:
    for name, attribute in node.attributes.data.items():
        if attribute.ref_attr_name is not None:
            return None
        if name == "value":
            # Not `as_tensor()`: its protocol check costs more than all the rest here.
            return attribute.value
        if name in ("value_int", "value_ints"):
            return tensor_of(_integers(attribute.value))
        if name in _CONSTANT_LISTS:
            return tensor_of(np.asarray(attribute.value, dtype=_CONSTANT_LISTS[name]))
        if name == "value_string":
            return ir.StringTensor([_text(attribute.value)], shape=ir.Shape([]))
        if name == "value_strings":
            texts = [_text(text) for text in attribute.value]
            return ir.StringTensor(texts, shape=ir.Shape([len(texts)]))
    return None


@functools.lru_cache(maxsize=1024)
def _integers(content: int | tuple[int, ...]) -> np.ndarray:
    """What an attribute holds as an array that all who ask share; few attributes differ."""
    array = np.asarray(content, np.int64)
    array.flags.writeable = False
    return array


def _text(text: str | bytes) -> bytes:
    return text.encode() if isinstance(text, str) else text


def is_deterministic(node: ir.Node) -> bool:
    """Whether a node, bodies included, gives the same result for the same inputs each time."""
    if not is_deterministic_alone(node):
        return False
    if not node.attributes.data:
        return True
    return all(is_deterministic(each) for graph in _graphs_of(node) for each in graph)


def is_deterministic_alone(node: ir.Node) -> bool:
    """Whether a node, bodies not looked at, gives the same result for the same inputs each time."""
    if node.op_type in _RANDOM:
        return False
    if node.op_type == "Dropout" and len(node.inputs) > 2 and node.inputs[2] is not None:
        training = constant_array(node.inputs[2])
        return training is not None and not training.any()
    return True


def evaluate_node(node: ir.Node) -> list[np.ndarray]:
    """Computes the outputs of one node whose inputs are all stored constants.

    Returns:
        One array per output, in order.

    Raises:
        ModelError: an input is not constant, the node is random, or the reference cannot run it.
    """
    return evaluate_values(None, list(node.outputs))


def evaluate_values(model: ir.Model | None, values: Sequence[ir.Value]) -> list[np.ndarray]:
    """Computes values that depend on stored constants only, all in one run of the reference.

    Args:
        model: the model that the values belong to; None where no node calls one of its functions.
        values: what to compute; they may depend on each other.

    Raises:
        ModelError: a value depends on a graph input or on a random node, or is no tensor, or the reference
            cannot run a node.
    """
    computed = [value for value in values if constant_tensor(value) is None and value.name != ""]
    nodes, known = _slice(computed)
    left: list[ir.Node] = []
    for node in nodes:
        operands = [None if value is None else known.get(value) for value in node.inputs]
        complete = all(a is not None or v is None for a, v in zip(operands, node.inputs, strict=True))
        array = numpy_operators.evaluate(node, operands) if complete else None
        if array is None:
            left.append(node)
        else:
            known[node.outputs[0]] = array
    wanted = [value for value in computed if value not in known]
    results: dict[str, np.ndarray] = {}
    if wanted:
        left = _reached(left, wanted)
        leaves = {str(v.name): known[v] for node in left for v in _read_by(node) if v in known}
        proto = _slice_proto(model, left, leaves, wanted)
        names = list(dict.fromkeys(str(value.name) for value in wanted))
        results = ort.run_session(ort.open_session(proto, threads=1), leaves, names)
    return [known[value] if value in known else _result(value, results) for value in values]


def _reached(nodes: list[ir.Node], wanted: Sequence[ir.Value]) -> list[ir.Node]:
    """Those of `nodes`, producers first, that `wanted` depend on."""
    needed = {value.producer() for value in wanted}
    for node in reversed(nodes):
        if node in needed:
            needed.update(value.producer() for value in _read_by(node))
    return [node for node in nodes if node in needed]


def _result(value: ir.Value, results: dict[str, np.ndarray]) -> np.ndarray:
    if value.name == "":
        return np.empty(0, np.float32)
    stored = constant_array(value)
    if stored is not None:
        return stored
    result = results[str(value.name)]
    if not isinstance(result, np.ndarray):
        raise ModelError(f"value '{value.name}' is a sequence or an optional, which cannot be stored")
    return result


def _slice(values: Sequence[ir.Value]) -> tuple[list[ir.Node], dict[ir.Value, np.ndarray]]:
    """The nodes that make `values`, producers first, and the stored constants that they read."""
    nodes: dict[ir.Node, None] = {}
    leaves: dict[ir.Value, np.ndarray] = {}
    open_nodes: set[ir.Node] = set()
    stack: list[tuple[ir.Value, bool]] = [(value, False) for value in reversed(values)]
    while stack:
        value, done = stack.pop()
        node = value.producer()
        if done:
            assert node is not None
            open_nodes.discard(node)
            nodes.setdefault(node)
            continue
        if node in nodes or value in leaves:
            continue
        stored = constant_array(value)
        if stored is not None:
            leaves[value] = stored
            continue
        if node is None:
            raise ModelError(f"value '{value.name}' is not a constant")
        if not is_deterministic(node):
            raise ModelError(f"node '{node.name}' ({node.op_type}) is random, its result is not a constant")
        if node in open_nodes:
            raise ModelError(f"node '{node.name}' ({node.op_type}) depends on itself")
        open_nodes.add(node)
        stack.append((value, True))
        stack.extend([(each, False) for each in _read_by(node)])
    return list(nodes), leaves


def _read_by(node: ir.Node) -> list[ir.Value]:
    """Inputs of a node and the outer values that its bodies capture."""
    read = [value for value in node.inputs if value is not None]
    if not node.attributes.data:
        return read
    inner: set[ir.Value] = set()
    used: dict[ir.Value, None] = {}
    for graph in _graphs_of(node):
        _collect(graph, inner, used)
    return read + [value for value in used if value not in inner]


def _collect(graph: ir.Graph, inner: set[ir.Value], used: dict[ir.Value, None]) -> None:
    inner.update(graph.inputs)
    inner.update(graph.initializers.values())
    used.update(dict.fromkeys(graph.outputs))
    for node in graph:
        inner.update(node.outputs)
        used.update(dict.fromkeys(value for value in node.inputs if value is not None))
        for nested in _graphs_of(node):
            _collect(nested, inner, used)


def _graphs_of(node: ir.Node) -> list[ir.Graph]:
    graphs: list[ir.Graph] = []
    for attribute in node.attributes.data.values():
        if attribute.is_ref():
            continue
        if attribute.type == ir.AttributeType.GRAPH:
            graphs.append(attribute.as_graph())
        elif attribute.type == ir.AttributeType.GRAPHS:
            graphs.extend(attribute.as_graphs())
    return graphs


def _slice_proto(
    model: ir.Model | None,
    nodes: Sequence[ir.Node],
    leaves: dict[str, np.ndarray],
    outputs: Sequence[ir.Value],
) -> bytes:
    import onnx

    imports = dict(model.opset_imports) if model is not None else _opset_imports(nodes[0])
    graph = onnx.helper.make_graph(
        [ir.serde.serialize_node(node) for node in nodes],
        "constants",
        [
            onnx.helper.make_tensor_value_info(name, int(element_type(array)), list(array.shape))
            for name, array in leaves.items()
        ],
        [onnx.ValueInfoProto(name=name) for name in dict.fromkeys(str(value.name) for value in outputs)],
    )
    functions = model.functions.values() if model is not None else ()
    proto = onnx.helper.make_model(
        graph,
        functions=[ir.serde.serialize_function(function) for function in functions],
        opset_imports=[onnx.helper.make_opsetid(domain, version) for domain, version in imports.items()],
    )
    proto.ir_version = min(ort.MAX_IR_VERSION, proto.ir_version)
    return proto.SerializeToString()


def _opset_imports(node: ir.Node) -> dict[str, int]:
    imports = dict(node.graph.opset_imports) if node.graph is not None else {}
    # Bodies of control-flow nodes carry no imports of their own.
    imports.setdefault("", (node.version if node.domain == "" else None) or CANONICAL_OPSET)
    imports.setdefault(node.domain, node.version or 1)
    return imports
