"""Finding and loading TVM's runtime libraries, with a thread pool that behaves.

TVM's thread pool takes half of the machine's logical CPUs, whether they are hyper-threads or not and whatever
the process may use, and pins the calling thread; the environment variables that say otherwise are set here
unless the user did.
"""

from __future__ import annotations

import ctypes
import functools
import importlib.util
import mmap
import os
from pathlib import Path
from typing import Any

from ..ir.errors import TargetError
from .host import logical_cores
from .native import Native

_ABI = (0, 1)
_EXTRA = b"tvm.contrib."
"""What names of functions begin with that are in the runtime's second library, such as sorting."""
_SET_CONCURRENCY = "_ZN3tvm7runtime9threading17SetMaxConcurrencyEi"


def open_runtime(library: Path | None = None, *, cuda: bool = False) -> Native:
    """The runtime's functions, loaded when they are first asked for.

    Args:
        library: the compiled library that is to be run; what it needs beyond the usual is loaded as well.
        cuda: whether a GPU is to be used.

    Raises:
        TargetError: the runtime is not installed, or the one for GPUs does not load.
    """
    configure_threads()
    native = _native()
    _load("libtvm_runtime.so")
    if library is None or _mentions(library, _EXTRA):
        _load("libtvm_runtime_extra.so")
    if cuda:
        _load_cuda()
    return native


def configure_threads() -> None:
    """Let thread pools take as many cores as this process may use, and leave threads where they are."""
    os.environ.setdefault("TVM_NUM_THREADS", str(logical_cores()))
    os.environ.setdefault("TVM_BIND_THREADS", "0")


def limit_concurrency(count: int) -> bool:
    """Let programs that the calling thread runs use so many threads at most, 0 for any number.

    With 1 they need no pool. Returns whether the runtime has that limit.
    """
    function = _set_concurrency()
    if function is not None:
        function(count)
    return function is not None


@functools.cache
def package_place(package: str) -> Path:
    """Where a package is installed, without importing it.

    Raises:
        TargetError: it is not installed.
    """
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        name = {"tvm": "apache-tvm", "tvm_ffi": "apache-tvm-ffi"}.get(package, package)
        raise TargetError(f"the package {package} is not installed; `pip install {name}`")
    return Path(spec.submodule_search_locations[0])


def runtime_version() -> str:
    """Version of the installed runtime, "unknown" where that cannot be told."""
    # Looking beside the package takes a fraction of what importing `importlib.metadata` does.
    for entry in os.listdir(package_place("tvm").parent):
        if entry.startswith("apache_tvm-") and entry.endswith(".dist-info"):
            return entry.removeprefix("apache_tvm-").removesuffix(".dist-info")
    from .versions import version_of

    return version_of("apache-tvm")


@functools.cache
def _native() -> Native:
    native = Native(
        ctypes.CDLL(str(package_place("tvm_ffi") / "lib" / "libtvm_ffi.so"), mode=ctypes.RTLD_GLOBAL)
    )
    version = native.version()
    if version[:2] != _ABI:
        raise TargetError(
            f"apache-tvm-ffi has interface {'.'.join(map(str, version))}, this program knows "
            f"{'.'.join(map(str, _ABI))}; install the version that graphwright asks for"
        )
    return native


@functools.cache
def _load(library: str) -> ctypes.CDLL:
    try:
        return ctypes.CDLL(str(package_place("tvm") / "lib" / library), mode=ctypes.RTLD_GLOBAL)
    except OSError as error:
        raise TargetError(f"TVM's {library} does not load: {error}") from None


def _load_cuda() -> None:
    from .cross import cuda_home, cudart, find_nvcc

    nvcc = find_nvcc()
    home = cuda_home(nvcc) if nvcc else None
    runtime = cudart(home) if home else None
    try:
        if runtime:  # found by its name from here on, whether it is on the search path or not
            ctypes.CDLL(str(runtime), mode=ctypes.RTLD_GLOBAL)
    except OSError as error:
        raise TargetError(f"TVM's runtime for NVIDIA GPUs does not load: {error}") from None
    _load("libtvm_runtime_cuda.so")


@functools.cache
def _set_concurrency() -> Any:
    """The runtime's function for the limit of a thread; it has no other name than that of C++."""
    function = getattr(_load("libtvm_runtime.so"), _SET_CONCURRENCY, None)
    if function is not None:
        function.restype = None
    return function


def _mentions(path: Path, word: bytes) -> bool:
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return data.find(word) >= 0
    except (OSError, ValueError):
        return True
