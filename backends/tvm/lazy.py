"""Tensors that are computed where they are read.

A `Lazy` is a shape, an element type and a function from a logical index to an expression. Element-wise
operators and operators that only move data compose lazies, so a chain of them costs one kernel, whatever
its length.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from .layout import CANONICAL, Layout

Index = tuple[Any, ...]


@dataclass(frozen=True)
class Lazy:
    """A tensor given by an expression per element.

    `cuts` holds, per axis, the positions at which the expression changes its form (the seams of a
    concatenation, the borders of padding). Loops are split there, and no element pays for a decision.
    """

    shape: tuple[int, ...]
    dtype: str
    read: Callable[[Index], Any]
    cuts: tuple[tuple[int, ...], ...] = ()

    def cuts_of(self, axis: int) -> tuple[int, ...]:
        """The cuts along one axis."""
        return self.cuts[axis] if self.cuts else ()


def from_buffer(buffer: Any, shape: Sequence[int], dtype: str, layout: Layout = CANONICAL) -> Lazy:
    """The contents of a buffer (TE tensor or TIR buffer) that stores `shape` in `layout`."""

    def read(index: Index) -> Any:
        at = layout.to_stored(index)
        # A TE tensor gives an expression when called, only a slice when indexed.
        return buffer(*at) if hasattr(buffer, "op") else buffer[at]

    return Lazy(tuple(shape), dtype, read)


def scalar(value: Any, dtype: str, shape: Sequence[int] = ()) -> Lazy:
    """A tensor of one repeated value."""
    return Lazy(tuple(shape), dtype, lambda index: immediate(value, dtype))


def immediate(value: Any, dtype: str) -> Any:
    """A TIR constant of a Python or numpy scalar."""
    from tvm import tirx

    if dtype == "bool":
        return tirx.const(bool(value), "bool")
    if "float" in dtype:
        return tirx.const(float(value), dtype)
    return tirx.const(int(value), dtype)


def broadcast(lazy: Lazy, shape: Sequence[int]) -> Lazy:
    """`lazy` seen with `shape`, by numpy's rules."""
    shape = tuple(shape)
    if lazy.shape == shape:
        return lazy
    offset = len(shape) - len(lazy.shape)

    def read(index: Index) -> Any:
        return lazy.read(
            tuple(zero() if size == 1 else index[offset + axis] for axis, size in enumerate(lazy.shape))
        )

    cuts = ((),) * offset + tuple(
        () if size == 1 else lazy.cuts_of(axis) for axis, size in enumerate(lazy.shape)
    )
    return Lazy(shape, lazy.dtype, read, cuts)


def merge_cuts(lazies: Sequence[Lazy], rank: int) -> tuple[tuple[int, ...], ...]:
    """Cuts of an element-wise result of operands that have its rank."""
    return tuple(
        tuple(sorted({cut for lazy in lazies for cut in lazy.cuts_of(axis)})) for axis in range(rank)
    )


def zero() -> Any:
    """Index 0."""
    return 0


def floordiv(a: Any, b: int) -> Any:
    """Quotient of indices, rounded down."""
    from tvm import tirx

    return a // b if isinstance(a, int) else tirx.floordiv(a, b)


def floormod(a: Any, b: int) -> Any:
    """Remainder of indices, never negative for positive `b`."""
    from tvm import tirx

    return a % b if isinstance(a, int) else tirx.floormod(a, b)


def equal(a: Any, b: Any) -> Any:
    """Whether two indices are the same, whatever their integer types."""
    from tvm import tirx

    if isinstance(a, int) and isinstance(b, int):
        return tirx.const(a == b, "bool")
    return tirx.And(a >= b, a <= b)


class _Scope:
    """Expressions bound to a variable while one element is written down."""

    def __init__(self) -> None:
        self.bindings: list[tuple[Any, Any]] = []
        self.known: dict[tuple[int, ...], tuple[Any, Any]] = {}


_scopes: list[_Scope] = []
_analyzers: list[Any] = []


def shared(lazy: Lazy) -> Lazy:
    """`lazy`, computed once where several readers of one element ask for the same index."""

    def read(index: Index) -> Any:
        # TVM 0.27 cannot generate code for a variable that holds a vector of truth values, nor for a number
        # that is computed from them.
        if not _scopes or lazy.dtype == "bool":
            return lazy.read(index)
        key = (id(lazy), *(id(each) for each in index))
        for scope in reversed(_scopes):
            if key in scope.known:
                return scope.known[key][0]
        value = lazy.read(index)
        # In floats only the cast itself is left unbound: selections must be bound, or nests of them explode.
        if _tests(value) if "int" in lazy.dtype else _is_truth(getattr(value, "value", None)):
            return value
        variable = bound(value)
        # The index is kept alive with its entry: ids of dead objects are reused.
        _scopes[-1].known[key] = (variable, (index, lazy))
        return variable

    return replace(lazy, read=read)


def _tests(value: Any) -> bool:
    """Whether truth values take part in an expression."""
    if _is_truth(value):
        return True
    parts = [getattr(value, name, None) for name in ("a", "b", "value", "body", "condition")]
    return any(_tests(part) for part in (*parts, *getattr(value, "args", ())) if part is not None)


def _is_truth(value: Any) -> bool:
    return str(getattr(getattr(value, "ty", None), "dtype", "")) == "bool"


def bound(value: Any) -> Any:
    """A variable that holds `value` in the expression that is being written down (see `scoped`).

    Variables are bound one after another around the whole expression, never inside the value of another: TVM
    takes time exponential in the depth of such nests. Outside of any scope the value is returned.
    """
    from tvm import tirx

    if not _scopes or isinstance(value, tirx.Var | tirx.IntImm | tirx.FloatImm):
        return value
    variable = tirx.Var(f"t{sum(len(scope.bindings) for scope in _scopes)}", str(value.ty.dtype))
    _scopes[-1].bindings.append((variable, value))
    return variable


def element(lazy: Lazy, index: Index) -> Any:
    """The expression of one element with its shared parts bound to variables."""
    return scoped(lambda: lazy.read(index))


def choose(condition: Any, then: Callable[[], Any], otherwise: Callable[[], Any]) -> Any:
    """`then()` where the condition holds, else `otherwise()`; the branch that is not taken is not computed.

    A condition that follows from the ranges of the loops disappears.
    """
    from tvm import tirx

    if isinstance(condition, bool):
        return then() if condition else otherwise()
    if proves(condition):
        return then()
    if proves(tirx.Not(condition)):
        return otherwise()
    return tirx.if_then_else(condition, scoped(then), scoped(otherwise))


def scoped(make: Callable[[], Any]) -> Any:
    """The expression that `make` writes down, with the variables that it binds."""
    from tvm import tirx

    _scopes.append(_Scope())
    try:
        value = make()
    finally:
        scope = _scopes.pop()
    for variable, held in reversed(scope.bindings):
        value = tirx.Let(variable, held, value)
    return value


def proves(condition: Any) -> bool:
    """Whether the ranges of the loops around imply the condition."""
    return bool(_analyzers and _analyzers[-1].can_prove(condition))


def simplify(expression: Any) -> Any:
    """The expression, simplified with what is known of the loops around."""
    if isinstance(expression, int) or not _analyzers:
        return expression
    return _analyzers[-1].simplify(expression)


@contextmanager
def ranges(bounds: Sequence[tuple[Any, int, int]]) -> Iterator[None]:
    """Within: each (variable, start, stop) is known to lie in that range; the ranges around still hold."""
    import tvm
    from tvm import sym

    analyzer = sym.Analyzer()
    known = [*_known(), *bounds]
    for variable, start, stop in known:
        analyzer.bind(variable, tvm.ir.Range(start, stop))
    _analyzers.append(analyzer)
    _bounds.append(known)
    try:
        yield
    finally:
        _analyzers.pop()
        _bounds.pop()


_bounds: list[list[tuple[Any, int, int]]] = []


def _known() -> list[tuple[Any, int, int]]:
    return _bounds[-1] if _bounds else []
