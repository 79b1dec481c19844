"""The structural verifier: does this graph mean anything at all?

`onnx_ir` accepts cycles, duplicate names and values that nobody produces; a rewrite that leaves one behind
must be caught before the next pass builds on it. Works on the IR itself, in one walk that is linear in nodes
and edges.

A use of a value is right if its *name*, looked up the way ONNX scoping does, gives that very value. One
dictionary answers dangling values, wrong scopes, wrong order, duplicates and shadowing alike; why a look-up
failed is worked out only when it did.
"""

from __future__ import annotations

from collections.abc import Collection, Container
from dataclasses import dataclass, field

import onnx_ir as ir

from .bodies import nodes_of
from .errors import VerifyError
from .shape_checks import contradiction
from .sweep import GRAPH_TYPES, nodes_in
from .verify_nodes import NodeChecker, describe


def verify(
    model: ir.Model, *, shapes: bool = False, changed: Container[ir.Node | ir.Value] | None = None
) -> None:
    """Check the structure of `model`, its subgraphs and its functions.

    Args:
        model: left as it is.
        shapes: hold the shapes around each node against each other as well. For graphs whose shapes have been
            inferred: those that a file declares may be wrong without any harm.
        changed: nodes and initializers that are new or were changed since the model was verified; operators,
            element types and data of the others are not looked at again. Names and order always are.

    Raises:
        VerifyError: a rule is broken; the message is the first problem, `.problems` has all of them.
    """
    found = problems(model, shapes=shapes, changed=changed)
    if found:
        raise VerifyError(found)


def problems(
    model: ir.Model, *, shapes: bool = False, changed: Container[ir.Node | ir.Value] | None = None
) -> list[str]:
    """Every structural problem of `model`, one line each, naming node and operator; empty if it is sound."""
    found: list[str] = []
    if not model.graph.outputs:
        found.append("the graph has no outputs")
    _check_root(model, model.graph, model.opset_imports, None, found, changed)
    for function in model.functions.values():
        _check_root(model, function.graph, function.opset_imports, function, found, changed)
    found += _recursive_functions(model)
    if shapes:
        around = ((node, contradiction(node)) for node in nodes_of(model.graph))
        found += [f"{describe(node)}: {problem}" for node, problem in around if problem is not None]
    return found


def _check_root(
    model: ir.Model,
    graph: ir.Graph,
    opset_imports: dict[str, int],
    function: ir.Function | None,
    found: list[str],
    changed: Container[ir.Node | ir.Value] | None,
) -> None:
    where = "" if function is None else f" in function '{function.domain}::{function.name}'"
    if function is not None and graph.initializers:
        names = ", ".join(f"'{name}'" for name in list(graph.initializers)[:3])
        found.append(f"initializers {names}{where}: a function cannot hold any, use Constant nodes")
    checker = NodeChecker(model.functions, opset_imports, function, found)
    _ScopeChecker(checker, found, changed).graph(graph, where)


@dataclass
class _Frame:
    """One graph on the way from the root to the node at hand."""

    graph: ir.Graph
    where: str
    current: ir.Node | None = None
    late: list[tuple[ir.Node, ir.Value]] = field(default_factory=list)
    """Uses of values that are produced in this graph, but not before their use."""


class _ScopeChecker:
    """Walks a root graph and the subgraphs in it with the names that are visible at each point."""

    def __init__(self, nodes: NodeChecker, found: list[str], changed: Container[ir.Node | ir.Value] | None):
        self._nodes = nodes
        self._found = found
        self._changed = changed
        self._visible: dict[str | None, ir.Value] = {}
        self._misnamed: set[ir.Value] = set()
        self._frames: list[_Frame] = []

    def graph(self, graph: ir.Graph, where: str) -> None:
        frame = _Frame(graph, where)
        self._frames.append(frame)
        defined: list[str] = []
        shadowed: dict[str, ir.Value] = {}
        nested = len(self._frames) > 1

        for value in graph.inputs:
            self._define_border(value, "graph input", defined, shadowed)
        for name, value in graph.initializers.items():
            if not value.is_graph_input():
                self._define_border(value, "initializer", defined, shadowed)
            if self._changed is None or value in self._changed or value.const_value is None:
                self._initializer(name, value, where)
        self._walk(frame, defined)
        for value in graph.outputs:
            self._output(value, frame, nested)
        if frame.late:
            self._report_late(frame)

        for name in defined:
            del self._visible[name]
        self._visible.update(shadowed)
        self._frames.pop()

    def _define_border(
        self, value: ir.Value, kind: str, defined: list[str], shadowed: dict[str, ir.Value]
    ) -> None:
        """Make a graph input or initializer visible; inside a subgraph it may hide an outer name."""
        frame = self._frames[-1]
        name = value.name
        if not name:
            self._found.append(f"{kind} without a name{frame.where}")
            self._misnamed.add(value)
            return
        known = self._visible.get(name)
        if known is not None and (_home(known) is frame.graph or name in shadowed):
            self._found.append(f"duplicate value name '{name}': {kind} and another value{frame.where}")
            self._misnamed.add(value)
            return
        if known is not None:
            shadowed[name] = known
        defined.append(name)
        self._visible[name] = value

    def _walk(self, frame: _Frame, defined: list[str]) -> None:
        visible, found, where, changed = self._visible, self._found, frame.where, self._changed
        check_node = self._nodes.check
        names: dict[str, ir.Node] = {}
        for node in nodes_in(frame.graph):
            frame.current = node
            name = node._name
            if name and names.setdefault(name, node) is not node:
                other = names[name].op_type
                found.append(f"{describe(node)}: duplicate node name, also of a {other}{where}")
            for value in node._inputs:
                if value is not None and visible.get(value._name) is not value:
                    self._unresolved(node, value)
            if changed is None or node in changed:
                check_node(node, where)
            for attribute in node._attributes.data.values():
                if attribute._type in GRAPH_TYPES and not attribute.is_ref():
                    self._subgraphs(node, attribute, where)
            for value in node._outputs:
                value_name = value._name
                if not value_name:
                    continue
                if value_name in visible:
                    found.append(f"{describe(node)}: duplicate value name '{value_name}'{where}")
                    self._misnamed.add(value)
                    continue
                visible[value_name] = value
                defined.append(value_name)
        frame.current = None

    def _subgraphs(self, node: ir.Node, attribute: ir.Attr, where: str) -> None:
        graphs = (attribute.value,) if attribute.type == ir.AttributeType.GRAPH else attribute.value
        for graph in graphs:
            self.graph(graph, f" in '{attribute.name}' of {describe(node)}{where}")

    def _unresolved(self, node: ir.Node, value: ir.Value) -> None:
        """Say why `value`, an input of `node`, is not what its name stands for here."""
        if value in self._misnamed:
            return
        where = self._frames[-1].where
        use = f"{describe(node)}: input {_quoted(value)}"
        if not value.name:
            self._found.append(f"{use} has no name{where}")
            return
        hidden = self._visible.get(value.name)
        if hidden is not None and self._defined_in_outer_frame(value):
            self._found.append(f"{use} is hidden by an inner value of the same name{where}")
            return
        producer = value.producer()
        if producer is None:
            owner = _home(value)
            if owner is not None and (value.is_graph_input() or value.is_initializer()):
                self._found.append(
                    f"{use} belongs to another graph ('{owner.name}') out of scope here{where}"
                )
                return
            self._found.append(f"{use} has no producer and is no graph input or initializer{where}")
            return
        if producer.graph is None:
            self._found.append(f"{use} comes from {describe(producer)}, which is not in the graph{where}")
            return
        for frame in self._frames:
            if frame.graph is producer.graph and frame.current is not None:
                frame.late.append((frame.current, value))
                return
        self._found.append(
            f"{use} comes from {describe(producer)} in graph '{producer.graph.name}', "
            f"out of scope here{where}"
        )

    def _defined_in_outer_frame(self, value: ir.Value) -> bool:
        owner = _home(value)
        if all(frame.graph is not owner for frame in self._frames[:-1]):
            return False
        return value.producer() is None or _home(self._visible[value.name]) is not owner

    def _report_late(self, frame: _Frame) -> None:
        cycle = find_cycle(frame.graph)
        if cycle:
            path = " -> ".join(describe(node) for node in cycle[:6])
            dots = " -> ..." if len(cycle) > 6 else ""
            self._found.append(f"{describe(cycle[0])} is on a cycle: {path}{dots}{frame.where}")
            return
        for node, value in frame.late:
            producer = describe(value.producer())
            self._found.append(
                f"{describe(node)}: input {_quoted(value)} is produced later, by {producer}; "
                f"nodes are not in topological order{frame.where}"
            )

    def _initializer(self, key: str, value: ir.Value, where: str) -> None:
        tensor = value.const_value
        if tensor is None:
            self._found.append(f"initializer '{key}' has no data{where}")
            return
        if value.dtype is not None and value.dtype != tensor.dtype:
            self._found.append(
                f"initializer '{key}' is declared {value.dtype.name} but holds {tensor.dtype.name}{where}"
            )
        if value.shape is not None and not _shapes_agree(value.shape, tensor.shape.numpy()):
            self._found.append(
                f"initializer '{key}' is declared {value.shape} but holds {tensor.shape}{where}"
            )

    def _output(self, value: ir.Value, frame: _Frame, nested: bool) -> None:
        where = frame.where
        if not value.name:
            self._found.append(f"graph output without a name{where}")
            return
        if value in self._misnamed:
            return
        if self._visible.get(value.name) is not value:
            producer = value.producer()
            source = "nothing" if producer is None else f"{describe(producer)}, which is not in the graph"
            self._found.append(f"graph output '{value.name}' is produced by {source}{where}")
            return
        if nested and _home(value) is not frame.graph:
            self._found.append(f"output '{value.name}' is a value of an outer graph; needs Identity{where}")


def _home(value: ir.Value) -> ir.Graph | None:
    """The graph that makes a value; `Value.graph` names the wrong one where a body returns it."""
    producer = value.producer()
    return value.graph if producer is None else producer.graph


def _shapes_agree(declared: ir.Shape, actual: Collection[object]) -> bool:
    """Whether a declared shape, which may hold symbols, admits an actual one."""
    if len(declared) != len(actual):
        return False
    return all(not isinstance(d, int) or d == a for d, a in zip(declared, actual, strict=True))


def _quoted(value: ir.Value) -> str:
    return f"'{value.name}'" if value.name else "(unnamed)"


def find_cycle(graph: ir.Graph) -> list[ir.Node]:
    """Nodes of `graph` on one cycle, in order of data flow (empty if there is none).

    Values that a subgraph captures are inputs of the node that owns the subgraph.
    """
    done: set[ir.Node] = set()
    for root in graph:
        if root in done:
            continue
        path: dict[ir.Node, None] = {root: None}
        stack = [(root, iter(_producers(root, graph)))]
        while stack:
            node, pending = stack[-1]
            producer = next(pending, None)
            if producer is None:
                stack.pop()
                del path[node]
                done.add(node)
            elif producer in path:
                nodes = list(path)
                return nodes[nodes.index(producer) :][::-1]
            elif producer not in done:
                path[producer] = None
                stack.append((producer, iter(_producers(producer, graph))))
    return []


def _producers(node: ir.Node, graph: ir.Graph) -> list[ir.Node]:
    """Nodes of `graph` whose results `node`, or a subgraph inside it, reads."""
    readers = [node]
    for attribute in node.attributes.values():
        if attribute.type in GRAPH_TYPES and not attribute.is_ref():
            graphs = (attribute.value,) if attribute.type == ir.AttributeType.GRAPH else attribute.value
            readers += [inner for subgraph in graphs for inner in subgraph.all_nodes()]
    found: dict[ir.Node, None] = {}
    for reader in readers:
        for value in reader.inputs:
            producer = None if value is None else value.producer()
            if producer is not None and producer.graph is graph:
                found[producer] = None
    return list(found)


def _recursive_functions(model: ir.Model) -> list[str]:
    """A function that reaches itself through calls can never be expanded."""
    calls = {
        key: {n.op_identifier() for n in function.all_nodes() if n.op_identifier() in model.functions}
        for key, function in model.functions.items()
    }
    found = []
    for start in calls:
        seen, pending = set(), list(calls[start])
        while pending:
            key = pending.pop()
            if key not in seen:
                seen.add(key)
                pending += calls[key]
        if start in seen:
            found.append(f"function '{start[0]}::{start[1]}' calls itself")
    return found
