"""Importing TVM quickly, with a thread pool that behaves.

`import tvm` imports torch where it is installed (two seconds and 200 MB) only to patch old versions of it. A
program that loads an artifact has no use for that.

TVM's thread pool takes half of the machine's logical CPUs, whether they are hyper-threads or not and whatever
the process may use, and pins the calling thread; the environment variables that say otherwise are set here
unless the user did.
"""

from __future__ import annotations

import importlib
import importlib.abc
import os
import sys
import threading
from types import ModuleType
from typing import Any

from .host import logical_cores


class _WithoutTorch(importlib.abc.MetaPathFinder):
    """Makes torch look absent to the thread that is importing TVM."""

    def __init__(self) -> None:
        self._thread = threading.get_ident()

    def find_spec(self, name: str, path: Any, target: Any = None) -> None:
        if name.split(".", 1)[0] == "torch" and threading.get_ident() == self._thread:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


def import_tvm() -> ModuleType:
    """TVM, imported without torch unless torch is loaded already."""
    os.environ.setdefault("TVM_NUM_THREADS", str(logical_cores()))
    os.environ.setdefault("TVM_BIND_THREADS", "0")
    if "tvm" in sys.modules or "torch" in sys.modules:
        return importlib.import_module("tvm")
    guard = _WithoutTorch()
    sys.meta_path.insert(0, guard)
    try:
        return importlib.import_module("tvm")
    finally:
        sys.meta_path.remove(guard)
