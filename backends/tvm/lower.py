"""A prepared model becomes one Relax module of scheduled functions and a list of packed weights."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

if TYPE_CHECKING:
    from ..target import Target


@dataclass(frozen=True)
class TensorInfo:
    """Name, static shape and numpy dtype name of one graph input or output."""

    name: str
    shape: tuple[int, ...]
    dtype: str


@dataclass(frozen=True)
class KernelInfo:
    """One function of the library: what it computes, how often it is called and its floating-point work."""

    name: str
    kind: str
    calls: int
    flops: int = 0
    note: str = ""
    nodes: tuple[str, ...] = ()


@dataclass
class Lowered:
    """A Relax module `main(inputs..., (weights...))` with everything that is needed to build and to run it."""

    ir_module: Any
    weights: list[np.ndarray]
    inputs: list[TensorInfo]
    outputs: list[TensorInfo]
    kernels: list[KernelInfo] = field(default_factory=list)


def lower(model: ir.Model, target: Target) -> Lowered:
    """Lower a model with static shapes in the canonical opset.

    Args:
        model: the prepared model; it is not changed.
        target: what the code will run on.

    Raises:
        CompileError: an operator has no lowering.
        ShapeError: a shape is not static.
    """
    from tvm import relax
    from tvm.relax.frontend.onnx import from_onnx

    module = from_onnx(ir.to_proto(model), keep_params_in_input=True)
    module, params = relax.frontend.detach_params(module)
    module = relax.transform.BundleModelParams()(module)
    weights = [np.array(p.numpy()) for p in params.get("main", [])]
    return Lowered(module, weights, _infos(model.graph.inputs), _infos(model.graph.outputs))


def _infos(values: Any) -> list[TensorInfo]:
    return [TensorInfo(v.name, tuple(int(d) for d in v.shape), v.dtype.numpy().name) for v in values]
