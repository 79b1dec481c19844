"""Declarative patterns: the shape of a subgraph, stated as an expression.

    x, y = value("x"), value("y")
    silu = op("Mul", x, op("Sigmoid", x, name="gate"), commutative=True)

A pattern is matched from its root node upwards. Binding the same `value` twice demands the same value twice.
Commutative operators try their orders by backtracking, so no copies of the pattern are made; a part that
shares no capture with the rest is matched once per node, so nested orders do not multiply. Every failure
leaves a reason; the one that got furthest is reported.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import onnx_ir as ir


class Pattern:
    """Base of what can stand as an operand."""


@dataclass(frozen=True, eq=False)
class ValuePattern(Pattern):
    """Any value (or, with `optional`, also an absent input), bound to `name`."""

    name: str
    optional: bool = False
    where: Callable[[ir.Value], bool | str] | None = None


@dataclass(frozen=True, eq=False)
class ConstantPattern(Pattern):
    """A stored constant; with `equals`, one whose elements are all that number within `tolerance`
    (relative).
    """

    name: str = ""
    equals: float | None = None
    tolerance: float = 1e-5
    scalar: bool = False
    shape: tuple[int, ...] | None = None


@dataclass(frozen=True, eq=False)
class OpPattern(Pattern):
    """Output `output` of a node of one of `op_types` with these operands and attributes."""

    op_types: tuple[str, ...]
    operands: tuple[Pattern | None, ...]
    attributes: Mapping[str, Any] = field(default_factory=dict)
    name: str = ""
    commutative: bool = False
    variadic: bool = False
    escapes: bool = False
    domain: str = ""
    output: int = 0


@dataclass(frozen=True, eq=False)
class AnyOf(Pattern):
    """The first of several patterns that matches."""

    choices: tuple[Pattern, ...]


@dataclass(frozen=True, eq=False)
class RestPattern(Pattern):
    """All inputs that are left, captured as a list called `name`."""

    name: str


@dataclass(frozen=True, eq=False)
class OutputsPattern(Pattern):
    """Several nodes that are replaced together; each shares a capture with one before it."""

    roots: tuple[Pattern, ...]


def value(
    name: str, *, optional: bool = False, where: Callable[[ir.Value], bool | str] | None = None
) -> Pattern:
    """A value to capture; `where` may refuse it (False, or the reason as text)."""
    return ValuePattern(name, optional, where)


def constant(
    name: str = "",
    equals: float | None = None,
    *,
    tolerance: float = 1e-5,
    scalar: bool = False,
    shape: Sequence[int] | None = None,
) -> Pattern:
    """A stored constant, captured as `name`; `scalar` demands one element."""
    return ConstantPattern(name, equals, tolerance, scalar, None if shape is None else tuple(shape))


def op(
    op_type: str | Sequence[str],
    *operands: Pattern | None,
    name: str = "",
    commutative: bool = False,
    variadic: bool = False,
    escapes: bool = False,
    domain: str = "",
    output: int = 0,
    **attributes: Any,
) -> Pattern:
    """A node.

    Args:
        op_type: Operator type, or several.
        *operands: Patterns of its inputs; None demands an absent input. Inputs beyond are not allowed, unless
            `variadic`, or where the last pattern is `rest(name)`.
        name: Captures the node.
        commutative: Whether operands may stand in any order: the first two, or all of Sum, Max, Min and Mean.
        variadic: Whether the node may have more inputs than operands are given.
        escapes: Whether the value may be used outside the match. Inner nodes that do not escape must be read
            by the match only, because the rewrite removes them.
        domain: Operator domain.
        output: Which output of the node the pattern stands for.
        **attributes: Wanted values: a number, text or list; None demands that it is absent; a predicate is
            asked about the value. An absent attribute stands for the default that the standard gives it, or
            for `default` where a pair `(wanted, default)` is given. Numbers are compared to 1e-6, relative.
    """
    types = (op_type,) if isinstance(op_type, str) else tuple(op_type)
    return OpPattern(types, tuple(operands), attributes, name, commutative, variadic, escapes, domain, output)


def rest(name: str) -> Pattern:
    """As the last operand: all inputs from here on, none included; `match.rest[name]` has them."""
    return RestPattern(name)


def outputs(*roots: Pattern) -> Pattern:
    """Several root nodes, replaced together: `outputs(op("MatMul", x, ...), op("MatMul", x, ...))`.

    Each root but the first must share a captured value with those before it; that is where it is looked for.
    """
    return OutputsPattern(tuple(roots))


def any_of(*choices: Pattern) -> Pattern:
    """Alternatives, tried in order."""
    return AnyOf(tuple(choices))


def maybe(op_type: str | Sequence[str], operand: Pattern, **options: Any) -> Pattern:
    """An optional unary node: the operator on `operand`, or `operand` itself."""
    return AnyOf((op(op_type, operand, **options), operand))


def root_types(pattern: Pattern) -> tuple[str, ...]:
    """Operator types at which `pattern` can be rooted, those of other domains as `domain::type`."""
    if isinstance(pattern, OpPattern):
        return tuple(f"{pattern.domain}::{t}" if pattern.domain else t for t in pattern.op_types)
    if isinstance(pattern, AnyOf):
        return tuple(dict.fromkeys(t for choice in pattern.choices for t in root_types(choice)))
    if isinstance(pattern, OutputsPattern):
        return root_types(pattern.roots[0])
    raise TypeError("the root of a pattern must be an operator")
