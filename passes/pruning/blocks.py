"""Parts of a model that can be left out whole, found on the graph: branches of sums, and layers.

- A *branch* is one operand of an Add whose other operand has the shape of the sum: f(x) in x + f(x), or
  either of two convolutions that are added. Leaving it out puts the other operand in place of the sum.
- A *layer* is a stretch of the residual stream, from a value u to a later value v of the same shape that
  depends on the graph's inputs through u alone (u dominates v). Its ends are where residual branches
  begin; how many branches make one layer (attention and feed-forward: two) is the period with which what
  lies between repeats. Leaving it out puts u in place of v.

Masks, positions and other values that do not come from u count as given, as constants do. Only parts that
hold weights of products (convolutions, linear layers) which nothing else reads are offered.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

import onnx_ir as ir

from ...ir.bodies import bodies_of, nodes_of
from ...ir.constants import constant_tensor
from ...ir.static import known_equal

_PRODUCTS = ("Conv", "ConvTranspose", "Gemm", "MatMul", "Einsum", "LSTM", "GRU", "RNN")
_SIZES = ("Shape", "Size")


@dataclass(frozen=True)
class Block:
    """A part that can be left out.

    Attributes:
        kind: `branch` or `layer`.
        start: What stands in afterwards.
        end: The value that it stands in for.
        nodes: What goes, in graph order.
        operand: For a branch, which operand of the sum goes.
    """

    kind: str
    start: ir.Value
    end: ir.Value
    nodes: tuple[ir.Node, ...]
    operand: int = -1

    @property
    def key(self) -> str:
        """What names it while others go."""
        return f"{self.end.name}#{self.operand}"

    @property
    def name(self) -> str:
        """Name of the node that makes `end`."""
        node = self.end.producer()
        return str(node.name) if node is not None else str(self.end.name)


def find_branches(graph: ir.Graph) -> list[Block]:
    """All branches of sums, in graph order."""
    order = {node: index for index, node in enumerate(graph)}
    found = []
    for node in graph:
        if not _is_add(node):
            continue
        for index, rest in ((0, node.inputs[1]), (1, node.inputs[0])):
            branch = node.inputs[index]
            if branch is None or rest is None or branch is rest or not _stands_in(rest, node.outputs[0]):
                continue
            if not known_equal(branch.shape, node.outputs[0].shape):
                # A bias or a mask that is broadcast is no branch.
                continue
            block = _block("branch", rest, node.outputs[0], order)
            if block is not None:
                found.append(replace(block, operand=index))
    return found


def find_layers(graph: ir.Graph) -> list[Block]:
    """All layers of the residual streams, in graph order."""
    order = {node: index for index, node in enumerate(graph)}
    branches = find_branches(graph)
    found: list[Block] = []
    taken: set[ir.Node] = set()
    # A stream is seen from the input that it carries; from a mask's point of view there is hardly any.
    for main in _inputs_by_reach(graph):
        dominator = _dominators(graph, main)
        for stream in _streams(branches, dominator, order):
            layers = [layer for layer in _layers_of(stream, order) if taken.isdisjoint(layer.nodes)]
            found += layers
            taken.update(node for layer in layers for node in layer.nodes)
    return sorted(found, key=lambda block: order[block.nodes[0]])


def _streams(
    branches: Sequence[Block], dominator: dict[ir.Value, ir.Value | None], order: dict[ir.Node, int]
) -> list[list[ir.Value]]:
    """Chains of values at which residual branches begin, each dominating the next and of its shape.

    The last sum that the last of them dominates ends a chain.
    """
    starts = dict.fromkeys(b.start for b in branches if _dominates(b.start, b.end, dominator))
    streams: list[list[ir.Value]] = []
    for start in sorted(starts, key=lambda value: _place(value, order)):
        for stream in streams:
            if known_equal(stream[-1].shape, start.shape) and _dominates(stream[-1], start, dominator):
                stream.append(start)
                break
        else:
            streams.append([start])
    for stream in streams:
        ends = [
            block.end
            for block in branches
            if known_equal(stream[-1].shape, block.end.shape) and _dominates(stream[-1], block.end, dominator)
        ]
        stream.append(max(ends, key=lambda value: _place(value, order)))
    return streams


def _place(value: ir.Value, order: dict[ir.Node, int]) -> int:
    node = value.producer()
    return -1 if node is None else order[node]


def _layers_of(stream: Sequence[ir.Value], order: dict[ir.Node, int]) -> list[Block]:
    contents = [_contents(_between(start, end, order)) for start, end in itertools.pairwise(stream)]
    period = _period(contents)
    found: list[Block] = []
    for first in range(0, len(contents) - period + 1, period):
        block = _block("layer", stream[first], stream[first + period], order)
        if block is not None:
            found.append(block)
    return found


def _period(contents: Sequence[str]) -> int:
    """The smallest p with which contents repeat: the one that leaves the fewest mismatches."""
    best, fewest = 1, len(contents) + 1
    for period in range(1, max(len(contents) // 2, 1) + 1):
        misses = sum(a != b for a, b in zip(contents, contents[period:], strict=False)) + period - 1
        if misses < fewest:
            best, fewest = period, misses
    return best


def _contents(nodes: Sequence[ir.Node]) -> str:
    """What a stretch is made of: its products, with the shapes of their weights."""
    parts = []
    for node in nodes:
        if _holds_weight(node):
            weights = [
                str(value.shape) for value in node.inputs if value is not None and value.is_initializer()
            ]
            parts.append(f"{node.op_type}{weights}")
    return repr(sorted(Counter(parts).items()))


def _block(kind: str, start: ir.Value, end: ir.Value, order: dict[ir.Node, int]) -> Block | None:
    gone = _dead_without(start, end)
    if not any(_holds_weight(node) for node in gone):
        return None
    return Block(kind, start, end, tuple(sorted(gone, key=lambda node: order[node])))


def _stands_in(value: ir.Value, for_value: ir.Value) -> bool:
    return (
        value.dtype is not None
        and value.dtype == for_value.dtype
        and known_equal(value.shape, for_value.shape)
        and constant_tensor(value) is None
    )


def _is_add(node: ir.Node) -> bool:
    return node.op_type == "Add" and node.domain in ("", "ai.onnx") and len(node.inputs) == 2


def _holds_weight(node: ir.Node) -> bool:
    if node.op_type not in _PRODUCTS and not any(bodies_of(node)):
        return False
    return any(value is not None and constant_tensor(value) is not None for value in node.inputs)


def _dead_without(start: ir.Value, end: ir.Value) -> set[ir.Node]:
    """Nodes that nothing needs once `start` stands in for `end`."""
    last = end.producer()
    assert last is not None
    gone: set[ir.Node] = {last}
    pending = [last]
    while pending:
        for value in _read_by(pending.pop()):
            node = value.producer()
            if node is None or node in gone or value is start or node.graph is not last.graph:
                continue
            readers = [user for output in node.outputs for user, _ in output.uses()]
            if any(output.is_graph_output() or output is start for output in node.outputs):
                continue
            if all(user in gone for user in readers):
                gone.add(node)
                pending.append(node)
    return gone


def _read_by(node: ir.Node) -> list[ir.Value]:
    """Operands of a node, and what its bodies read from outside."""
    read = [value for value in node.inputs if value is not None]
    for body in bodies_of(node):
        for inner in nodes_of(body):
            read += [value for value in inner.inputs if value is not None and value.graph is node.graph]
    return read


def _between(start: ir.Value, end: ir.Value, order: dict[ir.Node, int]) -> list[ir.Node]:
    """Nodes on the way from `start` to `end`."""
    below: set[ir.Value] = {start}
    first = start.producer()
    low = order[first] + 1 if first is not None else 0
    last = end.producer()
    assert last is not None
    span = [node for node in order if low <= order[node] <= order[last]]
    for node in span:
        if any(value in below for value in _read_by(node)):
            below.update(node.outputs)
    needed: set[ir.Node] = set()
    pending = [last]
    while pending:
        node = pending.pop()
        if node in needed or not any(output in below for output in node.outputs):
            continue
        needed.add(node)
        pending.extend(p for p in (value.producer() for value in _read_by(node)) if p is not None)
    return [node for node in span if node in needed]


def _dominators(graph: ir.Graph, main: ir.Value) -> dict[ir.Value, ir.Value | None]:
    """The immediate dominator of every value that depends on `main`; None for `main`.

    A value is made by one node, so it is dominated by what dominates all of the node's operands: their
    nearest common ancestor in the dominator tree (Cooper, Harvey & Kennedy 2001; one pass, as the graph has
    no cycles). Constants, sizes, and values that do not depend on `main` are given.
    """
    dominator: dict[ir.Value, ir.Value | None] = {main: None}
    depth = {main: 0}
    for node in graph:
        operands = [value for value in _read_by(node) if value in depth] if node.op_type not in _SIZES else []
        if not operands:
            continue
        common = operands[0]
        for other in operands[1:]:
            common = _common(common, other, dominator, depth)
        for output in node.outputs:
            dominator[output], depth[output] = common, depth[common] + 1
    return dominator


def _inputs_by_reach(graph: ir.Graph) -> list[ir.Value]:
    """The inputs, first those from which most nodes can be reached."""
    reach: dict[ir.Value, int] = {}
    for value in graph.inputs:
        if value.is_initializer():
            continue
        below: set[ir.Value] = {value}
        count = 0
        for node in graph:
            if node.op_type not in _SIZES and any(operand in below for operand in _read_by(node)):
                below.update(node.outputs)
                count += 1
        reach[value] = count
    return sorted(reach, key=lambda value: -reach[value])


def _common(
    a: ir.Value, b: ir.Value, dominator: dict[ir.Value, ir.Value | None], depth: dict[ir.Value, int]
) -> ir.Value:
    """The nearest common ancestor; there is one, as all depend on one input."""
    while a is not b:
        if depth[a] < depth[b]:
            a, b = b, a
        above = dominator[a]
        assert above is not None
        a = above
    return a


def _dominates(a: ir.Value, b: ir.Value, dominator: dict[ir.Value, ir.Value | None]) -> bool:
    if a not in dominator or b not in dominator:
        return False
    step: ir.Value | None = b
    while step is not None and step is not a:
        step = dominator[step]
    return step is a
