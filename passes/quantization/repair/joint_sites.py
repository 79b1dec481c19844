"""Sites whose channels several operators make together: the sums of residual networks.

`scaling.find_sites` gives up where two computed values are added. Here all operators that feed such a sum
take the same factor, and everything that reads any of the sums is multiplied by it:

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
from .scaling import Edit, Site, channel_axis, is_reader, root_of, weight_edit

_DEFAULT = ("", "ai.onnx")
_MOST_ROOTS = 64
# What a factor passes on its way up from a sum to the operators that make the channels.
_AVERAGES = ("AveragePool", "GlobalAveragePool", "ReduceMean")
_UPWARDS = ("Relu", "LeakyRelu", "PRelu", "MaxPool", "AveragePool", "Identity", "Dropout", "Clip", "Mul")


@dataclass
class JointSite:
    """One factor per channel, free to choose, with all that it touches.

    Attributes:
        roots: what makes the channels, in graph order.
        channels: how many.
        divided: constants of the roots, and those added on the way.
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
    def places(self) -> list[tuple[ir.Value, Place]]:
        """Entries and terms, and where the channels lie there."""
        return [*self.entries, *((value, place) for value, place, _ in self.terms)]

    @property
    def readers(self) -> list[ir.Node]:
        """The operators whose weights are multiplied."""
        return [edit.operand[0] for edit in self.multiplied]


def joint_sites(
    graph: ir.Graph, roots: Callable[[ir.Node], bool], leave: Callable[[ir.Node, str], None]
) -> list[JointSite]:
    """All sites of a graph; a root is in one of them at most.

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
) -> JointSite | str | None:
    """The site of a root, with every root it is added to; or why there is none."""
    members: dict[ir.Node, Site] = {}
    pending = [node]
    while pending:
        for each in pending:
            site = root_of(each) if roots(each) else f"'{each.name}' is no layer that may change"
            if site is None:
                return None if each is node else f"{each.op_type} '{each.name}' is added to it"
            if isinstance(site, str):
                return site if each is node else f"'{each.name}' is added to it: {site}"
            members[each] = site
        if len(members) > _MOST_ROOTS:
            return f"more than {_MOST_ROOTS} layers are added up"
        if len({site.channels for site in members.values()}) > 1:
            return "layers with other channels are added to it"
        found = _follow([members[each] for each in sorted(members, key=order.__getitem__)], order)
        if isinstance(found, str):
            return found
        if isinstance(found, JointSite):
            return found
        pending = [each for each in found if each not in members]
    return "what is added to it cannot be told"


def _follow(sites: list[Site], order: Mapping[ir.Node, int]) -> JointSite | list[ir.Node] | str:
    """Collects what a factor in all these roots touches; further roots that it needs, or why it cannot be."""
    joint = JointSite([site.root for site in sites], sites[0].channels)
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

    for site in sites:
        if any(value.uses() or value.is_graph_output() for value in site.root.outputs[1:]):
            return "its other results are used"
        joint.divided.extend(site.divided)
        problem = visit(site.value, Place((channel_axis(site),), (site.channels,)))
        if problem is not None:
            return problem
    # In graph order, so that all scaled operands of a node are known when its turn comes.
    while pending:
        _, node = heapq.heappop(pending)
        if bodies_of(node) or node.domain not in _DEFAULT:
            return f"{node.op_type} '{node.name}' reads it"
        operands = [i for i, value in enumerate(node.inputs) if value is not None and value in scaled]
        if is_reader(node):
            problem = _read(joint, node, operands, scaled)
        else:
            needed = _missing_terms(node, operands)
            if needed:
                return needed
            problem = _passed(joint, node, operands, scaled, visit)
        if problem is not None:
            return problem
    return joint


def _read(
    joint: JointSite, node: ir.Node, operands: list[int], scaled: Mapping[ir.Value, Place]
) -> str | None:
    for index in operands:
        value = node.inputs[index]
        assert value is not None
        edit = weight_edit(node, index, scaled[value])
        if isinstance(edit, str):
            return edit
        joint.multiplied.append(edit)
        joint.entries.append((value, scaled[value]))
    return None


def _passed(
    joint: JointSite,
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
        joint.divided.append(Edit((node, index), place.axes, place.sizes, rank, True))
    terms = [value for value in node.inputs if value is not None and value in scaled]
    if node.op_type in ("Add", "Sub") and len(operands) == 2:
        joint.terms.extend((value, scaled[value], 1.0) for value in terms)
    elif node.op_type in _AVERAGES:
        sizes = [math.prod(static_shape(value) or (1,)) for value in (terms[0], node.outputs[0])]
        joint.terms.append((terms[0], scaled[terms[0]], sizes[1] / max(sizes[0], 1)))
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
