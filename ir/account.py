"""What a model costs: nodes, parameters, bytes and multiply-accumulates, in total and node by node.

**Parameters** are the numbers that a model has learned: elements of floating-point tensors of rank 1 and
more, and of integer tensors that stand for quantized weights (see `ir/weights.py`). Each tensor counts once,
however many nodes share it. Scalars, shapes, indices and masks of integers do not count. The running mean and
variance of BatchNormalization, and the scales and zero points of quantization, describe parameters without
being any: they add to the bytes only. So a traced network has as many parameters here as torch says in
`sum(p.numel() for p in module.parameters())`; folding its batch norms then takes their scales away.

**MACs** are multiply-accumulates of convolutions, matrix products, attention and recurrent operators (and
their quantized forms); everything else counts as 0. With symbolic dimensions they are a formula.
"""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from .clone import clone
from .macs import Size, node_macs, total
from .weights import weigh


@dataclass(frozen=True)
class NodeCost:
    """The cost of one node.

    Attributes:
        name, op_type: of the node.
        macs: multiply-accumulates of one run, None if they depend on symbolic dimensions or are unknown.
        formula: them as text (`9437184*batch`), None if unknown.
        parameters: parameters that this node is the first to read.
    """

    name: str
    op_type: str
    macs: int | None
    formula: str | None
    parameters: int


@dataclass(frozen=True)
class Account:
    """The cost of a model.

    Attributes:
        nodes: number of nodes, subgraphs and function bodies included, Constant nodes not.
        parameters: learned numbers (see the module's text).
        parameter_bytes: bytes of the parameters with their statistics, scales and zero points.
        macs: multiply-accumulates of one run, None if symbolic or unknown somewhere.
        formula: the sum as text, None if unknown somewhere.
        by_node: cost per node in order of execution; nodes in subgraphs are called `owner/name`.
        notes: one line for each node whose cost is not known.
    """

    nodes: int
    parameters: int
    parameter_bytes: int
    macs: int | None
    formula: str | None
    by_node: dict[str, NodeCost]
    notes: tuple[str, ...] = ()


def account(model: ir.Model) -> Account:
    """Count what `model` costs. Shapes must have been inferred; where one is missing, `notes` says so.

    Calls of model functions are counted by their bodies, which needs an inlined copy of the model.
    """
    nodes = sum(1 for graph in _all_graphs(model) for node in graph if node.op_type != "Constant")
    if model.functions:
        model = _inlined(model)
    weights = weigh(model.graph)
    walk = _Walk(weights.by_node)
    macs = walk.graph(model.graph, "")
    return Account(
        nodes=nodes,
        parameters=weights.parameters,
        parameter_bytes=weights.bytes,
        macs=macs if isinstance(macs, int) else None,
        formula=_formula(macs),
        by_node=walk.costs,
        notes=tuple(walk.notes),
    )


def _all_graphs(model: ir.Model) -> list[ir.Graph]:
    roots = [model.graph, *(function.graph for function in model.functions.values())]
    return [graph for root in roots for graph in (root, *root.subgraphs())]


def _inlined(model: ir.Model) -> ir.Model:
    from onnx_ir.passes.common import InlinePass

    from .shapes import infer_shapes

    copy = clone(model)
    InlinePass()(copy)
    infer_shapes(copy)
    return copy


class _Walk:
    """Adds up MACs over a graph and the subgraphs in it."""

    def __init__(self, parameters: dict[ir.Node, int]):
        self._parameters = parameters
        self.costs: dict[str, NodeCost] = {}
        self.notes: list[str] = []

    def graph(self, graph: ir.Graph, prefix: str) -> Size | None:
        """MACs of all nodes of `graph`; None as soon as one is unknown."""
        found: list[Size | None] = []
        for index, node in enumerate(graph):
            if node.op_type == "Constant":
                continue
            name = f"{prefix}{node.name or f'{node.op_type}_{index}'}"
            macs = self._node(node, name)
            self.costs[name] = NodeCost(
                name=name,
                op_type=node.op_type,
                macs=macs if isinstance(macs, int) else None,
                formula=_formula(macs),
                parameters=self._parameters.get(node, 0),
            )
            found.append(macs)
        known = [macs for macs in found if macs is not None]
        return total(known) if len(known) == len(found) else None

    def _node(self, node: ir.Node, name: str) -> Size | None:
        bodies = [a.as_graph() for a in node.attributes.values() if a.type == ir.AttributeType.GRAPH]
        if bodies:
            return self._control_flow(node, name, bodies)
        macs, problem = node_macs(node)
        if problem:
            self.notes.append(f"node '{name}' ({node.op_type}): {problem}")
        return macs

    def _control_flow(self, node: ir.Node, name: str, bodies: list[ir.Graph]) -> Size | None:
        inner = [self.graph(body, f"{name}/") for body in bodies]
        if all(isinstance(macs, int) and macs == 0 for macs in inner):
            return 0
        if node.op_type == "If":
            known = [macs for macs in inner if isinstance(macs, int)]
            self.notes.append(f"node '{name}' (If): the dearer branch is counted")
            return max(known) if len(known) == len(inner) else None
        try:
            rounds = rounds_of(node)
        except (TypeError, ValueError):
            rounds = None
        if rounds is None:
            self.notes.append(f"node '{name}' ({node.op_type}): how often its body runs is not known")
        return None if rounds is None or inner[0] is None else rounds * inner[0]


def rounds_of(node: ir.Node) -> Size | None:
    """How often the body of a Loop or Scan runs, if a constant or a shape says so."""
    if node.op_type == "Loop":
        limit = ir.convenience.get_const_tensor(node.inputs[0]) if node.inputs[0] is not None else None
        return None if limit is None else int(limit.numpy().reshape(-1)[0])
    if node.op_type == "Scan":
        axes = node.attributes.get_ints("scan_input_axes", ())
        scanned = node.inputs[-1]
        if scanned is None or scanned.shape is None:
            return None
        dim = scanned.shape[axes[-1] if axes else 0]
        return dim if isinstance(dim, int) or dim.value is not None else None
    return None


def _formula(macs: Size | None) -> str | None:
    return None if macs is None else str(macs)
