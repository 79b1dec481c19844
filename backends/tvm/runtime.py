"""Running a built library through TVM's virtual machine."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np


class TvmProgram:
    """A loaded library with its weights on the device."""

    def __init__(self, path: str | Path, weights: Sequence[np.ndarray], device: str = "cpu"):
        import tvm
        from tvm import relax

        self.device = tvm.device(device, 0)
        self.machine = relax.VirtualMachine(tvm.runtime.load_module(str(path)), self.device)
        self.weights = tuple(tvm.runtime.tensor(_contiguous(w), self.device) for w in weights)

    def prepare(self, arrays: Sequence[np.ndarray]) -> list[Any]:
        """The arrays as device tensors."""
        import tvm

        return [tvm.runtime.tensor(_contiguous(a), self.device) for a in arrays]

    def invoke(self, tensors: Sequence[Any]) -> Any:
        """Run on device tensors; returns what the machine returns (a tensor or a tuple of them)."""
        return self.machine["main"](*tensors, self.weights)

    def run(self, arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Run on numpy arrays in the order of the model's inputs."""
        result = self.invoke(self.prepare(arrays))
        outputs = [result] if hasattr(result, "numpy") else list(result)
        return [output.numpy() for output in outputs]

    def set_threads(self, count: int) -> None:
        """Use `count` threads of the process-wide pool."""
        import tvm

        tvm.get_global_func("runtime.config_threadpool")(1, count)


def _contiguous(array: np.ndarray) -> np.ndarray:
    """The array in C order with its rank: numpy.ascontiguousarray would make a scalar one-dimensional."""
    return np.require(array, requirements="C")
