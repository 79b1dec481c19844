"""Decides which values of a graph become integers.

Three kinds of nodes run on integers:

- *weighted* ones (Conv, Gemm, ...): their data input is quantized wherever it comes from, and their result
  where the kernel can only write integers or somebody behind wants them;
- *computed* (residual adds, pooling) and *shared* ones (reshape, concat): they follow. They run on integers
  if all their inputs come from integer nodes already and their result goes on to one; quantizing for their
  sake alone would cost accuracy and win nothing.

A pair of QuantizeLinear and DequantizeLinear stands behind the activation that is fused to a kernel, never
between.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import onnx_ir as ir

from ...ir.bodies import bodies_of, nodes_of
from ...ir.constants import constant_tensor
from .operators import (
    DEFAULT_DOMAINS,
    WeightedNode,
    activation_product_problem,
    clip_bounds,
    data_inputs,
    follow_activation,
    follower_problem,
    has_bodies,
    is_activation_product,
    is_float,
    match_weighted,
)
from .precisions import FLOAT, Formats
from .tables import Table


@dataclass(frozen=True)
class Follower:
    """A computed or shared node: inputs and results (behind its fused activation) are quantized.

    A product of two activations `leads`: its inputs are quantized wherever they come from, like those of a
    weighted node, and its result where somebody wants it.
    """

    node: ir.Node
    shares: bool
    inputs: tuple[ir.Value, ...]
    results: tuple[ir.Value, ...]
    tail: tuple[ir.Node, ...]
    leads: bool = False


@dataclass
class Plan:
    """Where quantization goes.

    Attributes:
        weighted: weighted nodes that run on integers, in graph order.
        followers: computed and shared nodes that do.
        values: values to quantize, in no particular order of importance, each once.
        left: nodes that stay in float, with the reason.
    """

    weighted: list[WeightedNode] = field(default_factory=list)
    followers: list[Follower] = field(default_factory=list)
    values: dict[ir.Value, None] = field(default_factory=dict)
    left: list[tuple[ir.Node, str]] = field(default_factory=list)

    def bounds(self) -> dict[ir.Value, tuple[float, float]]:
        """What a fused activation clips each value to, where there is one."""
        found = {}
        tails = [part.tail for part in self.weighted] + [part.tail for part in self.followers]
        for last in [tail[-1] for tail in tails if tail and tail[-1].op_type in ("Relu", "Clip")]:
            limits = clip_bounds(last)
            if limits is not None:
                found[last.outputs[0]] = limits
        return found


def plan_quantization(
    graph: ir.Graph,
    table: Table,
    selects: Callable[[ir.Node], bool],
    forbidden: Mapping[ir.Value, str],
    formats: Formats | None = None,
    kept: Mapping[ir.Node, str] | None = None,
) -> Plan:
    """Places quantization in a graph.

    Args:
        graph: the main graph, in topological order; not changed.
        table: what the target quantizes.
        selects: whether the user lets a node be quantized.
        forbidden: values that cannot be quantized, with the reason.
        formats: precisions of single nodes; by default the table's own.
        kept: weighted nodes that are to stay in float, with the reason.
    """
    formats = formats or Formats(table, lambda node: "int8")
    kept = kept or {}
    plan = Plan()
    weighted: dict[ir.Node, WeightedNode] = {}
    followers: dict[ir.Node, Follower] = {}
    integer: set[ir.Value] = set()
    for node in graph:
        plan.left.extend(_in_bodies(node, table, selects))
        matched = kept.get(node) or _match(node, formats, selects, forbidden, integer)
        if isinstance(matched, str):
            plan.left.append((node, matched))
        elif isinstance(matched, WeightedNode):
            weighted[node] = matched
            integer.add(matched.result)
        elif isinstance(matched, Follower):
            followers[node] = matched
            integer.update(matched.results)
    wanted = _wanted(graph, weighted, followers)
    for node in graph:
        if node in weighted:
            plan.weighted.append(weighted[node])
            plan.values[weighted[node].data] = None
            if weighted[node].kind.result == "integer":
                plan.values[weighted[node].result] = None
        elif node in followers and followers[node].leads:
            plan.followers.append(followers[node])
            plan.values.update(dict.fromkeys(followers[node].inputs))
        elif node in followers and not wanted.isdisjoint(followers[node].results):
            plan.followers.append(followers[node])
            plan.values.update(dict.fromkeys((*followers[node].inputs, *followers[node].results)))
        elif node in followers and not followers[node].shares:
            plan.left.append((node, "its result goes to no integer operator"))
    return plan


def _in_bodies(
    node: ir.Node, table: Table, selects: Callable[[ir.Node], bool]
) -> Iterator[tuple[ir.Node, str]]:
    """The layers in a node's bodies, with the reason why they stay in float."""
    for body in bodies_of(node):
        for inner in nodes_of(body):
            if _is_layer(inner, table) and selects(inner):
                yield (
                    inner,
                    f"it is in a body of {node.op_type} '{node.name}', where no ranges are measured; "
                    "quantize-dynamic and quantize-weights go there",
                )


def _match(
    node: ir.Node,
    formats: Formats,
    selects: Callable[[ir.Node], bool],
    forbidden: Mapping[ir.Value, str],
    integer: set[ir.Value],
) -> WeightedNode | Follower | str | None:
    """A part of an integer kernel, the reason why it is none, or None for what no table speaks of."""
    table = formats.table
    if has_bodies(node):
        return "its subgraphs stay in float"
    if node.domain not in DEFAULT_DOMAINS or not selects(node) or formats.precision_of(node) == FLOAT:
        return None
    if node.op_type in table.keeps_float:
        return table.keeps_float[node.op_type]
    if node.op_type in table.weighted:
        if table.products == "quantize" and is_activation_product(node):
            return _match_product(node, formats, forbidden)
        return _match_weighted(node, formats, forbidden)
    if (node.op_type in table.computed or node.op_type in table.shared) and formats.has_followers(node):
        return _match_follower(node, table, forbidden, integer)
    return None


def _match_weighted(node: ir.Node, formats: Formats, forbidden: Mapping[ir.Value, str]) -> WeightedNode | str:
    kind = formats.kind(node)
    matched = match_weighted(node, formats.table, kind)
    if isinstance(matched, str):
        return matched
    fewest = min(matched.channels, matched.input_channels)
    if fewest < kind.min_channels:
        return f"it has {fewest} channels, fewer than the {kind.min_channels} from which integers pay"
    if matched.data in forbidden:
        return f"its input '{matched.data.name}' cannot be quantized: {forbidden[matched.data]}"
    if matched.kind.result == "integer" and matched.result in forbidden:
        return f"its result '{matched.result.name}' cannot be quantized: {forbidden[matched.result]}"
    return matched


def _match_product(node: ir.Node, formats: Formats, forbidden: Mapping[ir.Value, str]) -> Follower | str:
    problem = activation_product_problem(node)
    if problem is not None:
        return problem
    if formats.activations(node).dtype not in ("uint8", "int8"):
        return "no target multiplies two activations in more than 8 bits"
    inputs = tuple(dict.fromkeys(value for value in node.inputs if value is not None))
    for value in inputs:
        if value in forbidden:
            return f"its input '{value.name}' cannot be quantized: {forbidden[value]}"
    result = node.outputs[0]
    return Follower(node, False, inputs, () if result in forbidden else (result,), (), leads=True)


def _match_follower(
    node: ir.Node, table: Table, forbidden: Mapping[ir.Value, str], integer: set[ir.Value]
) -> Follower | str | None:
    inputs = data_inputs(node)
    if not inputs or not any(is_float(value) for value in inputs):
        return None
    if not any(value in integer for value in inputs):
        # Float regions are full of such nodes: nothing to report.
        return None
    problem = follower_problem(node)
    if problem is not None:
        return problem
    if not all(value in integer for value in inputs):
        return "one of its operands is computed in float"
    tail: tuple[ir.Node, ...] = ()
    results = [value for value in node.outputs if value.name]
    if node.op_type in table.computed:
        tail, result = follow_activation(node.outputs[0], table)
        results = [result]
    for value in (*inputs, *results):
        if value in forbidden:
            return f"'{value.name}' cannot be quantized: {forbidden[value]}"
    return Follower(node, node.op_type in table.shared, tuple(dict.fromkeys(inputs)), tuple(results), tail)


def _wanted(
    graph: ir.Graph, weighted: Mapping[ir.Node, WeightedNode], followers: Mapping[ir.Node, Follower]
) -> set[ir.Value]:
    """Values that an integer node reads, found from the end of the graph to its beginning."""
    wanted: set[ir.Value] = set()
    for node in reversed(graph):
        if node in weighted:
            wanted.add(weighted[node].data)
        elif node in followers and (followers[node].leads or not wanted.isdisjoint(followers[node].results)):
            wanted.update(followers[node].inputs)
    return wanted


def first_and_last_layers(graph: ir.Graph, table: Table) -> tuple[set[ir.Node], set[ir.Node]]:
    """Weighted operators with no other before them, and those with no other behind them."""
    behind: set[ir.Value] = set()
    first: set[ir.Node] = set()
    for node in graph:
        is_layer = _is_layer(node, table)
        reached = any(value in behind for value in node.inputs if value is not None)
        if is_layer and not reached:
            first.add(node)
        if is_layer or reached:
            behind.update(node.outputs)
    before: set[ir.Value] = set()
    last: set[ir.Node] = set()
    for node in reversed(graph):
        is_layer = _is_layer(node, table)
        leads_on = any(value in before for value in node.outputs)
        if is_layer and not leads_on:
            last.add(node)
        if is_layer or leads_on:
            before.update(value for value in node.inputs if value is not None)
    return first, last


def _is_layer(node: ir.Node, table: Table) -> bool:
    known = node.op_type in table.weighted and node.domain in DEFAULT_DOMAINS
    return known and any(constant_tensor(value) is not None for value in node.inputs[:2])
