"""Building the runner for a CPU family."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
from pathlib import Path

from ...ir.errors import TargetError
from ..cross import compiler_for
from ..host import host_arch
from ..target import Target
from .runtime import cache_folder, made_whole, package_folder, runtime_libraries

_SOURCES = (
    "runner.cc",
    "gww.h",
    "coding.h",
    "lossless.h",
    "prefix_codes.h",
    "narrow.h",
    "batches.h",
    "artifact.h",
    "layout.h",
)
_FLAGS = ("-std=c++17", "-O1")


def build_runner(target: Target) -> Path:
    """The runner for a target's CPU, built when it is first asked for.

    Returns:
        The program; its folder also holds the libraries that it needs and can be copied to a device.

    Raises:
        TargetError: a compiler or the runtime libraries are missing, or the program does not build.
    """
    compiler = compiler_for(target)
    libraries = runtime_libraries(target.arch)
    folder = cache_folder() / f"runner-{target.arch}-{_fingerprint(compiler, libraries)}"
    program = folder / "runner"
    if not program.exists():
        with made_whole(folder) as partial:
            for library in libraries:
                shutil.copyfile(library, partial / library.name)
            _compile(compiler, partial)
    return program


def program_flags() -> list[str]:
    """What g++ needs for a program of this machine that includes `model.h`, besides the program itself."""
    folders = dict.fromkeys(library.parent for library in runtime_libraries(host_arch()))
    flags = [f"-I{package_folder('tvm_ffi') / 'include'}", f"-I{Path(__file__).parent}"]
    for folder in folders:
        flags += [f"-L{folder}", f"-Wl,-rpath,{folder}"]
    return [*flags, "-Wl,--no-as-needed", "-ltvm_runtime", "-ltvm_runtime_extra", "-ltvm_ffi", "-ldl"]


def _compile(compiler: str, folder: Path) -> None:
    source = Path(__file__).with_name(_SOURCES[0])
    include = package_folder("tvm_ffi") / "include"
    command = [compiler, *_FLAGS, f"-I{include}", str(source), "-o", str(folder / "runner"), f"-L{folder}"]
    command += ["-Wl,--no-as-needed", "-ltvm_runtime", "-ltvm_runtime_extra", "-ltvm_ffi", "-ldl"]
    command += ["-Wl,-rpath,$ORIGIN", f"-Wl,-rpath-link,{folder}"]
    finished = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    if finished.returncode:
        errors = [line for line in finished.stderr.splitlines() if "error" in line] or ["no reason given"]
        raise TargetError(f"{Path(compiler).name} cannot build the runner: {errors[0].strip()}")


def _fingerprint(compiler: str, libraries: list[Path]) -> str:
    digest = hashlib.sha256(" ".join((compiler, *_FLAGS)).encode())
    for name in _SOURCES:
        digest.update(Path(__file__).with_name(name).read_bytes())
    for library in libraries:
        status = library.stat()
        digest.update(f"{library}:{status.st_size}".encode())
    return digest.hexdigest()[:12]
