"""Programs that a target needs (linkers, nvcc, qemu), looked for before long work begins."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..ir.errors import CompileError, TargetError
from .host import host_arch
from .target import Target

if TYPE_CHECKING:
    from .compiled import TvmExecutable

Linker = Callable[..., None]

_CROSS_COMPILERS = {
    "aarch64": ("aarch64-linux-gnu-g++", "g++-aarch64-linux-gnu libc6-dev-arm64-cross"),
    "x86_64": ("x86_64-linux-gnu-g++", "g++-x86-64-linux-gnu libc6-dev-amd64-cross"),
}
_HOST_COMPILERS = ("g++", "clang++", "c++")
_CUDA_FOLDERS = ("/usr/local/cuda",)


def compiler_for(target: Target) -> str:
    """Path of the C++ compiler that links for the target's CPU.

    The environment variable GRAPHWRIGHT_CXX_<ARCH> (such as GRAPHWRIGHT_CXX_AARCH64) overrides the search.

    Raises:
        TargetError: there is none; the line names the package to install.
    """
    variable = f"GRAPHWRIGHT_CXX_{target.arch.upper()}"
    named = os.environ.get(variable)
    if named:
        found = shutil.which(named)
        if not found:
            raise TargetError(f"{variable} names {named!r}, which is no program here")
        return found
    if target.arch == host_arch():
        for name in _HOST_COMPILERS:
            if found := shutil.which(name):
                return found
        raise TargetError(f"target {target.name} needs a C++ compiler to link with; install g++")
    if target.arch not in _CROSS_COMPILERS:
        raise TargetError(f"target {target.name} needs a cross compiler for {target.arch}; set {variable}")
    name, packages = _CROSS_COMPILERS[target.arch]
    if found := shutil.which(name):
        return found
    raise TargetError(
        f"target {target.name} needs the cross compiler {name}; "
        f"`apt-get install --no-install-recommends {packages}`, or name another one in {variable}"
    )


def linker_for(target: Target) -> Linker:
    """A function that links object files into a shared library for the target, as TVM calls it.

    Raises:
        TargetError: there is no compiler for the target.
    """
    compiler = compiler_for(target)

    def link(output: str, objects: str | Sequence[str], options: Any = None, **_: Any) -> None:
        files = [objects] if isinstance(objects, str) else list(objects)
        command = [compiler, "-shared", "-fPIC", "-Wl,--as-needed", "-o", output, *files, *(options or ())]
        finished = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
        if finished.returncode:
            raise _link_error(compiler, finished.stderr)

    link.output_format = "so"  # type: ignore[attr-defined]
    link.object_format = "o"  # type: ignore[attr-defined]
    return link


def _link_error(compiler: str, output: str) -> Exception:
    if os.strerror(errno.ENOSPC) in output:
        return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    telling = [line for line in lines if "error" in line.lower() or "cannot" in line.lower()] or lines
    return CompileError(
        f"{Path(compiler).name} could not link the library: {(telling or ['no reason given'])[0]}"
    )


def find_nvcc() -> Path | None:
    """NVIDIA's compiler, or None."""
    candidates = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), *_CUDA_FOLDERS]
    paths = [Path(folder, "bin", "nvcc") for folder in candidates if folder]
    if found := shutil.which("nvcc"):
        paths.append(Path(found).resolve())
    return next((path for path in paths if os.access(path, os.X_OK)), None)


def cuda_home(nvcc: Path) -> Path | None:
    """The folder of a CUDA toolkit that also holds the runtime library, the compiler's own first."""
    listed = [nvcc.parent.parent, *map(Path, _CUDA_FOLDERS)]
    return next((folder for folder in listed if cudart(folder) is not None), None)


def cudart(home: Path) -> Path | None:
    """The CUDA runtime library of a toolkit that TVM's wheel links to, or None."""
    return next(
        (path for part in ("lib64", "lib") if (path := home / part / "libcudart.so.13").exists()), None
    )


def find_qemu(arch: str = "aarch64") -> str:
    """The user-mode emulator for a CPU family.

    Raises:
        TargetError: it is not installed.
    """
    for name in (f"qemu-{arch}-static", f"qemu-{arch}"):
        if found := shutil.which(name):
            return found
    raise TargetError(
        f"running {arch} code here needs qemu; `apt-get install --no-install-recommends qemu-user-static`"
    )


def run_emulated(executable: TvmExecutable, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Run a library for another CPU once under qemu.

    Raises:
        TargetError: there is no emulator or cross compiler, or the target is no CPU.
    """
    from .runner.run import run_library

    return run_library(executable, feeds)
