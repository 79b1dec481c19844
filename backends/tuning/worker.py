"""The process that builds and times candidates: `python -m graphwright.backends.tuning.worker IN OUT`.

Candidates run here because code with a wild schedule may crash, hang, or exhaust the compiler. IN and OUT are
file descriptors of pipes that carry pickled requests and answers; the process ends with its parent.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import mmap
import signal
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

from ..host import tiles_granted
from ..tvm.stack import lowering

_MAX_RELATIVE_ERROR = 1e-3
"""Against the analytic choice, of the largest output: F(4,3) is allowed that much against direct loops."""
_LINE = 64
_LEAST_SWEEP = 1 << 20
_PAGE = 1 << 21
"""Bytes of a large page on most systems."""
_LEAST_HUGE = 1 << 17
"""Smaller tensors stay where they are put."""


@dataclass
class _Candidate:
    function: Callable[..., Any]
    tensors: list[Any]


class Bench:
    """One workload with its inputs, and the candidates built for it."""

    def __init__(self, spec: Any, target: Any, threads: int):
        from ..tvm_import import import_tvm

        self._tvm = import_tvm()
        tiles_granted()  # a candidate may use them, and every process must ask
        from ..tvm.strategy import CpuStrategy

        self._spec, self._target, self._strategy = spec, target, CpuStrategy
        self._threads = threads
        self._candidates: dict[str, _Candidate] = {}
        self._inputs = _random_inputs(spec)
        self._expected: np.ndarray | None = None
        self._scratch = np.ones(max(2 * target.l2_bytes, _LEAST_SWEEP) // 4, np.float32)
        self._read: list[np.ndarray] = []
        # One thread's own time does not count what else the machine does; several wait for each other.
        self._clock = time.thread_time if threads == 1 else time.perf_counter
        self._tvm.get_global_func("runtime.config_threadpool")(1, threads)

    def build(self, name: str, schedule: dict[str, Any]) -> dict[str, Any]:
        """Emit, compile and run once; the first candidate is what others are compared with.

        Returns:
            What was asked for and what was decided, and, where its numbers are wrong, the error.
        """
        strategy = self._strategy(self._target, lambda _workload: schedule)
        tvm_target = self._tvm.target.Target(self._target.to_tvm())
        with tvm_target:
            emitted = strategy.emit(self._spec)
            func = emitted.func.with_attr("global_symbol", "main")
            library = self._tvm.compile(
                self._tvm.IRModule({"main": func}), target=tvm_target, tir_pipeline=lowering()
            )
        arrays = [self._argument(each) for each in emitted.arguments]
        out = self._spec.out_type
        stored = self._spec.layout.stored_shape(out.shape)
        tensors = [self._tensor(array) for array in arrays]
        result = self._tensor(np.zeros(stored, out.dtype))
        candidate = _Candidate(library["main"], [*tensors, result])
        candidate.function(*candidate.tensors)
        error = self._compared(result.numpy())
        if not error:
            self._candidates[name] = candidate
            self._read = self._just_written(arrays, emitted.arguments)
        asked = list(emitted.choices.asked.values()) if emitted.choices is not None else []
        return {"asked": asked, "note": emitted.note, "error": error}

    def time(self, name: str, runs: int) -> list[float]:
        """Seconds of single calls as a network makes them: inputs just written, all else out of the way."""
        candidate = self._candidates[name]
        samples = []
        for _ in range(runs):
            self._scratch += 1.0
            for array in self._read:
                array.max(initial=0)
            start = self._clock()
            candidate.function(*candidate.tensors)
            samples.append(self._clock() - start)
        return samples

    def drop(self, names: Sequence[str]) -> None:
        """Forget candidates."""
        for name in names:
            self._candidates.pop(name, None)
        gc.collect()

    def _just_written(self, arrays: Sequence[np.ndarray], arguments: Sequence[Any]) -> list[np.ndarray]:
        """What the layer in front has just written: data that come before the weights.

        What follows the weights enters at the end, such as the other branch of a residual block, and was
        written some layers earlier.
        """
        from ..tvm.emission import Packed

        found = []
        for array, argument in zip(arrays, arguments, strict=True):
            if isinstance(argument, Packed):
                break
            if isinstance(argument, int) and not self._spec.externals[argument].constant:
                found.append(array)
        return found

    def _argument(self, argument: Any) -> np.ndarray:
        from ..tvm.emission import Packed

        if isinstance(argument, int):
            external = self._spec.externals[argument]
            array = self._inputs[argument]
            return array.reshape(-1)[: array.size].reshape(external.layout.stored_shape(external.type.shape))
        if isinstance(argument, Packed):
            return argument.pack(self._inputs[argument.external])
        return argument.compute(*(self._inputs[each] for each in argument.sources))

    def _tensor(self, array: np.ndarray) -> Any:
        if array.nbytes < _LEAST_HUGE:
            return self._tvm.runtime.tensor(np.require(array, requirements="C"))
        return self._tvm.runtime.from_dlpack(_in_large_pages(array))

    def _compared(self, result: np.ndarray) -> str:
        if self._expected is None:
            self._expected = result
            return ""
        expected = self._expected.astype("f8")
        scale = max(float(np.abs(expected).max(initial=0.0)), 1e-30)
        error = float(np.abs(result.astype("f8") - expected).max(initial=0.0)) / scale
        if error <= _MAX_RELATIVE_ERROR:
            return ""
        return f"its numbers differ by {error:.1e} of the largest from those of the analytic choice"


def _in_large_pages(array: np.ndarray) -> np.ndarray:
    """A copy where the system has large pages, as loaded weights have.

    Scattered small pages collide in the second-level cache, by luck: the same code on two such copies took
    times 15 % apart.
    """
    room = mmap.mmap(-1, array.nbytes + 2 * _PAGE)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with contextlib.suppress(OSError):
            room.madvise(mmap.MADV_HUGEPAGE)
    start = -np.frombuffer(room, np.uint8).ctypes.data % _PAGE
    copy = np.frombuffer(room, array.dtype, array.size, start).reshape(array.shape)
    copy[...] = array
    return copy


def _random_inputs(spec: Any) -> list[np.ndarray]:
    """Contents for every external input, in logical shape; constants are what they are."""
    rng = np.random.default_rng(0)
    made = []
    for external, sample in zip(spec.externals, spec.samples, strict=True):
        if sample is not None:
            made.append(sample)
            continue
        dtype, shape = np.dtype(external.type.dtype), external.type.shape
        if dtype.kind == "f":
            made.append(rng.standard_normal(shape, np.float32).astype(dtype))
        elif dtype.itemsize == 1 and dtype.kind in "iu":
            low, high = np.iinfo(dtype).min, np.iinfo(dtype).max
            made.append(rng.integers(low, high, shape, dtype, endpoint=True))
        else:
            made.append(np.zeros(shape, dtype))
    return made


def serve(requests: Connection, answers: Connection) -> None:
    """Answer requests until the other side is gone; errors are answers too."""
    bench: Bench | None = None
    while True:
        try:
            kind, *arguments = requests.recv()
        except EOFError:
            return
        try:
            if kind == "open":
                bench = Bench(*arguments)
                answer: Any = None
            else:
                assert bench is not None
                answer = getattr(bench, kind)(*arguments)
            answers.send((True, answer))
        except Exception as error:
            lines = str(error).strip().splitlines() or [""]
            answers.send((False, f"{type(error).__name__}: {lines[0][:200]}"))


def _die_with_parent() -> None:
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)


def main() -> None:
    """Serve on the descriptors given as arguments."""
    _die_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    requests = Connection(int(sys.argv[1]), writable=False)
    answers = Connection(int(sys.argv[2]), readable=False)
    serve(requests, answers)


if __name__ == "__main__":
    main()
