"""From a lowered module to a shared library."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..code_sizes import code_sizes
from .arena import plan_arena
from .byte_code import COMPILING, LEAST, program_of, source_of
from .lifetimes import keep_weights
from .lower import Lowered
from .stack import lowering

if TYPE_CHECKING:
    from ..target import Target

_LINKING = (
    # TVM describes every variable to debuggers and names functions that nobody looks for; nobody ships that.
    "-Wl,--strip-all",
    # Code and constants share pages of the file, which are otherwise filled up between them; so they would be
    # before the end of what must not change after loading, which is a handful of addresses.
    *("-Wl,-z,noseparate-code", "-Wl,-z,norelro", "-Wl,--build-id=none", "-Wl,--gc-sections"),
)


@dataclass(frozen=True)
class BuildInfo:
    """What building took and left.

    Attributes:
        path: of the library.
        seconds: that it took.
        library_bytes: size of the library.
        functions: of the module.
        code: bytes of machine code by kernel.
    """

    path: Path
    seconds: float
    library_bytes: int
    functions: int
    code: dict[str, int]


def build(
    lowered: Lowered, target: Target, path: str | Path, *, fcompile: Callable[..., Any] | None = None
) -> BuildInfo:
    """Compile `lowered` for `target` and write the shared library to `path`.

    Args:
        lowered: result of `lower`.
        target: the same target that the model was lowered for.
        path: the file to write.
        fcompile: linker as TVM's `export_library` takes it; the host compiler if absent.
    """
    import tvm
    from tvm import relax

    start = time.perf_counter()
    tvm_target = tvm.target.Target(target.to_tvm())
    # The virtual machine checks the inputs of the model; kernels get what it planned.
    unchecked = tvm.transform.PassContext(opt_level=2, config={"tirx.disable_assert": True})
    tir_pipeline = lowering() if target.kind == "llvm" else "default"
    with tvm_target, unchecked:
        executable = relax.build(
            lowered.ir_module,
            tvm_target,
            relax_pipeline=_pipeline(target.kind == "llvm"),
            tir_pipeline=tir_pipeline,
        )
    path = Path(path)
    with tempfile.TemporaryDirectory(prefix="objects-", dir=path.parent) as workspace:
        _link(executable.mod, path, workspace, fcompile, target.kind == "llvm")
        # The library itself has no names for what it does not export.
        code = code_sizes(Path(workspace, "lib0.o"))
    functions = len(lowered.ir_module.functions)
    return BuildInfo(path, time.perf_counter() - start, path.stat().st_size, functions, code)


def _link(module: Any, path: Path, folder: str, fcompile: Callable[..., Any] | None, on_cpu: bool) -> None:
    options = [*_LINKING]
    how: dict[str, Any] = {"fcompile": fcompile} if fcompile else {}
    program = program_of(module) if on_cpu else b""
    if len(program) >= LEAST:
        source = Path(folder, "byte_code.cc")
        source.write_text(source_of(program), encoding="utf-8")
        how["fpack_imports"] = lambda *_: str(source)
        options += COMPILING
    module.export_library(str(path), workspace_dir=folder, options=options, **how)


def _pipeline(on_cpu: bool) -> Any:
    """Memory planning and instructions of the virtual machine; every function is scheduled already."""
    from tvm import relax, tirx, transform

    return transform.Sequential(
        [
            # A schedule may have copied an expression together with the variables it binds.
            tirx.transform.ConvertSSA(),
            relax.transform.ToNonDataflow(),
            relax.transform.RemovePurityChecking(),
            relax.transform.CallTIRRewrite(),
            relax.transform.StaticPlanBlockMemory(),
            *([plan_arena()] if on_cpu else []),
            relax.transform.LowerAllocTensor(),
            relax.transform.KillAfterLastUse(),
            keep_weights(),
            relax.transform.LowerRuntimeBuiltin(),
            relax.transform.ComputePrimValue(),
            relax.transform.VMShapeLower(),
            relax.transform.AttachGlobalSymbol(),
        ]
    )
