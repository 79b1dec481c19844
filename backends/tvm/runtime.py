"""Running a built library through TVM's virtual machine.

Only TVM's small runtime library is needed here; importing the compiler as well would take longer than most
models take to load. Both can live in one process, in whatever order they come.
"""

from __future__ import annotations

import functools
import math
import threading
from bisect import bisect
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..host import tiles_granted
from ..identity import identity
from ..manifest import ENTRY
from ..native import CPU, CUDA, Handle, Native, NativeError, Tensor, element_of, is_array, name_of
from ..runtime_library import open_runtime
from ..thread_pools import run_with_threads
from ..weights import CHECK_FUNCTION, layout_number

_POOLED_ALLOCATOR = 2
_ALIGNMENT = 64
"""What generated code relies on."""
_QUICKLY_COPIED = 1 << 15
"""Inputs of so many bytes are copied in less time than it takes to describe where they lie."""


class TvmProgram:
    """A loaded library with its weights on the device.

    Each thread that runs it gets a virtual machine of its own; code and weights are shared.

    Args:
        path: the shared library.
        weights: packed weights in the order of the library's last argument; on the CPU they are used in place
            where their alignment allows it, so they must not be changed.
        device: "cpu" or "cuda".

    Raises:
        NativeError: the runtime does not take the library.
        TargetError: the runtime does not load.
    """

    def __init__(self, path: str | Path, weights: Sequence[np.ndarray], device: str = "cpu"):
        self._on_cpu = device == "cpu"
        tiles_granted()  # a library may use them, and every process must ask
        self._device = CPU if self._on_cpu else CUDA
        self._native = open_runtime(Path(path), cuda=not self._on_cpu)
        self._library = _open_library(self._native, Path(path))
        self._watcher: Handle | None = None
        self._threads = 1
        self._machines = threading.local()
        self._check_weights(weights)
        self.weights = tuple(self._place(weight) for weight in weights)
        self._packed = self._native.array(self.weights)
        self._taken = sorted(_range(weight) for weight in self.weights)

    def _check_weights(self, weights: Sequence[np.ndarray]) -> None:
        """Kernels read weights without another look."""
        machine = self._machine().handle
        try:
            check = self._native.method(machine, CHECK_FUNCTION)
        except NativeError:
            return  # built by a version whose programs looked at them in every run
        try:
            self._native.call(check, self._native.call("ffi.Shape", layout_number(weights)))
        except NativeError:
            raise NativeError("the weights are not those that the library was compiled with") from None

    def prepare(self, arrays: Sequence[np.ndarray]) -> list[Tensor]:
        """The arrays as device tensors; arrays in place must not be changed while those are in use."""
        return [self._place(array) for array in arrays]

    def invoke(self, tensors: Sequence[Tensor], entry: str = ENTRY) -> Any:
        """Run on device tensors; returns what the machine returns, a tensor or an array of them.

        Raises:
            NativeError: the library refuses the tensors.
        """
        return run_with_threads(self._native, self._threads, self._invoke, tensors, entry)

    def _invoke(self, tensors: Sequence[Tensor], entry: str) -> Any:
        machine = self._machine()
        program = machine.entries.get(entry)
        if program is None:
            program = machine.entries[entry] = self._native.method(machine.handle, entry)
        return self._native.call(program, *tensors, self._packed)

    def run(self, arrays: Sequence[np.ndarray], entry: str = ENTRY) -> list[np.ndarray]:
        """Run on numpy arrays in the order of the model's inputs.

        Args:
            arrays: the inputs.
            entry: which of the library's programs.

        Returns:
            The outputs; on the CPU they lie where the machine left them, without a copy.
        """
        tensors = [self._staged(index, array) for index, array in enumerate(arrays)]
        result = self.invoke(tensors, entry)
        outputs = self._native.elements(result) if is_array(result) else [result]
        if not self._on_cpu:
            return [self._fetch(output) for output in outputs]
        others = [_range(tensor) for tensor in tensors]
        found = []
        for output in outputs:
            place = _range(output)
            found.append(_array_of(output) if self._is_apart(place, others) else self._fetch(output))
            others.append(place)
        return found

    def watch(self, watcher: Callable[[str, bool, Callable[[], list[Any]]], None]) -> None:
        """Call `watcher(name, before, arguments)` before and after everything the machine calls, from now on.

        `arguments()` gives what the call gets, tensors among it. There is no way back, and neither other
        threads nor other numbers of threads are watched: use a program of its own for this.
        """

        def instrument(arguments: Callable[[int, int], list[Any]]) -> int:
            name, before = arguments(1, 3)
            watcher(name, before, lambda: arguments(4, -1))
            return 0  # go on; 1 would leave the call out

        self._watcher = self._native.callback(instrument)
        run_with_threads(self._native, self._threads, self._set_instrument)

    def _set_instrument(self) -> None:
        machine = self._machine().handle
        self._native.call(self._native.method(machine, "set_instrument"), self._watcher)

    def synchronize(self) -> None:
        """Wait until the device has done everything it was asked to."""
        if not self._on_cpu:
            self._native.synchronize(self._device)

    def set_threads(self, count: int) -> None:
        """Use `count` threads from the next run on; a GPU's library needs one."""
        self._threads = count if self._on_cpu else 1

    def _machine(self) -> _Machine:
        """The machine of the thread that runs."""
        found = getattr(self._machines, "machine", None)
        if found is None:
            # It only borrows the library's code.
            handle = self._native.call(self._native.method(self._library, "vm_load_executable"))
            kinds = [CPU] if self._on_cpu else [CUDA, CPU]
            self._native.call(
                self._native.method(handle, "vm_initialization"),
                *(field for kind in kinds for field in (kind, 0, _POOLED_ALLOCATOR)),
            )
            found = self._machines.machine = _Machine(handle)
        return found

    def _staged(self, index: int, array: np.ndarray) -> Tensor:
        """An input in place if it is large and aligned, else copied to where that of the last run lay."""
        large = array.nbytes > _QUICKLY_COPIED
        if not self._on_cpu or not array.size or (large and array.ctypes.data % _ALIGNMENT == 0):
            return self._place(array)
        staged: dict[int, tuple[np.ndarray, Tensor]] = self._machines.__dict__.setdefault("staged", {})
        known = staged.get(index)
        if known is None or known[0].shape != array.shape or known[0].dtype != array.dtype:
            memory = _aligned(array.shape, array.dtype)
            known = staged[index] = memory, self._place(memory)
        np.copyto(known[0], array)
        return known[1]

    def _place(self, array: np.ndarray) -> Tensor:
        array = np.require(array, requirements="C")  # keeps scalars scalars
        element = element_of(array.dtype.name)
        address = array.ctypes.data
        if self._on_cpu and array.size and address % _ALIGNMENT == 0:
            return self._native.view(address, array.shape, element, array)
        tensor = self._native.allocate(array.shape, element, self._device)
        if array.size:
            self._native.fill(tensor, address, array.nbytes)
        return tensor

    def _fetch(self, tensor: Tensor) -> np.ndarray:
        array = np.empty(tensor.shape, _dtype_of(tensor))
        if array.size:
            self._native.fetch(tensor, array.ctypes.data, array.nbytes)
        return array

    def _is_apart(self, place: tuple[int, int], others: Sequence[tuple[int, int]]) -> bool:
        """Whether memory is nobody else's: models may return their inputs and weights, or something twice."""
        start, stop = place
        behind = bisect(
            self._taken, (stop, -1)
        )  # weights lie apart from each other, so the last before it is next
        if behind and self._taken[behind - 1][1] > start:
            return False
        return all(stop <= begin or end <= start for begin, end in others)


class _Machine:
    """A virtual machine with the programs that it was asked for."""

    __slots__ = ("entries", "handle")

    def __init__(self, handle: Handle):
        self.handle = handle
        self.entries: dict[str, Handle] = {}


class _Memory:
    """A tensor's memory as NumPy's array interface describes it; arrays made of it keep the tensor."""

    def __init__(self, tensor: Tensor, kind: str):
        self._tensor = tensor
        self.__array_interface__ = {
            "shape": tensor.shape,
            "typestr": kind,
            "data": (tensor.address, False),
            "version": 3,
        }


def _array_of(tensor: Tensor) -> np.ndarray:
    dtype = _dtype_of(tensor)
    if dtype.isbuiltin == 1:
        return np.asarray(_Memory(tensor, dtype.str))
    return np.asarray(_Memory(tensor, f"<u{dtype.itemsize}")).view(dtype)


def _range(tensor: Tensor) -> tuple[int, int]:
    return tensor.address, tensor.address + tensor.bytes


def _dtype_of(tensor: Tensor) -> np.dtype[Any]:
    return _numpy_type(tensor.element)


@functools.cache
def _numpy_type(element: tuple[int, int]) -> np.dtype[Any]:
    name = name_of(element)
    try:
        return np.dtype(name)
    except TypeError:
        import ml_dtypes

        return np.dtype(getattr(ml_dtypes, name))


def _aligned(shape: tuple[int, ...], dtype: np.dtype[Any]) -> np.ndarray:
    """Memory for an array, which begins where generated code wants it to."""
    size = math.prod(shape) * dtype.itemsize
    memory = np.empty(size + _ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % _ALIGNMENT
    return memory[start : start + size].view(dtype).reshape(shape)


_opened: dict[str, tuple[int, int, int] | None] = {}


def _open_library(native: Native, path: Path) -> Handle:
    """The library that lies at `path` now; it stays in the process.

    For a name that it has opened before the dynamic linker returns what lay there then; a library that has
    replaced another one, as that of a model compiled anew, is therefore opened by a name of its own.
    """
    here = identity(path)
    if _opened.setdefault(str(path), here) == here:
        return _load(native, path)
    import tempfile

    with tempfile.TemporaryDirectory(prefix="graphwright-") as folder:
        link = Path(folder) / path.name
        link.symlink_to(path)
        return _load(native, link)


def _load(native: Native, path: Path) -> Handle:
    library = native.call("ffi.ModuleLoadFromFile", str(path))
    native.call("ffi.ModuleGlobalsAdd", library)
    return library
