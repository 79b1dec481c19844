"""What every model is brought to when it enters: named and ordered nodes, weights that are no inputs."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterable

import onnx_ir as ir

from .bodies import all_graphs
from .errors import ModelError
from .ort import MAX_IR_VERSION
from .schemas import STANDARD_DOMAINS
from .sweep import nodes_in

# The file version that came with the canonical opset.
_MIN_IR_VERSION = 11


def normalize(model: ir.Model) -> None:
    """Brings a model of any origin into the form that the rest of the house expects, in place.

    Raises:
        ModelError: a tensor has a negative size.
    """
    model.ir_version = min(max(model.ir_version or 0, _MIN_IR_VERSION), MAX_IR_VERSION)
    graphs = list(all_graphs(model))
    _settle_dims(graphs)
    _drop_default_inputs(graphs)
    _name_nodes(graphs)
    _sort_nodes(graphs)


def _settle_dims(graphs: Iterable[ir.Graph]) -> None:
    """Sizes of -1, which some exporters write for unknown ones, become unknown; less is refused."""
    for graph in graphs:
        for value in (*graph.inputs, *(each for node in nodes_in(graph) for each in node.outputs)):
            sizes = [] if value.shape is None else list(value.shape)
            negative = [size for size in sizes if isinstance(size, int) and size < 0]
            if not negative:
                continue
            if min(negative) < -1:
                raise ModelError(f"tensor '{value.name}' has a size of {min(negative)}")
            value.shape = ir.Shape([ir.SymbolicDim(None) if size == -1 else size for size in sizes])


def name_nodes(model: ir.Model) -> None:
    """Gives every node a name that no other node of the model has; existing unique names stay."""
    _name_nodes(all_graphs(model))


def _name_nodes(graphs: Iterable[ir.Graph]) -> None:
    taken: set[str] = set()
    unnamed: list[ir.Node] = []
    for graph in graphs:
        for node in nodes_in(graph):
            name = node._name
            if not name or name in taken:
                unnamed.append(node)
            else:
                taken.add(name)
    counters: dict[str, int] = {}
    for node in unnamed:
        node.name = _free_name(node.name or node.op_type, taken, counters)
        taken.add(node.name)


def _free_name(stem: str, taken: set[str], counters: dict[str, int]) -> str:
    while True:
        number = counters.get(stem, 0)
        counters[stem] = number + 1
        name = f"{stem}_{number}"
        if name not in taken:
            return name


def _drop_default_inputs(graphs: Iterable[ir.Graph]) -> None:
    """Makes initializers that double as graph inputs plain ones: old files list all weights as inputs."""
    for graph in graphs:
        if graph.initializers:
            kept = [value for value in graph.inputs if value.name not in graph.initializers]
            if len(kept) != len(graph.inputs):
                graph.inputs[:] = kept


def _sort_nodes(graphs: Iterable[ir.Graph]) -> None:
    """Puts producers before consumers where a file has them otherwise; a cyclic graph stays as it is."""
    for graph in graphs:
        if not _is_sorted(graph):
            # A cycle: the verifier names its nodes.
            with contextlib.suppress(ValueError):
                graph.sort()


def _is_sorted(graph: ir.Graph) -> bool:
    seen: set[ir.Node | None] = {None}
    for node in nodes_in(graph):
        for value in node._inputs:
            if value is not None and value._producer not in seen and value.graph is graph:
                return False
        seen.add(node)
    return True


def check_operators(model: ir.Model) -> None:
    """Checks that each node calls an operator of a known domain, or a function of the model.

    Standard domains are left to the verifier, which knows their schemas.

    Raises:
        ModelError: an operator is neither in ONNX Runtime nor in the model; the line names the node.
    """
    for graph in all_graphs(model):
        for node in nodes_in(graph):
            if node._domain in STANDARD_DOMAINS or node.domain == "ai.onnx":
                continue
            if node.op_identifier() in model.functions or (node.domain, node.op_type) in _runtime_operators():
                continue
            raise ModelError(
                f"node '{node.name}' uses the unknown operator {node.domain}.{node.op_type}: "
                "neither ONNX Runtime nor a function in the model defines it"
            )


@functools.cache
def _runtime_operators() -> frozenset[tuple[str, str]]:
    """Operators of every domain that ONNX Runtime brings along."""
    from onnxruntime.capi import onnxruntime_pybind11_state

    return frozenset(
        (schema.domain, schema.name) for schema in onnxruntime_pybind11_state.get_all_operator_schema()
    )
