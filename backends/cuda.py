"""Building for NVIDIA GPUs without having one.

TVM embeds machine code if its CUDA runtime loads and nvcc is found, and CUDA source if not. The runtime wants
the driver's library, which a build machine does not have, so a stub takes its place. All of this happens in a
process of its own: libraries that are once loaded stay, and compiling for the CPU must not notice.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx_ir as ir

from ..ir import errors
from ..ir.errors import CompileError, GraphwrightError, TargetError
from ..ir.save import save
from .cross import compiler_for, cuda_home, cudart, find_nvcc
from .target import Target, host_target
from .weights import read_weights

if TYPE_CHECKING:
    from .compile_report import CompileReport
    from .library import Library

REQUEST, ANSWER, LIBRARY, WEIGHTS = "request.json", "answer.json", "model.so", "weights.bin"
_STUB = "libcuda.so.1"


@dataclass(frozen=True)
class CudaTools:
    """What is here to make machine code with; `problem` says why it cannot be made, if so."""

    environment: dict[str, str]
    problem: str | None


def cuda_tools() -> CudaTools:
    """Environment variables for the process that compiles for CUDA."""
    nvcc = find_nvcc()
    home = cuda_home(nvcc) if nvcc else None
    runtime = cudart(home) if home else None
    if nvcc is None or runtime is None:
        missing = "nvcc" if nvcc is None else "libcudart.so.13"
        return CudaTools(
            {}, f"{missing} is not here, so the library holds CUDA source instead of machine code"
        )
    folders = [str(runtime.parent)]
    if not _has_driver():
        folders.insert(0, str(_driver_stub().parent))
    searched = os.environ.get("LD_LIBRARY_PATH")
    environment = {
        "TVM_CUDA_COMPILE_MODE": "nvcc",
        "TVM_CUDA_NVCC_NO_FAST_MATH": "1",
        "PATH": os.pathsep.join([str(nvcc.parent), os.environ.get("PATH", "")]),
        "LD_LIBRARY_PATH": os.pathsep.join([*folders, *([searched] if searched else [])]),
    }
    return CudaTools(environment, None)


def build_apart(
    programs: Mapping[str, ir.Model],
    target: Target,
    folder: Path,
    report: CompileReport,
    say: Callable[[str], None],
    shapes: Mapping[str, Sequence[int]] | None = None,
) -> Library:
    """Lower and build in a process of its own; see `library.build_library`."""
    from .library import Library

    tools = cuda_tools()
    if tools.problem:
        report.notes.append(tools.problem)
    for entry, model in programs.items():
        save(model, folder / f"{entry}.onnx")
    request = {"target": target.to_json(), "programs": list(programs), "shapes": dict(shapes or {})}
    folder.joinpath(REQUEST).write_text(json.dumps(request), encoding="utf-8")
    say("build")
    start = time.perf_counter()
    answer = _run_child(folder, tools)
    elapsed = time.perf_counter() - start
    report.steps["start a process"] = elapsed - sum(answer["steps"].values())
    report.steps.update(answer["steps"])
    weights = read_weights(folder / WEIGHTS)
    return Library(folder / LIBRARY, weights, answer["kernels"], answer["used"], answer["code"])


def _run_child(folder: Path, tools: CudaTools) -> dict[str, Any]:
    command = [sys.executable, "-m", f"{__package__}.cuda_build", str(folder)]
    finished = subprocess.run(
        command,
        env={**os.environ, **tools.environment},
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
    )
    try:
        answer = json.loads(folder.joinpath(ANSWER).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        lines = finished.stderr.strip().splitlines() or [f"exit code {finished.returncode}"]
        raise CompileError(f"compiling for CUDA failed: {lines[-1]}") from None
    if "errno" in answer:
        raise OSError(answer["errno"], os.strerror(answer["errno"]))
    if "error" in answer:
        kind = getattr(errors, answer["error"], CompileError)
        raise (
            kind(answer["message"]) if kind is not errors.VerifyError else GraphwrightError(answer["message"])
        )
    return answer


def _has_driver() -> bool:
    try:
        ctypes.CDLL(_STUB)
    except OSError:
        return False
    return True


def _driver_stub() -> Path:
    from .runner.runtime import cache_folder, made_whole

    source = Path(__file__).with_name("runner") / "libcuda_stub.c"
    mark = hashlib.sha256(source.read_bytes()).hexdigest()[:12]
    folder = cache_folder() / f"libcuda-stub-{mark}"
    if not (folder / _STUB).exists():
        with made_whole(folder) as partial:
            command = [compiler_for(host_target()), "-x", "c", "-shared", "-fPIC", f"-Wl,-soname,{_STUB}"]
            command += ["-o", str(partial / _STUB), str(source)]
            finished = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
            if finished.returncode:
                raise TargetError("the stand-in for the CUDA driver does not build; install gcc")
    return folder / _STUB
