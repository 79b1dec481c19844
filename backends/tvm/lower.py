"""A prepared model becomes one Relax module of scheduled functions and a list of packed weights."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from .op import type_of

if TYPE_CHECKING:
    from ..target import Target
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
    from ...ir.clone import clone
    from ..tvm_import import import_tvm
    from .decompose import decompose
    from .groups import form_groups
    from .integer import integerize
    from .module_builder import ModuleBuilder
    from .prepare import prepare
    from .strategy import strategy_for

    tvm = import_tvm()
    own = clone(model)
    decompose(own, target)
    integerize(own, target)
    prepared = prepare(own)
    groups = form_groups(prepared.graph, prepared.ops)
    builder = ModuleBuilder(prepared, strategy_for(target, schedules), own.opset_imports.get("", 23))
    with tvm.target.Target(target.to_tvm()):
        module = builder.build(groups)
    return Lowered(
        module,
        builder.weights.arrays,
        _infos(model.graph.inputs),
        _infos(model.graph.outputs),
        builder.kernels(),
        builder.workloads(),
    )


def _infos(values: Any) -> list[TensorInfo]:
    types = [(value.name, type_of(value)) for value in values]
    return [TensorInfo(name, each.shape, each.dtype) for name, each in types]
