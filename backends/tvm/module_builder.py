"""The Relax module that sequences the functions of all groups."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir

from ...passes.functions import FUNCTION_KEY
from . import tail
from .emission import Argument, Emitted, Packed
from .group_specs import PlacedGroup, place_group
from .groups import Group
from .integer_ops import FLOAT_KEY
from .layout import CANONICAL, Layout
from .lower import KernelInfo
from .movement import VIEWS
from .op import Op, Type, type_of
from .placement import choose_layout, needs_channels_last
from .prepare import Prepared
from .shared_module import Function, Shared
from .spec import External, GroupSpec, Member, Ref
from .stored_weights import coded
from .strategy import Strategy

WEIGHT = "weight_"
"""How the names of variables begin that hold weights."""


@dataclass
class _Use:
    """What one program makes of a function."""

    function: Function
    calls: int = 0
    nodes: list[str] = field(default_factory=list)
    nodes_per_call: list[int] = field(default_factory=list)
    origins: dict[str, None] = field(default_factory=dict)
    reasons: dict[str, None] = field(default_factory=dict)
    """Why quantized operators are computed in float."""


class ModuleBuilder:
    """Builds `entry(inputs..., weights)` and the functions it calls.

    Every program takes the weights of all programs that share with it, so all must have collected theirs
    before the first one is written.

    Args:
        prepared: the graph.
        strategy: how groups become functions.
        opset: of the graph.
        shared: what is common to the programs of the module.
        entry: name of the function.
    """

    def __init__(
        self, prepared: Prepared, strategy: Strategy, opset: int, shared: Shared, entry: str = "main"
    ):
        self._prepared, self._strategy, self._opset = prepared, strategy, opset
        self._shared, self._builder, self._entry = shared, shared.builder, entry
        self._functions = shared.functions
        self._uses: dict[str, _Use] = {}
        self._called: dict[Group, Function] = {}
        self._groups: list[tuple[Group, PlacedGroup | None]] = []
        self._layouts: dict[ir.Value, Layout] = {}
        self._values: dict[tuple[ir.Value, Layout], Any] = {}
        self._weight_variables: dict[int, Any] = {}
        self._tuple: Any = None
        self.weights = shared.weights

    def collect(self, groups: Sequence[Group]) -> None:
        """Make the functions that are new and store the weights."""
        self._groups = list(zip(groups, self._place(groups), strict=True))
        layers = [group for group, place in self._groups if place is not None and group.anchor is not None]
        exact = set(layers[: self._strategy.exact_layers(len(layers))])
        for group, place in self._groups:
            if place is not None:
                self._collect(group, place, group in exact)
        for value in self._prepared.graph.outputs:
            if value in self._prepared.constants:
                self._raw(value)

    def kernels(self) -> list[KernelInfo]:
        """What the functions are, for reports."""
        used = [(use.function, use) for use in self._uses.values()]
        return [
            KernelInfo(
                each.name,
                each.emitted.kind,
                use.calls,
                each.emitted.flops,
                "; ".join([*filter(None, [each.emitted.note]), *use.reasons]),
                tuple(use.nodes),
                tuple(use.origins),
                tuple(use.nodes_per_call),
                each.emitted.workload if each.has_choices else "",
                each.is_tuned,
                self._entry,
            )
            for each, use in used
        ]

    def workloads(self) -> dict[str, GroupSpec]:
        """A group for each workload whose template has something to choose."""
        used = [use.function for use in self._uses.values()]
        return {each.emitted.workload: each.spec for each in used if each.has_choices}

    def used_weights(self) -> list[int]:
        """Positions of the weights that the program reads, once it is written."""
        return sorted(self._weight_variables)

    def _place(self, groups: Sequence[Group]) -> list[PlacedGroup | None]:
        """Layouts and structure of all groups; None for those left to converters and for plain views."""
        readers = needs_channels_last(groups, self._prepared, self._strategy)
        placed: list[PlacedGroup | None] = []
        outputs = set(self._prepared.graph.outputs)
        for group in groups:
            if group.opaque:
                placed.append(None)
                continue
            layout = choose_layout(group, self._layouts, outputs, readers, self._strategy)
            self._layouts[group.output] = layout
            layouts = {**self._layouts, **self._wanted(group)}
            placed.append(
                place_group(group, self._prepared.ops, self._prepared.constants, layouts, layout)
                if not self._is_view(group)
                else None
            )
        return placed

    def _wanted(self, group: Group) -> dict[ir.Value, Layout]:
        """Layouts in which an anchor insists on reading its data."""
        from .placement import data_layout

        wanted = data_layout(group, self._strategy)
        if wanted is None or group.anchor is None:
            return {}
        count = {"Attention": 4, "Recurrence": 7}.get(group.anchor.op_type, 2)
        reads = [value for value in group.anchor.inputs[:count] if value is not None]
        return {value: wanted for value in reads if value not in self._prepared.constants}

    def _is_view(self, group: Group) -> bool:
        if group.anchor is not None or any(node.op_type not in VIEWS for node in group.nodes):
            return False
        source = group.nodes[0].inputs[0]
        if source is None or source in self._prepared.constants or len(group.nodes) != len({*group.nodes}):
            return False
        if 0 in type_of(source).shape:
            return False
        own = self._layouts.get(source, CANONICAL)
        return own.is_plain_view(type_of(source).shape) and self._layouts[group.output].is_plain_view(
            type_of(group.output).shape
        )

    def _collect(self, group: Group, place: PlacedGroup, exact: bool) -> None:
        """Make the group's function if its structure is new, and store its weights."""
        function = self._called[group] = self._function(place.spec, exact)
        use = self._use(function)
        use.nodes.extend(node.name or node.op_type for node in group.nodes)
        use.nodes_per_call.append(len(group.nodes))
        origins = (node.metadata_props.get(FUNCTION_KEY) for node in group.nodes)
        use.origins.update(dict.fromkeys(origin for origin in origins if origin))
        reasons = (node.metadata_props.get(FLOAT_KEY) for node in group.nodes if node is group.anchor)
        use.reasons.update(dict.fromkeys(reason for reason in reasons if reason))
        for argument in function.emitted.arguments:
            self._weight(function, argument, place)

    def _function(self, spec: GroupSpec, exact: bool = False) -> Function:
        key = (spec.key, exact)
        if key not in self._functions:
            emitted = self._strategy.emit(spec, exact)
            name = self._unique(_name_of(spec, emitted))
            func = emitted.func.with_attr("global_symbol", name)
            self._functions[key] = Function(spec, emitted, self._builder.add_func(func, name), name)
        return self._functions[key]

    def _use(self, function: Function) -> _Use:
        """This program's account of a function, with one more call."""
        use = self._uses.setdefault(function.name, _Use(function))
        use.calls += 1
        return use

    def _unique(self, stem: str) -> str:
        taken = self._shared.taken
        taken[stem] = taken.get(stem, -1) + 1
        return f"{stem}_{taken[stem]}" if taken[stem] else stem

    def _weight(self, function: Function, argument: Argument, place: PlacedGroup) -> int | None:
        constants, values = self._prepared.constants, place.values
        if isinstance(argument, int):
            return self._raw(values[argument]) if values[argument] in constants else None
        if isinstance(argument, Packed):
            source = values[argument.external]
            key: object = ("packed", function.name, source, function.emitted.arguments.index(argument))
            return self.weights.add(key, lambda: self._stored(source, argument.pack))
        sources = tuple(values[each] for each in argument.sources)
        key = ("derived", function.name, sources, function.emitted.arguments.index(argument))
        return self.weights.add(key, lambda: argument.compute(*(constants[each] for each in sources)))

    def _raw(self, value: ir.Value) -> int:
        return self.weights.add(("raw", value), lambda: self._stored(value, lambda array: array))

    def _stored(self, value: ir.Value, pack: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
        """A constant as a kernel reads it; it remembers how a file may hold it in fewer bits."""
        array = self._prepared.constants[value]
        return coded(pack(array), value, array, pack)

    def write(self) -> None:
        """Add the function that sequences the groups."""
        from tvm import relax

        graph = self._prepared.graph
        parameters = []
        for position, value in enumerate(graph.inputs):
            kind = type_of(value)
            variable = relax.Var(
                _identifier(value.name or "x", position), relax.TensorType(kind.shape, kind.dtype)
            )
            self._values[value, CANONICAL] = variable
            parameters.append(variable)
        # Of a tuple of tensors the machine would look at every field in every run; see `Shared.add_check`.
        self._tuple = relax.Var("weights", relax.ObjectType())
        with self._function_scope(self._entry, [*parameters, self._tuple]):
            with self._builder.dataflow():
                for group, place in self._groups:
                    self._emit(group, place)
                results = [self._builder.emit_output(self._result(value)) for value in graph.outputs]
            self._builder.emit_func_output(results[0] if len(results) == 1 else relax.Tuple(results))

    @contextlib.contextmanager
    def _function_scope(self, name: str, parameters: Sequence[Any]) -> Iterator[None]:
        """The builder's scope, closed on errors too: TVM warns on standard error about one left open."""
        with self._builder.function(name, parameters):
            try:
                yield
            except BaseException:
                self._builder._end_block()
                raise

    def _emit(self, group: Group, place: PlacedGroup | None) -> None:
        if group.opaque:
            self._emit_opaque(group.nodes[0])
        elif place is None:
            self._emit_view(group)
        else:
            variable = self._call(self._called[group], place)
            self._values[group.output, self._layouts[group.output]] = variable

    def _call(self, function: Function, place: PlacedGroup) -> Any:
        from tvm import relax

        arguments = []
        for argument in function.emitted.arguments:
            weight = self._weight(function, argument, place)
            if weight is not None:
                arguments.append(self._weight_variable(weight))
            else:
                assert isinstance(argument, int)
                arguments.append(self._fetch(place.values[argument], place.spec.externals[argument].layout))
        out = place.spec.out_type
        stored = relax.TensorType(place.spec.layout.stored_shape(out.shape), out.dtype)
        return self._builder.emit(relax.call_tir(function.variable, relax.Tuple(arguments), stored))

    def _weight_variable(self, position: int) -> Any:
        from tvm import relax

        if position not in self._weight_variables:
            array = self.weights.arrays[position]
            kind = relax.TensorType(array.shape, str(array.dtype))
            item = relax.op.call_pure_packed(
                "vm.builtin.tuple_getitem", self._tuple, relax.prim_value(position), ty_args=[kind]
            )
            self._weight_variables[position] = self._builder.emit(item, f"{WEIGHT}{position}")
        return self._weight_variables[position]

    def _fetch(self, value: ir.Value, layout: Layout) -> Any:
        """The variable that holds a value in a layout; a view or a copy where it is stored otherwise."""
        if (value, layout) in self._values:
            return self._values[value, layout]
        own = self._layouts.get(value, CANONICAL)
        kind = type_of(value)
        source = self._values[value, own]
        if own.is_plain_view(kind.shape) and layout.is_plain_view(kind.shape):
            variable = self._reshaped(source, layout.stored_shape(kind.shape))
        else:
            place = _copy(value, kind, own, layout)
            function = self._function(place.spec)
            self._use(function)
            variable = self._call(function, place)
        self._values[value, layout] = variable
        return variable

    def _reshaped(self, source: Any, shape: tuple[int, ...]) -> Any:
        from tvm import relax

        return self._builder.emit(relax.op.reshape(source, relax.ShapeExpr(list(shape))))

    def _emit_view(self, group: Group) -> None:
        source = group.nodes[0].inputs[0]
        assert source is not None
        own, layout = self._layouts.get(source, CANONICAL), self._layouts[group.output]
        shape = layout.stored_shape(type_of(group.output).shape)
        self._values[group.output, layout] = self._reshaped(self._fetch(source, own), shape)

    def _emit_opaque(self, node: ir.Node) -> None:
        op = self._prepared.ops[node]
        inputs = [self._tail_input(value) for value in node.inputs]
        outputs = tail.convert(self._builder, node, op, inputs, self._opset)
        for value, variable in zip(node.outputs, outputs, strict=False):
            self._values[value, CANONICAL] = variable

    def _tail_input(self, value: ir.Value | None) -> Any:
        if value is None:
            return None
        if value in self._prepared.constants:
            return tail.constant(self._prepared.constants[value])
        return self._fetch(value, CANONICAL)

    def _result(self, value: ir.Value) -> Any:
        if value in self._prepared.constants:
            return self._weight_variable(self._raw(value))
        return self._fetch(value, CANONICAL)


def _copy(value: ir.Value, kind: Type, own: Layout, layout: Layout) -> PlacedGroup:
    """A group that only changes how a value is stored."""
    op = Op("Identity", f"store {value.name}", {}, (kind,), (kind,), used_outputs=(True,))
    spec = GroupSpec(
        [Member(op, (Ref(external=0),))], [External(kind, own)], Ref(member=0), layout, samples=[None]
    )
    spec.key = repr(("copy", kind, own, layout))
    return PlacedGroup(spec, (value,))


def _name_of(spec: GroupSpec, emitted: Emitted) -> str:
    """A name that says what a function computes: the anchor or the last operators, in order."""
    types = [member.op.type for member in spec.members]
    words = [*types[:3], "etc"] if len(types) > 4 else types
    return "_".join(_identifier(word.lower(), 0) for word in words)


def _identifier(name: str, position: int) -> str:
    cleaned = "".join(each if each.isalnum() and each.isascii() else "_" for each in name)
    return cleaned if cleaned[:1].isalpha() else f"v{position}_{cleaned}"
