"""Running a built library through TVM's virtual machine, reached by its foreign-function layer.

Only TVM's small runtime library is needed here; importing the compiler as well would take longer than most
models take to load. Both can live in one process, in whatever order they come.
"""

from __future__ import annotations

import ctypes
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..batches import ENTRY
from ..identity import identity
from ..tvm_import import import_runtime

_POOLED_ALLOCATOR = 2
_CPU, _CUDA = 1, 2
_ALIGNMENT = 64
"""What generated code relies on."""


class TvmProgram:
    """A loaded library with its weights on the device.

    Args:
        path: the shared library.
        weights: packed weights in the order of the library's last argument; on the CPU they are used in place
            where their alignment allows it, so they must not be changed.
        device: "cpu" or "cuda".
    """

    def __init__(self, path: str | Path, weights: Sequence[np.ndarray], device: str = "cpu"):
        self._ffi = import_runtime(cuda=device == "cuda")
        self._function = self._ffi.get_global_func
        self._on_cpu = device == "cpu"
        self.device = self._ffi.device(device, 0)
        # The machine only borrows the library's code.
        self._library = _open_library(self._ffi, Path(path))
        self._machine = self._library["vm_load_executable"]()
        devices = [_CPU] if self._on_cpu else [_CUDA, _CPU]
        self._machine["vm_initialization"](
            *(field for kind in devices for field in (kind, 0, _POOLED_ALLOCATOR))
        )
        self._entries: dict[str, Any] = {}
        self.weights = tuple(self._place(weight) for weight in weights)

    def prepare(self, arrays: Sequence[np.ndarray]) -> list[Any]:
        """The arrays as device tensors; arrays in place must not be changed while those are in use."""
        return [self._place(array) for array in arrays]

    def invoke(self, tensors: Sequence[Any], entry: str = ENTRY) -> Any:
        """Run on device tensors; returns what the machine returns (a tensor or a sequence of them)."""
        if entry not in self._entries:
            self._entries[entry] = self._machine[entry]
        return self._entries[entry](*tensors, self.weights)

    def run(self, arrays: Sequence[np.ndarray], entry: str = ENTRY) -> list[np.ndarray]:
        """Run on numpy arrays in the order of the model's inputs.

        Args:
            arrays: the inputs.
            entry: which of the library's programs.
        """
        result = self.invoke(self.prepare(arrays), entry)
        outputs = [result] if isinstance(result, self._ffi.Tensor) else list(result)
        return [self._fetch(output) for output in outputs]

    def watch(self, watcher: Callable[..., None]) -> None:
        """Call `watcher(name, before, arguments)` before and after everything the machine calls, from now on.

        There is no way back: use a program of its own for this.
        """

        def instrument(_function: Any, name: str, before: bool, _result: Any, *arguments: Any) -> int:
            watcher(str(name), bool(before), arguments)
            return 0  # go on; 1 would leave the call out

        self._watcher = self._ffi.convert(instrument)
        self._machine["set_instrument"](self._watcher)

    def synchronize(self) -> None:
        """Wait until the device has done everything it was asked to."""
        if not self._on_cpu:
            self._function("runtime.Device_StreamSync")(self.device, 0)

    def set_threads(self, count: int) -> None:
        """Use `count` threads of the calling thread's pool."""
        self._function("runtime.config_threadpool")(1, count)

    def _place(self, array: np.ndarray) -> Any:
        array = np.require(array, requirements="C")  # keeps scalars scalars
        in_place = self._on_cpu and array.dtype.isbuiltin == 1 and array.flags.writeable and array.size
        if in_place and array.ctypes.data % _ALIGNMENT == 0:
            return self._ffi.from_dlpack(array)
        dtype, shape = self._ffi.dtype(array.dtype.name), self._ffi.Shape(array.shape)
        tensor = self._function("runtime.TVMTensorAllocWithScope")(shape, dtype, self.device, None)
        if array.size:
            data = ctypes.c_void_p(array.ctypes.data)
            self._function("runtime.TVMTensorCopyFromBytes")(tensor, data, array.nbytes)
        return tensor

    def _fetch(self, tensor: Any) -> np.ndarray:
        array = np.empty(tuple(tensor.shape), _numpy_dtype(str(tensor.dtype)))
        if array.size:
            data = ctypes.c_void_p(array.ctypes.data)
            self._function("runtime.TVMTensorCopyToBytes")(tensor, data, array.nbytes)
        return array


_opened: dict[str, tuple[int, int, int] | None] = {}


def _open_library(ffi: Any, path: Path) -> Any:
    """The library that lies at `path` now.

    For a name that it has opened before the dynamic linker returns what lay there then; a library that has
    replaced another one, as that of a model compiled anew, is therefore opened by a name of its own.
    """
    here = identity(path)
    if _opened.setdefault(str(path), here) == here:
        return ffi.load_module(str(path))
    with tempfile.TemporaryDirectory(prefix="graphwright-") as folder:
        link = Path(folder) / path.name
        link.symlink_to(path)
        return ffi.load_module(str(link))


def _numpy_dtype(name: str) -> np.dtype[Any]:
    try:
        return np.dtype(name)
    except TypeError:
        import ml_dtypes

        return np.dtype(getattr(ml_dtypes, name))
