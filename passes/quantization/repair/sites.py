"""Moves a positive factor per channel from some operators to those behind them, without changing any output.

    root(x) / s  ->  operators that commute with positive factors  ->  (W * s) y

What makes the channels (a convolution, a product, the scale of a normalization: the root) is divided by s,
the constant weights of everything that reads them (the readers) are multiplied by s. Between the two may
stand what is positively homogeneous in its input: ReLU, LeakyReLU, PReLU, pooling, means, zero padding,
products with something else (gates, attention weights), the addition of a constant, which is divided too, and
every reshape and transpose that keeps the channels apart from the rest.

`find_sites` gives up where two computed values are added. For `joint_sites` all operators that feed such a
sum take the same factor, and everything that reads any of the sums is multiplied by it:

    x = conv1(..);  y = relu(x + conv2(f(x)));  z = relu(y + conv3(f(y)))      one factor for all three
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import onnx_ir as ir

from ....ir.bodies import bodies_of
from ....ir.constants import constant_tensor
from ....ir.static import static_shape
from .passing import pass_through
from .places import Place
from .roots import Root, root_of
from .scaling import Edit, is_reader, weight_edit

_DEFAULT = ("", "ai.onnx")
_MOST_ROOTS = 64
# What a factor passes on its way up from a sum to the operators that make the channels.
_AVERAGES = ("AveragePool", "GlobalAveragePool", "ReduceMean")
_UPWARDS = ("Relu", "LeakyRelu", "PRelu", "MaxPool", "AveragePool", "Identity", "Dropout", "Clip", "Mul")


@dataclass
class Site:
    """One factor per channel, free to choose, with all that it touches.

    Attributes:
        roots: what makes the channels, in graph order.
        channels: how many.
        divided: constants of the roots, and those added on the way; the first is the first root's weight or
            scale.
        multiplied: weights of the readers.
        entries: what each reader reads, in the order of `multiplied`, and where the channels lie there.
        terms: values that a quantizer may stop at on the way, as they are added to others or averaged, with
            the share of their error that is left behind the averaging.
    """

    roots: list[ir.Node]
    channels: int
    divided: list[Edit] = field(default_factory=list)
    multiplied: list[Edit] = field(default_factory=list)
    entries: list[tuple[ir.Value, Place]] = field(default_factory=list)
    terms: list[tuple[ir.Value, Place, float]] = field(default_factory=list)

    @property
    def root(self) -> ir.Node:
        """The first root, the only one of a site that is not joint."""
        return self.roots[0]

    @property
    def edits(self) -> list[Edit]:
        """All constants that a factor changes."""
        return [*self.divided, *self.multiplied]

    @property
    def places(self) -> list[tuple[ir.Value, Place]]:
        """Entries and terms, and where the channels lie there."""
        return [*self.entries, *((value, place) for value, place, _ in self.terms)]

    @property
    def readers(self) -> list[ir.Node]:
        """The operators whose weights are multiplied."""
        return [edit.operand[0] for edit in self.multiplied]


def find_sites(
    graph: ir.Graph, roots: Callable[[ir.Node], bool], leave: Callable[[ir.Node, str], None]
) -> list[Site]:
    """All sites with one root.

    Args:
        graph: The main graph; not changed.
        roots: Which nodes may be one.
        leave: Told of roots whose factor cannot be moved, and why.
    """
    order = {node: index for index, node in enumerate(graph)}
    found = []
    for node in filter(roots, graph):
        root = root_of(node)
        made = _follow([root], order) if isinstance(root, Root) else root
        if isinstance(made, str):
            leave(node, made)
        elif isinstance(made, Site) and made.multiplied:
            found.append(made)
    return found


def joint_sites(
    graph: ir.Graph, roots: Callable[[ir.Node], bool], leave: Callable[[ir.Node, str], None]
) -> list[Site]:
    """All sites, with as many roots as are added up; a root is in one of them at most.

    Args:
        graph: The main graph; not changed.
        roots: Which nodes may be one.
        leave: Told of roots whose factor cannot be moved, and why.
    """
    order = {node: index for index, node in enumerate(graph)}
    taken: set[ir.Node] = set()
    found = []
    for node in graph:
        if node in taken or not roots(node):
            continue
        made = _grown(node, roots, order)
        if isinstance(made, str):
            leave(node, made)
        elif made is not None:
            taken.update(made.roots)
            if made.multiplied:
                found.append(made)
    return found


def _grown(
    node: ir.Node, roots: Callable[[ir.Node], bool], order: Mapping[ir.Node, int]
) -> Site | str | None:
    """The site of a root, with every root it is added to; or why there is none."""
    members: dict[ir.Node, Root] = {}
    pending = [node]
    while pending:
        for each in pending:
            root = root_of(each) if roots(each) else f"'{each.name}' is no layer that may change"
            if root is None:
                return None if each is node else f"{each.op_type} '{each.name}' is added to it"
            if isinstance(root, str):
                return root if each is node else f"'{each.name}' is added to it: {root}"
            members[each] = root
        if len(members) > _MOST_ROOTS:
            return f"more than {_MOST_ROOTS} layers are added up"
        if len({root.channels for root in members.values()}) > 1:
            return "layers with other channels are added to it"
        needed: list[ir.Node] = []
        made = _follow([members[each] for each in sorted(members, key=order.__getitem__)], order, needed)
        if made is not None:
            return made
        pending = [each for each in needed if each not in members]
    return "what is added to it cannot be told"


def _follow(
    roots: list[Root], order: Mapping[ir.Node, int], needed: list[ir.Node] | None = None
) -> Site | str | None:
    """Collects what a factor in all these roots touches.

    Args:
        roots: Where the factor starts, in graph order.
        order: Position of every node of the graph.
        needed: Gets the operators that would have to take the factor too, as they are added to one that does;
            without it sums end the way.

    Returns:
        The site, why there is none, or None where `needed` was filled.
    """
    site = Site([root.node for root in roots], roots[0].channels)
    scaled: dict[ir.Value, Place] = {}
    pending: list[tuple[int, ir.Node]] = []
    seen: set[ir.Node] = set()

    def visit(value: ir.Value, place: Place) -> str | None:
        scaled[value] = place
        if value.is_graph_output():
            return f"it reaches the output '{value.name}' of the model"
        for user, _ in value.uses():
            if user not in order:
                return "it is read inside a body"
            if user not in seen:
                seen.add(user)
                heapq.heappush(pending, (order[user], user))
        return None

    for root in roots:
        if any(value.uses() or value.is_graph_output() for value in root.node.outputs[1:]):
            return "its other results are used"
        site.divided.extend(root.divided)
        problem = visit(root.value, Place((root.axis,), (root.channels,)))
        if problem is not None:
            return problem
    # In graph order, so that all scaled operands of a node are known when its turn comes.
    while pending:
        _, node = heapq.heappop(pending)
        if bodies_of(node) or node.domain not in _DEFAULT:
            return f"{node.op_type} '{node.name}' reads it"
        operands = [i for i, value in enumerate(node.inputs) if value is not None and value in scaled]
        if is_reader(node):
            problem = _read(site, node, operands, scaled)
        else:
            if needed is not None:
                needed.extend(_missing_terms(node, operands))
                if needed:
                    return None
            problem = _passed(site, node, operands, scaled, visit)
        if problem is not None:
            return problem
    return site


def _read(site: Site, node: ir.Node, operands: list[int], scaled: Mapping[ir.Value, Place]) -> str | None:
    for index in operands:
        value = node.inputs[index]
        assert value is not None
        edit = weight_edit(node, index, scaled[value])
        if isinstance(edit, str):
            return edit
        site.multiplied.append(edit)
        site.entries.append((value, scaled[value]))
    return None


def _passed(
    site: Site,
    node: ir.Node,
    operands: list[int],
    scaled: Mapping[ir.Value, Place],
    visit: Callable[[ir.Value, Place], str | None],
) -> str | None:
    passed = pass_through(node, operands, scaled)
    if isinstance(passed, str):
        return passed
    places, constant = passed
    if constant is not None:
        index, place, rank = constant
        site.divided.append(Edit((node, index), place.axes, place.sizes, rank, True))
    terms = [value for value in node.inputs if value is not None and value in scaled]
    if node.op_type in ("Add", "Sub") and len(operands) == 2:
        site.terms.extend((value, scaled[value], 1.0) for value in terms)
    elif node.op_type in _AVERAGES:
        sizes = [math.prod(static_shape(value) or (1,)) for value in (terms[0], node.outputs[0])]
        site.terms.append((terms[0], scaled[terms[0]], sizes[1] / max(sizes[0], 1)))
    for value, place in places.items():
        problem = visit(value, place)
        if problem is not None:
            return problem
    return None


def _carried(node: ir.Node) -> list[ir.Value]:
    """The inputs whose factor a node hands on; of a gated product the one that is not the gate."""
    computed = [value for value in node.inputs if value is not None and constant_tensor(value) is None]
    if node.op_type in ("Add", "Sub"):
        return computed
    if node.op_type != "Mul":
        return computed[:1]
    shape = static_shape(node.outputs[0])
    return [value for value in computed if static_shape(value) == shape][:1]


def _missing_terms(node: ir.Node, operands: list[int]) -> list[ir.Node]:
    """The operators behind a computed operand of a sum that is not scaled yet."""
    if node.op_type not in ("Add", "Sub") or len(operands) != 1 or len(node.inputs) != 2:
        return []
    other = node.inputs[1 - operands[0]]
    if other is None or constant_tensor(other) is not None:
        return []
    found: list[ir.Node] = []
    pending, seen = [other], {other}
    while pending:
        producer = pending.pop().producer()
        if producer is None:
            continue
        if is_reader(producer) or producer.op_type not in (*_UPWARDS, "Add", "Sub"):
            found.append(producer)
            continue
        for value in _carried(producer):
            if value not in seen:
                seen.add(value)
                pending.append(value)
    return found
