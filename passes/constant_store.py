"""The constants of a model, as far as a rewriter adds, changes and removes them."""

from __future__ import annotations

import copy

import numpy as np
import onnx_ir as ir

from ..ir.errors import PassError
from ..ir.shape_memo import as_shape
from ..ir.tensors import element_type, tensor_of
from ..ir.uses import is_read
from .journal import Journal


class ConstantStore(Journal):
    """A journal whose owner changes initializers."""

    def initializer(
        self, hint: str, array: np.ndarray | ir.TensorProtocol, *, graph: ir.Graph | None = None
    ) -> ir.Value:
        """Add a constant with a fresh name made from `hint`.

        Args:
            hint: Name to start from.
            array: The data.
            graph: Where it is registered; the main graph (visible everywhere but in functions) by default.
        """
        self._changed()
        name = self.unique_name(hint)
        tensor = as_named_tensor(array, name)
        value = ir.Value(
            name=name,
            shape=as_shape(tensor.shape),
            type=ir.TensorType(tensor.dtype),
            const_value=tensor,
        )
        self._altered[value] = None
        (graph if graph is not None else self.model.graph).register_initializer(value)
        return value

    def lift(self, node: ir.Node, tensor: ir.TensorProtocol) -> None:
        """Let what a Constant node makes be an initializer of the main graph that holds `tensor`.

        Args:
            node: A node outside of functions; its only output is no graph output.
            tensor: What it makes.
        """
        self._changed()
        (value,) = node.outputs
        graph, inner = self.model.graph, node.graph
        assert inner is not None
        self._forget(node)
        inner.remove(node)
        # The value stays the one that its readers read.
        value._producer = value._index = None
        node._outputs = ()
        if inner is not graph or not value.name:
            # Sibling bodies may use one name twice.
            value.name = self.unique_name(value.name or "constant")
        value.const_value = as_named_tensor(tensor, str(value.name))
        value.shape, value.type = as_shape(tensor.shape), ir.TensorType(tensor.dtype)
        graph.register_initializer(value)
        self._altered[value] = None
        for user, _ in value._uses:
            self._touch(user)

    def set_initializer(self, value: ir.Value, array: np.ndarray | ir.TensorProtocol) -> None:
        """Replace the data of an initializer; shape and type follow."""
        if not value.is_initializer():
            raise PassError(f"'{value.name}' is not an initializer")
        self._changed()
        tensor = as_named_tensor(array, value.name or "")
        value.const_value = tensor
        value.shape = as_shape(tensor.shape)
        value.type = ir.TensorType(tensor.dtype)
        self._altered[value] = None
        for user in value.consumers():
            self._touch(user)
            self._stale[user] = None

    def remove_initializer(self, value: ir.Value) -> None:
        """Remove an initializer that nothing reads."""
        graph = value.graph
        if not isinstance(graph, ir.Graph) or is_read(value):
            raise PassError(f"initializer '{value.name}' is in use")
        self._changed()
        graph.initializers.pop(str(value.name))
        self._altered.pop(value, None)

    def drop_orphans(self) -> None:
        """Remove the initializers whose last reader was erased or read something else since the last call."""
        orphans, self._orphans = self._orphans, {}
        for value in orphans:
            if not (is_read(value) or value.is_graph_input()) and value.is_initializer():
                self.remove_initializer(value)

    def in_function(self, node: ir.Node) -> bool:
        """Whether a node is part of a function body, which cannot hold or see initializers."""
        functions = self.model.functions
        return bool(functions) and any(
            node.graph is graph
            for function in functions.values()
            for graph in (function.graph, *function.graph.subgraphs())
        )


def as_named_tensor(data: np.ndarray | ir.TensorProtocol, name: str) -> ir.TensorProtocol:
    """Make a tensor called `name`, without renaming a tensor that another graph may share."""
    if isinstance(data, np.ndarray):
        return tensor_of(data, name)
    if data.name == name:
        return data
    if type(data) is ir.Tensor and not data.doc_string and not data._metadata and not data._metadata_props:
        array = data.raw
        if type(array) is np.ndarray and element_type(array) == data.dtype:
            return tensor_of(array, name)
    tensor = copy.copy(data)
    tensor.name = name
    return tensor
