"""What matching wants to know about a pattern beforehand, and about attributes and places in a graph."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Sequence
from typing import Any

import onnx
import onnx_ir as ir

from ..ir.opset import CANONICAL_OPSET
from .neighbours import node_behind
from .patterns import AnyOf, ConstantPattern, OpPattern, OutputsPattern, Pattern, RestPattern, ValuePattern

_APART = 4096
"""Nodes between two roots that are looked through for a place to build a replacement."""


@functools.lru_cache(maxsize=4096)
def parts_apart(pattern: Pattern) -> frozenset[OpPattern]:
    """Parts that share no capture with the rest of `pattern` and can match a node in more ways than one."""
    everywhere = _mentions(pattern)
    found = set()
    for part in _operators(pattern):
        inside = _mentions(part)
        alone = everywhere[part] <= 1 and all(everywhere[name] == n for name, n in inside.items())
        if alone and _choices(part) > 1:
            found.add(part)
    return frozenset(found)


@functools.lru_cache(maxsize=4096)
def captures_of(pattern: Pattern) -> tuple[frozenset[str], int]:
    """Names of the values that `pattern` captures, and how many operators it is deep."""
    names: set[str] = set()
    depth = 0
    for child in _children(pattern):
        below, levels = captures_of(child)
        names |= below
        depth = max(depth, levels)
    if isinstance(pattern, ValuePattern | ConstantPattern) and pattern.name:
        names.add(pattern.name)
    return frozenset(names), depth + isinstance(pattern, OpPattern)


def attribute_fits(node: ir.Node, name: str, wanted: Any) -> bool:
    """Whether attribute `name` of `node` is as a pattern wants it."""
    attribute = node.attributes.get(name)
    if attribute is not None and attribute.is_ref():
        return False
    if wanted is None:
        return attribute is None
    found = attribute.value if attribute is not None else None
    if isinstance(wanted, tuple) and len(wanted) == 2:
        wanted, default = wanted
        found = default if attribute is None else found
    elif attribute is None and not callable(wanted):
        found = standard_default("" if node.domain == "ai.onnx" else node.domain, node.op_type, name)
    if callable(wanted):
        return bool(wanted(found))
    if isinstance(wanted, float) and isinstance(found, float):
        return abs(wanted - found) <= 1e-6 * max(abs(wanted), 1e-30)
    if isinstance(found, Sequence) and not isinstance(found, str):
        return not isinstance(wanted, int | float | str) and list(found) == list(wanted)
    return bool(found == wanted)


@functools.lru_cache(maxsize=4096)
def standard_default(domain: str, op_type: str, name: str) -> Any:
    """What the ONNX standard lets an absent attribute stand for; None where it says nothing."""
    try:
        schema = onnx.defs.get_schema(op_type, CANONICAL_OPSET, domain)
    except onnx.defs.SchemaError:
        return None
    attribute = schema.attributes.get(name)
    if attribute is None or not attribute.default_value.name:
        return None
    value = onnx.helper.get_attribute_value(attribute.default_value)
    return value.decode() if isinstance(value, bytes) else value


def place_for(roots: Sequence[ir.Node], operands: Sequence[ir.Value]) -> tuple[ir.Node | None, str | None]:
    """Find before which of `roots` a node may stand that reads `operands` and takes the place of them all.

    Returns:
        The root, or None and why there is no such place.
    """
    graph = roots[0].graph
    if any(root.graph is not graph for root in roots):
        return None, "the nodes to replace stand in different graphs"
    between = _stretch(roots)
    if between is None:
        return None, f"'{roots[0].name}' and '{roots[-1].name}' stand too far apart"
    inside = set(between)
    late = next((v for v in operands if v.producer() in inside and v.producer() not in roots), None)
    if late is None:
        return between[0], None
    last = between[-1]
    for root in roots:
        if root is not last and any(
            user in inside for output in root.outputs for user in _users(output, graph)
        ):
            return None, f"'{late.name}' is computed after '{root.name}' is used"
    return last, None


def _stretch(roots: Sequence[ir.Node]) -> list[ir.Node] | None:
    """The nodes from the first of `roots` to the last of them, in the order of the graph."""
    for start in roots:
        missing: set[ir.Node] = set(roots)
        path: list[ir.Node] = []
        node: ir.Node | None = start
        while node is not None and len(path) < _APART:
            path.append(node)
            missing.discard(node)
            if not missing:
                return path
            node = node_behind(node)
    return None


def _users(value: ir.Value, graph: Any) -> list[ir.Node]:
    # A reader in a body stands somewhere between: which node owns the body does not matter here.
    return [user for user in value.consumers() if user.graph is graph] + [
        owner for user in value.consumers() if user.graph is not graph for owner in graph
    ]


def _children(pattern: Pattern | None) -> list[Pattern]:
    if isinstance(pattern, OpPattern):
        return [operand for operand in pattern.operands if operand is not None]
    if isinstance(pattern, AnyOf):
        return list(pattern.choices)
    return list(pattern.roots) if isinstance(pattern, OutputsPattern) else []


def _operators(pattern: Pattern) -> list[OpPattern]:
    found: dict[Pattern, None] = {pattern: None}
    for each in (pending := [pattern]):
        pending += [child for child in _children(each) if child not in found]
        found.update(dict.fromkeys(_children(each)))
    return [each for each in found if isinstance(each, OpPattern)]


def _mentions(pattern: Pattern) -> Counter[Any]:
    """How often captures and operators are mentioned below `pattern`; what is shared is entered once."""
    found: Counter[Any] = Counter()
    seen: set[Pattern] = set()
    pending = [pattern]
    while pending:
        each = pending.pop()
        for child in _children(each):
            if isinstance(child, OpPattern):
                found[child] += 1
            elif isinstance(child, ValuePattern | ConstantPattern | RestPattern) and child.name:
                found[child.name] += 1
            if child not in seen:
                seen.add(child)
                pending.append(child)
        if isinstance(each, OpPattern) and each.name:
            found["node", each.name] += 1
    return found


def _choices(pattern: Pattern) -> int:
    operators = _operators(pattern)
    alternatives = sum(isinstance(child, AnyOf) for each in operators for child in _children(each))
    return alternatives + sum(each.commutative for each in operators)
