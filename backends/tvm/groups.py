"""Which operators become one kernel.

Anchors (convolutions, products, pooling) and row kernels (reductions, softmax, normalization) take the
element-wise operators that follow them. What is left - element-wise operators and operators that only move
data - is computed where it is read: a value gets memory of its own only if somebody needs it there, or if
several kernels would compute something expensive again.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import onnx_ir as ir

from .expressions import EXPENSIVE
from .integer_ops import STORED, TABLE
from .movement import VIEWS
from .op import Op
from .recurrent import RECURRENCE
from .roles import Role, role_of

_PER_CHANNEL = frozenset({"QuantizeLinear", "DequantizeLinear", "BatchNormalization"})
_MAX_MEMBERS = 48
# TVM simplifies an expression that uses variables by writing out what they hold, again and again: its time
# grows exponentially with nested uses. This bounds the nesting: three sigmoids in a row would take half a
# minute.
_MAX_WEIGHT = 6
_HEAVY = frozenset(
    {"Acosh", "Asinh", "Atanh", "Celu", "Cosh", "Elu", "Erf", "Exp", "Gelu", "Mish", "Selu", "Sigmoid"}
    | {"Sinh", "Softplus", "Swish", "Tanh"}
)
_MAX_COPIES = 4
_CHEAP_MOVES = VIEWS | {"Transpose", "Slice", "Split", "Expand", "Gather", "ConstantOfShape", "Concat"}


@dataclass(eq=False)
class Group:
    """Nodes that become one function, in execution order, and the value that it stores.

    Attributes:
        nodes: members; a node that only moves data may belong to several groups.
        output: the value written to memory (opaque groups write all outputs of their node).
        anchor: the node that the kernel is built around, if any.
        opaque: left to TVM's converters.
    """

    nodes: list[ir.Node]
    output: ir.Value
    anchor: ir.Node | None = None
    opaque: bool = False
    hosted: set[ir.Node] = field(default_factory=set)

    @property
    def inputs(self) -> list[ir.Value]:
        """Values read from outside, in order of first use, constants included."""
        inside = {output for node in self.nodes for output in node.outputs}
        seen: dict[ir.Value, None] = {}
        for node in self.nodes:
            for value in node.inputs:
                if value is not None and value not in inside:
                    seen.setdefault(value)
        return list(seen)


def form_groups(graph: ir.Graph, ops: dict[ir.Node, Op]) -> list[Group]:
    """Partition the nodes of a graph into groups, in an order in which they can run.

    Args:
        graph: the graph.
        ops: the operator of every node to lower, in execution order; other nodes are left out.
    """
    order = {node: i for i, node in enumerate(ops)}
    former = _Former(ops, order, set(graph.outputs))
    for node in order:
        former.add_anchor(node)
    for node in reversed(list(order)):
        former.place(node)
    return _sorted(former.finish(), order)


class _Former:
    def __init__(self, ops: dict[ir.Node, Op], order: dict[ir.Node, int], outputs: set[ir.Value]):
        self.ops, self.order, self.outputs = ops, order, outputs
        self.roles = {node: role_of(op) for node, op in ops.items()}
        self.groups: list[Group] = []
        self.homes: dict[ir.Node, list[Group]] = {}

    def add_anchor(self, node: ir.Node) -> None:
        """Start a group at an anchor and let it take the element-wise operators behind it."""
        if self.roles[node] not in (Role.ANCHOR, Role.ROWS, Role.OPAQUE):
            return
        opaque = self.roles[node] is Role.OPAQUE
        alone = opaque or self.ops[node].type in (RECURRENCE, TABLE)
        taken, output = ([], node.outputs[0]) if alone else self._epilogue(node)
        group = Group([node, *taken], output, node, opaque, {node, *taken})
        self.groups.append(group)
        for member in group.nodes:
            self.homes[member] = [group]

    def _epilogue(self, anchor: ir.Node) -> tuple[list[ir.Node], ir.Value]:
        """The longest element-wise region behind an anchor from which only one value leaves."""
        best: tuple[list[ir.Node], ir.Value] = ([], anchor.outputs[0])
        taken: list[ir.Node] = []
        while len(taken) < _MAX_MEMBERS:
            made = [anchor.outputs[0], *(node.outputs[0] for node in taken)]
            inside = {anchor, *taken}
            following = self._next(made, inside)
            if following is None:
                return best
            taken = sorted([*taken, following], key=self.order.__getitem__)
            if self._weight(taken) > _MAX_WEIGHT:
                return best
            leaving = [
                value for value in [*made, following.outputs[0]] if self._leaves(value, {anchor, *taken})
            ]
            if len(leaving) == 1 and not self._widens(leaving[0]):
                best = (list(taken), leaving[0])
        return best

    def _widens(self, value: ir.Value) -> bool:
        """Whether a value takes more memory than the integers it stands for; its readers dequantize then."""
        node = value.producer()
        if node is None or node.op_type != "DequantizeLinear" or value in self.outputs:
            return False
        return self.ops[node].input(0).dtype in STORED

    def _next(self, made: list[ir.Value], inside: set[ir.Node]) -> ir.Node | None:
        readers = {
            user for value in made for user in value.consumers() if user not in inside and user in self.order
        }
        for node in sorted(readers, key=self.order.__getitem__):
            if self._fits_behind(node, made) and not self._depends(node, inside):
                return node
        return None

    def _fits_behind(self, node: ir.Node, made: list[ir.Value]) -> bool:
        if node in self.homes or self.roles[node] is not Role.ELEMENTWISE:
            return False
        op = self.ops[node]
        if op.outputs[0].shape != tuple(made[0].shape or ()):
            return False
        # What the group makes must be read at the very element that is written.
        at = [i for i, value in enumerate(node.inputs) if value is not None and value in made]
        if op.type in _PER_CHANNEL:
            return at == [0]
        return all(op.input(i).shape == op.outputs[0].shape for i in at)

    def _leaves(self, value: ir.Value, inside: set[ir.Node]) -> bool:
        return value in self.outputs or any(
            user not in inside and user in self.order for user in value.consumers()
        )

    def _depends(self, node: ir.Node, inside: set[ir.Node]) -> bool:
        """Whether an input of `node` from outside the group is computed from something inside it."""
        first = min(self.order[each] for each in inside)
        stack = [value.producer() for value in node.inputs if value is not None]
        stack = [each for each in stack if each not in inside]
        seen: set[ir.Node] = set()
        while stack:
            each = stack.pop()
            if each is None or each not in self.order or each in seen or self.order[each] < first:
                continue
            seen.add(each)
            for value in each.inputs:
                producer = value.producer() if value is not None else None
                if producer in inside:
                    return True
                stack.append(producer)
        return False

    def place(self, node: ir.Node) -> None:
        """Give a node that is not in a group yet to the groups that read it, or a group of its own."""
        if node in self.homes:
            return
        hosts: dict[Group, None] = {}
        for value in node.outputs:
            readers = self._readers(value)
            if readers is None:
                group = Group([], value)
                self.groups.append(group)
                hosts[group] = None
            else:
                hosts.update(dict.fromkeys(readers))
        self.homes[node] = list(hosts)
        for group in hosts:
            group.hosted.add(node)

    def _readers(self, value: ir.Value) -> list[Group] | None:
        """The groups that can compute `value` for themselves; None if it must be in memory."""
        node = value.producer()
        assert node is not None
        if value in self.outputs:
            return None
        hosts: dict[Group, None] = {}
        for user, position in value.uses():
            if user not in self.order:
                continue
            if not self._reads_in_place(value, node, user, position):
                return None
            hosts.update(dict.fromkeys(self.homes[user]))
        if any(len(group.hosted) >= _MAX_MEMBERS for group in hosts):
            return None
        if any(self._weight([*group.hosted, node]) > _MAX_WEIGHT for group in hosts):
            return None
        if len(hosts) <= 1:
            return list(hosts)
        cheap = self.ops[node].type in _CHEAP_MOVES and len(hosts) <= _MAX_COPIES
        return list(hosts) if cheap else None

    def _reads_in_place(self, value: ir.Value, node: ir.Node, user: ir.Node, position: int) -> bool:
        role, op = self.roles[user], self.ops[user]
        if role in (Role.OPAQUE, Role.ANCHOR):
            return False
        if role is Role.ROWS:
            return position == 0 and self._is_light(node)
        if role is Role.STENCIL:
            return position == 0 and self.ops[node].type in _CHEAP_MOVES
        if op.type in _PER_CHANNEL and position > 0:
            return False
        if any(
            group.anchor is not None and self.roles[group.anchor] is Role.ANCHOR for group in self.homes[user]
        ):
            return self.roles[node] is Role.ELEMENTWISE or self.ops[node].type in VIEWS | {"Expand"}
        grows = self._size(user.outputs[0]) > self._size(value)
        return not (grows and self.ops[node].type in EXPENSIVE)

    def _is_light(self, node: ir.Node) -> bool:
        return self.roles[node] in (Role.ELEMENTWISE, Role.MOVEMENT)

    def _weight(self, nodes: Iterable[ir.Node]) -> int:
        """How much the expressions of some nodes are nested when they are written as one."""
        total = 0
        for node in nodes:
            repeated = self.roles[node] is Role.ELEMENTWISE and len(node.outputs[0].uses()) > 1
            total += 3 if node.op_type in _HEAVY else int(repeated)
        return total

    def _size(self, value: ir.Value) -> int:
        size = 1
        for dim in value.shape or ():
            size *= int(str(dim))
        return size

    def finish(self) -> list[Group]:
        """The groups with their nodes in execution order, unused ones left out."""
        for group in self.groups:
            group.nodes = sorted(group.hosted, key=self.order.__getitem__)
        return self.groups


def _sorted(groups: list[Group], order: dict[ir.Node, int]) -> list[Group]:
    """Groups such that each runs after those whose values it reads."""
    makers: dict[ir.Value, Group] = {}
    for group in groups:
        outputs = group.nodes[0].outputs if group.opaque else [group.output]
        makers.update(dict.fromkeys(outputs, group))
    groups = sorted(groups, key=lambda group: max(order[node] for node in group.nodes))
    done: dict[Group, None] = {}
    for group in groups:
        stack = [group]
        while stack:
            top = stack[-1]
            missing = [
                makers[v]
                for v in top.inputs
                if v in makers and makers[v] not in done and makers[v] is not top
            ]
            if missing and top not in done:
                stack.extend(missing)
                continue
            stack.pop()
            done.setdefault(top)
    return list(done)
