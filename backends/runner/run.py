"""Running an artifact through the runner, emulated where it is for another CPU."""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ...ir.errors import CompileError, TargetError
from ..cross import find_qemu
from ..executable import check_inputs
from ..host import host_arch
from ..target import Target
from ..weights import read_weights, write_weights
from .build import build_runner

if TYPE_CHECKING:
    from ..compiled import TvmExecutable

_SYSROOTS = {"aarch64": "/usr/aarch64-linux-gnu"}
_LONGEST_RUN_SECONDS = 600


@dataclass(frozen=True)
class RunnerResult:
    """What the runner computed, with the milliseconds of each run."""

    outputs: list[np.ndarray]
    times_ms: list[float]


def run_library(executable: TvmExecutable, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Run a compiled library once in a process of its own.

    Raises:
        TargetError: a tool is missing, or the library is for a device that cannot be emulated.
        CompileError: the run failed.
    """
    arrays = check_inputs(executable.inputs, feeds)
    with tempfile.TemporaryDirectory(prefix="graphwright-") as folder:
        Path(folder, "model.so").symlink_to(executable.library.resolve())
        write_weights(Path(folder, "weights.bin"), executable.weights)
        result = run_artifact(folder, executable.target, arrays)
    return dict(zip((spec.name for spec in executable.outputs), result.outputs, strict=True))


def run_artifact(
    folder: str | Path, target: Target, arrays: list[np.ndarray], *, runs: int = 1, threads: int | None = None
) -> RunnerResult:
    """Run the library and weights in a folder with the runner.

    Args:
        folder: holds model.so and weights.bin.
        target: what they were built for; another CPU than this machine's is emulated by qemu.
        arrays: inputs in order.
        runs: how often to run.
        threads: size of the thread pool; the runtime's choice if None.

    Raises:
        TargetError: a tool is missing, or the target is no CPU.
        CompileError: the run failed; the line holds the runner's message.
    """
    if target.device != "cpu":
        raise TargetError(f"target {target.name} cannot be emulated")
    emulator = [] if target.arch == host_arch() else [find_qemu(target.arch), "-L", _SYSROOTS[target.arch]]
    runner = build_runner(target)
    with tempfile.TemporaryDirectory(prefix="graphwright-") as scratch:
        inputs, outputs = Path(scratch, "inputs.bin"), Path(scratch, "outputs.bin")
        write_weights(inputs, arrays)
        command = [*emulator, str(runner), str(folder), str(inputs), str(outputs), "--runs", str(runs)]
        command += ["--threads", str(threads)] if threads else []
        try:
            finished = subprocess.run(
                command,
                capture_output=True,
                text=True,
                errors="replace",
                check=False,
                timeout=_LONGEST_RUN_SECONDS,
            )
        except subprocess.TimeoutExpired:
            raise CompileError(f"the runner did not end within {_LONGEST_RUN_SECONDS} s") from None
        if finished.returncode:
            lines = finished.stderr.strip().splitlines() or [f"exit code {finished.returncode}"]
            raise CompileError(f"the runner failed: {lines[-1].removeprefix('runner: ')}")
        times = [float(time) for time in re.findall(r"^run \d+: ([0-9.e+-]+) ms$", finished.stdout, re.M)]
        return RunnerResult([np.array(array) for array in read_weights(outputs)], times)
