"""From the start of a process to its first result, and its peak memory: ours beside ONNX Runtime, in turns.

`python -m graphwright.tools.runtimes.startup FOLDER REPEATS THREADS:FILE...` prints a line of JSON. What runs
in the fresh process is what a user would write: import, load, read the inputs, run once. Modules are bytecode
already, as pip leaves them when it installs a package, whatever PYTHONDONTWRITEBYTECODE says here.
"""

from __future__ import annotations

import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from ...ir.errors import ToolError
from ..processes import answers
from .contenders import ORT, OURS, artifact_of
from .process import cores_for

MODULE = "graphwright.tools.runtimes.startup"
_LIMIT = 120.0
_LEAST_TURNS, _SECONDS = 3, 8.0
"""Turns of models that take long to start, and when there are no more than these."""
_REPORT = """
print("done", flush=True)
with open("/proc/self/status") as file:
    print(next(line.split()[1] for line in file if line.startswith("VmHWM:")), flush=True)
"""
_OURS = f"""
import sys
import numpy
from graphwright.backends.artifact import load_executable
executable = load_executable(sys.argv[2], threads=int(sys.argv[1]))
with numpy.load("feeds.npz") as feeds:
    results = executable.run(dict(feeds))
{_REPORT}"""
_ORT = f"""
import sys
import numpy
import onnxruntime
options = onnxruntime.SessionOptions()
options.intra_op_num_threads, options.inter_op_num_threads = int(sys.argv[1]), 1
options.log_severity_level = 4
session = onnxruntime.InferenceSession(sys.argv[2], options, providers=["CPUExecutionProvider"])
with numpy.load("feeds.npz") as feeds:
    results = session.run(None, dict(feeds))
{_REPORT}"""


def measure_startup(folder: Path, file: str, threads: int, repeats: int) -> dict[str, Any]:
    """Seconds and bytes, by contender; the first turn only fills the page cache and compiles modules.

    Args:
        folder: prepared by `prepare`.
        file: in it, what ONNX Runtime loads.
        threads: threads of both.
        repeats: turns that count, or fewer where they take long.

    Raises:
        ToolError: a process fails; the text holds its last words.
    """
    codes = {OURS: (_OURS, artifact_of(folder, threads).name), ORT: (_ORT, file)}
    cores, start = cores_for(threads), math.inf
    found: dict[str, list[tuple[float, int]]] = {name: [] for name in codes}
    with tempfile.TemporaryDirectory() as scratch:
        # Whoever measures many models lends one folder for all.
        variables = {"PYTHONPYCACHEPREFIX": scratch, **os.environ}
        variables.pop("PYTHONDONTWRITEBYTECODE", None)
        for turn in range(repeats + 1):
            if turn > _LEAST_TURNS and time.monotonic() - start > _SECONDS:
                break
            for name, (code, what) in codes.items():
                result = _once(code, folder, [str(threads), what], cores, variables)
                if turn:
                    found[name].append(result)
            if not turn:
                start = time.monotonic()
    return {
        name: {
            "seconds": statistics.median(seconds for seconds, _ in each),
            "fastest": min(seconds for seconds, _ in each),
            "slowest": max(seconds for seconds, _ in each),
            "peak_bytes": statistics.median(size for _, size in each),
            "turns": len(each),
        }
        for name, each in found.items()
    }


def _once(
    code: str, folder: Path, arguments: list[str], cores: list[int], variables: dict[str, str]
) -> tuple[float, int]:
    command = [sys.executable, "-c", code, *arguments]
    start = time.perf_counter()
    with (
        tempfile.TemporaryFile("w+") as errors,
        subprocess.Popen(
            command,
            cwd=folder,
            env=variables,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            preexec_fn=lambda: os.sched_setaffinity(0, cores),
        ) as process,
    ):
        assert process.stdout is not None
        limit = threading.Timer(_LIMIT, process.kill)
        limit.start()
        try:
            done = process.stdout.readline()
            seconds = time.perf_counter() - start
            peak = process.stdout.read()
            process.wait()
        finally:
            limit.cancel()
        errors.seek(0)
        last = errors.read().strip().splitlines()[-1:]
    if done.strip() != "done" or process.returncode:
        raise ToolError(f"a fresh process fails: {last[0] if last else process.returncode}")
    return seconds, int(peak) << 10


def main(folder: Path, repeats: int, pairs: list[str]) -> dict[str, Any]:
    """By threads; `{"failure": ...}` where a process fails."""
    found = {}
    try:
        for threads, _, file in (pair.partition(":") for pair in pairs):
            found[threads] = measure_startup(folder, file, int(threads), repeats)
    except ToolError as error:
        return {"failure": str(error)}
    return found


if __name__ == "__main__":
    with answers() as channel:
        print(json.dumps(main(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3:])), file=channel)
