"""The runtimes that are compared, each as something that can be timed; every library is imported lazily.

All get the same inputs, the same number of threads and float32 arithmetic. ONNX Runtime and OpenVINO get the
fastest of three files: the graph as it was exported (or pruned), the graph that `simplify` made of it, and
the graph that our library was compiled from.
"""

from __future__ import annotations

import abc
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ...backends.executable import check_inputs
from ...ir.compare import compare
from ...ir.errors import ToolError

if TYPE_CHECKING:
    from ...backends.executable import Executable

OURS, ORT, OPENVINO, TORCH = "graphwright", "onnxruntime", "openvino", "torch"
RIVALS = (ORT, OPENVINO, TORCH)
TITLES = {OURS: "ours", ORT: "ONNX Runtime", OPENVINO: "OpenVINO", TORCH: "torch.compile"}

ORIGINAL, SIMPLIFIED, ARTIFACT = "original.onnx", "simplified.onnx", "artifact"
FILES = (ORIGINAL, SIMPLIFIED, f"{ARTIFACT}/model.onnx")
"""What a rival may choose from, in a prepared folder."""
WRONG = 1e-3
"""Relative error from which on a contender does not compute the model, and its speed does not count."""
_TRIAL_SECONDS = 0.4
_TRIAL_RUNS = (3, 30)
"""How long, and how often at least and at most, each file is tried."""


def artifact_of(folder: Path, threads: int) -> Path:
    """Our library in a prepared folder; tuning may have made one for each number of threads."""
    own = folder / f"{ARTIFACT}-{threads}"
    return own if own.exists() else folder / ARTIFACT


class Contender(abc.ABC):
    """A loaded model.

    Attributes:
        choice: which file it runs, where there was something to choose.
        notes: what went wrong on the way.
    """

    choice: str = ""

    def __init__(self) -> None:
        self.notes: list[str] = []

    @abc.abstractmethod
    def outputs(self) -> list[np.ndarray]:
        """What a run returns, in the order of the graph's outputs."""

    @abc.abstractmethod
    def timed(self, repeats: int) -> list[float]:
        """Milliseconds of single runs, one right after another."""

    def timed_cold(self, repeats: int, flush: Callable[[], None]) -> list[float]:
        """Milliseconds of single runs; `flush` empties the caches before each and is not counted."""
        samples = []
        for _ in range(repeats):
            flush()
            samples += self.timed(1)
        return samples


class _Library(Contender):
    """Something behind the face of our own executables."""

    def __init__(self, executable: Executable, feeds: Mapping[str, np.ndarray]):
        super().__init__()
        self.executable, self.feeds = executable, feeds
        self._arrays = check_inputs(executable.inputs, feeds)

    def outputs(self) -> list[np.ndarray]:
        return list(self.executable.run(self.feeds).values())

    def timed(self, repeats: int) -> list[float]:
        # `benchmark` would warm up, which is not wanted where the caches are to be cold.
        return self.executable._timed_runs(self._arrays, repeats)


class Ours(_Library):
    """The compiled library out of its artifact."""

    def __init__(self, folder: Path, feeds: Mapping[str, np.ndarray], threads: int):
        from ...backends.artifact import load_executable

        super().__init__(load_executable(artifact_of(folder, threads), threads=threads), feeds)


class OpenVino(Contender):
    """OpenVINO's CPU plugin, asked for latency, in one stream."""

    def __init__(self, path: Path, feeds: Mapping[str, np.ndarray], threads: int):
        super().__init__()
        import openvino

        core = openvino.Core()
        # On CPUs with bfloat16 it would compute in that; everybody else keeps float32.
        compiled = core.compile_model(
            core.read_model(path),
            "CPU",
            {
                "PERFORMANCE_HINT": "LATENCY",
                "NUM_STREAMS": "1",
                "INFERENCE_NUM_THREADS": str(threads),
                "INFERENCE_PRECISION_HINT": "f32",
            },
        )
        self._request = compiled.create_infer_request()
        self._kept = {name: np.ascontiguousarray(array) for name, array in feeds.items()}
        names = {name for port in compiled.inputs for name in port.get_names()}
        for name, array in self._kept.items():
            if name in names:
                self._request.set_tensor(name, openvino.Tensor(array, shared_memory=True))
        self._count = len(compiled.outputs)

    def outputs(self) -> list[np.ndarray]:
        """As `Contender.outputs`."""
        self._request.infer()
        return [np.array(self._request.get_output_tensor(i).data) for i in range(self._count)]

    def timed(self, repeats: int) -> list[float]:
        """As `Contender.timed`."""
        samples = []
        for _ in range(repeats):
            start = time.perf_counter()
            self._request.infer()
            samples.append((time.perf_counter() - start) * 1e3)
        return samples


class TorchCompiled(Contender):
    """`torch.compile` with TorchInductor, weights frozen.

    Args:
        module: in evaluation mode.
        inputs: its arguments.
        threads: threads that it may use.
    """

    def __init__(self, module: Any, inputs: Sequence[Any], threads: int):
        super().__init__()
        import torch
        import torch._inductor.config

        torch.set_num_threads(threads)
        # Compiler processes of its own would still be there when the clock runs.
        torch._inductor.config.compile_threads = 1
        torch._inductor.config.freezing = True
        self._inputs = inputs
        self._torch = torch
        self._module = torch.compile(module)
        self.outputs()

    def outputs(self) -> list[np.ndarray]:
        """As `Contender.outputs`."""
        with self._torch.inference_mode():
            found = self._module(*self._inputs)
        return [each.numpy() for each in (found if isinstance(found, tuple) else (found,))]

    def timed(self, repeats: int) -> list[float]:
        """As `Contender.timed`."""
        samples = []
        with self._torch.inference_mode():
            for _ in range(repeats):
                start = time.perf_counter()
                self._module(*self._inputs)
                samples.append((time.perf_counter() - start) * 1e3)
        return samples


def make_contender(name: str, folder: Path, model: str, *, pruned: bool, threads: int) -> Contender:
    """Load a contender.

    Args:
        name: one of `OURS` and `RIVALS`.
        folder: prepared by `prepare`.
        model: key of `MODELS`.
        pruned: whether that folder holds the pruned variant.
        threads: threads it may use.

    Raises:
        ToolError: it cannot run this model; the line says why.
    """
    feeds = read_arrays(folder / "feeds.npz")
    if name == OURS:
        return Ours(folder, feeds, threads)
    if name == TORCH:
        return TorchCompiled(*_torch_model(folder, model, feeds, pruned=pruned), threads)
    if name == ORT:
        return _fastest(folder, lambda path: _onnxruntime(path, feeds, threads))
    if name == OPENVINO:
        return _fastest(folder, lambda path: OpenVino(path, feeds, threads))
    raise ToolError(f"there is no contender {name!r}")


def _torch_model(
    folder: Path, model: str, feeds: Mapping[str, np.ndarray], *, pruned: bool
) -> tuple[Any, Sequence[Any]]:
    """The module as it was built, or, where that was pruned, the one of its graph."""
    if not pruned:
        from .models import MODELS

        return MODELS[model].build()
    import torch

    from ...ir.load import load
    from ...ir.to_torch import to_torch

    return to_torch(load(folder / SIMPLIFIED)), [torch.from_numpy(array) for array in feeds.values()]


def _onnxruntime(path: Path, feeds: Mapping[str, np.ndarray], threads: int) -> Contender:
    from ...backends.onnxruntime import OnnxRuntimeExecutable
    from ...ir.load import load

    return _Library(OnnxRuntimeExecutable(load(path), threads=threads), feeds)


def _fastest(folder: Path, make: Callable[[Path], Contender]) -> Contender:
    best: Contender | None = None
    least, notes = float("inf"), []
    for file in FILES:
        try:
            candidate = make(folder / file)
            if (apart := difference(candidate, folder)) > WRONG:
                notes.append(f"{file}: its outputs are wrong by {apart:.1g}")
                continue
            taken = _trial(candidate)
        except Exception as error:
            notes.append(f"{file}: {_line(error)}")
            continue
        if taken < least:
            best, least = candidate, taken
            best.choice = file
    if best is None:
        raise ToolError(f"it runs none of the files: {'; '.join(notes)}")
    best.notes = notes
    return best


def _trial(candidate: Contender) -> float:
    once = min(candidate.timed(1))
    fewest, most = _TRIAL_RUNS
    return min(candidate.timed(int(np.clip(_TRIAL_SECONDS * 1e3 / max(once, 1e-3), fewest, most))))


def _line(error: BaseException) -> str:
    lines: Sequence[str] = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[-1] if lines else type(error).__name__)[:160]


def difference(contender: Contender, folder: Path) -> float:
    """Largest error of the outputs relative to the largest value of the reference."""
    expected = read_arrays(folder / "expected.npz")
    found = contender.outputs()
    return compare(expected, dict(zip(expected, found, strict=True))).max_rel


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """The arrays of an npz file, in order."""
    with np.load(path) as stored:
        return {name: stored[name] for name in stored.files}
