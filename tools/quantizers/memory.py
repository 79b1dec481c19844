"""What calibration takes: memory above the model, progress, and what a kill leaves.

    python -m graphwright.tools.quantizers.memory [MODEL] [--samples 256] [--batch 8] [--method mse]

Writes so many samples into a packed `.npz` file, calibrates from it in a process of its own, kills a second
such process in the middle, lets a third go on from what was saved, and compares its ranges with those of the
first.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from ...ir.errors import GraphwrightError, ToolError
from ...ir.quiet import silence
from ..console import human_bytes, print_json, print_line, progress
from ..simplifiers.worker import forget_peak, status_bytes

LIMIT = 2**30
"""Bytes above the loaded model that calibration may take."""
_SECONDS = 3600


@dataclass(frozen=True)
class Usage:
    """What one calibration took.

    Attributes:
        above: bytes of the process at its peak, less those it held with the model loaded.
        model: bytes of the model's file and its external data.
        seconds: wall time.
        told: how often progress was told, and the numbers it began and ended with.
        ranges: measured ranges by value.
    """

    above: int
    model: int
    seconds: float
    told: tuple[int, int, int]
    ranges: dict[str, tuple[float, float]]


def write_samples(path: Path, name: str, shape: Sequence[int], samples: int) -> None:
    """Normal noise, float32 `[samples, *shape]`, written sample by sample."""
    generator = np.random.default_rng(11)
    header = {"descr": "<f4", "fortran_order": False, "shape": (samples, *shape)}
    with (
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive,
        archive.open(f"{name}.npy", "w", force_zip64=True) as stream,
    ):
        np.lib.format.write_array_header_1_0(stream, header)
        for _ in range(samples):
            stream.write(generator.normal(size=shape).astype(np.float32).tobytes())


def calibrate(model: Path, data: Path, method: str, cache: Path) -> None:
    """Calibrate in this process; a line of JSON for every progress, and one with what it took."""
    from ...ir.load import load
    from ...passes.optimize import optimize
    from ...passes.quantization.calibration import Calibration

    loaded = load(model)
    # What is read on demand belongs to the model.
    held = sum(
        value.const_value.numpy().nbytes for value in loaded.graph.initializers.values() if value.const_value
    )
    forget_peak()
    before, start = status_bytes("VmRSS"), time.perf_counter()

    def told(done: int, total: int | None, text: str) -> None:
        print(json.dumps([done, total]), flush=True)

    result = optimize(
        loaded,
        f"insert-qdq{{target=tvm calibration={method}}}",
        calibration=Calibration.load(data).with_cache(cache),
        progress=told,
    )
    values = result.report.records[0].details["values"]
    print(
        json.dumps(
            {
                "above": max(status_bytes("VmHWM") - before, 0),
                "model": held,
                "seconds": time.perf_counter() - start,
                "ranges": {name: [entry["low"], entry["high"]] for name, entry in values.items()},
            }
        ),
        flush=True,
    )


def run(arguments: Sequence[str], *, stop_at: float | None = None) -> Usage | int:
    """Calibrate in a process of its own, which is killed at a share of its progress where `stop_at` says so.

    Returns:
        What it took, or how many batches were done when it was killed.

    Raises:
        ToolError: it failed.
    """
    command = [sys.executable, "-m", __spec__.name if __spec__ else __name__, "child", *arguments]
    told: list[int] = []
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, process_group=0) as process:
        try:
            assert process.stdout is not None
            for line in process.stdout:
                held = json.loads(line)
                if isinstance(held, dict):
                    process.wait(timeout=_SECONDS)
                    ranges = {name: (low, high) for name, (low, high) in held["ranges"].items()}
                    return Usage(
                        held["above"], held["model"], held["seconds"], (len(told), told[0], told[-1]), ranges
                    )
                told.append(held[0])
                if stop_at is not None and held[0] >= stop_at * (held[1] or 1):
                    os.killpg(process.pid, signal.SIGKILL)
                    process.wait(timeout=60)
                    return told[-1]
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
    raise ToolError("the calibration failed; its reason stands above")


def measure(name: str, samples: int, batch: int, method: str, folder: Path, say: object) -> dict[str, object]:
    """All three runs.

    Raises:
        ToolError: there is no such model, or a run failed.
    """
    import torch

    from ...ir.save import save
    from ...ir.trace import trace
    from ...passes.optimize import optimize
    from .rivals import PREPARATION
    from .subjects import build_subject

    tell = say if callable(say) else print
    with tempfile.TemporaryDirectory() as scratch:
        place = Path(scratch)
        tell(f"{name}: building")
        subject = build_subject(name, folder)
        if len(subject.example) != 1 or not subject.example[0].is_floating_point():
            raise ToolError(f"{name} does not take one array of floats")
        shape = tuple(subject.example[0].shape[1:])
        with silence():
            traced = trace(subject.module, (torch.zeros(batch, *shape),), name=name)
        model = optimize(traced, PREPARATION).model
        save(model, place / "float.onnx")
        write_samples(place / "data.npz", str(model.graph.inputs[0].name), shape, samples)
        data = (str(place / "float.onnx"), str(place / "data.npz"), method)
        tell(f"{name}: calibrating on {samples} samples")
        whole = run([*data, str(place / "whole.json")])
        tell(f"{name}: again, killed on the way")
        killed = run([*data, str(place / "killed.json")], stop_at=0.6)
        tell(f"{name}: going on")
        resumed = run([*data, str(place / "killed.json")])
        size = (place / "data.npz").stat().st_size
    assert isinstance(whole, Usage) and isinstance(killed, int) and isinstance(resumed, Usage)
    return {
        "model": name,
        "samples": samples,
        "batch": batch,
        "method": method,
        "data_bytes": size,
        "model_bytes": whole.model,
        "bytes_above_model": whole.above,
        "seconds": whole.seconds,
        "progress": whole.told,
        "killed_after": killed,
        "went_on_at": resumed.told[1],
        "same_ranges": resumed.ranges == whole.ranges,
    }


def main(
    model: Annotated[str, typer.Argument(help="A model with one image as its input.")] = "resnet50",
    samples: Annotated[int, typer.Option("--samples", help="Images to calibrate on.")] = 256,
    batch: Annotated[int, typer.Option("--batch", help="Images per run.")] = 8,
    method: Annotated[str, typer.Option("--method", help="Of insert-qdq's calibrators.")] = "mse",
    folder: Annotated[Path, typer.Option("--folder", help="Where trained networks are kept.")] = Path(
        "demo-out"
    ),
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Also write the lines to this Markdown file.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON document.")] = False,
) -> None:
    """Measure what calibration takes; exit code 1 where it is too much or a kill loses something."""
    try:
        with progress("calibration", quiet=as_json) as say:
            found = measure(model, samples, batch, method, folder, say)
    except GraphwrightError as error:
        raise typer.BadParameter(str(error)) from None
    if as_json:
        print_json(found)
    else:
        print_line(text := _text(found))
        if output is not None:
            output.write_text(text + "\n", encoding="utf-8")
    if int(str(found["bytes_above_model"])) > LIMIT or not found["same_ranges"]:
        raise typer.Exit(1)


def _text(found: dict[str, object]) -> str:
    above, model, seconds = (float(str(found[k])) for k in ("bytes_above_model", "model_bytes", "seconds"))
    same = "the same ranges" if found["same_ranges"] else "OTHER ranges"
    return (
        f"- {found['model']}, `calibration={found['method']}`, {found['samples']} images in batches of "
        f"{found['batch']}: {human_bytes(above)} above the model "
        f"({human_bytes(model)}) at the peak, {seconds:.0f} s.\n"
        f"- Killed after {found['killed_after']} batches, the next run went on at {found['went_on_at']} and "
        f"found {same}."
    )


if __name__ == "__main__":
    if sys.argv[1:2] == ["child"]:
        calibrate(Path(sys.argv[2]), Path(sys.argv[3]), sys.argv[4], Path(sys.argv[5]))
    else:
        typer.run(main)
