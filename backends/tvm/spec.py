"""A fusion group as pure structure: what two groups must share to be one function."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from .elementwise import ELEMENTWISE_TYPES, apply_elementwise, reads_operand_often
from .layout import Layout
from .lazy import Lazy, scalar, shared
from .movement import MOVEMENT
from .op import Derived, Op, Type
from .stencil import STENCIL


@dataclass(frozen=True)
class Ref:
    """Where an input comes from: output `output` of member `member`, or external input `external`."""

    member: int = -1
    output: int = 0
    external: int = -1

    @property
    def is_external(self) -> bool:
        """Whether the value is made outside the group."""
        return self.external >= 0


@dataclass(frozen=True)
class External:
    """A value that enters a group. `value` is set for constants that are part of the code."""

    type: Type
    layout: Layout
    constant: bool = False
    value: np.ndarray | None = field(default=None, compare=False)


@dataclass(frozen=True)
class Member:
    """One operator of a group and where its inputs come from."""

    op: Op
    inputs: tuple[Ref | None, ...]


@dataclass
class GroupSpec:
    """A group without names: members in execution order, the last one's (or `output`'s) value is stored."""

    members: list[Member]
    externals: list[External]
    output: Ref
    layout: Layout
    anchor: int = -1
    key: str = ""
    samples: list[np.ndarray | None] = field(default_factory=list)
    """Contents of the constant externals of one instance; shapes of derived constants follow from them."""

    @property
    def out_type(self) -> Type:
        """Type of the stored value."""
        return self.members[self.output.member].op.outputs[self.output.output]

    @property
    def anchor_op(self) -> Op:
        """The operator that the group is built around."""
        return self.members[self.anchor].op

    def uses_of(self, member: int) -> int:
        """How often outputs of a member are read inside the group."""
        return sum(ref is not None and ref.member == member for each in self.members for ref in each.inputs)

    @property
    def is_elementwise(self) -> bool:
        """Whether every member maps elements one to one."""
        return all(member.op.type in ELEMENTWISE_TYPES for member in self.members)


Bind = Callable[[int], Lazy]
Derive = Callable[[Derived], Lazy]


def evaluate(
    spec: GroupSpec,
    bind: Bind,
    derive: Derive,
    given: dict[int, Sequence[Lazy]] | None = None,
    wanted: Sequence[Ref] | None = None,
) -> list[Lazy]:
    """The members composed into lazies.

    Args:
        spec: the group.
        bind: gives the lazy of an external input that is not part of the code.
        derive: gives the lazy of a constant computed from constant externals.
        given: outputs of members that are computed elsewhere (the anchor's).
        wanted: what to return; the group's output if absent.

    Returns:
        One lazy per wanted reference.
    """
    given = given or {}
    results: dict[tuple[int, int], Lazy] = {}
    bound: dict[int, Lazy] = {}
    wanted = [spec.output] if wanted is None else list(wanted)

    def value(ref: Ref | None) -> Lazy | None:
        if ref is None:
            return None
        if not ref.is_external:
            compute(ref.member)
            return results[ref.member, ref.output]
        if ref.external not in bound:
            external = spec.externals[ref.external]
            if external.value is not None:
                bound[ref.external] = constant(external)
            else:
                bound[ref.external] = bind(ref.external)
        return bound[ref.external]

    def compute(position: int) -> None:
        if (position, 0) in results:
            return
        member = spec.members[position]
        if position in given:
            outputs: Sequence[Lazy] = given[position]
        else:
            op = replace(member.op, derive=_deriver(spec, member, derive))
            skip = op.static if op.type in MOVEMENT or op.type in STENCIL else {}
            args = [None if i in skip else value(ref) for i, ref in enumerate(member.inputs)]
            outputs = apply(op, args)
            if _is_shared(spec, position):
                outputs = [shared(each) for each in outputs]
        results.update({(position, i): each for i, each in enumerate(outputs)})

    lazies = [value(ref) for ref in wanted]
    return [lazy for lazy in lazies if lazy is not None]


def constant(external: External) -> Lazy:
    """A constant that is written into the code: one repeated value."""
    assert external.value is not None
    return scalar(external.value.reshape(-1)[0], external.type.dtype, external.type.shape)


def apply(op: Op, args: list[Lazy | None]) -> Sequence[Lazy]:
    """The outputs of one injective operator."""
    if op.type in ELEMENTWISE_TYPES:
        return [apply_elementwise(op, args)]
    table: dict[str, Callable[..., Sequence[Lazy]]] = {**MOVEMENT, **STENCIL}
    return table[op.type](op, *args)


def _is_shared(spec: GroupSpec, position: int) -> bool:
    op = spec.members[position].op
    if op.type not in ELEMENTWISE_TYPES and op.type not in STENCIL:
        return False
    readers = [
        member.op.type
        for member in spec.members
        for ref in member.inputs
        if ref is not None and ref.member == position
    ]
    return len(readers) > 1 or any(reads_operand_often(each) for each in readers)


def _deriver(spec: GroupSpec, member: Member, derive: Derive) -> Callable[..., Lazy]:
    def make(positions: Sequence[int], compute: Callable[..., np.ndarray]) -> Lazy:
        sources = []
        for position in positions:
            ref = member.inputs[position]
            assert ref is not None and ref.is_external
            sources.append(ref.external)
        return derive(Derived(tuple(sources), compute))

    return make


def contents(spec: GroupSpec, external: int) -> np.ndarray:
    """The array behind a constant external of the instance that the spec was made from."""
    known = spec.externals[external].value
    array = known if known is not None else spec.samples[external]
    assert array is not None
    return array


def aligned_runs(spec: GroupSpec) -> list[list[int]]:
    """Stored axes of the output in runs over which every operand is either whole or repeated.

    Only for groups of element-wise members; other groups get one run per axis.
    """
    from .elementwise import operand_shape

    shape = spec.layout.stored_shape(spec.out_type.shape)
    single = [[axis] for axis in range(len(shape))]
    rank = len(spec.out_type.shape)
    if not spec.is_elementwise:
        return single
    patterns: list[tuple[bool, ...]] = []
    for member in spec.members:
        for position, ref in enumerate(member.inputs):
            if ref is None:
                continue
            aligned = operand_shape(member.op, position, rank)
            if aligned is None:
                return single
            pattern = tuple(size != 1 for size in spec.layout.to_stored(aligned, one=1))
            patterns.append(pattern)
            if not ref.is_external or spec.externals[ref.external].value is not None:
                continue
            external = spec.externals[ref.external]
            whole = len(external.type.shape) == rank and external.layout != spec.layout
            if whole and not (external.layout.is_plain_view(aligned) and spec.layout.is_plain_view(aligned)):
                return single
    return _runs(shape, patterns)


def _runs(shape: Sequence[int], patterns: Sequence[tuple[bool, ...]]) -> list[list[int]]:
    runs: list[list[int]] = []
    last = -1
    for axis, size in enumerate(shape):
        if size == 1 and runs:
            runs[-1].append(axis)
            continue
        if runs and (last < 0 or all(pattern[axis] == pattern[last] for pattern in patterns)):
            runs[-1].append(axis)
        else:
            runs.append([axis])
        last = axis if size != 1 else last
    return runs
