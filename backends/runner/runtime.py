"""TVM's runtime libraries for a CPU family, and where files made for later use are kept.

The runtime of the machine at hand is part of the installed packages. That of another CPU comes out of the
same release's wheels for it; they are fetched once, by `python -m graphwright.backends.runner`, never while a
model is compiled or run.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import secrets
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ...ir.errors import TargetError
from ..host import host_arch

LIBRARIES = {
    "libtvm_runtime.so": ("tvm", "lib"),
    "libtvm_runtime_extra.so": ("tvm", "lib"),  # sorting
    "libtvm_ffi.so": ("tvm_ffi", "lib"),
}
_PACKAGES = ("apache-tvm", "apache-tvm-ffi")
_GLIBC_TAGS = ("2_28", "2_27", "2_24", "2_17")
SETUP = "python -m graphwright.backends.runner"


def cache_folder() -> Path:
    """Where things made once are kept: GRAPHWRIGHT_CACHE, .cache in a checkout, or the user's cache."""
    named = os.environ.get("GRAPHWRIGHT_CACHE")
    if named:
        return Path(named)
    checkout = Path(__file__).resolve().parents[2]
    if (checkout / "pyproject.toml").exists():
        return checkout / ".cache"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "graphwright"


def runtime_libraries(arch: str) -> list[Path]:
    """The runtime libraries for a CPU family, TVM's first.

    Raises:
        TargetError: they have not been fetched.
    """
    if arch == host_arch():
        return [package_folder(package) / folder / name for name, (package, folder) in LIBRARIES.items()]
    paths = [_fetched_folder(arch) / name for name in LIBRARIES]
    if not all(path.exists() for path in paths):
        raise TargetError(f"TVM's runtime for {arch} is not here; `{SETUP}` fetches it")
    return paths


def fetch_runtime(arch: str) -> Path:
    """Fetch the runtime libraries for a CPU family from the package index, unless they are here already.

    Returns:
        The folder they are in.

    Raises:
        TargetError: pip cannot get the wheels.
    """
    folder = _fetched_folder(arch)
    if all((folder / name).exists() for name in LIBRARIES):
        return folder
    with made_whole(folder) as partial:
        wheels = partial / "wheels"
        _download(arch, wheels)
        for wheel in wheels.glob("*.whl"):
            with zipfile.ZipFile(wheel) as archive:
                for name, (package, inner) in LIBRARIES.items():
                    member = f"{package}/{inner}/{name}"
                    if member in archive.namelist():
                        partial.joinpath(name).write_bytes(archive.read(member))
        shutil.rmtree(wheels)
        missing = [name for name in LIBRARIES if not (partial / name).exists()]
        if missing:
            raise TargetError(f"the wheels for {arch} hold no {missing[0]}")
    return folder


def package_folder(package: str) -> Path:
    """Where a package is installed, without importing it.

    Raises:
        TargetError: it is not installed.
    """
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise TargetError(f"the package {package} is not installed")
    return Path(spec.submodule_search_locations[0])


@contextmanager
def made_whole(folder: Path) -> Iterator[Path]:
    """A folder beside `folder` that takes its place at the end and vanishes on any error."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = folder.with_name(f".{folder.name}.partial-{secrets.token_hex(4)}")
    partial.mkdir()
    try:
        yield partial
        if folder.exists():
            shutil.rmtree(folder)
        partial.rename(folder)
    except OSError:
        if not folder.exists():  # else another process was first
            raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _fetched_folder(arch: str) -> Path:
    release = "-".join(importlib.metadata.version(package) for package in _PACKAGES)
    return cache_folder() / f"tvm-runtime-{arch}-{release}"


def _download(arch: str, folder: Path) -> None:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
    command += ["--disable-pip-version-check", "--dest", str(folder)]
    for tag in _GLIBC_TAGS:
        command += ["--platform", f"manylinux_{tag}_{arch}"]
    command += [f"{package}=={importlib.metadata.version(package)}" for package in _PACKAGES]
    finished = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    if finished.returncode:
        lines = [line for line in finished.stderr.splitlines() if line.startswith("ERROR")] or ["pip failed"]
        raise TargetError(f"cannot fetch TVM's runtime for {arch}: {lines[0].removeprefix('ERROR: ')}")
