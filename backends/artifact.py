"""Artifacts: a folder that holds everything to run a compiled model elsewhere, and proof that it is whole.

::

    model.so        the library (TVM backend only)
    weights.bin     its packed weights (TVM backend only), see `weights.py`
    model.onnx      the optimized graph, with model.onnx.data where it is large; what ONNX Runtime runs
    report.json     how it came about, for machines
    report.md       and for people
    manifest.json   signature, target, pipeline, versions; size, checksum and SHA-256 of every other file
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ..ir.errors import TargetError, ToolError
from .checksum import checksum, checksum_of, sha256_of
from .executable import Executable, TensorSpec
from .manifest import (
    BATCHED_VERSION,
    FORMAT,
    GRAPH,
    LIBRARY,
    MANIFEST,
    VERSION,
    WEIGHTS,
    is_artifact,
    read_manifest,
)
from .native import NativeError
from .target import Target

if TYPE_CHECKING:
    from .batches import Batches

Verification = bool | Literal["sha256"]
"""Whether files are compared with their checksums, or with their SHA-256, which takes ten times as long."""


def save_artifact(
    executable: Executable, directory: str | Path, *, files: Mapping[str, str | bytes] | None = None
) -> Path:
    """Write an artifact folder.

    The folder is built beside its final place and then renamed, so that it is there whole or not at all,
    whatever goes wrong. An older artifact is replaced, anything else that is in the way is left alone.

    Args:
        executable: a compiled or loaded executable.
        directory: the folder to write.
        files: further files by name, such as a richer report.json and report.md.

    Returns:
        The folder's absolute path.

    Raises:
        ToolError: the folder is in the way or cannot be written; nothing is left behind.
    """
    final = Path(directory).expanduser().resolve()
    _refuse_in_the_way(final)
    try:
        with _replacing(final) as folder:
            _write_parts(executable, folder)
            for name, content in _reports(executable, files or {}).items():
                folder.joinpath(name).write_bytes(content.encode() if isinstance(content, str) else content)
            manifest = _manifest(executable, folder)
            folder.joinpath(MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise ToolError(f"cannot write {final}: {error.strerror or error}; nothing was left there") from error
    return final


def load_executable(
    directory: str | Path, *, verify: Verification = True, threads: int | None = None
) -> Executable:
    """An executable from an artifact folder.

    Args:
        directory: the folder that `save_artifact` wrote.
        verify: compare the checksum of every file that is used; "sha256": its SHA-256; False: only its size.
        threads: threads to run with; all usable cores if None.

    Raises:
        ToolError: the folder is no artifact, or a file is missing, truncated or altered.
        TargetError: this machine cannot run the library; the line names the missing feature.
    """
    folder = Path(directory).expanduser()
    manifest = read_manifest(folder)
    target = Target.from_json(manifest["target"])
    reason = target.why_not_here()
    if reason:
        raise TargetError(f"{folder} was compiled for {target.name} and cannot run here: {reason}")
    if manifest["backend"] == "onnxruntime":
        return _load_onnxruntime(folder, manifest, target, verify, threads)
    return _load_tvm(folder, manifest, target, verify, threads)


def _load_tvm(
    folder: Path, manifest: dict[str, Any], target: Target, verify: Verification, threads: int | None
) -> Executable:
    from .compiled import TvmExecutable
    from .runtime_library import runtime_version
    from .weights import map_file, parse_weights

    built, here = manifest["versions"].get("apache-tvm", "unknown"), runtime_version()
    if _minor(built) != _minor(here):
        raise ToolError(
            f"{folder} was built with apache-tvm {built}, here is {here}; compile the model again"
        )
    library, packed = (_part(folder, name, manifest) for name in (LIBRARY, WEIGHTS))
    data = map_file(packed)
    _verify(LIBRARY, library, manifest, verify)
    _verify(WEIGHTS, packed, manifest, verify, data)
    weights = parse_weights(data, WEIGHTS)
    executable = TvmExecutable(library, weights, *_signature(manifest), target, batches=_batches(manifest))
    if threads:
        executable.set_threads(threads)
    executable.manifest = manifest
    executable.graph_file = _graph_file(folder)
    try:
        executable.load()  # another artifact may replace the folder before the first run
    except NativeError as error:
        raise ToolError(f"{library} does not load: {error}") from None
    return executable


def _load_onnxruntime(
    folder: Path, manifest: dict[str, Any], target: Target, verify: Verification, threads: int | None
) -> Executable:
    from ..ir.load import load
    from .host import usable_cores
    from .onnxruntime import OnnxRuntimeExecutable

    names = [name for name in {GRAPH: None, **manifest["files"]} if name.startswith(GRAPH)]
    for name in names:
        _verify(name, _part(folder, name, manifest), manifest, verify)
    executable = OnnxRuntimeExecutable(load(folder / GRAPH), threads=threads or usable_cores(), target=target)
    executable.batches = _batches(manifest)
    executable.manifest = manifest
    executable.graph_file = _graph_file(folder)
    return executable


def _batches(manifest: dict[str, Any]) -> Batches | None:
    if "batches" not in manifest:
        return None
    from .batches import Batches

    return Batches.from_json(manifest["batches"])


def _graph_file(folder: Path) -> Path | None:
    path = folder.resolve() / GRAPH
    return path if path.exists() else None


def _signature(manifest: dict[str, Any]) -> tuple[list[TensorSpec], list[TensorSpec]]:
    inputs, outputs = (
        [TensorSpec.from_json(spec) for spec in manifest[side]] for side in ("inputs", "outputs")
    )
    return inputs, outputs


def _part(folder: Path, name: str, manifest: dict[str, Any]) -> Path:
    """A file of the folder itself, of the size that the manifest gives."""
    recorded = manifest["files"].get(name)
    path = folder / name
    if recorded is None or not path.is_file():
        raise ToolError(f"{path} is missing; the artifact is incomplete, compile the model again")
    here = folder.resolve()
    found = path.resolve()
    if found.parent != here:
        raise ToolError(f"{path} is a link that leaves the folder; an artifact holds its files itself")
    size = found.stat().st_size
    if size != recorded["bytes"]:
        raise ToolError(f"{path} has {size} bytes instead of {recorded['bytes']}; it is truncated or altered")
    return found


def _verify(name: str, path: Path, manifest: dict[str, Any], how: Verification, data: Any = None) -> None:
    """Compare a file with what the manifest says of it.

    Raises:
        ToolError: it is another one.
    """
    recorded = manifest["files"][name]
    if not how:
        return
    if how != "sha256" and "checksum" in recorded:
        # What no run reads takes no memory then: rows of embeddings, weights of other batch sizes.
        found = checksum_of(path) if data is None else checksum(data, release=True)
        same = recorded["checksum"] == found
    else:
        same = recorded["sha256"] == sha256_of(path)
    if not same:
        kind = "SHA-256" if how == "sha256" or "checksum" not in recorded else "checksum"
        raise ToolError(f"{path} is damaged: its {kind} is not the one in {MANIFEST}")


def _write_parts(executable: Executable, folder: Path) -> None:
    import shutil

    from .compiled import TvmExecutable
    from .weights import write_weights

    if isinstance(executable, TvmExecutable):
        executable.require_files()
        shutil.copyfile(executable.library, folder / LIBRARY)
        write_weights(folder / WEIGHTS, executable.weights, compact=True)
    if executable.model is not None:
        from ..ir.save import save

        save(executable.model, folder / GRAPH)
    elif executable.graph_file is not None:
        for path in executable.graph_file.parent.glob(f"{GRAPH}*"):
            shutil.copyfile(path, folder / path.name)


def _reports(executable: Executable, files: Mapping[str, str | bytes]) -> dict[str, str | bytes]:
    reports: dict[str, str | bytes] = {}
    if executable.report is not None:
        reports["report.json"] = json.dumps(executable.report.to_json(), indent=2) + "\n"
        reports["report.md"] = executable.report.to_markdown()
    elif executable.graph_file is not None:
        for name in ("report.json", "report.md"):
            with contextlib.suppress(FileNotFoundError):
                reports[name] = executable.graph_file.with_name(name).read_bytes()
    reports.update(files)
    unsafe = [
        name for name in reports if Path(name).name != name or name in (MANIFEST, LIBRARY, WEIGHTS, GRAPH)
    ]
    if unsafe:
        raise ToolError(f"an artifact cannot take a further file called {unsafe[0]!r}")
    return reports


def _manifest(executable: Executable, folder: Path) -> dict[str, Any]:
    import datetime

    from .versions import versions

    report = executable.report
    if report is None and executable.manifest is not None:
        kept: dict[str, Any] = {
            key: executable.manifest[key]
            for key in ("name", "pipeline", "source", "versions", "created", "choice")
            if key in executable.manifest
        }
    else:
        kept = {
            "name": report.name if report else "",
            "pipeline": report.pipeline if report else "",
            "source": dict(report.source) if report else {},
            "versions": versions(),
            "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            **({"choice": report.choice.to_json()} if report and report.choice else {}),
        }
    return {
        "format": FORMAT,
        "version": VERSION if executable.batches is None else BATCHED_VERSION,
        "backend": executable.backend,
        **kept,
        **({"batches": executable.batches.to_json()} if executable.batches is not None else {}),
        "inputs": [spec.to_json() for spec in executable.inputs],
        "outputs": [spec.to_json() for spec in executable.outputs],
        "target": executable.target.to_json(),
        "files": {
            path.name: {
                "bytes": path.stat().st_size,
                "checksum": checksum_of(path),
                "sha256": sha256_of(path),
            }
            for path in sorted(folder.iterdir())
        },
    }


def _refuse_in_the_way(final: Path) -> None:
    if not final.exists():
        return
    if not final.is_dir():
        raise ToolError(f"{final} is a file; give a folder to write the artifact to")
    present = {path.name for path in final.iterdir()}
    if not present:
        return
    if not is_artifact(final):
        raise ToolError(
            f"{final} is not empty and holds no artifact; it is left alone, choose another folder"
        )
    recorded = json.loads(final.joinpath(MANIFEST).read_text(encoding="utf-8")).get("files", {})
    strangers = sorted(present - recorded.keys() - {MANIFEST})
    if strangers:
        raise ToolError(
            f"{final} holds {strangers[0]!r}, which is no part of the artifact; move it away first"
        )


@contextlib.contextmanager
def _replacing(final: Path) -> Iterator[Path]:
    """A folder beside `final` that takes its place at the end, or vanishes with whatever was made for it."""
    import secrets
    import shutil

    made = _make_parents(final.parent)
    mark = secrets.token_hex(4)
    partial = final.with_name(f".{final.name}.partial-{mark}")
    try:
        partial.mkdir()
        yield partial
        _swap(partial, final, final.with_name(f".{final.name}.old-{mark}"))
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        for parent in reversed(made):
            with contextlib.suppress(OSError):
                parent.rmdir()
        raise


def _make_parents(folder: Path) -> list[Path]:
    missing = [parent for parent in (folder, *folder.parents) if not parent.exists()][::-1]
    for parent in missing:
        parent.mkdir(exist_ok=True)
    return missing


def _swap(partial: Path, final: Path, aside: Path) -> None:
    import shutil

    if not final.exists() or not any(final.iterdir()):
        os.rename(partial, final)  # takes the place of an empty folder too
        return
    os.rename(final, aside)
    try:
        os.rename(partial, final)
    except BaseException:
        os.rename(aside, final)
        raise
    shutil.rmtree(aside, ignore_errors=True)


def _minor(version: str) -> tuple[str, ...]:
    return tuple(version.split(".")[:2])
