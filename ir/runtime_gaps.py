"""Models that ONNX Runtime only runs when they import an earlier opset than the canonical one."""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir

from .bodies import all_graphs
from .opset import LAST_RUNNABLE
from .relabel import lower
from .sweep import nodes_in


def runnable_opset(model: ir.Model, wanted: int) -> int:
    """The highest opset up to `wanted` in which ONNX Runtime has all operators."""
    return min([wanted, *(LAST_RUNNABLE[node.op_type] for node in nodes_that_limit(model))])


def nodes_that_limit(model: ir.Model) -> Iterator[ir.Node]:
    """Yield the nodes that ONNX Runtime runs in opsets before the canonical one only."""
    for graph in all_graphs(model):
        for node in nodes_in(graph):
            if node._op_type in LAST_RUNNABLE and node.domain == "":
                yield node


def make_runnable(model: ir.Model) -> None:
    """Lets a model import an earlier opset where ONNX Runtime needs that, and all its operators allow it.

    Where another operator needs the later opset the model stays as it is.
    """
    version = model.opset_imports.get("")
    if version is not None:
        target = runnable_opset(model, version)
        if target < version:
            lower(model, target)


def is_runnable(model: ir.Model) -> bool:
    """Whether ONNX Runtime has kernels for the opset that a model imports."""
    version = model.opset_imports.get("")
    return version is None or runnable_opset(model, version) == version
