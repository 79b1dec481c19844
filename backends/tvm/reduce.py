"""Reductions, softmax and normalizations on rows (see `rows`), and what each of them computes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from . import approximations as approx
from . import loops
from .expressions import cast, is_float
from .layout import Layout
from .lazy import Index, Lazy, bound, element, immediate, scoped
from .loops import Machine
from .op import Op
from .rows import Row, each_row

Emit = Callable[[Index, Any], Any]
"""(logical output index, value of the anchor) -> the statement that stores it behind its epilogue."""


@dataclass(frozen=True)
class Reduction:
    """A reduction as start, what is taken of each element, how it is combined, and a last step."""

    start: Callable[[str], Any]
    term: Callable[[Any], Any]
    combine: Callable[[Any, Any], Any]
    finish: Callable[[Any, int], Any]


def reduction_of(op: Op) -> Reduction:
    """How a Reduce or global pooling operator computes."""
    return _REDUCTIONS[op.type]


def reduced_axes(op: Op) -> list[int]:
    """The axes that a row operator works over."""
    rank = op.rank
    if op.type.startswith("Global"):
        return list(range(2, rank))
    if op.type in {"Softmax", "LogSoftmax"}:
        return [op.axis(default=-1)]
    if op.type in {"LayerNormalization", "RMSNormalization"}:
        return list(range(op.axis(default=-1), rank))
    axes = op.ints(1)
    if not axes:
        return [] if op.attr("noop_with_empty_axes", 0) else list(range(rank))
    return sorted(axis % rank for axis in axes)


def accumulator_dtype(dtype: str) -> str:
    """What to accumulate elements of a type in."""
    if dtype == "bool":
        return "uint8"
    return "float32" if dtype in {"float16", "bfloat16"} else dtype


def kept_index(op: Op, index: Index) -> Index:
    """The output index of a reduction for an input index."""
    if len(op.outputs[0].shape) == op.rank:
        axes = set(reduced_axes(op))
        return tuple(loops.index(0) if axis in axes else each for axis, each in enumerate(index))
    axes = set(reduced_axes(op))
    return tuple(each for axis, each in enumerate(index) if axis not in axes)


def reduce_rows(op: Op, x: Lazy, layout: Layout, emit: Emit, machine: Machine, *, flatten: bool) -> Any:
    """The loops of a reduction.

    Args:
        op: the reduction.
        x: its input.
        layout: how the input is stored.
        emit: stores one result.
        machine: what the loops are cut for.
        flatten: see `each_row`.
    """
    how, axes, dtype = reduction_of(op), reduced_axes(op), accumulator_dtype(x.dtype)
    count = int(np.prod([x.shape[axis] for axis in axes], dtype=np.int64))

    def term(index: Index, lane: Any) -> tuple[Any, list[Any]]:
        return how.term(cast(element(x, index), dtype)), []

    def body(row: Row) -> list[Any]:
        statements, total = row.reduce(dtype, how.start(dtype), how.combine, term)

        def last(lane: Any) -> Any:
            return emit(kept_index(op, row.index(lane)), how.finish(row.value(total, lane), count))

        return [*statements, row.once(last)]

    return each_row(x.shape, layout, axes, dtype, machine, body, flatten=flatten)


def softmax_rows(op: Op, x: Lazy, layout: Layout, emit: Emit, scratch: Scratch, machine: Machine) -> Any:
    """Softmax or LogSoftmax: the maximum, then the exponentials and their sum, then the quotient."""
    from tvm import tirx

    dtype = accumulator_dtype(x.dtype)
    log = op.type == "LogSoftmax"

    def body(row: Row) -> list[Any]:
        def first(index: Index, lane: Any) -> tuple[Any, list[Any]]:
            value = cast(element(x, index), dtype)
            return scratch.keep(index, value)

        find, top = row.reduce(dtype, -np.inf, tirx.max, first)

        def second(index: Index, lane: Any) -> tuple[Any, list[Any]]:
            power = scoped(lambda: approx.falling_exp(scratch.load(index) - row.value(top, lane)))
            return (power, []) if log else scratch.keep(index, power)

        add, total = row.reduce(dtype, 0.0, lambda a, b: a + b, second)

        def inverse(lane: Any) -> Any:
            value = row.value(total, lane)
            return tirx.log(value) + row.value(top, lane) if log else immediate(1, dtype) / value

        factor = row.register(dtype)

        def third(index: Index, lane: Any) -> Any:
            value, scale = scratch.load(index), row.value(factor, lane)
            return emit(index, cast(value - scale if log else value * scale, op.outputs[0].dtype))

        return [*find, *add, row.assign(factor, inverse), row.sweep_over(third)]

    return each_row(x.shape, layout, reduced_axes(op), dtype, machine, body)


def norm_rows(
    op: Op,
    x: Lazy,
    scale: Lazy,
    bias: Lazy | None,
    layout: Layout,
    emit: Emit,
    scratch: Scratch,
    machine: Machine,
) -> Any:
    """LayerNormalization and RMSNormalization: mean, mean square around it, then the normalized values."""
    from tvm import tirx

    dtype = accumulator_dtype(x.dtype)
    axes = reduced_axes(op)
    count = immediate(int(np.prod([x.shape[axis] for axis in axes], dtype=np.int64)), dtype)
    centred = op.type == "LayerNormalization"
    epsilon = immediate(op.attr("epsilon", 1e-5), dtype)

    def parameter(given: Lazy, index: Index) -> Any:
        # Scale and bias broadcast against the input from the right.
        offset = len(x.shape) - len(given.shape)
        at = tuple(loops.index(0) if size == 1 else index[offset + a] for a, size in enumerate(given.shape))
        return cast(given.read(at), dtype)

    def body(row: Row) -> list[Any]:
        def first(index: Index, lane: Any) -> tuple[Any, list[Any]]:
            return scratch.keep(index, cast(element(x, index), dtype))

        statements: list[Any] = []
        mean = row.register(dtype)
        if centred:
            add, total = row.reduce(dtype, 0.0, lambda a, b: a + b, first)
            statements += [*add, row.assign(mean, lambda lane: row.value(total, lane) / count)]

        def second(index: Index, lane: Any) -> tuple[Any, list[Any]]:
            if not centred:
                value, before = first(index, lane)
                return value * value, before

            def squared() -> Any:
                distance = bound(scratch.load(index) - row.value(mean, lane))
                return distance * distance

            return scoped(squared), []

        square, squares = row.reduce(dtype, 0.0, lambda a, b: a + b, second)
        factor = row.register(dtype)

        def inverse(lane: Any) -> Any:
            return immediate(1, dtype) / tirx.sqrt(row.value(squares, lane) / count + epsilon)

        def third(index: Index, lane: Any) -> Any:
            value = scratch.load(index)
            value = (value - row.value(mean, lane) if centred else value) * row.value(factor, lane)
            value = value * parameter(scale, index)
            return emit(
                index,
                cast(value + parameter(bias, index) if bias is not None else value, op.outputs[0].dtype),
            )

        return [*statements, *square, row.assign(factor, inverse), row.sweep_over(third)]

    return each_row(x.shape, layout, axes, dtype, machine, body)


@dataclass
class Scratch:
    """Where a row kernel keeps intermediate values of its row.

    With `target` the values wait in the output buffer, stored in `layout`, until the last sweep replaces
    them. Without, the input is read again.
    """

    x: Lazy
    layout: Layout
    target: Any = None

    def keep(self, index: Index, value: Any) -> tuple[Any, list[Any]]:
        """Statements that keep a value, and the expression to use for it from there on."""
        if self.target is None:
            return value, []
        at = self.layout.to_stored(index)
        return self.target[at], [loops.store(self.target, value, at)]

    def load(self, index: Index) -> Any:
        """A value that was kept."""
        if self.target is None:
            return cast(element(self.x, index), accumulator_dtype(self.x.dtype))
        return self.target[self.layout.to_stored(index)]


def _lowest(dtype: str) -> Any:
    return -np.inf if is_float(dtype) else 0 if dtype == "bool" else np.iinfo(dtype).min


def _highest(dtype: str) -> Any:
    return np.inf if is_float(dtype) else 1 if dtype == "bool" else np.iinfo(dtype).max


def _tir(name: str) -> Callable[..., Any]:
    def call(*values: Any) -> Any:
        from tvm import tirx

        return getattr(tirx, name)(*values)

    return call


def _add(a: Any, b: Any) -> Any:
    return a + b


def _mean(total: Any, count: int) -> Any:
    from tvm import tirx

    dtype = str(total.ty.dtype)
    return (
        total * immediate(1.0 / count, dtype)
        if is_float(dtype)
        else tirx.truncdiv(total, immediate(count, dtype))
    )


def _same(value: Any, count: int = 0) -> Any:
    return value


def _zero(dtype: str) -> Any:
    return 0


_SUM = Reduction(_zero, _same, _add, _same)
_MEAN = Reduction(_zero, _same, _add, _mean)
_MAX = Reduction(_lowest, _same, _tir("max"), _same)
_REDUCTIONS = {
    "ReduceSum": _SUM,
    "ReduceMean": _MEAN,
    "GlobalAveragePool": _MEAN,
    "ReduceMax": _MAX,
    "GlobalMaxPool": _MAX,
    "ReduceMin": Reduction(_highest, _same, _tir("min"), _same),
    "ReduceProd": Reduction(lambda dtype: 1, _same, lambda a, b: a * b, _same),
    "ReduceSumSquare": Reduction(_zero, lambda x: x * x, _add, _same),
    "ReduceL1": Reduction(_zero, _tir("abs"), _add, _same),
    "ReduceL2": Reduction(
        _zero,
        lambda x: x * x,
        _add,
        lambda x, count: cast(
            _tir("sqrt")(x if is_float(str(x.ty.dtype)) else cast(x, "float64")), str(x.ty.dtype)
        ),
    ),
    "ReduceLogSum": Reduction(_zero, _same, _add, lambda x, count: _tir("log")(x)),
}
