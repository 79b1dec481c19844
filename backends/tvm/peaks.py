"""What this machine can do at best: fused multiply-adds per second, and bytes per second by working set.

The roofline model (Williams, Waterman and Patterson, 2009): a kernel cannot be faster than its arithmetic
at the first rate or its tensors at the second. Both are measured by functions built with the compiler that
builds the kernels, on as many threads as the kernels may use.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ..host import host_caches
from ..target import Target, host_target
from ..tvm_import import import_tvm
from .dot_peaks import DotLoop, dot_loop, in_registers, instruction_of
from .stack import lowering

_CHAINS = 10
"""Independent sums: two units with a latency of four or five, and registers to spare on every CPU."""
_STEPS = 100_000
_TASK_FLOATS = 1 << 12
_LARGEST_BYTES = 128 << 20
_SHARED_CACHE_BYTES = 16 << 20
"""What is taken for one program's part of a third-level cache that a whole server shares."""
_SECONDS = 0.12
"""Time for each rate; the fastest pass counts, since whatever else runs can only slow it down."""
_PASSES = 6
"""Passes at least."""


@dataclass(frozen=True)
class Peaks:
    """Measured limits of this machine.

    Attributes:
        gflops: float32 operations per nanosecond, a fused multiply-add being two.
        bandwidths: (bytes of the working set, GB/s) of `a = b * s + c`, smallest first.
        threads: threads that all were measured with.
        dots: (instruction, operations per nanosecond) of kernels that are made of one, such as `tdpbusd`.
        method: how, in words.
    """

    gflops: float
    bandwidths: tuple[tuple[int, float], ...]
    threads: int
    dots: tuple[tuple[str, float], ...] = ()
    method: str = (
        "float32 fused multiply-adds in registers, and a = b * s + c over arrays, built with TVM; best pass"
    )

    def operations(self, note: str) -> float:
        """Operations per nanosecond of a kernel at best, by the instruction that its note names."""
        name, products = instruction_of(note)
        rate = dict(self.dots).get(name)
        return self.gflops if rate is None else rate / products

    def bandwidth(self, working_set: int) -> float:
        """GB/s for tensors of that many bytes together: that of the smallest measured set that holds them."""
        fitting = (rate for size, rate in self.bandwidths if working_set <= size)
        return next(fitting, self.bandwidths[-1][1])

    def to_json(self) -> dict[str, Any]:
        """A JSON-able dictionary."""
        return {
            "gflops": self.gflops,
            "bandwidths": [{"working_set_bytes": size, "gb_per_s": rate} for size, rate in self.bandwidths],
            "threads": self.threads,
            "instructions": {name: {"gops": rate} for name, rate in self.dots},
            "method": self.method,
        }


@functools.lru_cache(maxsize=8)
def measure_peaks(threads: int, target: Target | None = None, dots: frozenset[str] = frozenset()) -> Peaks:
    """Measure this machine: a second, and the time to import TVM's compiler where it is not loaded.

    Args:
        threads: threads to use.
        target: whose instructions to use, which must run here; all that this machine has if None.
        dots: instructions to measure besides, those that the target does not have are passed over.
    """
    tvm = import_tvm()
    target = target or host_target()
    lanes = target.vector_bits // 32
    sets = _working_sets()
    built = peak_kernels(threads, target)
    tvm.get_global_func("runtime.config_threadpool")(1, threads)
    seconds = _fastest(built["multiply_add"], [_tensor((2,)), _tensor((threads, _CHAINS * lanes))])
    gflops = 2.0 * threads * _CHAINS * lanes * _STEPS / seconds / 1e9
    rates = []
    for i, size in enumerate(sets):
        arrays = [_tensor((_rows(size, threads), _TASK_FLOATS)) for _ in range(3)]
        moved = 3 * arrays[0].numpy().nbytes
        rates.append((size, moved / _fastest(built[f"triad_{i}"], arrays) / 1e9))
    # Where the caches of a virtual machine are not what they are said to be, larger sets may look faster.
    falling = [(size, max(rate for _, rate in rates[i:])) for i, (size, _) in enumerate(rates)]
    loops = {name: loop for name in sorted(dots) if (loop := dot_loop(name, threads, target))}
    return Peaks(gflops, tuple(falling), threads, tuple(_dot_rates(loops, target)))


def _dot_rates(loops: Mapping[str, DotLoop], target: Target) -> Iterator[tuple[str, float]]:
    """Operations per nanosecond of each instruction."""
    import numpy as np

    tvm = import_tvm()
    for name, dots in loops.items():
        built = _built({name: dots.function}, target)
        out = tvm.runtime.tensor(np.zeros(dots.shape, np.int32))
        yield name, dots.operations / _fastest(built[name], [out]) / 1e9


def peak_kernels(threads: int, target: Target) -> Any:
    """The compiled functions whose times are taken: `multiply_add`, and `triad_N` for every working set."""
    lanes = target.vector_bits // 32
    functions = {
        "multiply_add": _multiply_add(lanes, threads),
        **{
            f"triad_{i}": _triad(f"triad_{i}", lanes, size, threads) for i, size in enumerate(_working_sets())
        },
    }
    return _built(functions, target)


def _built(functions: Mapping[str, Any], target: Target) -> Any:
    tvm = import_tvm()
    with tvm.target.Target(target.to_tvm()) as chosen:
        return tvm.compile(tvm.IRModule(dict(functions)), target=chosen, tir_pipeline=lowering())


def _working_sets() -> list[int]:
    """Bytes that fit the second-level cache, the third, and neither."""
    caches = host_caches()
    memory = min(max(4 * caches[3], 64 << 20), _LARGEST_BYTES)
    shared = min(caches[3] // 2, _SHARED_CACHE_BYTES)
    return sorted({size for size in (caches[2] // 2, shared, memory) if size})


def _rows(working_set: int, threads: int) -> int:
    """Rows of each of the three arrays, a multiple of the threads."""
    rows = max(1, working_set // (3 * 4 * _TASK_FLOATS * threads))
    return rows * threads


def _multiply_add(lanes: int, threads: int) -> Any:
    """Every thread multiplies and adds in registers; it stores its sums, so that none can be left out."""
    from .kernels import emit

    factors = emit.buffer("factors", (2,))
    out = emit.buffer("out", (threads, _CHAINS * lanes))

    def task(t: Any) -> Any:
        sums, allocated = emit.allocate("sums", (_CHAINS * lanes,))
        scale, scale_bound = emit.hold("scale", emit.load(factors, [0]))
        shift, shift_bound = emit.hold("shift", emit.load(factors, [1]))

        def chain(i: Any) -> Any:
            old = emit.load(sums, [i * lanes], lanes)
            new = old * emit.splat(scale, lanes) + emit.splat(shift, lanes)
            return emit.store(sums, new, [i * lanes], lanes)

        return [allocated, scale_bound, shift_bound, *in_registers(sums, out, t, lanes, _STEPS, chain)]

    return emit.function("multiply_add", [factors, out], [emit.parallel("t", threads, task)])


def _triad(name: str, lanes: int, working_set: int, threads: int) -> Any:
    """The triad a = b * s + c, whose three arrays fill the working set."""
    from .kernels import emit

    shape = (_rows(working_set, threads), _TASK_FLOATS)
    a, b, c = (emit.buffer(each, shape) for each in "abc")

    def row(r: Any) -> Any:
        def vector(i: Any) -> Any:
            at = [r, i * lanes]
            value = emit.load(b, at, lanes) * emit.constant(0.5, lanes) + emit.load(c, at, lanes)
            return emit.store(a, value, at, lanes)

        return emit.loop("i", _TASK_FLOATS // lanes, vector)

    return emit.function(name, [a, b, c], [emit.parallel("r", shape[0], row)])


def _tensor(shape: tuple[int, ...]) -> Any:
    import numpy as np
    import tvm

    return tvm.runtime.tensor(np.full(shape, 0.5, np.float32))


def _fastest(function: Callable[..., Any], tensors: list[Any]) -> float:
    """Seconds of the fastest of many passes."""
    function(*tensors)
    best = float("inf")
    passes, end = 0, time.perf_counter() + _SECONDS
    while passes < _PASSES or time.perf_counter() < end:
        start = time.perf_counter()
        function(*tensors)
        best = min(best, time.perf_counter() - start)
        passes += 1
    return best
