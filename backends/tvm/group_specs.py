"""From groups of a graph to structure, with what the graph knows left behind."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from .groups import Group
from .layout import CANONICAL, Layout
from .op import Op, static_positions, type_of
from .roles import Role, is_scalar_static, role_of
from .spec import External, GroupSpec, Member, Ref


@dataclass(frozen=True)
class PlacedGroup:
    """A group's structure and the values that its external inputs stand for."""

    spec: GroupSpec
    values: tuple[ir.Value, ...]


def place_group(
    group: Group,
    ops: Mapping[ir.Node, Op],
    constants: Mapping[ir.Value, np.ndarray],
    layouts: Mapping[ir.Value, Layout],
    layout: Layout,
) -> PlacedGroup:
    """The structure of one group.

    Args:
        group: the group.
        ops: operators of all nodes.
        constants: contents of all constant values.
        layouts: how values that are in memory are stored; canonical where not listed.
        layout: how the output is to be stored.
    """
    builder = _Builder(group, ops, constants, layouts)
    members = [builder.member(node) for node in group.nodes]
    producer = group.output.producer()
    assert producer is not None
    anchor = group.nodes.index(group.anchor) if group.anchor is not None else -1
    spec = GroupSpec(
        members,
        builder.externals,
        Ref(member=group.nodes.index(producer), output=group.output.index() or 0),
        layout,
        anchor,
        samples=[constants.get(value) for value in builder.values],
    )
    spec.key = _key(spec)
    return PlacedGroup(spec, tuple(builder.values))


class _Builder:
    def __init__(
        self,
        group: Group,
        ops: Mapping[ir.Node, Op],
        constants: Mapping[ir.Value, np.ndarray],
        layouts: Mapping[ir.Value, Layout],
    ):
        self._ops, self._constants, self._layouts = ops, constants, layouts
        self._inside = {
            output: (i, j) for i, node in enumerate(group.nodes) for j, output in enumerate(node.outputs)
        }
        self._known: dict[tuple[ir.Value, bool], int] = {}
        self.externals: list[External] = []
        self.values: list[ir.Value] = []

    def member(self, node: ir.Node) -> Member:
        op = self._ops[node]
        refs = [self._ref(op, position, value) for position, value in enumerate(node.inputs)]
        return Member(op, tuple(refs))

    def _ref(self, op: Op, position: int, value: ir.Value | None) -> Ref | None:
        if value is None:
            return None
        if value in self._inside:
            member, output = self._inside[value]
            return Ref(member=member, output=output)
        array = self._constants.get(value)
        inline = array is not None and self._is_inline(op, position, array)
        if (value, inline) not in self._known:
            self._known[value, inline] = len(self.externals)
            self.externals.append(
                External(
                    type_of(value),
                    CANONICAL if array is not None else self._layouts.get(value, CANONICAL),
                    array is not None,
                    array if inline else None,
                )
            )
            self.values.append(value)
        return Ref(external=self._known[value, inline])

    def _is_inline(self, op: Op, position: int, array: np.ndarray) -> bool:
        if role_of(op) in (Role.ANCHOR, Role.ROWS) or position in static_positions(op.type):
            return False
        return is_scalar_static(op.type, position, array)


def _key(spec: GroupSpec) -> str:
    members = [
        (
            member.op.type,
            _attributes_key(member.op),
            [(position, _array_key(array)) for position, array in sorted(member.op.static.items())],
            sorted(member.op.constant),
            member.op.inputs,
            member.op.outputs,
            member.inputs,
        )
        for member in spec.members
    ]
    externals = [
        (each.type, each.layout, each.constant, _array_key(each.value) if each.value is not None else None)
        for each in spec.externals
    ]
    return repr((members, externals, spec.output, spec.layout, spec.anchor))


def _attributes_key(op: Op) -> list[tuple[str, object]]:
    return [
        (name, _array_key(value) if isinstance(value, np.ndarray) else value)
        for name, value in sorted(op.attributes.items())
    ]


def _array_key(array: np.ndarray) -> tuple[str, tuple[int, ...], bytes]:
    return str(array.dtype), array.shape, array.tobytes()
