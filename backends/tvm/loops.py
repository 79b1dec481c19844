"""Loop nests for CPUs, written down directly: parallel outside, vectors inside, seams apart."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import prod
from typing import Any

from .layout import Layout
from .lazy import Index, Lazy, element, floordiv, floormod, ranges

Body = Callable[[Any], Any]
# Below this much work a parallel region costs more than it saves.
PARALLEL_MIN = 1 << 14


@dataclass(frozen=True)
class Machine:
    """The numbers of a target that loops are cut by."""

    vector_bits: int = 256
    cores: int = 1

    def lanes(self, *dtypes: str) -> int:
        """Elements of the widest of the given types in one vector register."""
        return max(1, self.vector_bits // max([32, *(bits_of(dtype) for dtype in dtypes)]))


def bits_of(dtype: str) -> int:
    """Bits of one element in memory."""
    return 8 if dtype == "bool" else int("".join(each for each in dtype if each.isdigit()) or 32)


def index(value: int) -> Any:
    """A constant index."""
    from tvm import tirx

    return tirx.const(value, "int64")


def buffer(shape: Sequence[int], dtype: str, name: str, scope: str = "global") -> Any:
    """A TIR buffer."""
    from tvm import tirx

    return tirx.decl_buffer([index(size) for size in shape], dtype, name, scope=scope)


def loop(extent: int, body: Body, kind: str = "serial", start: int = 0) -> Any:
    """`body(i)` for i in start .. start + extent - 1; kind: serial, parallel, vectorized or unrolled."""
    from tvm import tirx

    if extent == 1 and kind != "parallel":
        return body(index(start))
    variable = tirx.Var("i", "int64")
    with ranges([(variable, 0, extent)]):
        inner = body(variable + start if start else variable)
    return tirx.For(variable, index(0), index(extent), getattr(tirx.ForKind, kind.upper()), inner)


def sequence(statements: Sequence[Any]) -> Any:
    """Statements one after another."""
    from tvm import tirx

    if not statements:
        return tirx.Evaluate(tirx.const(0, "int32"))
    return statements[0] if len(statements) == 1 else tirx.SeqStmt(list(statements))


def store(target: Any, value: Any, at: Sequence[Any]) -> Any:
    """One assignment."""
    from tvm import tirx

    return tirx.BufferStore(target, value, list(at))


def function(parameters: Sequence[Any], body: Any) -> Any:
    """A function over buffers that do not overlap."""
    from tvm import tirx

    return tirx.PrimFunc(list(parameters), body).with_attr("tirx.noalias", True)


def chunks(extent: int, lanes: int) -> list[tuple[int, int, int]]:
    """A range cut into (start, repeats, width): whole vectors first, then narrower ones for what remains."""
    pieces, start, width = [], 0, lanes
    while start < extent:
        repeats = (extent - start) // width
        if repeats:
            pieces.append((start, repeats, width))
            start += repeats * width
        width = max(1, width // 2)
    return pieces


def over_vectors(
    extent: int, lanes: int, body: Callable[[Any, int], Any], *, start: int = 0, kind: str = "serial"
) -> Any:
    """`body(base, width)` for consecutive pieces of a range; each piece is at most `lanes` wide."""

    def piece(offset: int, repeats: int, width: int) -> Any:
        how = kind if repeats > 1 else "serial"
        return loop(repeats, lambda i: body(i * width + (start + offset), width), how)

    return sequence([piece(*each) for each in chunks(extent, lanes)])


def lanewise(width: int, body: Body) -> Any:
    """`body(lane)` for all lanes at once."""
    return body(index(0)) if width == 1 else loop(width, body, "vectorized")


@dataclass(frozen=True)
class Axis:
    """One loop axis: its extent and the positions at which the nest is split."""

    extent: int
    cuts: tuple[int, ...] = ()

    @property
    def segments(self) -> list[tuple[int, int]]:
        """(start, extent) of the pieces between cuts."""
        edges = [0, *(cut for cut in self.cuts if 0 < cut < self.extent), self.extent]
        return [(a, b - a) for a, b in pairwise(edges) if b > a]


Leaf = Callable[[Index, Any, int], Any]
"""Statement for a piece of the last axis: (outer index, first position, width)."""


def nest(axes: Sequence[Axis], lanes: int, leaf: Leaf, machine: Machine, *, work: int | None = None) -> Any:
    """A grid in pieces of at most `lanes` along the last axis, outer axes in parallel where it pays."""
    work = prod(axis.extent for axis in axes) if work is None else work
    return _nest(list(axes), (), lanes, leaf, work >= PARALLEL_MIN and machine.cores > 1)


def elements(body: Callable[[Index], Any]) -> Leaf:
    """A leaf that runs `body(index)` for the elements of a piece at once."""
    return lambda outer, base, width: lanewise(width, lambda lane: body((*outer, base + lane)))


def _nest(axes: list[Axis], done: Index, lanes: int, leaf: Leaf, parallel: bool) -> Any:
    axis, rest = axes[0], axes[1:]
    if parallel and rest:
        lead = _leading(axes)
        if lead > 1:
            return _fused(axes[:lead], axes[lead:], done, lanes, leaf)

    def segment(start: int, extent: int) -> Any:
        spread = parallel and extent >= 2
        kind = "parallel" if spread else "serial"
        if not rest:
            return over_vectors(
                extent, lanes, lambda base, width: leaf(done, base, width), start=start, kind=kind
            )
        return loop(
            extent, lambda i: _nest(rest, (*done, i), lanes, leaf, parallel and not spread), kind, start
        )

    return sequence([segment(*each) for each in axis.segments])


def _leading(axes: Sequence[Axis]) -> int:
    """How many of the outermost axes make one parallel loop: no seams, not the vector axis."""
    count, total = 0, 1
    for axis in axes[:-1]:
        if len(axis.segments) != 1 or total >= 64:
            break
        total *= axis.extent
        count += 1
    return count


def _fused(lead: list[Axis], rest: list[Axis], done: Index, lanes: int, leaf: Leaf) -> Any:
    extents = [axis.extent for axis in lead]

    def inner(flat: Any) -> Any:
        return _nest(rest, (*done, *unflatten(flat, extents)), lanes, leaf, False)

    total = prod(extents)
    return loop(total, inner, "parallel" if total > 1 else "serial")


def unflatten(flat: Any, extents: Sequence[int]) -> Index:
    """The index in a grid of the element at a flat position."""
    result: list[Any] = []
    for axis, extent in enumerate(extents):
        inner = prod(extents[axis + 1 :])
        part = floordiv(flat, inner) if inner > 1 else flat
        outer = prod(extents[:axis])
        result.append(0 if extent == 1 else part if outer == 1 else floormod(part, extent))
    return tuple(result)


def fill(
    lazy: Lazy, layout: Layout, target: Any, machine: Machine, runs: Sequence[Sequence[int]] | None = None
) -> Any:
    """Write every element of `lazy` to a buffer that stores it in `layout`.

    Args:
        lazy: what to compute.
        layout: how `target` stores it.
        target: the destination buffer.
        machine: what the loops are cut for.
        runs: stored axes grouped into runs that all operands lay out alike, so that each is one loop.
    """
    rank = len(lazy.shape)
    shape = layout.stored_shape(lazy.shape)
    cuts: list[tuple[int, ...]] = [()] * len(shape)
    for axis in range(rank):
        cuts[layout.stored_axis(axis, rank)] = lazy.cuts_of(axis)
    runs = [[axis] for axis in range(len(shape))] if runs is None else runs
    axes = [Axis(prod(shape[a] for a in run), cuts[run[0]] if len(run) == 1 else ()) for run in runs]

    def body(position: Index) -> Any:
        stored: list[Any] = []
        for run, at in zip(runs, position, strict=True):
            stored.extend((at,) if len(run) == 1 else unflatten(at, [shape[a] for a in run]))
        return store(target, element(lazy, layout.to_logical(stored, rank)), stored)

    if not shape:
        return store(target, element(lazy, ()), ())
    return nest(axes, machine.lanes(lazy.dtype), elements(body), machine)
