"""Matches a declarative pattern against the graph around a node."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir

from ..ir.constants import constant_array
from .patterns import AnyOf, ConstantPattern, OpPattern, Pattern, ValuePattern

_CONSTANT_LIMIT = 1 << 24


@dataclass
class Match:
    """What a pattern bound.

    Attributes:
        root: The node at which the pattern matched.
        values: Captured values by name; None for an absent optional input.
        nodes: Captured nodes by name.
        covered: All nodes of the match, root first.
    """

    root: ir.Node
    values: dict[str, ir.Value | None] = field(default_factory=dict)
    nodes: dict[str, ir.Node] = field(default_factory=dict)
    covered: list[ir.Node] = field(default_factory=list)

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
    matcher = _Matcher(node)
    refusal = ""
    for _ in matcher.root(pattern, node):
        leak = matcher.leak()
        if leak is None:
            return matcher.match, ""
        refusal = refusal or leak
    return None, refusal or matcher.reason


class _Matcher:
    """Backtracking search: every method yields once for each way to match, with the bindings of that way in
    place.

    `reason` is that of the failure that got deepest.
    """

    def __init__(self, root: ir.Node):
        self.match = Match(root)
        self.reason = ""
        self._depth = -1
        self._level = 0
        self._ops: dict[OpPattern, ir.Node] = {}

    def root(self, pattern: Pattern, node: ir.Node) -> Iterator[None]:
        if isinstance(pattern, AnyOf):
            for choice in pattern.choices:
                yield from self.root(choice, node)
            return
        assert isinstance(pattern, OpPattern)
        if node.op_type in pattern.op_types and _domain(node) == pattern.domain:
            yield from self._node(pattern, node)
        else:
            self._fail(f"'{node.name}' is a {node.op_type}")

    def leak(self) -> str | None:
        """Return why the nodes of the current match cannot be removed, or None where they can."""
        self.match.covered = list(dict.fromkeys([self.match.root, *self._ops.values()]))
        inside = set(self.match.covered)
        escaping = {node for pattern, node in self._ops.items() if pattern.escapes}
        for node in self.match.covered[1:]:
            for output in node.outputs if node not in escaping else ():
                if output.is_graph_output():
                    return f"inner value '{output.name}' is a graph output"
                outside = next((user for user in output.consumers() if user not in inside), None)
                if outside is not None:
                    return f"inner value '{output.name}' is also used by '{outside.name}'"
        return None

    def _value(self, pattern: Pattern | None, found: ir.Value | None) -> Iterator[None]:
        if isinstance(pattern, AnyOf):
            for choice in pattern.choices:
                yield from self._value(choice, found)
        elif isinstance(pattern, ValuePattern):
            yield from self._capture(pattern, found)
        elif pattern is None or found is None:
            if pattern is None and found is None:
                yield
            else:
                self._fail(
                    "an input is absent" if found is None else f"input '{found.name}' should be absent"
                )
        elif isinstance(pattern, ConstantPattern):
            yield from self._constant(pattern, found)
        else:
            assert isinstance(pattern, OpPattern)
            yield from self._produced(pattern, found)

    def _produced(self, pattern: OpPattern, found: ir.Value) -> Iterator[None]:
        node = found.producer()
        if node is None or node.op_type not in pattern.op_types or _domain(node) != pattern.domain:
            actual = "a graph input or constant" if node is None else f"made by {node.op_type} '{node.name}'"
            self._fail(f"'{found.name}' should be made by {' or '.join(pattern.op_types)}, is {actual}")
        elif found.index() != pattern.output:
            self._fail(f"'{found.name}' is not output {pattern.output} of '{node.name}'")
        elif pattern in self._ops:
            if self._ops[pattern] is node:
                yield
            else:
                self._fail(f"'{found.name}' should be made by '{self._ops[pattern].name}'")
        else:
            yield from self._node(pattern, node)

    def _capture(self, pattern: ValuePattern, found: ir.Value | None) -> Iterator[None]:
        if found is None and not pattern.optional:
            self._fail(f"'{pattern.name}' is absent")
            return
        if found is not None and pattern.where is not None:
            verdict = pattern.where(found)
            if verdict is not True:
                self._fail(verdict or f"'{found.name}' is not fit to be '{pattern.name}'")
                return
        yield from self._bind(pattern.name, found)

    def _constant(self, pattern: ConstantPattern, found: ir.Value) -> Iterator[None]:
        refusal = _constant_refusal(pattern, found)
        if refusal:
            self._fail(refusal)
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
            self._fail(f"'{name}' would be two different values")

    def _node(self, pattern: OpPattern, node: ir.Node) -> Iterator[None]:
        for name, wanted in pattern.attributes.items():
            if not _attribute_fits(node, name, wanted):
                self._fail(f"attribute '{name}' of '{node.name}' does not fit")
                return
        inputs = list(node.inputs)
        while inputs and inputs[-1] is None:
            inputs.pop()
        if len(inputs) > len(pattern.operands) and not pattern.variadic:
            self._fail(f"'{node.name}' has {len(inputs)} inputs")
            return
        inputs += [None] * (len(pattern.operands) - len(inputs))
        self._ops[pattern] = node
        if pattern.name:
            self.match.nodes[pattern.name] = node
        self._level += 1
        yield from self._operands(pattern.operands, inputs)
        if pattern.commutative and len(inputs) > 1 and inputs[0] is not inputs[1]:
            yield from self._operands(pattern.operands, [inputs[1], inputs[0], *inputs[2:]])
        self._level -= 1
        del self._ops[pattern]
        if pattern.name:
            del self.match.nodes[pattern.name]

    def _operands(
        self, patterns: tuple[Pattern | None, ...], inputs: list[ir.Value | None]
    ) -> Iterator[None]:
        if not patterns:
            yield
            return
        for _ in self._value(patterns[0], inputs[0]):
            yield from self._operands(patterns[1:], inputs[1:])

    def _fail(self, reason: str) -> None:
        if self._level > self._depth:
            self._depth, self.reason = self._level, reason


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


def _attribute_fits(node: ir.Node, name: str, wanted: Any) -> bool:
    attribute = node.attributes.get(name)
    if attribute is not None and attribute.is_ref():
        return False
    found = attribute.value if attribute is not None else None
    if isinstance(wanted, tuple) and len(wanted) == 2:
        wanted, default = wanted
        found = default if attribute is None else found
    if callable(wanted):
        return bool(wanted(found))
    if isinstance(wanted, float) and isinstance(found, float):
        return abs(wanted - found) <= 1e-6 * max(abs(wanted), 1e-30)
    if isinstance(found, Sequence) and not isinstance(found, str):
        return list(found) == list(wanted)
    return bool(found == wanted)


def _domain(node: ir.Node) -> str:
    return "" if node.domain == "ai.onnx" else node.domain
