"""Graphwright: verified graph-rewriting passes that make neural networks smaller and faster on devices.

Everything a user needs is reachable from here (`import graphwright as gw`); the heavy dependencies behind a
name are imported when it is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_EXPORTS = {
    "GraphwrightError": ".ir.errors",
    "load": ".ir.load",
    "save": ".ir.save",
    "trace": ".ir.trace",
    "to_torch": ".ir.to_torch",
    "verify": ".ir.verify",
    "diff": ".ir.diff",
    "Pass": ".passes.base",
    "PassContext": ".passes.base",
    "register": ".passes.registry",
    "Rule": ".passes.rules",
    "Analysis": ".passes.analyses",
    "Rewriter": ".passes.rewriter",
    "PassManager": ".passes.manager",
    "optimize": ".passes.optimize",
    "Target": ".backends.target",
    "Executable": ".backends.executable",
    "compile": ".backends.compile",
    "tune": ".backends.tuning.api",
    "load_executable": ".backends.artifact",
}

__all__ = ["__version__", *_EXPORTS]

if TYPE_CHECKING:
    from .backends.artifact import load_executable as load_executable
    from .backends.compile import compile as compile
    from .backends.executable import Executable as Executable
    from .backends.target import Target as Target
    from .backends.tuning.api import tune as tune
    from .ir.diff import diff as diff
    from .ir.errors import GraphwrightError as GraphwrightError
    from .ir.load import load as load
    from .ir.save import save as save
    from .ir.to_torch import to_torch as to_torch
    from .ir.trace import trace as trace
    from .ir.verify import verify as verify
    from .passes.analyses import Analysis as Analysis
    from .passes.base import Pass as Pass
    from .passes.base import PassContext as PassContext
    from .passes.manager import PassManager as PassManager
    from .passes.optimize import optimize as optimize
    from .passes.registry import register as register
    from .passes.rewriter import Rewriter as Rewriter
    from .passes.rules import Rule as Rule


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module 'graphwright' has no attribute {name!r}")
    value = getattr(importlib.import_module(_EXPORTS[name], __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
