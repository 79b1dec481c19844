"""Cut a model out of a model: any nodes of the main graph, with inputs and outputs where it was cut."""

from __future__ import annotations

from collections.abc import Collection, Iterator

import onnx_ir as ir

from ..ir.bodies import bodies_of, nodes_of
from ..ir.clone import clone


def slice_model(model: ir.Model, names: Collection[str]) -> ir.Model | None:
    """Return the model that consists of the nodes called `names`; weights are shared.

    Values that kept nodes read from removed ones become inputs. Outputs are the values of kept nodes that
    removed nodes read, that were outputs before, or that nothing reads.

    Args:
        model: The whole model; not changed.
        names: Names of nodes of the main graph.

    Returns:
        The slice, or None where it would be empty or an input would have no known type and shape.
    """
    copy = clone(model)
    graph = copy.graph
    kept = [node for node in graph if node.name in names]
    if not kept:
        return None
    inside = _with_bodies(kept)
    read: dict[ir.Value, None] = {}
    outputs: list[ir.Value] = []
    for node in graph:
        for value in node.outputs:
            used_inside = any(user in inside for user, _ in value.uses())
            used_outside = any(user not in inside for user, _ in value.uses())
            if node in inside:
                if used_outside or value.is_graph_output() or not value.uses():
                    outputs.append(value)
            elif used_inside:
                read[value] = None
    for value in graph.inputs:
        if any(user in inside for user, _ in value.uses()):
            read[value] = None
    outputs = [value for value in outputs if value.name]
    if not outputs or any(value.shape is None or value.dtype is None for value in read):
        return None
    return _rebuild(copy, kept, list(read), outputs)


def bodies_in(model: ir.Model) -> Iterator[tuple[ir.Node, ir.Graph]]:
    """Yield the nodes of the main graph that have bodies, with each body."""
    for node in model.graph:
        for body in bodies_of(node):
            yield node, body


def body_model(model: ir.Model, node: ir.Node, body: ir.Graph) -> ir.Model | None:
    """Return a model that consists of one body of `node`; weights are shared.

    Its inputs are those of the body and what it reads of the graph around it; stored constants come along.

    Returns:
        The model, or None where an input would have no known type and shape.
    """
    copy = clone(model)
    position = [each.name for each in model.graph].index(node.name)
    inside = bodies_of(copy.graph[position])[bodies_of(node).index(body)]
    own = {*inside.inputs, *inside.initializers.values()}
    own.update(value for each in inside.all_nodes() for value in each.outputs)
    own.update(v for each in inside.all_nodes() for inner in bodies_of(each) for v in inner.inputs)
    outer: dict[ir.Value, None] = {}
    for each in inside.all_nodes():
        outer.update((value, None) for value in each.inputs if value is not None and value not in own)
    outer.update((value, None) for value in inside.outputs if value not in own)
    if any(value in outer for value in inside.outputs) or not len(inside):
        return None
    inputs, initializers = list(inside.inputs), list(inside.initializers.values())
    for value in outer:
        substitute = ir.Value(name=value.name, shape=value.shape, type=value.type)
        substitute.const_value = value.const_value
        for user, index in list(value.uses()):
            if user.graph is not copy.graph:
                user.replace_input_with(index, substitute)
        (initializers if value.is_initializer() else inputs).append(substitute)
    if any(value.shape is None or value.dtype is None for value in inputs):
        return None
    nodes, outputs = list(inside), list(inside.outputs)
    inside.outputs.clear()
    inside.inputs.clear()
    inside.initializers.clear()
    inside.remove(nodes)
    graph = ir.Graph(
        inputs,
        outputs,
        nodes=nodes,
        initializers=initializers,
        name=inside.name,
        opset_imports=dict(copy.opset_imports),
    )
    return ir.Model(graph, ir_version=copy.ir_version, functions=list(copy.functions.values()))


def _rebuild(model: ir.Model, kept: list[ir.Node], read: list[ir.Value], outputs: list[ir.Value]) -> ir.Model:
    graph = model.graph
    keep = set(kept)
    originals = set(graph.inputs)
    graph.outputs[:] = outputs
    inputs = []
    for value in read:
        if value in originals:
            inputs.append(value)
            continue
        substitute = ir.Value(name=value.name, shape=value.shape, type=value.type)
        value.replace_all_uses_with(substitute, replace_graph_outputs=True)
        inputs.append(substitute)
    gone = [node for node in graph if node not in keep]
    for inner in (inner for node in gone for body in bodies_of(node) for inner in nodes_of(body)):
        for index in range(len(inner.inputs)):
            inner.replace_input_with(index, None)
    graph.remove(gone, safe=True)
    graph.inputs[:] = inputs
    for name, value in list(graph.initializers.items()):
        if not value.uses() and not value.is_graph_output():
            del graph.initializers[name]
    return model


def _with_bodies(nodes: list[ir.Node]) -> set[ir.Node]:
    """The nodes and everything in their bodies."""
    found: set[ir.Node] = set()
    pending = list(nodes)
    while pending:
        node = pending.pop()
        found.add(node)
        pending.extend(inner for body in bodies_of(node) for inner in body)
    return found
