"""What every model is brought to when it enters: named and ordered nodes, weights that are no inputs."""

from __future__ import annotations

import functools

import onnx_ir as ir

from .bodies import all_graphs
from .errors import ModelError
from .ort import MAX_IR_VERSION
from .schemas import STANDARD_DOMAINS

# The file version that came with the canonical opset.
_MIN_IR_VERSION = 11


def normalize(model: ir.Model) -> None:
    """Brings a model of any origin into the form that the rest of the house expects, in place."""
    model.ir_version = min(max(model.ir_version or 0, _MIN_IR_VERSION), MAX_IR_VERSION)
    drop_default_inputs(model)
    name_nodes(model)
    sort_nodes(model)


def name_nodes(model: ir.Model) -> None:
    """Gives every node a name that no other node of the model has; existing unique names stay."""
    taken: set[str] = set()
    unnamed: list[ir.Node] = []
    for graph in all_graphs(model):
        for node in graph:
            if not node.name or node.name in taken:
                unnamed.append(node)
            else:
                taken.add(node.name)
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


def drop_default_inputs(model: ir.Model) -> None:
    """Makes initializers that double as graph inputs plain ones: old files list all weights as inputs."""
    for graph in all_graphs(model):
        if graph.initializers:
            kept = [value for value in graph.inputs if value.name not in graph.initializers]
            if len(kept) != len(graph.inputs):
                graph.inputs[:] = kept


def sort_nodes(model: ir.Model) -> None:
    """Puts producers before consumers where a file has them otherwise; a cyclic graph stays as it is."""
    for graph in all_graphs(model):
        made: set[ir.Value] = set()
        for node in graph:
            if any(
                value is not None and value.graph is graph and _comes_later(value, made)
                for value in node.inputs
            ):
                break
            made.update(node.outputs)
        else:
            continue
        try:
            graph.sort()
        except ValueError:
            # A cycle: the verifier names its nodes.
            return


def _comes_later(value: ir.Value, made: set[ir.Value]) -> bool:
    return value.producer() is not None and value not in made


def check_operators(model: ir.Model) -> None:
    """Checks that each node calls an operator of a known domain, or a function of the model.

    Standard domains are left to the verifier, which knows their schemas.

    Raises:
        ModelError: an operator is neither in ONNX Runtime nor in the model; the line names the node.
    """
    for graph in all_graphs(model):
        for node in graph:
            if node.domain in STANDARD_DOMAINS or node.domain == "ai.onnx":
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
