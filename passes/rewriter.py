"""The only thing that changes a graph.

Rules and passes build, replace and erase nodes through a `Rewriter`, which keeps names unique, graph outputs
named, shapes and types filled in, provenance recorded, and tells the driver what to look at again.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from ..ir.bodies import bodies_of, nodes_of
from ..ir.constants import constant_tensor
from ..ir.errors import PassError
from ..ir.tensors import tensor_of
from ..ir.uses import hand_over, is_read, is_unread, read_nothing, use_count
from .attributes import as_attribute, as_attributes
from .constant_store import ConstantStore, as_named_tensor

PASS_KEY = "graphwright.pass"
FROM_KEY = "graphwright.from"
RULE_KEY = "graphwright.rule"
_MAX_SOURCES = 8
_LONGEST_NAME = 256


class Rewriter(ConstantStore):
    """Mutates one model on behalf of one pass.

    Attributes:
        rule: Label of the rule at work, recorded in the nodes it makes; "" outside of rules.
    """

    def __init__(self, model: ir.Model, origin: str = ""):
        super().__init__(model)
        self.rule = ""
        self._origin = origin

    def insert_before(
        self,
        node: ir.Node,
        op_type: str,
        inputs: Sequence[ir.Value | None],
        attributes: Mapping[str, Any] | None = None,
        *,
        num_outputs: int = 1,
        domain: str = "",
        name: str | None = None,
    ) -> list[ir.Value]:
        """Insert a new node in front of `node` and return its outputs.

        Args:
            node: The node in whose graph, and before which, the new one goes; its module path and provenance
                are handed on.
            op_type: Operator type.
            inputs: Values visible at that point; None for an omitted optional input.
            attributes: Plain Python values or `ir.Attr`.
            num_outputs: How many outputs the new node has.
            domain: Operator domain.
            name: Name to start from; made unique.
        """
        return self._insert(node, op_type, inputs, attributes, num_outputs, domain, name, before=True)

    def insert_after(
        self,
        node: ir.Node,
        op_type: str,
        inputs: Sequence[ir.Value | None],
        attributes: Mapping[str, Any] | None = None,
        *,
        num_outputs: int = 1,
        domain: str = "",
        name: str | None = None,
    ) -> list[ir.Value]:
        """Insert a new node right behind `node` and return its outputs; arguments as for `insert_before`."""
        return self._insert(node, op_type, inputs, attributes, num_outputs, domain, name, before=False)

    def adopt(self, anchor: ir.Node, nodes: Sequence[ir.Node], initializers: Sequence[ir.Value] = ()) -> None:
        """Insert nodes that were built elsewhere in front of `anchor`; names are made unique.

        Args:
            anchor: The node before which they go.
            nodes: Nodes that belong to no graph yet, producers first.
            initializers: Constants they read, with data, that belong to no graph yet.
        """
        self._changed()
        graph = anchor.graph
        assert graph is not None
        for value in initializers:
            tensor = value.const_value
            assert tensor is not None
            value.const_value = None
            value.name = self.unique_name(value.name or "constant")
            value.const_value = as_named_tensor(tensor, value.name)
            self.model.graph.register_initializer(value)
            self._altered[value] = None
        for node in nodes:
            self._may_hold(node.attributes.data.values())
            node.name = self.unique_name(node.name or f"{anchor.name}/{node.op_type}")
            for i, output in enumerate(node.outputs):
                output.name = self.unique_name(output.name or f"{node.name}:{i}")
            graph.insert_before(anchor, node)
            self._record_origin(node, anchor)

    def move_out(self, anchor: ir.Node, body: ir.Graph) -> list[ir.Value]:
        """Move the nodes and constants of a body of `anchor` in front of it; names are made unique.

        Args:
            anchor: The node that owns the body; its other bodies are detached, so that it can be erased.
            body: A body without inputs.

        Returns:
            What the body returned, in order.
        """
        self._changed()
        graph = anchor.graph
        assert graph is not None
        results = list(body.outputs)
        body.outputs.clear()
        for value in list(body.initializers.values()):
            tensor = value.const_value
            assert tensor is not None
            constant = self.initializer(value.name or "constant", tensor)
            value.replace_all_uses_with(constant)
            results = [constant if result is value else result for result in results]
        body.initializers.clear()
        for node in list(body):
            body.remove(node)
            node.name = self.unique_name(f"{anchor.name}/{node.name or node.op_type}")
            for output in node.outputs:
                output.name = self.unique_name(output.name or node.name) if output.name else output.name
            graph.insert_before(anchor, node)
            self._record_origin(node, anchor)
        self.detach_bodies(anchor)
        return results

    def detach_bodies(self, node: ir.Node) -> None:
        """Let nothing in the bodies of a node that is about to go read values of the graphs around it."""
        for body in bodies_of(node):
            for inner in reversed(body):
                self.detach_bodies(inner)
                for i in range(len(inner.inputs)):
                    self.set_input(inner, i, None)

    def replace(self, node: ir.Node, values: Sequence[ir.Value | None]) -> None:
        """Replace all uses of the outputs of `node` by `values` and erase the node.

        Graph outputs keep their names. A value may be None only where the output has no uses.
        """
        if len(values) != len(node.outputs):
            raise PassError(
                f"node '{node.name}' ({node.op_type}) has {len(node.outputs)} outputs, "
                f"but {len(values)} replacements were given"
            )
        for old, new in zip(node.outputs, values, strict=True):
            if new is None:
                if is_read(old):
                    raise PassError(
                        f"output '{old.name}' of node '{node.name}' is used but has no replacement"
                    )
                continue
            producer = new.producer()
            if producer is not None and producer is not node and PASS_KEY in producer.metadata_props:
                self._add_source(producer, node)
            self.replace_uses(old, new)
        self.erase(node)

    def replace_uses(self, old: ir.Value, new: ir.Value) -> None:
        """Let every use of `old` read `new`; a graph output stays in place and keeps its name."""
        if old is new:
            return
        self._changed()
        if new.shape is None and old.shape is not None:
            new.shape = old.shape.copy() if hasattr(old.shape, "copy") else ir.Shape(list(old.shape))
        if new.type is None:
            new.type = old.type
        users: dict[ir.Node, None] = dict.fromkeys([user for user, _ in old._uses])
        shape, known = new.shape, old.shape
        told = new.is_initializer() and constant_tensor(old) is None
        if told or (shape is not known and shape != known) or new.dtype != old.dtype:
            # A constant operand (a target shape, axes) may tell more than the computed one did.
            self._stale.update(users)
        if old.is_graph_output():
            new = self._take_over_output(old, new)
            old.replace_all_uses_with(new, replace_graph_outputs=True)
        else:
            hand_over(old, new)
        # What reads a value of a graph that was just put in place is in a graph itself.
        self._touched.update(users)
        self._altered.update(dict.fromkeys(users))
        self._touch(new.producer())
        self._touch(old.producer())

    def erase(self, node: ir.Node) -> None:
        """Remove a node whose outputs are not used.

        Raises:
            PassError: An output is still used or is a graph output.
        """
        for output in node.outputs:
            if is_read(output):
                raise PassError(
                    f"cannot erase node '{node.name}' ({node.op_type}): its output '{output.name}' is in use"
                )
        self._changed()
        sources = [value for value in node.inputs if value is not None]
        graph = node.graph
        assert graph is not None
        self._forget(node)
        for body in bodies_of(node) if node.attributes.data else ():
            for inner in nodes_of(body):
                self._forget(inner)
        read_nothing(node)
        graph.remove(node)
        for value in sources:
            producer = value.producer()
            if producer is not None:
                self._touch(producer)
            elif value.is_initializer():
                self._orphans[value] = None
            if use_count(value) == 1:
                self._touch(next(iter(value._uses)).node)

    def erase_all(self, nodes: Collection[ir.Node]) -> int:
        """Erase those of `nodes` that only each other read, all at once; returns how many.

        Args:
            nodes: Nodes without bodies, producers before their readers.
        """
        gone: dict[ir.Node, None] = {}
        for node in reversed(list(nodes)):
            for output in node.outputs:
                if output.is_graph_output() or not all(user in gone for user, _ in output._uses):
                    break
            else:
                gone[node] = None
        for node in gone:
            self._changed()
            self._forget(node)
        for graph in dict.fromkeys(node.graph for node in gone):
            assert graph is not None
            graph.remove([node for node in gone if node.graph is graph], safe=False)
        for node in gone:
            sources = node.inputs
            read_nothing(node)
            for value in sources:
                if value is not None:
                    if value.is_initializer():
                        self._orphans[value] = None
                    self._touch(value.producer())
        return len(gone)

    def erase_unread(self, node: ir.Node | None) -> None:
        """Erase `node` where nothing reads it and, going up, what only it had read, constants included."""
        pending = [node]
        while pending:
            candidate = pending.pop()
            if candidate is None or candidate.graph is None:
                continue
            if not is_unread(candidate):
                continue
            operands = [value for value in candidate.inputs if value is not None]
            self.erase(candidate)
            pending.extend(value.producer() for value in operands)
        self.drop_orphans()

    def set_input(self, node: ir.Node, index: int, value: ir.Value | None) -> None:
        """Let input `index` of `node` read `value`; optional inputs up to `index` are added as needed."""
        self._changed()
        if index >= len(node.inputs):
            node.resize_inputs(index + 1)
        old = node.inputs[index]
        node.replace_input_with(index, value)
        self._note(node)
        if old is not None:
            if old.is_initializer():
                self._orphans[old] = None
            self._touch(old.producer())

    def set_attribute(self, node: ir.Node, name: str, value: Any) -> None:
        """Set an attribute from a plain Python value or an `ir.Attr`; None removes it."""
        self._changed()
        if value is None:
            node.attributes.pop(name, None)
        else:
            attribute = as_attribute(name, value)
            self._may_hold([attribute])
            node.attributes[name] = attribute
        self._note(node)
        for user in [u for output in node.outputs for u in output.consumers()]:
            self._touch(user)

    def constant_before(self, anchor: ir.Node, hint: str, array: np.ndarray) -> ir.Value:
        """A constant that `anchor` can read: an initializer, or in functions, which have none, a Constant."""
        if not self.in_function(anchor):
            return self.initializer(hint, array)
        (value,) = self.insert_before(anchor, "Constant", [], {"value": tensor_of(array)}, name=hint)
        value.shape, value.type = ir.Shape(array.shape), ir.TensorType(ir.DataType.from_numpy(array.dtype))
        return value

    def set_shape(self, value: ir.Value, shape: Sequence[int | str | None] | ir.Shape | None) -> None:
        """Set the shape of a value; None makes it unknown."""
        self._changed()
        for node in (value.producer(), *value.consumers()):
            self._stale.update({node: None} if node is not None else {})
        value.shape = shape if shape is None or isinstance(shape, ir.Shape) else ir.Shape(list(shape))

    def add_function(self, function: ir.Function) -> None:
        """Add a function whose name the model does not have yet, and import its domain."""
        identifier = function.identifier()
        if identifier in self.model.functions:
            raise PassError(f"the model has a function {'::'.join(identifier[:2])} already")
        self._changed()
        self.model.functions[identifier] = function
        self.model.opset_imports.setdefault(function.domain, 1)

    def remove_function(self, identifier: ir.OperatorIdentifier) -> None:
        """Remove a function that nothing calls."""
        self._changed()
        del self.model.functions[identifier]

    def rename(self, value: ir.Value, hint: str) -> None:
        """Give a value a fresh name made from `hint`."""
        self._changed()
        value.name = self.unique_name(hint)

    def _insert(
        self,
        anchor: ir.Node,
        op_type: str,
        inputs: Sequence[ir.Value | None],
        attributes: Mapping[str, Any] | None,
        num_outputs: int,
        domain: str,
        name: str | None,
        *,
        before: bool,
    ) -> list[ir.Value]:
        self._changed()
        # Bounded, as rules that never come to an end would lengthen them for ever.
        node_name = self.unique_name((name or f"{anchor.name or 'node'}/{op_type}")[:_LONGEST_NAME])
        given = as_attributes(attributes)
        self._may_hold(given)
        node = ir.Node(domain, op_type, inputs, given, num_outputs=num_outputs, name=node_name)
        for i, output in enumerate(node.outputs):
            output.name = self.unique_name(node_name if i == 0 else f"{node_name}:{i}")
        graph = anchor.graph
        assert graph is not None
        (graph.insert_before if before else graph.insert_after)(anchor, node)
        self._record_origin(node, anchor)
        return list(node.outputs)

    def _record_origin(self, node: ir.Node, anchor: ir.Node) -> None:
        """Note who made a new node from what, hand the anchor's module path on, and import the domain."""
        props = node.metadata_props
        for key, value in anchor.metadata_props.items():
            props.setdefault(key, value)
        props.pop(FROM_KEY, None)
        props.pop(RULE_KEY, None)
        props[PASS_KEY] = self._origin
        if self.rule:
            props[RULE_KEY] = self.rule
        self._created.append(node.name or "")
        self._add_source(node, anchor)
        if node.domain and node.graph is not None:
            node.graph.opset_imports.setdefault(node.domain, 1)
            self.model.opset_imports.setdefault(node.domain, 1)
        self._note(node)

    def _take_over_output(self, old: ir.Value, new: ir.Value) -> ir.Value:
        """Prepare `new` to stand as the graph output `old` was: same name, produced in the same graph."""
        producer = new.producer()
        if producer is None or new.is_graph_output() or producer.graph is not old.graph:
            anchor = old.producer() or producer
            if anchor is None:
                raise PassError(
                    f"graph output '{old.name}' cannot be replaced by '{new.name}': neither is computed"
                )
            (copy,) = self.insert_after(anchor, "Identity", [new])
            copy.shape, copy.type = new.shape, new.type
            new = copy
        name = old.name
        old.name = self.unique_name(f"{name}/replaced")
        new.name = name
        return new

    def _add_source(self, node: ir.Node, source: ir.Node) -> None:
        names = source.metadata_props.get(FROM_KEY) or source.name or ""
        known = node.metadata_props.get(FROM_KEY)
        if known and known != names:
            merged = dict.fromkeys([*known.split(";"), *names.split(";")])
            names = ";".join(list(merged)[:_MAX_SOURCES])
        node.metadata_props[FROM_KEY] = names
