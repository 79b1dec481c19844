"""Versions of this package and of those that a compiled model depends on."""

from __future__ import annotations

import importlib.metadata

_PACKAGES = ("graphwright", "apache-tvm", "apache-tvm-ffi", "numpy", "onnx-ir", "onnxruntime")


def version_of(package: str) -> str:
    """The version that is installed, "unknown" where none is."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "unknown"


def versions() -> dict[str, str]:
    """Versions by package."""
    return {package: version_of(package) for package in _PACKAGES}
