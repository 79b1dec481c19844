"""Measured ranges in a file, and how far an unfinished measurement has come.

The file is JSON: one entry per model and calibration method, with the range of each value. It is written
whole and then renamed, so that a kill leaves the old one or the new one. While a measurement runs, what the
calibrators have seen is kept in a second file beside it, from which the next run goes on.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from ...ir.bodies import all_graphs
from ...ir.contiguous import bytes_of
from ...ir.errors import PassError
from .extremes import Calibrator, Range

_VERSION = 1
_SECONDS_BETWEEN_SAVES = 5.0


class RangeCache:
    """Ranges of one model, measured by one method.

    Args:
        path: the file; it need not exist.
        model: the model that the ranges belong to.
        method: what distinguishes the calibrator and its parameters from others.

    Raises:
        PassError: the file cannot be read, or is no such file.
    """

    def __init__(self, path: Path, model: ir.Model, method: str):
        self._path = path
        self._key = _digest(fingerprint_of(model), method)
        self._entries = _read(path)
        self._saved_at = time.monotonic()
        self.method = method

    def find(self, identity: str | None, *, any_data: bool) -> tuple[dict[str, Range], int]:
        """Ranges that were saved, by value name, and the number of batches they come from.

        Args:
            identity: what the calibration data is known by; ranges of other data do not count.
            any_data: take them whatever data they come from.
        """
        entry = self._entries.get(self._key)
        if entry is None or not (any_data or (identity is not None and entry["data"] == identity)):
            return {}, 0
        return {name: (low, high) for name, (low, high) in entry["ranges"].items()}, entry["batches"]

    def store(self, ranges: Mapping[str, Range], batches: int, identity: str | None) -> None:
        """Saves ranges beside those of the same data, and forgets the unfinished measurement.

        Raises:
            PassError: the file cannot be written.
        """
        known, _ = self.find(identity, any_data=False)
        # Read again: another process may have added its own meanwhile.
        self._entries = _read(self._path)
        self._entries[self._key] = {
            "method": self.method,
            "data": identity,
            "batches": batches,
            "ranges": {name: list(found) for name, found in sorted({**known, **ranges}.items())},
        }
        text = json.dumps({"graphwright ranges": _VERSION, "entries": self._entries}, indent=1)
        _replace(self._path, text.encode())
        with contextlib.suppress(OSError):
            self._partial_path.unlink()

    def save_partial(
        self,
        calibrators: Mapping[str, Calibrator],
        poisoned: set[str],
        position: tuple[int, int, int],
        identity: str | None,
    ) -> None:
        """Saves what calibrators have seen up to a position (as `load_partial` gives it), every few seconds.

        Raises:
            PassError: the file cannot be written.
        """
        if identity is None or time.monotonic() - self._saved_at < _SECONDS_BETWEEN_SAVES:
            return
        arrays = {
            f"{index}:{name}": array
            for index, value in enumerate(calibrators)
            for name, array in calibrators[value].state().items()
        }
        arrays["names"] = np.array(list(calibrators))
        arrays["poisoned"] = np.array(sorted(poisoned), dtype=str)
        arrays["position"] = np.array(position)
        arrays["identity"] = np.array(self._partial_key(identity))
        temporary = self._partial_path.with_suffix(f".{os.getpid()}.tmp")
        with _writing(self._path):
            with temporary.open("wb") as file:
                np.savez(file, allow_pickle=False, **arrays)
            temporary.replace(self._partial_path)
        self._saved_at = time.monotonic()

    def load_partial(
        self, calibrators: Mapping[str, Calibrator], poisoned: set[str], identity: str | None
    ) -> tuple[int, int, int]:
        """Lets calibrators go on where a measurement of the same values ended.

        Returns:
            (round, batches of it that are done, batches done in all rounds).
        """
        if identity is None or not self._partial_path.is_file():
            return 0, 0, 0
        try:
            with np.load(self._partial_path, allow_pickle=False) as file:
                if str(file["identity"]) != self._partial_key(identity):
                    return 0, 0, 0
                if file["names"].tolist() != list(calibrators):
                    return 0, 0, 0
                states: list[dict[str, np.ndarray]] = [{} for _ in calibrators]
                for key in file.files:
                    index, _, name = key.partition(":")
                    if name:
                        states[int(index)][name] = file[key]
                position = file["position"].tolist()
                unsound = file["poisoned"].tolist()
            for calibrator, state in zip(calibrators.values(), states, strict=True):
                calibrator.restore(state)
            poisoned.update(unsound)
        except Exception:
            # Cut short by a kill, or of another version: the measurement starts anew.
            return 0, 0, 0
        return position[0], position[1], position[2]

    @property
    def _partial_path(self) -> Path:
        return self._path.with_name(self._path.name + ".partial.npz")

    def _partial_key(self, identity: str) -> str:
        return _digest(self._key, identity)


def fingerprint_of(model: ir.Model) -> str:
    """A digest of what a model computes: operators, edges, attributes and the contents of its constants."""
    digest = hashlib.blake2b(digest_size=16)
    for graph in all_graphs(model):
        digest.update(repr([value.name for value in graph.inputs]).encode())
        for name, value in sorted(graph.initializers.items()):
            digest.update(repr((name, str(value.dtype), str(value.shape))).encode())
            if value.const_value is not None:
                _feed(digest, value.const_value)
        for node in graph:
            names = [value.name if value is not None else "" for value in (*node.inputs, *node.outputs)]
            digest.update(repr((node.domain, node.op_type, names)).encode())
            for name, attribute in sorted(node.attributes.items()):
                if attribute.type == ir.AttributeType.TENSOR and not attribute.is_ref():
                    digest.update(name.encode())
                    _feed(digest, attribute.as_tensor())
                elif attribute.type not in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS):
                    digest.update(repr((name, attribute.value)).encode())
    return digest.hexdigest()


def _feed(digest: Any, tensor: ir.TensorProtocol) -> None:
    array = tensor.numpy()
    if array.dtype.kind == "O":
        digest.update(repr(array.tolist()).encode())
    else:
        digest.update(bytes_of(array).data)


def _digest(*texts: str) -> str:
    return hashlib.blake2b("\0".join(texts).encode(), digest_size=16).hexdigest()


def _read(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    try:
        held = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        line = (str(error).splitlines() or [""])[0]
        raise PassError(f"cannot read the calibration cache '{path}': {line}") from None
    if not isinstance(held, dict) or held.get("graphwright ranges") != _VERSION:
        raise PassError(f"'{path}' is no calibration cache of this version; name a file that can be written")
    entries = held.get("entries")
    if not isinstance(entries, dict) or not all(_is_entry(entry) for entry in entries.values()):
        raise PassError(f"the calibration cache '{path}' is damaged; delete it, or name another file")
    return entries


def _is_entry(entry: Any) -> bool:
    """Whether it is what `store` writes; a range that is not finite is NaN at both ends."""
    if not isinstance(entry, dict) or not {"data", "batches", "ranges"} <= set(entry):
        return False
    if not isinstance(entry["batches"], int) or not isinstance(entry["ranges"], dict):
        return False
    return all(
        isinstance(found, list)
        and len(found) == 2
        and all(isinstance(end, int | float) for end in found)
        and not found[0] > found[1]
        for found in entry["ranges"].values()
    )


@contextlib.contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        raise PassError(f"cannot write the calibration cache '{path}': {error.strerror or error}") from None


def _replace(path: Path, content: bytes) -> None:
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    with _writing(path):
        temporary.write_bytes(content)
        temporary.replace(path)
