"""ONNX Runtime behind the face of compiled libraries: the second backend and the measure of the first."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import onnx_ir as ir

from ..ir import ort
from ..ir.clone import clone
from ..ir.errors import CompileError, ModelError
from ..ir.reference import serialize_for_session
from ..ir.runtime_gaps import make_runnable
from .executable import Executable, specs_of
from .target import Target, host_target

_INLINE_BYTES = 1_500_000_000
"""Larger models are lent to the session instead of going through protobuf, whose messages end at 2 GB."""


class OnnxRuntimeExecutable(Executable):
    """A model in ONNX Runtime's CPU provider.

    Args:
        model: any valid model; not changed, and it must not change meanwhile.
        threads: threads within an operator, the calling one included; operators run one after another.
        optimize: leave ONNX Runtime's own graph optimizations at their default (all), as its users do.
        target: what to record as target; the machine at hand where None.

    Raises:
        CompileError: ONNX Runtime refuses the model; the line names the node.
    """

    backend = "onnxruntime"

    def __init__(
        self, model: ir.Model, *, threads: int = 1, optimize: bool = True, target: Target | None = None
    ):
        inputs = [value for value in model.graph.inputs if value.name not in model.graph.initializers]
        super().__init__(specs_of(inputs), specs_of(model.graph.outputs), target or host_target())
        self.model = model
        self.threads = threads
        self.optimize = optimize
        self._session: Any = None
        self._shared: dict[str, np.ndarray] = {}
        self._open()

    def set_threads(self, threads: int) -> None:
        """Use that many threads; opens a new session, since one's pool is fixed."""
        if threads < 1:
            raise ModelError("a model needs at least one thread")
        if threads != self.threads:
            self.threads = threads
            self._open()

    def _open(self) -> None:
        import onnxruntime

        assert self.model is not None
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        options.intra_op_num_threads = self.threads
        options.inter_op_num_threads = 1
        if not self.optimize:
            options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        proto, self._shared = _serialize(self.model)
        if self._shared:
            lent = [ort.to_ort_value(array) for array in self._shared.values()]
            options.add_external_initializers(list(self._shared), lent)
        try:
            self._session = onnxruntime.InferenceSession(proto, options, providers=["CPUExecutionProvider"])
        except Exception as error:
            raise CompileError(f"ONNX Runtime cannot run this model: {ort.explain(error)}") from error

    def _run(self, arrays: list[np.ndarray]) -> list[np.ndarray]:
        names = [spec.name for spec in self.outputs]
        feeds = {spec.name: array for spec, array in zip(self.inputs, arrays, strict=True)}
        try:
            return list(ort.run_session(self._session, feeds, names).values())
        except ModelError as error:
            raise ModelError(str(error).replace("the reference", "ONNX Runtime", 1)) from error

    def _timed_runs(self, arrays: list[np.ndarray], repeats: int) -> list[float]:
        feeds, names = self._lend(arrays), [spec.name for spec in self.outputs]
        samples = []
        for _ in range(repeats):
            start = time.perf_counter()
            self._session.run_with_ort_values(names, feeds)
            samples.append((time.perf_counter() - start) * 1e3)
        return samples

    def _lend(self, arrays: list[np.ndarray]) -> dict[str, Any]:
        return {spec.name: ort.to_ort_value(array) for spec, array in zip(self.inputs, arrays, strict=True)}


def _serialize(model: ir.Model) -> tuple[bytes, dict[str, np.ndarray]]:
    tensors = [value.const_value for value in model.graph.initializers.values()]
    if sum(tensor.nbytes for tensor in tensors if tensor is not None) > _INLINE_BYTES:
        return serialize_for_session(model)
    copy = clone(model)
    make_runnable(copy)
    copy.ir_version = min(copy.ir_version or ort.MAX_IR_VERSION, ort.MAX_IR_VERSION)
    for value in copy.graph.initializers.values():
        if isinstance(value.const_value, ir.ExternalTensor):
            value.const_value = ir.Tensor(
                value.const_value.numpy(), dtype=value.const_value.dtype, name=value.name
            )
    return ir.to_proto(copy).SerializeToString(), {}
