"""The manifest of an artifact: what stands in it, read as what it is, text from anywhere.

Everything that a later step relies on is checked here: kinds of values, ranks and sizes, names of files that
stay in their folder. What gets through can be used without another look.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ..ir.errors import ToolError

FORMAT = "graphwright-artifact"
VERSION, BATCHED_VERSION = 1, 2
"""Of artifacts with one program; of those with a program per batch size."""
MANIFEST = "manifest.json"
LIBRARY = "model.so"
WEIGHTS = "weights.bin"
GRAPH = "model.onnx"
ENTRY = "main"
"""Name of the program in a library that has one."""

_MOST_BYTES = 64 << 20
_MOST_LETTERS = 1000
_MOST_RANK = 32
_MOST_ELEMENTS = 1 << 48
_TYPES = re.compile(
    r"bool|u?int(2|4|8|16|32|64)|float(16|32|64)|bfloat16|complex(64|128)|float[48]_\w{1,16}|object|<U\d*"
)
_DIGEST, _CHECKSUM = re.compile(r"[0-9a-f]{64}"), re.compile(r"[0-9a-f]{32}")


def read_manifest(directory: str | Path) -> dict[str, Any]:
    """The manifest of an artifact folder, checked for form.

    Raises:
        ToolError: the folder is no artifact, or one of a later version.
    """
    folder = Path(directory)
    if not folder.is_dir():
        raise ToolError(f"{folder} is not a folder; give the folder that `graphwright compile -o` wrote")
    path = folder / MANIFEST
    try:
        size = path.stat().st_size
        if not path.is_file() or size > _MOST_BYTES:
            raise ToolError(f"cannot read {path}: a manifest is a file of at most {_MOST_BYTES >> 20} MiB")
        manifest = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise ToolError(f"{folder} is no artifact: it has no {MANIFEST}") from None
    except (OSError, ValueError, RecursionError) as error:
        raise ToolError(f"cannot read {path}: {_first_line(error)}") from None
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise ToolError(f"{folder} is no artifact: its {MANIFEST} is of another kind")
    version = manifest.get("version")
    if type(version) is not int or version not in (VERSION, BATCHED_VERSION):
        raise ToolError(
            f"{folder} has artifact version {repr(version)[:40]}, this program reads {VERSION} and "
            f"{BATCHED_VERSION}"
        )
    needed = {"backend", "inputs", "outputs", "target", "pipeline", "versions", "files"}
    missing = (needed | {"batches"} if version == BATCHED_VERSION else needed) - manifest.keys()
    if missing:
        raise ToolError(f"{path} lacks {sorted(missing)[0]!r}")
    for name, sound in _FORM.items():
        if name in manifest and not sound(manifest[name]):
            raise ToolError(f"{path} is damaged: {name!r} is not of the form it should have")
    if "batches" in manifest and not _fits(manifest["batches"], manifest["inputs"], manifest["outputs"]):
        raise ToolError(f"{path} is damaged: 'batches' does not fit the inputs and outputs")
    return manifest


def is_artifact(directory: str | Path) -> bool:
    """Whether a folder holds an artifact of any version."""
    try:
        manifest = json.loads(Path(directory, MANIFEST).read_bytes())
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(manifest, dict) and manifest.get("format") == FORMAT


def _first_line(error: BaseException) -> str:
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    return str(error).partition("\n")[0][:200]


def _is_count(value: Any, most: int = _MOST_ELEMENTS) -> bool:
    return type(value) is int and 0 <= value <= most


def _is_text(value: Any) -> bool:
    """One line, since it may be part of one."""
    return isinstance(value, str) and len(value) <= _MOST_LETTERS and len(value.splitlines()) <= 1


def _is_signature(specs: Any) -> bool:
    if not isinstance(specs, list) or not all(_is_spec(spec) for spec in specs):
        return False
    return len({spec["name"] for spec in specs}) == len(specs)


def _is_spec(spec: Any) -> bool:
    if not isinstance(spec, dict) or not _is_text(spec.get("name")) or not _is_text(spec.get("dtype")):
        return False
    shape = spec.get("shape")
    if not isinstance(shape, list) or len(shape) > _MOST_RANK or not _TYPES.fullmatch(spec["dtype"]):
        return False
    elements = 1
    for size in shape:
        if not _is_text(size) and not _is_count(size):
            return False
        elements *= size if isinstance(size, int) else 1
    return elements <= _MOST_ELEMENTS


def _is_table(value: Any) -> bool:
    return isinstance(value, dict) and all(map(_is_text, value.values()))


def _is_target(value: Any) -> bool:
    if not isinstance(value, dict):
        return False
    texts = ("name", "kind", "triple", "cpu", "device", "summary")
    lists = {name: value.get(name, []) for name in ("features", "without")}
    if value.get("device", "cpu") == "cuda" and not re.fullmatch(r"sm_\d{2,4}\w?", str(value.get("cpu"))):
        return False
    return (
        value.get("kind", "llvm") in ("llvm", "cuda")
        and value.get("device", "cpu") in ("cpu", "cuda")
        and all(_is_text(value.get(name, "")) for name in texts)
        and all(_is_count(each) for name, each in value.items() if name not in (*texts, *lists))
        and all(isinstance(each, list) and all(map(_is_text, each)) for each in lists.values())
    )


def _is_batches(value: Any) -> bool:
    if not isinstance(value, dict) or not _is_text(value.get("symbol")) or not _is_text(value.get("refusal")):
        return False
    sizes = value.get("sizes")
    if not isinstance(sizes, list) or not all(_is_count(size, 1 << 31) and size for size in sizes):
        return False
    inputs, outputs = value.get("input_axes"), value.get("output_axes")
    if not isinstance(inputs, list) or not isinstance(outputs, list):
        return False
    if not all(type(axis) is int and -1 <= axis < _MOST_RANK for axis in (*inputs, *outputs)):
        return False
    return bool(sizes) and sizes == sorted(set(sizes)) and any(axis >= 0 for axis in inputs)


def _fits(batches: Mapping[str, Any], inputs: list[Any], outputs: list[Any]) -> bool:
    """Whether the batch stands where it is said to stand."""
    for specs, axes in ((inputs, batches["input_axes"]), (outputs, batches["output_axes"])):
        if len(specs) != len(axes):
            return False
        for spec, axis in zip(specs, axes, strict=True):
            if axis >= 0 and (axis >= len(spec["shape"]) or spec["shape"][axis] != batches["symbol"]):
                return False
    return True


def _are_files(value: Any) -> bool:
    return isinstance(value, dict) and all(
        is_plain_name(name)
        and isinstance(each, dict)
        and _is_count(each.get("bytes"), 1 << 62)
        and _is_text(each.get("sha256"))
        and bool(_DIGEST.fullmatch(each["sha256"]))
        and bool(_CHECKSUM.fullmatch(str(each.get("checksum", 32 * "0"))))
        for name, each in value.items()
    )


def is_plain_name(name: str) -> bool:
    """Whether a name means something in the folder itself, wherever that is."""
    return bool(name) and name not in (".", "..") and not set(name) & {"/", "\\", "\0"}


_FORM: dict[str, Callable[[Any], bool]] = {
    "backend": lambda value: value in ("tvm", "onnxruntime"),
    "name": _is_text,
    "pipeline": lambda value: isinstance(value, str),
    "created": _is_text,
    "inputs": _is_signature,
    "outputs": _is_signature,
    "target": _is_target,
    "versions": _is_table,
    "batches": _is_batches,
    "files": _are_files,
}
