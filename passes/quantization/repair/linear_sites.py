"""Sites in front of linear layers: where their inputs can be scaled per channel, and why elsewhere not."""

from __future__ import annotations

from collections.abc import Callable

import onnx_ir as ir

from ....ir.constants import constant_tensor
from ....ir.static import rank_of
from .places import Place
from .scaling import weight_edit
from .sites import Site, find_sites

_LINEAR = ("MatMul", "Gemm")


def linear_sites(
    graph: ir.Graph, selects: Callable[[ir.Node], bool]
) -> tuple[list[Site], dict[ir.Node, str]]:
    """Sites whose readers are all linear layers that the user selects, each layer in one of them at most.

    Returns:
        (sites in graph order, reason by linear layer that is in none).
    """
    refused: dict[ir.Node, str] = {}
    every = find_sites(graph, lambda node: True, refused.__setitem__)
    taken: dict[ir.Node, Site] = {}
    kept: list[Site] = []
    # The root that is nearest to a layer: those behind come later.
    for site in reversed(every):
        readers = site.readers
        if not any(node.op_type in _LINEAR for node in readers):
            continue
        other = next((node for node in readers if node.op_type not in _LINEAR or not selects(node)), None)
        if other is not None:
            refused[site.root] = f"{other.op_type} '{other.name}' reads it too"
        elif not any(node in taken for node in readers):
            taken.update(dict.fromkeys(readers, site))
            kept.append(site)
    left = {}
    for node in graph:
        if is_linear(node) and selects(node) and node not in taken:
            left[node] = _reason(node, refused)
    return kept[::-1], left


def is_linear(node: ir.Node) -> bool:
    """Whether a node is a product of something computed with constant weights."""
    if node.op_type not in _LINEAR or node.domain not in ("", "ai.onnx"):
        return False
    return constant_tensor(node.inputs[1]) is not None and constant_tensor(node.inputs[0]) is None


def insertable(node: ir.Node) -> tuple[ir.Value, Place] | None:
    """What a linear layer reads and where its channels lie, if a factor could be inserted there."""
    value = node.inputs[0]
    rank = rank_of(value)
    size = None if value is None or value.shape is None or not rank else value.shape[rank - 1]
    if value is None or rank is None or not isinstance(size, int) or value.dtype != ir.DataType.FLOAT:
        return None
    place = Place((rank - 1,), (size,))
    return None if isinstance(weight_edit(node, 0, place), str) else (value, place)


def _reason(node: ir.Node, refused: dict[ir.Node, str]) -> str:
    value = node.inputs[0]
    seen = 0
    while value is not None and seen < 8:
        producer = value.producer()
        if producer is None:
            return "its input is an input of the model"
        if producer in refused:
            return f"{producer.op_type} '{producer.name}' cannot take a factor: {refused[producer]}"
        if is_linear(producer) or not producer.inputs:
            break
        value, seen = producer.inputs[0], seen + 1
    return "nothing in front of it can take a factor per channel"
