"""Importing TVM quickly, in whole or only what runs a library, with a thread pool that behaves.

`import tvm` imports torch where it is installed (two seconds and 200 MB) only to patch old versions of it. A
program that loads an artifact has no use for that.

TVM's thread pool takes half of the machine's logical CPUs, whether they are hyper-threads or not and whatever
the process may use, and pins the calling thread; the environment variables that say otherwise are set here
unless the user did.
"""

from __future__ import annotations

import ctypes
import functools
import importlib
import importlib.machinery
import importlib.util
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from ..ir.errors import TargetError
from .host import logical_cores

_NO_TORCH_EXTENSION = "TVM_FFI_DISABLE_TORCH_C_DLPACK"


class _WithoutTorch:
    """Makes torch look absent to the thread that is importing TVM.

    A finder by its form only: importing `importlib.abc` takes longer than all that is below.
    """

    def __init__(self) -> None:
        self._thread = threading.get_ident()

    def find_spec(self, name: str, path: Any, target: Any = None) -> None:
        if name.split(".", 1)[0] == "torch" and threading.get_ident() == self._thread:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


class _LazyParts:
    """Makes parts of TVM's foreign-function layer load when they are first used; nothing here uses them."""

    def find_spec(self, name: str, path: Any, target: Any = None) -> Any:
        if name not in _UNUSED:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        if spec is not None and spec.loader is not None:
            spec.loader = importlib.util.LazyLoader(spec.loader)
        return spec


_UNUSED = ("tvm_ffi.cpp",)
"""Compiles C++ at run time; loading it takes a sixth of all."""


def import_tvm() -> ModuleType:
    """TVM with its compiler, imported without torch unless torch is loaded already."""
    _configure_threads()
    with _torch_hidden("tvm"):
        return importlib.import_module("tvm")


def import_runtime(*, cuda: bool = False) -> ModuleType:
    """TVM's foreign-function layer with the runtime library loaded; all it takes to run a built library.

    Raises:
        TargetError: the runtime for GPUs does not load.
    """
    _configure_threads()
    with _torch_hidden("tvm_ffi"), _lazily():
        ffi = importlib.import_module("tvm_ffi")
    _load("libtvm_runtime.so")
    # Sorting, which the library of a model with TopK calls; opening it takes a few milliseconds.
    _load("libtvm_runtime_extra.so")
    if cuda:
        from .cross import cuda_home, cudart, find_nvcc

        nvcc = find_nvcc()
        home = cuda_home(nvcc) if nvcc else None
        runtime = cudart(home) if home else None
        try:
            if runtime:  # found by its name from here on, whether it is on the search path or not
                ctypes.CDLL(str(runtime), mode=ctypes.RTLD_GLOBAL)
            _load("libtvm_runtime_cuda.so")
        except OSError as error:
            raise TargetError(f"TVM's runtime for NVIDIA GPUs does not load: {error}") from None
    return ffi


def tvm_folder() -> Path:
    """Where TVM is installed, without importing it."""
    spec = importlib.util.find_spec("tvm")
    if spec is None or not spec.submodule_search_locations:
        raise TargetError("TVM is not installed; `pip install apache-tvm`")
    return Path(spec.submodule_search_locations[0])


@functools.lru_cache(maxsize=4)
def _load(library: str) -> ctypes.CDLL:
    return ctypes.CDLL(str(tvm_folder() / "lib" / library), mode=ctypes.RTLD_GLOBAL)


def _configure_threads() -> None:
    os.environ.setdefault("TVM_NUM_THREADS", str(logical_cores()))
    os.environ.setdefault("TVM_BIND_THREADS", "0")


@contextmanager
def _lazily() -> Iterator[None]:
    finder = _LazyParts()
    sys.meta_path.insert(0, finder)  # type: ignore[arg-type]
    try:
        yield
    finally:
        sys.meta_path.remove(finder)  # type: ignore[arg-type]


@contextmanager
def _torch_hidden(module: str) -> Iterator[None]:
    if module in sys.modules or "torch" in sys.modules:
        yield
        return
    guard = _WithoutTorch()
    # What looks for torch to speed it up need not look.
    told = os.environ.get(_NO_TORCH_EXTENSION)
    os.environ[_NO_TORCH_EXTENSION] = "1"
    sys.meta_path.insert(0, guard)  # type: ignore[arg-type]
    try:
        yield
    finally:
        sys.meta_path.remove(guard)  # type: ignore[arg-type]
        if told is None:
            del os.environ[_NO_TORCH_EXTENSION]
        else:
            os.environ[_NO_TORCH_EXTENSION] = told
