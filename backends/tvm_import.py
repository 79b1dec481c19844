"""Importing TVM's compiler quickly: `runtime_library.py` is enough to run what it built.

`import tvm` imports torch where it is installed (two seconds and 200 MB) only to patch old versions of it.
"""

from __future__ import annotations

import importlib
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

from .runtime_library import configure_threads

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


def import_tvm() -> ModuleType:
    """TVM with its compiler, imported without torch unless torch is loaded already."""
    configure_threads()
    with _torch_hidden("tvm"):
        return importlib.import_module("tvm")


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
