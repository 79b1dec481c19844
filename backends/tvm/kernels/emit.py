"""Small builders of TIR statements, so that kernels read like the loops they generate."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence
from math import prod
from typing import Any

import tvm
from tvm import tirx
from tvm.tirx import ForKind

Statements = list[Any]


def flatten(parts: Iterable[Any]) -> Any:
    """One statement from a list of statements (nested lists allowed)."""
    flat: Statements = []
    stack = list(parts)[::-1]
    while stack:
        part = stack.pop()
        if isinstance(part, list | tuple):
            stack.extend(reversed(part))
        else:
            flat.append(part)
    if not flat:
        return tirx.Evaluate(tirx.const(0, "int32"))
    return flat[0] if len(flat) == 1 else tirx.SeqStmt(flat)


def loop(
    name: str, extent: Any, body: Callable[[Any], Any], kind: ForKind = ForKind.SERIAL, start: Any = 0
) -> Any:
    """`for name in range(start, start + extent)`; a loop of one iteration (or none) is left out."""
    if isinstance(extent, int) and extent <= 1:
        return flatten([body(start)] if extent == 1 else [])
    variable = tirx.Var(name, "int32")
    statement = body(variable)
    return tirx.For(variable, start, extent, kind, flatten([statement]))


def unrolled(name: str, extent: int, body: Callable[[Any], Any], start: int = 0) -> Any:
    """A loop that is written out before code generation; until then it keeps the statements few."""
    return loop(name, extent, body, ForKind.UNROLLED, start)


def parallel(name: str, extent: int, body: Callable[[Any], Any], enabled: bool = True) -> Any:
    """A loop whose iterations are divided between the worker threads."""
    return loop(name, extent, body, ForKind.PARALLEL if enabled and extent > 1 else ForKind.SERIAL)


def region(*parts: Any) -> Any:
    """Statements that all worker threads run at once; they divide the parallel loops inside among them."""
    return _pragma("pragma_parallel_launch_point", parts)


def barrier(*parts: Any) -> Any:
    """Inside of a region: behind the statements the worker threads wait for each other."""
    return _pragma("pragma_parallel_barrier_when_finish", parts)


def worker_count() -> Any:
    """How many worker threads there are when the function runs."""
    return tirx.call_packed("runtime.NumThreads")


def _pragma(name: str, parts: Sequence[Any]) -> Any:
    one = tirx.const(1, "int32")
    return tirx.AttrStmt(one, name, one, flatten(parts))


def vectorized(name: str, lanes: int, body: Callable[[Any], Any]) -> Any:
    """A loop whose iterations are the lanes of one vector."""
    return loop(name, lanes, body, ForKind.VECTORIZED)


def bind(name: str, value: Any) -> tuple[Any, Statements]:
    """A variable that holds `value`, and the statement that binds it (none for a constant)."""
    if isinstance(value, int):
        return value, []
    variable = tirx.Var(name, "int32")
    return variable, [tirx.Bind(variable, value)]


def hold(name: str, value: Any, lanes: int = 1, dtype: str = "float32") -> tuple[Any, Any]:
    """A variable that holds a loaded vector, and the statement that binds it."""
    variable = tirx.Var(name, dtype if lanes == 1 else f"{dtype}x{lanes}")
    return variable, tirx.Bind(variable, value)


def when(condition: Any, then: Any, otherwise: Any = None) -> Any:
    """`if condition`, decided here when the condition is a Python bool."""
    if isinstance(condition, bool):
        chosen = then if condition else otherwise
        return flatten([chosen] if chosen is not None else [])
    other = None if otherwise is None else flatten([otherwise])
    return tirx.IfThenElse(condition, flatten([then]), other)


def all_of(*conditions: Any) -> Any:
    """Conjunction of conditions, those known now left out."""
    if any(condition is False for condition in conditions):
        return False
    unknown = [condition for condition in conditions if not isinstance(condition, bool)]
    return functools.reduce(tirx.And, unknown) if unknown else True


def minimum(a: Any, b: Any) -> Any:
    """Smaller of two integer expressions."""
    return min(a, b) if isinstance(a, int) and isinstance(b, int) else tirx.min(a, b)


def maximum(a: Any, b: Any) -> Any:
    """Larger of two integer expressions."""
    return max(a, b) if isinstance(a, int) and isinstance(b, int) else tirx.max(a, b)


def floordiv(a: Any, b: int) -> Any:
    """Quotient rounded down."""
    return a // b if isinstance(a, int) else tirx.floordiv(a, b)


def floormod(a: Any, b: int) -> Any:
    """Remainder with the sign of the divisor."""
    return a % b if isinstance(a, int) else tirx.floormod(a, b)


def unravel(flat: Any, shape: Sequence[int]) -> tuple[Any, ...]:
    """Row-major index of the `flat`-th element of an array of `shape`."""
    index: list[Any] = []
    for axis in reversed(range(len(shape))):
        if shape[axis] == 1:
            index.append(0)
        elif prod(shape[:axis]) == 1:
            index.append(flat)
        else:
            index.append(floormod(flat, shape[axis]))
            flat = floordiv(flat, shape[axis])
    return tuple(reversed(index))


def ravel(index: Sequence[Any], shape: Sequence[int]) -> Any:
    """Position of `index` in a row-major array of `shape`."""
    position: Any = 0
    for place, size in zip(index, shape, strict=True):
        position = position * size + place
    return position


def lanes_at(start: Any, lanes: int) -> Any:
    """Index of `lanes` neighbours beginning at `start`."""
    return start if lanes == 1 else tirx.Ramp(start, 1, lanes)


def splat(value: Any, lanes: int) -> Any:
    """`value` in every lane."""
    return value if lanes == 1 else tirx.Broadcast(value, lanes)


def pick(vector: Any, width: int, lanes: Sequence[int]) -> Any:
    """The vector made of these lanes of a vector (or scalar) of `width` lanes."""
    # A shuffle gives at most as many lanes as it takes.
    return tirx.Shuffle([vector] * -(-len(lanes) // width), [tirx.const(lane, "int32") for lane in lanes])


def constant(value: float, lanes: int = 1, dtype: str = "float32") -> Any:
    """`value` in every lane."""
    return splat(tirx.const(value, dtype), lanes)


def load(buffer: Any, index: Sequence[Any], lanes: int = 1) -> Any:
    """`lanes` neighbours along the last axis."""
    return tirx.BufferLoad(buffer, [*index[:-1], lanes_at(index[-1], lanes)])


def store(buffer: Any, value: Any, index: Sequence[Any], lanes: int = 1) -> Any:
    """Store `lanes` neighbours along the last axis."""
    return tirx.BufferStore(buffer, value, [*index[:-1], lanes_at(index[-1], lanes)])


def prefetch(source: Any, index: Sequence[Any]) -> Any:
    """Ask for the line at `index` in the second-level cache; the address may lie outside the buffer."""
    address = tirx.address_of(tirx.BufferLoad(source, list(index)))
    return tirx.Evaluate(tirx.call_intrin("void", "tirx.prefetch", address, 0, 2, 1))


def buffer(name: str, shape: Sequence[int], dtype: str = "float32", scope: str = "") -> Any:
    """A buffer to be used as a parameter or allocated."""
    return tirx.decl_buffer(tuple(shape), dtype, name=name, scope=scope)


def allocate(
    name: str, shape: Sequence[int], dtype: str = "float32", scope: str = "local"
) -> tuple[Any, Any]:
    """A buffer of the enclosing scope and the statement that allocates it.

    "local" ends on the stack (registers, where every index is constant), "global" in the thread's workspace.
    """
    allocated = buffer(name, shape, dtype, scope)
    return allocated, tirx.AllocBuffer(allocated)


def allocate_whole(name: str, size: int, dtype: str, scope: str = "local") -> tuple[Any, Statements]:
    """A flat buffer that instructions read or write by address, and the statements that allocate it.

    TVM makes a buffer as small as the elements that it sees being used: the last one is used here.
    """
    allocated, allocation = allocate(name, (size,), dtype, scope)
    return allocated, [allocation, store(allocated, tirx.const(0, dtype), [size - 1])]


def flat_view(source: Any, length: int) -> tuple[Any, Any]:
    """`source` as one axis, and the statement that declares the view."""
    view = tirx.decl_buffer((length,), source.dtype, name=f"{source.name}_flat", data=source.data)
    return view, tirx.DeclBuffer(view, data=source.data)


def function(name: str, parameters: Sequence[Any], body: Any) -> Any:
    """A PrimFunc over buffers that do not alias."""
    made = tirx.PrimFunc(list(parameters), flatten([body]))
    return made.with_attr({"global_symbol": name, "tirx.noalias": True})


def count_operations(expression: Any, limit: int = 64) -> int:
    """Operations in an expression (a call counts as eight), counted up to about `limit`."""
    total = 0
    pending = [expression]
    while pending and total < limit:
        node = pending.pop()
        if isinstance(node, tvm.ir.TensorLoad | tirx.Var | tirx.IntImm | tirx.FloatImm):
            continue
        total += 8 if isinstance(node, tvm.ir.Call) else 1
        pending.extend(getattr(node, "args", ()))
        for part in ("a", "b", "condition", "true_value", "false_value", "value", "body"):
            child = getattr(node, part, None)
            if child is not None:
                pending.append(child)
    return total
