"""A prepared model becomes one Relax module of scheduled functions and a list of packed weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from .op import type_of

if TYPE_CHECKING:
    from ..target import Target
    from .groups import Group
    from .prepare import Prepared
    from .spec import GroupSpec
    from .strategy import Schedules


@dataclass(frozen=True)
class TensorInfo:
    """Name, static shape and numpy dtype name of one graph input or output."""

    name: str
    shape: tuple[int, ...]
    dtype: str


@dataclass(frozen=True)
class KernelInfo:
    """One function of the library: what it computes, how often it is called and its floating-point work.

    `functions` names the model functions that its nodes stood in, as `domain::name`; `nodes` are those of all
    calls in a row, `nodes_per_call` says how many of them belong to each.
    """

    name: str
    kind: str
    calls: int
    flops: int = 0
    note: str = ""
    nodes: tuple[str, ...] = ()
    functions: tuple[str, ...] = ()
    nodes_per_call: tuple[int, ...] = ()
    workload: str = ""
    """Key of its tuning records; "" where its template has nothing to choose."""
    tuned: bool = False
    """Whether the schedule of a record was used."""
    entry: str = "main"
    """The program that calls it."""


@dataclass
class Lowered:
    """A Relax module `main(inputs..., (weights...))` with all that is needed to build and to run it."""

    ir_module: Any
    weights: list[np.ndarray]
    inputs: list[TensorInfo]
    outputs: list[TensorInfo]
    kernels: list[KernelInfo] = field(default_factory=list)
    workloads: dict[str, GroupSpec] = field(default_factory=dict)
    """A group for every workload whose template has something to choose."""
    used: dict[str, list[int]] = field(default_factory=dict)
    """Positions of the weights that each program reads."""


def lower(model: ir.Model, target: Target, schedules: Schedules | None = None) -> Lowered:
    """Lower a model with static shapes in the canonical opset.

    Args:
        model: the prepared model; it is not changed.
        target: what the code will run on.
        schedules: those of measured records, by workload.

    Raises:
        CompileError: an operator has no lowering.
        ShapeError: a shape is not static.
    """
    return lower_programs({"main": model}, target, schedules)


def lower_programs(
    programs: Mapping[str, ir.Model],
    target: Target,
    schedules: Schedules | None = None,
    shapes: Mapping[str, Sequence[int]] | None = None,
) -> Lowered:
    """Lower several models, such as one for several batch sizes, into one module.

    They share functions of the same structure and weights of the same contents; each program takes the
    weights of all of them. Inputs and outputs of the result are those of the first.

    Args:
        programs: prepared models by the name of their function; not changed.
        target: what the code will run on.
        schedules: those of measured records, by workload.
        shapes: functions without parameters that return these integers, by name.

    Raises:
        CompileError: an operator has no lowering.
        ShapeError: a shape is not static.
    """
    from ..tvm_import import import_tvm
    from .module_builder import ModuleBuilder
    from .shared_module import Shared
    from .strategy import strategy_for

    tvm = import_tvm()
    strategy = strategy_for(target, schedules)
    shared = Shared()
    builders = []
    with tvm.target.Target(target.to_tvm()):
        for entry, model in programs.items():
            prepared, groups = _grouped(model, target)
            opset = prepared.graph.opset_imports.get("", 23)
            builders.append(ModuleBuilder(prepared, strategy, opset, shared, entry))
            builders[-1].collect(groups)
        for builder in builders:
            builder.write()
        for name, sizes in (shapes or {}).items():
            shared.add_shape(name, sizes)
        shared.add_check()
        module = shared.finish(strategy)
    first = next(iter(programs.values()))
    return Lowered(
        module,
        shared.weights.arrays,
        _infos(first.graph.inputs),
        _infos(first.graph.outputs),
        [kernel for builder in builders for kernel in builder.kernels()],
        {key: spec for builder in builders for key, spec in builder.workloads().items()},
        {entry: builder.used_weights() for entry, builder in zip(programs, builders, strict=True)},
    )


def _grouped(model: ir.Model, target: Target) -> tuple[Prepared, list[Group]]:
    from ...ir.clone import clone
    from .decompose import decompose
    from .groups import form_groups
    from .half_floats import widen_half_floats
    from .integer import integerize
    from .narrow_floats import widen_narrow_floats
    from .prepare import prepare
    from .recurrent_weights import keep_recurrent_weights_small

    own = clone(model)
    widen_narrow_floats(own)
    if target.kind == "llvm":
        widen_half_floats(own)
    decompose(own, target)
    keep_recurrent_weights_small(own, target)
    integerize(own, target)
    prepared = prepare(own)
    return prepared, form_groups(prepared.graph, prepared.ops)


def _infos(values: Any) -> list[TensorInfo]:
    types = [(value.name, type_of(value)) for value in values]
    return [TensorInfo(name, each.shape, each.dtype) for name, each in types]
