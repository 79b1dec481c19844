"""Matches a declarative pattern against the graph around a node."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir

from ..ir.constants import constant_array
from .pattern_facts import attribute_fits, captures_of, parts_apart, place_for
from .patterns import (
    AnyOf,
    ConstantPattern,
    OpPattern,
    OutputsPattern,
    Pattern,
    RestPattern,
    ValuePattern,
    root_types,
)

_CONSTANT_LIMIT = 1 << 24
_STEPS = 20_000
_CANDIDATES = 64
_WAYS = 8
_ANY_ORDER = frozenset({"Sum", "Max", "Min", "Mean"})


@dataclass
class Match:
    """What a pattern bound.

    Attributes:
        root: The node at which the pattern matched; in front of it the replacement is built.
        roots: The root nodes in the order of the pattern; one unless it has several outputs.
        values: Captured values by name; None for an absent optional input.
        rest: Captured lists of inputs by name.
        nodes: Captured nodes by name.
        covered: All nodes of the match, roots first.
    """

    root: ir.Node
    values: dict[str, ir.Value | None] = field(default_factory=dict)
    nodes: dict[str, ir.Node] = field(default_factory=dict)
    covered: list[ir.Node] = field(default_factory=list)
    rest: dict[str, list[ir.Value | None]] = field(default_factory=dict)
    roots: list[ir.Node] = field(default_factory=list)

    def __getitem__(self, name: str) -> ir.Value:
        found = self.values[name]
        if found is None:
            raise KeyError(f"'{name}' matched an absent input")
        return found

    def get(self, name: str) -> ir.Value | None:
        """Return the captured value, or None where it is absent or the alternative with it was not taken."""
        return self.values.get(name)

    def array(self, name: str) -> np.ndarray:
        """Return the contents of a captured constant."""
        array = constant_array(self[name])
        if array is None:
            raise KeyError(f"'{name}' is not a constant")
        return array


def match_pattern(pattern: Pattern, node: ir.Node) -> tuple[Match | None, str]:
    """Match `pattern` with its root at `node`; returns the match, or None and the reason."""
    if isinstance(pattern, OpPattern) and not _is_one_of(node, pattern):
        return None, f"'{node.name}' is a {node.op_type}"
    matcher = _Matcher(node, pattern)
    refusal = ""
    try:
        for _ in matcher.all_roots(pattern, node):
            leak = matcher.leak() or matcher.find_place()
            if leak is None:
                return matcher.match, ""
            refusal = refusal or leak
    except _TooManyError:
        return None, f"gave up after {_STEPS} steps: the pattern fits in too many ways"
    return None, refusal or matcher.reason


class _TooManyError(Exception):
    """The search takes too long."""


@dataclass(frozen=True)
class _Solution:
    """The bindings of one way to match a part of a pattern."""

    values: dict[str, ir.Value | None]
    nodes: dict[str, ir.Node]
    rest: dict[str, list[ir.Value | None]]
    ops: dict[OpPattern, ir.Node]


class _Matcher:
    """Backtracking search: every method yields once for each way to match, with the bindings of that way in
    place.

    `reason` is that of the failure that got deepest. A part of the pattern that shares nothing with the rest
    (`apart`) matches a node in the same ways whatever else is bound, so those are found once; of ways that
    cover the same nodes the first is as good as any.
    """

    def __init__(self, root: ir.Node, pattern: Pattern):
        self.match = Match(root, roots=[root])
        self._failure: tuple[str, tuple[Any, ...]] = ("", ())
        self._depth = -1
        self._level = 0
        self._steps = 0
        self._ops: dict[OpPattern, ir.Node] = {}
        self._apart = parts_apart(pattern)
        self._known: dict[tuple[OpPattern, ir.Node], list[_Solution]] = {}

    @property
    def reason(self) -> str:
        template, arguments = self._failure
        return template.format(*arguments)

    def all_roots(self, pattern: Pattern, node: ir.Node) -> Iterator[None]:
        if not isinstance(pattern, OutputsPattern):
            yield from self.root(pattern, node)
            return
        for _ in self.root(pattern.roots[0], node):
            yield from self._further_roots(pattern.roots[1:])

    def _further_roots(self, patterns: tuple[Pattern, ...]) -> Iterator[None]:
        if not patterns:
            yield
            return
        self._level += 1
        candidates = self._candidates(patterns[0])
        if not candidates:
            self._fail("there is no {} behind what is bound", " or ".join(root_types(patterns[0])))
        for node in candidates:
            self.match.roots.append(node)
            for _ in self.root(patterns[0], node):
                yield from self._further_roots(patterns[1:])
            self.match.roots.pop()
        self._level -= 1

    def _candidates(self, pattern: Pattern) -> list[ir.Node]:
        """Nodes near what is bound at which one more root may be."""
        names, depth = captures_of(pattern)
        types = root_types(pattern)
        reached = [value for name, value in self.match.values.items() if name in names and value is not None]
        found: dict[ir.Node, None] = {}
        home = self.match.root.graph
        for _ in range(depth):
            users = dict.fromkeys(user for value in reached for user in value.consumers())
            found.update((user, None) for user in users if user.graph is home and _key(user) in types)
            reached = [output for user in users for output in user.outputs]
            if len(found) > _CANDIDATES or len(reached) > _CANDIDATES:
                break
        return [node for node in found if node not in self.match.roots][:_CANDIDATES]

    def root(self, pattern: Pattern, node: ir.Node) -> Iterator[None]:
        if isinstance(pattern, AnyOf):
            for choice in pattern.choices:
                yield from self.root(choice, node)
            return
        assert isinstance(pattern, OpPattern)
        if _is_one_of(node, pattern):
            yield from self._node(pattern, node)
        else:
            self._fail("'{}' is a {}", node.name, node.op_type)

    def leak(self) -> str | None:
        """Return why the nodes of the current match cannot be removed, or None where they can."""
        roots = self.match.roots
        self.match.covered = list(dict.fromkeys([*roots, *self._ops.values()]))
        inside = set(self.match.covered)
        escaping = {node for pattern, node in self._ops.items() if pattern.escapes}
        for node in self.match.covered[len(roots) :]:
            for output in node.outputs if node not in escaping else ():
                if output.is_graph_output():
                    return f"inner value '{output.name}' is a graph output"
                outside = next((user for user in output.consumers() if user not in inside), None)
                if outside is not None:
                    return f"inner value '{output.name}' is also used by '{outside.name}'"
        return None

    def find_place(self) -> str | None:
        """Let `match.root` be where the replacement of several roots may stand; None, or why nowhere."""
        if len(self.match.roots) == 1:
            return None
        place, reason = place_for(self.match.roots, [v for v in self.match.values.values() if v is not None])
        if place is not None:
            self.match.root = place
        return reason

    def _value(self, pattern: Pattern | None, found: ir.Value | None) -> Iterator[None]:
        self._steps += 1
        if self._steps > _STEPS:
            raise _TooManyError
        if isinstance(pattern, AnyOf):
            for choice in pattern.choices:
                yield from self._value(choice, found)
        elif isinstance(pattern, ValuePattern):
            yield from self._capture(pattern, found)
        elif pattern is None or found is None:
            if pattern is None and found is None:
                yield
            elif found is None:
                self._fail("an input is absent")
            else:
                self._fail("input '{}' should be absent", found.name)
        elif isinstance(pattern, ConstantPattern):
            yield from self._constant(pattern, found)
        else:
            assert isinstance(pattern, OpPattern)
            yield from self._produced(pattern, found)

    def _produced(self, pattern: OpPattern, found: ir.Value) -> Iterator[None]:
        node = found.producer()
        if node is None or not _is_one_of(node, pattern):
            wanted = " or ".join(pattern.op_types)
            if node is None:
                self._fail("'{}' should be made by {}, is a graph input or constant", found.name, wanted)
            else:
                made = (node.op_type, node.name)
                self._fail("'{}' should be made by {}, is made by {} '{}'", found.name, wanted, *made)
        elif found.index() != pattern.output:
            self._fail("'{}' is not output {} of '{}'", found.name, pattern.output, node.name)
        elif pattern in self._ops:
            if self._ops[pattern] is node:
                yield
            else:
                self._fail("'{}' should be made by '{}'", found.name, self._ops[pattern].name)
        elif pattern in self._apart:
            yield from self._remembered(pattern, node)
        else:
            yield from self._node(pattern, node)

    def _remembered(self, pattern: OpPattern, node: ir.Node) -> Iterator[None]:
        known = self._known.get((pattern, node))
        if known is None:
            known = self._known[pattern, node] = self._solve(pattern, node)
        match = self.match
        for way in known:
            match.values.update(way.values)
            match.nodes.update(way.nodes)
            match.rest.update(way.rest)
            self._ops.update(way.ops)
            yield
            _unbind(match.values, way.values)
            _unbind(match.nodes, way.nodes)
            _unbind(match.rest, way.rest)
            _unbind(self._ops, way.ops)

    def _solve(self, pattern: OpPattern, node: ir.Node) -> list[_Solution]:
        bound: tuple[dict[Any, Any], ...] = (self.match.values, self.match.nodes, self.match.rest, self._ops)
        before, level = [len(each) for each in bound], self._level
        found: dict[frozenset[ir.Node], _Solution] = {}
        for _ in self._node(pattern, node):
            # Dictionaries keep their order, so what this part bound stands at the end.
            parts = (dict(list(d.items())[n:]) for d, n in zip(bound, before, strict=True))
            way = _Solution(*parts)
            found.setdefault(frozenset(way.ops.values()), way)
            if len(found) == _WAYS:
                break
        for each, size in zip(bound, before, strict=True):
            while len(each) > size:
                each.popitem()
        self._level = level
        return list(found.values())

    def _capture(self, pattern: ValuePattern, found: ir.Value | None) -> Iterator[None]:
        if found is None and not pattern.optional:
            self._fail("'{}' is absent", pattern.name)
            return
        if found is not None and pattern.where is not None:
            verdict = pattern.where(found)
            if verdict is not True:
                self._fail("{}", verdict or f"'{found.name}' is not fit to be '{pattern.name}'")
                return
        yield from self._bind(pattern.name, found)

    def _constant(self, pattern: ConstantPattern, found: ir.Value) -> Iterator[None]:
        refusal = _constant_refusal(pattern, found)
        if refusal:
            self._fail("{}", refusal)
        elif pattern.name:
            yield from self._bind(pattern.name, found)
        else:
            yield

    def _bind(self, name: str, found: ir.Value | None) -> Iterator[None]:
        if name not in self.match.values:
            self.match.values[name] = found
            yield
            del self.match.values[name]
        elif self.match.values[name] is found:
            yield
        else:
            self._fail("'{}' would be two different values", name)

    def _node(self, pattern: OpPattern, node: ir.Node) -> Iterator[None]:
        for name, wanted in pattern.attributes.items():
            if not attribute_fits(node, name, wanted):
                self._fail("attribute '{}' of '{}' does not fit", name, node.name)
                return
        inputs = list(node.inputs)
        while inputs and inputs[-1] is None:
            inputs.pop()
        operands = pattern.operands
        last = operands[-1] if operands and isinstance(operands[-1], RestPattern) else None
        operands = operands[:-1] if last is not None else operands
        if len(inputs) > len(operands) and not pattern.variadic and last is None:
            self._fail("'{}' has {} inputs", node.name, len(inputs))
            return
        inputs += [None] * (len(operands) - len(inputs))
        self._ops[pattern] = node
        if pattern.name:
            self.match.nodes[pattern.name] = node
        self._level += 1
        free = 0
        if pattern.commutative:
            free = len(inputs) if node.op_type in _ANY_ORDER else min(2, len(inputs))
        for left in self._operands(operands, inputs, free):
            if last is None:
                yield
            else:
                self.match.rest[last.name] = left
                yield
                del self.match.rest[last.name]
        self._level -= 1
        del self._ops[pattern]
        if pattern.name:
            del self.match.nodes[pattern.name]

    def _operands(
        self, patterns: tuple[Pattern | None, ...], inputs: list[ir.Value | None], free: int
    ) -> Iterator[list[ir.Value | None]]:
        """Match each pattern with an input; the first `free` inputs may be taken in any order.

        Yields:
            The inputs that no pattern took.
        """
        if not patterns:
            yield inputs
            return
        tried: list[ir.Value | None] = []
        for i in range(max(free, 1)):
            chosen = inputs[i]
            if any(chosen is other for other in tried):
                continue
            tried.append(chosen)
            others = inputs[:i] + inputs[i + 1 :]
            for _ in self._value(patterns[0], chosen):
                yield from self._operands(patterns[1:], others, max(free - 1, 0))

    def _fail(self, template: str, *arguments: Any) -> None:
        if self._level > self._depth:
            self._depth, self._failure = self._level, (template, arguments)


def _unbind(bound: dict[Any, Any], keys: Iterable[Any]) -> None:
    for key in keys:
        del bound[key]


def _is_one_of(node: ir.Node, pattern: OpPattern) -> bool:
    return node.op_type in pattern.op_types and _domain(node) == pattern.domain


def _constant_refusal(pattern: ConstantPattern, found: ir.Value) -> str | None:
    array = constant_array(found, _CONSTANT_LIMIT)
    if array is None:
        return f"'{found.name}' is not a constant"
    if pattern.scalar and array.size != 1:
        return f"'{found.name}' is not a scalar"
    if pattern.shape is not None and array.shape != pattern.shape:
        return f"'{found.name}' has shape {list(array.shape)}, not {list(pattern.shape)}"
    if pattern.equals is not None:
        # A narrow type holds the number as well as it can.
        bound = max(pattern.tolerance, _rounding(array.dtype)) * max(abs(pattern.equals), 1e-30)
        if array.size == 0 or not bool(np.all(np.abs(array.astype(np.float64) - pattern.equals) <= bound)):
            return f"'{found.name}' is not {pattern.equals:g}"
    return None


def _rounding(dtype: np.dtype) -> float:
    """The largest relative error of a number stored as `dtype`; 0 for integers."""
    return float(ml_dtypes.finfo(dtype).eps) / 2 if dtype.kind in "fV" else 0.0


def _key(node: ir.Node) -> str:
    return f"{node.domain}::{node.op_type}" if _domain(node) else node.op_type


def _domain(node: ir.Node) -> str:
    return "" if node.domain == "ai.onnx" else node.domain
