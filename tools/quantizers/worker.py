"""One cell of the quantization benchmark in a process of its own.

    python -m graphwright.tools.quantizers.worker prepare MODEL FOLDER
    python -m graphwright.tools.quantizers.worker cell MODEL FOLDER WAY VARIANT

`prepare` writes the float model and its data into the folder; `cell` quantizes it one way, compares and
prints a record (JSON). A rival's failure is a record too.
"""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TextIO

import numpy as np

from ...ir.quiet import silence
from ..processes import answers
from .rivals import PREPARATION, WAYS, Job
from .subjects import build_subject
from .weight_rivals import WEIGHT_WAYS

Feeds = dict[str, np.ndarray]
KINDS = ("calibration", "held_out", "tests")


def place_of(name: str, folder: Path) -> Path:
    """Where the float model and the data of one model are kept."""
    return folder / "quantization" / name


def prepare(name: str, folder: Path) -> None:
    """Build, trace and prepare a model, and write it with its data and its float results."""
    from ...ir.load import load
    from ...ir.reference import Reference
    from ...ir.save import save
    from ...ir.trace import trace
    from ...passes.optimize import optimize

    place = place_of(name, folder)
    if _is_prepared(place / "data.npz"):
        return
    place.mkdir(parents=True, exist_ok=True)
    subject = build_subject(name, folder)
    with silence():
        traced = trace(subject.module, subject.example, name=name)
    save(optimize(traced, PREPARATION).model, place / "float.onnx")
    model = load(place / "float.onnx")
    names = [str(value.name) for value in model.graph.inputs]
    reference = Reference(model, threads=1)
    arrays: dict[str, np.ndarray] = {"transformer": np.asarray(subject.transformer)}
    for kind in KINDS:
        for index, batch in enumerate(getattr(subject, kind)):
            feeds = dict(zip(names, batch, strict=True))
            arrays.update({f"{kind}/{index}/{key}": array for key, array in feeds.items()})
            if kind != "calibration":
                arrays[f"{kind}-results/{index}/output"] = next(iter(reference.run(feeds).values()))
    temporary = place / ".data.npz"
    np.savez(temporary, **arrays)  # type: ignore[arg-type]
    temporary.replace(place / "data.npz")


def _is_prepared(file: Path) -> bool:
    if not file.is_file():
        return False
    with np.load(file) as held:
        return all(any(key.startswith(f"{kind}/") for key in held.files) for kind in KINDS)


def measure(name: str, folder: Path, way: str, variant: str) -> dict[str, object]:
    """Quantize a prepared model one way and compare.

    Returns:
        SQNR in dB over all test batches ("sqnr_db") and over the held-out ones ("held_out_db"), by which
        variants are picked; the task metric as text, the file's size and seconds; or the error.
    """
    place = place_of(name, folder)
    with np.load(place / "data.npz") as file:
        data = {key: file[key] for key in file.files}
    subject = None

    def built() -> object:
        nonlocal subject
        if subject is None:
            with silence():
                subject = build_subject(name, folder)
        return subject

    job = Job(
        built,  # type: ignore[arg-type]
        place / "float.onnx",
        _batches(data, "calibration"),
        [*_batches(data, "held_out"), *_batches(data, "tests")],
        bool(data["transformer"]),
    )
    held_out, expected = (
        [batch["output"] for batch in _batches(data, f"{kind}-results")] for kind in ("held_out", "tests")
    )
    start = time.perf_counter()
    try:
        made = {**WAYS, **WEIGHT_WAYS}[way][variant](job)
    except Exception as error:
        # Whatever a rival throws is a line of the table.
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        return {"error": f"{type(error).__name__}: {lines[0][:160] if lines else 'no message'}"}
    seconds = time.perf_counter() - start
    results = made.results[len(held_out) :]
    record: dict[str, object] = {
        "sqnr_db": sqnr_db(expected, results),
        "held_out_db": sqnr_db(held_out, made.results[: len(held_out)]),
        "size": made.size,
        "seconds": round(seconds, 1),
    }
    metric = build_subject(name, folder).metric
    if metric is not None:
        record["metric"] = metric(expected, results)
        record["float_metric"] = metric(expected, expected)
    return record


def sqnr_db(expected: Sequence[np.ndarray], found: Sequence[np.ndarray]) -> float:
    """Signal to quantization noise over all batches, in decibels."""
    signal = noise = 0.0
    for wanted, got in zip(expected, found, strict=True):
        signal += float(np.square(wanted, dtype=np.float64).sum())
        noise += float(np.square(got.astype(np.float64) - wanted).sum())
    return math.inf if noise == 0.0 else 10.0 * math.log10(signal / noise) if signal else -math.inf


def _batches(data: dict[str, np.ndarray], kind: str) -> list[Feeds]:
    found: dict[int, Feeds] = {}
    for key, array in data.items():
        if key.startswith(f"{kind}/"):
            _, index, name = key.split("/", 2)
            found.setdefault(int(index), {})[name] = array
    return [found[index] for index in sorted(found)]


def main(arguments: Sequence[str], channel: TextIO) -> None:
    """Run one step; see the module. What a cell measured goes to `channel` as a line of JSON."""
    if arguments[0] == "prepare":
        prepare(arguments[1], Path(arguments[2]))
        return
    name, folder, way, variant = arguments[1:]
    print(json.dumps(measure(name, Path(folder), way, variant)), file=channel)


if __name__ == "__main__":
    with answers() as channel:
        main(sys.argv[1:], channel)
