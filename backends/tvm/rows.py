"""Row kernels for CPUs: a few sweeps over the elements that belong together, in vectors.

A row is the set of elements that share one position on the axes that are kept. Either the innermost stored
axis belongs to the row, then vectors run along the row and are combined at its end, or it is kept, then a
vector holds one element of each of several rows. Kernels are written once for both.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any

from . import loops
from .layout import Layout
from .lazy import Index, immediate
from .loops import Axis, Machine

Combine = Callable[[Any, Any], Any]
_MAX_VECTORS = 4


@dataclass
class Row:
    """One row (or one vector of neighbouring rows) while its statements are being written.

    `index` is the logical index of the first element; `width` is the number of rows side by side (1 where
    vectors run along the row).
    """

    sweep_over: Callable[[Callable[[Index, Any], Any]], Any]
    lanes: int
    along: bool
    index: Callable[[Any], Index]
    buffers: list[Any] = field(default_factory=list)

    def register(self, dtype: str, *, wide: bool = False) -> Any:
        """A local variable per row; `wide` for one per vector lane."""
        size = self.lanes if wide or not self.along else 1
        buffer = loops.buffer((size,), dtype, f"r{len(self.buffers)}", scope="local")
        self.buffers.append(buffer)
        return buffer

    def once(self, body: Callable[[Any], Any]) -> Any:
        """`body(lane)` once per row."""
        return body(loops.index(0)) if self.along else loops.lanewise(self.lanes, body)

    def value(self, register: Any, lane: Any) -> Any:
        """What a register holds for the row at `lane`."""
        return register[(loops.index(0),)] if self.along else register[(lane,)]

    def assign(self, register: Any, value: Callable[[Any], Any]) -> Any:
        """Set a register from an expression that is evaluated per row."""
        return self.once(lambda lane: loops.store(register, value(lane), (self._at(lane),)))

    def _at(self, lane: Any) -> Any:
        return loops.index(0) if self.along else lane

    def reduce(
        self,
        dtype: str,
        start: Any,
        combine: Combine,
        term: Callable[[Index, Any], tuple[Any, Sequence[Any]]],
    ) -> tuple[list[Any], Any]:
        """Combine a term over the row.

        Args:
            dtype: type to accumulate in.
            start: neutral element.
            combine: associative operation.
            term: (logical index, lane) -> the value and statements to run before it is taken.

        Returns:
            Statements and the register that holds the result.
        """
        register = self.register(dtype, wide=True)

        def step(index: Index, lane: Any) -> Any:
            value, before = term(index, lane)
            taken = loops.store(register, combine(register[(lane,)], value), (lane,))
            return loops.sequence([*before, taken])

        clear = loops.lanewise(
            self.lanes, lambda lane: loops.store(register, immediate(start, dtype), (lane,))
        )
        statements = [clear, self.sweep_over(step)]
        if self.along:
            statements.extend(_halve(register, self.lanes, combine))
        return statements, register


def _halve(register: Any, lanes: int, combine: Combine) -> list[Any]:
    statements = []
    while lanes > 1:
        lanes //= 2
        half = lanes

        def step(lane: Any, half: int = half) -> Any:
            return loops.store(register, combine(register[(lane,)], register[(lane + half,)]), (lane,))

        statements.append(loops.lanewise(half, step))
    return statements


def each_row(
    shape: Sequence[int],
    layout: Layout,
    reduced: Sequence[int],
    dtype: str,
    machine: Machine,
    body: Callable[[Row], list[Any]],
    *,
    flatten: bool = False,
) -> Any:
    """Loops over all rows of a tensor.

    Args:
        shape: logical shape.
        layout: how the tensor that is read most is stored.
        reduced: logical axes that make up a row.
        dtype: element type, for the width of vectors.
        machine: what the loops are cut for.
        body: statements for one row.
        flatten: neighbouring inner row axes lie without gaps in what is read, one loop may run over them.
    """
    order = [axis for axis in layout.to_stored(tuple(range(len(shape))), one=-1) if axis >= 0]
    kept = [axis for axis in order if axis not in reduced]
    inner = [axis for axis in order if axis in reduced]
    wide = [axis for axis in order if shape[axis] > 1]
    lanes = machine.lanes(dtype)
    work = prod(shape)
    if not kept or not wide or wide[-1] in reduced:
        return _along_rows(shape, kept, inner, lanes, machine, body, work, flatten)
    while kept[-1] != wide[-1]:
        kept = [kept[-1], *kept[:-1]]
    return _across_rows(shape, kept, inner, lanes, machine, body, work)


def _along_rows(
    shape: Sequence[int],
    kept: list[int],
    inner: list[int],
    lanes: int,
    machine: Machine,
    body: Callable[[Row], list[Any]],
    work: int,
    flatten: bool,
) -> Any:
    inner = [axis for axis in inner if shape[axis] > 1] or inner[:1]
    run = inner if flatten else inner[-1:]
    outer = inner[: len(inner) - len(run)]
    extents = [shape[axis] for axis in run]
    extent = prod(extents)
    width = _vector_width(extent, lanes)

    def one(position: Index) -> Any:
        base = dict(zip(kept, position, strict=True))

        def at(extra: dict[int, Any]) -> Index:
            known = {**base, **extra}
            return tuple(known.get(axis, loops.index(0)) for axis in range(len(shape)))

        def sweep(step: Callable[[Index, Any], Any]) -> Any:
            def deeper(axes: list[int], extra: dict[int, Any]) -> Any:
                if axes:
                    return loops.loop(shape[axes[0]], lambda i: deeper(axes[1:], {**extra, axes[0]: i}))

                def piece(first: Any, size: int) -> Any:
                    def lane_step(lane: Any) -> Any:
                        inside = loops.unflatten(first + lane, extents) if len(run) > 1 else (first + lane,)
                        return step(at({**extra, **dict(zip(run, inside, strict=True))}), lane)

                    return loops.lanewise(size, lane_step)

                return loops.over_vectors(extent, width, piece)

            return deeper(outer, {}) if run else step(at({}), loops.index(0))

        return _finished(Row(sweep, width, True, lambda lane: at({})), body)

    axes = [Axis(shape[axis]) for axis in kept] or [Axis(1)]
    if not kept:
        return one(())
    return loops.nest(axes, 1, lambda outer, base, size: one((*outer, base)), machine, work=work)


def _across_rows(
    shape: Sequence[int],
    kept: list[int],
    inner: list[int],
    lanes: int,
    machine: Machine,
    body: Callable[[Row], list[Any]],
    work: int,
) -> Any:
    width = _vector_width(shape[kept[-1]], lanes)

    def leaf(position: Index, first: Any, size: int) -> Any:
        base = dict(zip(kept[:-1], position, strict=True))

        def at(extra: dict[int, Any], lane: Any) -> Index:
            known = {**base, **extra, kept[-1]: first + lane}
            return tuple(known.get(axis, loops.index(0)) for axis in range(len(shape)))

        def sweep(step: Callable[[Index, Any], Any]) -> Any:
            def deeper(axes: list[int], extra: dict[int, Any]) -> Any:
                if axes:
                    return loops.loop(shape[axes[0]], lambda i: deeper(axes[1:], {**extra, axes[0]: i}))
                return loops.lanewise(size, lambda lane: step(at(extra, lane), lane))

            return deeper(inner, {})

        return _finished(Row(sweep, size, False, lambda lane: at({}, lane)), body)

    axes = [Axis(shape[axis]) for axis in kept]
    return loops.nest(axes, width, leaf, machine, work=work)


def _vector_width(extent: int, lanes: int) -> int:
    """Up to four vectors side by side: additions of one chain wait for each other."""
    width = lanes
    while width * 2 <= min(extent, lanes * _MAX_VECTORS):
        width *= 2
    while width > max(1, extent):
        width //= 2
    return width


def _finished(row: Row, body: Callable[[Row], list[Any]]) -> Any:
    from tvm import tirx

    statements = body(row)
    return loops.sequence([*(tirx.AllocBuffer(buffer) for buffer in row.buffers), *statements])
