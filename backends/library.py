"""From an optimized model to a shared library with packed weights, here or in a process of its own."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from ..ir.errors import CompileError, GraphwrightError
from .compile_report import CompileReport
from .cross import linker_for
from .manifest import ENTRY
from .target import Target

if TYPE_CHECKING:
    from .tvm.strategy import Schedules

_TELLING = re.compile(r"\b(error|fail(ed|s)?|cannot|unsupported|mismatch)\b", re.IGNORECASE)


@dataclass(frozen=True)
class Library:
    """A built library.

    Attributes:
        path: the shared library.
        weights: packed weights in the order it takes them.
        kernels: what its functions compute, JSON-able.
        used: positions of the weights that each program reads.
        code: bytes of machine code by kernel.
    """

    path: Path
    weights: list[np.ndarray]
    kernels: list[dict[str, Any]]
    used: dict[str, list[int]]
    code: dict[str, int]


def build_library(
    programs: Mapping[str, ir.Model],
    target: Target,
    folder: Path,
    report: CompileReport,
    say: Callable[[str], None],
    schedules: Schedules | None = None,
    shapes: Mapping[str, Sequence[int]] | None = None,
) -> Library:
    """Lower and build.

    Args:
        programs: graphs with static shapes, by the name of the function that each becomes.
        target: what to build for.
        folder: an empty folder of the caller's that takes the library.
        report: gets the times of the steps.
        say: called with the name of each step as it begins.
        schedules: those of tuning records, by workload; for CPUs.
        shapes: functions of the library that return these integers.

    Raises:
        CompileError: an operator has no lowering, or TVM or the linker fails.
        OSError: the disk is full.
    """
    if target.kind == "cuda":
        from .cuda import build_apart

        return build_apart(programs, target, folder, report, say, shapes)
    return build_here(programs, target, folder, report, say, schedules, shapes)


def build_here(
    programs: Mapping[str, ir.Model],
    target: Target,
    folder: Path,
    report: CompileReport,
    say: Callable[[str], None],
    schedules: Schedules | None = None,
    shapes: Mapping[str, Sequence[int]] | None = None,
) -> Library:
    """Lower and build in this process; see `build_library`."""
    from .tvm_import import import_tvm

    linker = linker_for(target)
    with report.step("load TVM"):
        import_tvm()
    from .tvm.build import build
    from .tvm.lower import lower_programs

    path = folder / "model.so"
    try:
        with report.step("lower"):
            say("lower")
            lowered = lower_programs(programs, target, schedules, shapes)
        with report.step("build"):
            say("build")
            code = build(lowered, target, path, fcompile=linker).code
    except GraphwrightError:
        raise
    except OSError:
        raise
    except MemoryError:
        raise CompileError("there is not enough memory to compile this model") from None
    except Exception as error:
        raise _tvm_error(error) from error
    return Library(path, lowered.weights, [_kernel(kernel) for kernel in lowered.kernels], lowered.used, code)


def _kernel(kernel: Any) -> dict[str, Any]:
    return {
        "name": kernel.name,
        "kind": kernel.kind,
        "calls": kernel.calls,
        "flops": kernel.flops,
        "note": kernel.note,
        "nodes": list(kernel.nodes),
        "nodes_per_call": list(kernel.nodes_per_call),
        "from": list(kernel.functions),
        "workload": kernel.workload,
        "tuned": kernel.tuned,
        **({"entry": kernel.entry} if kernel.entry != ENTRY else {}),
    }


def _tvm_error(error: Exception) -> Exception:
    """An error from inside of TVM as one line; the traceback stays attached as its cause."""
    text = str(error)
    if os.strerror(errno.ENOSPC) in text:
        return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    lines = [line.strip() for line in text.splitlines() if line.strip()] or ["no reason given"]
    telling = next((line for line in lines if _TELLING.search(line)), lines[0])
    return CompileError(f"TVM cannot compile this model: {type(error).__name__}: {telling}")
