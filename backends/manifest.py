"""The manifest of an artifact: what stands in it, read and checked for form."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..ir.errors import ToolError
from .batches import Batches
from .executable import TensorSpec

FORMAT = "graphwright-artifact"
VERSION, BATCHED_VERSION = 1, 2
"""Of artifacts with one program; of those with a program per batch size."""
MANIFEST = "manifest.json"
LIBRARY = "model.so"
WEIGHTS = "weights.bin"
GRAPH = "model.onnx"


def read_manifest(directory: str | Path) -> dict[str, Any]:
    """The manifest of an artifact folder, checked for form.

    Raises:
        ToolError: the folder is no artifact, or one of a later version.
    """
    folder = Path(directory)
    if not folder.is_dir():
        raise ToolError(f"{folder} is not a folder; give the folder that `graphwright compile -o` wrote")
    try:
        manifest = json.loads(folder.joinpath(MANIFEST).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ToolError(f"{folder} is no artifact: it has no {MANIFEST}") from None
    except (OSError, ValueError) as error:
        raise ToolError(f"cannot read {folder / MANIFEST}: {error}") from None
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise ToolError(f"{folder} is no artifact: its {MANIFEST} is of another kind")
    if manifest.get("version") not in (VERSION, BATCHED_VERSION):
        raise ToolError(
            f"{folder} has artifact version {manifest.get('version')}, this program reads {VERSION} and "
            f"{BATCHED_VERSION}"
        )
    missing = {"backend", "inputs", "outputs", "target", "pipeline", "versions", "files"} - manifest.keys()
    missing |= {"batches"} - manifest.keys() if manifest["version"] == BATCHED_VERSION else set()
    if missing:
        raise ToolError(f"{folder / MANIFEST} lacks {sorted(missing)[0]!r}")
    damaged = next(
        (name for name, sound in _FORM.items() if name in manifest and not sound(manifest[name])), None
    )
    if damaged:
        raise ToolError(f"{folder / MANIFEST} is damaged: {damaged!r} is not of the form it should have")
    return manifest


def _is_signature(specs: Any) -> bool:
    try:
        return bool([TensorSpec.from_json(spec).bytes for spec in specs]) or specs == []
    except (TypeError, KeyError, AttributeError):
        return False


def _is_table(value: Any) -> bool:
    return isinstance(value, dict)


def _is_batches(value: Any) -> bool:
    try:
        Batches.from_json(value)
    except ValueError:
        return False
    return True


_FORM: dict[str, Callable[[Any], bool]] = {
    "backend": ("tvm", "onnxruntime").__contains__,
    "inputs": _is_signature,
    "outputs": _is_signature,
    "target": _is_table,
    "versions": _is_table,
    "batches": _is_batches,
    "files": lambda files: (
        _is_table(files) and all({"bytes", "sha256"} <= {*each} for each in files.values())
    ),
}


def is_artifact(directory: str | Path) -> bool:
    """Whether a folder holds an artifact of any version."""
    try:
        manifest = json.loads(Path(directory, MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(manifest, dict) and manifest.get("format") == FORMAT
