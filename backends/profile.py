"""Where the time of a compiled model goes, kernel call by kernel call, beside what the machine can do."""

from __future__ import annotations

import re
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from ..ir.errors import ModelError, TargetError, ToolError
from .executable import check_inputs
from .manifest import ENTRY
from .native import Tensor
from .timing import Timing

if TYPE_CHECKING:
    from .compiled import TvmExecutable
    from .target import Target
    from .tvm.peaks import Peaks

COMPUTE, MEMORY = "compute", "memory"
_BUILT_IN = "vm.builtin."
"""What the machine does itself: allocating, viewing, checking shapes."""
_WARMUP = 2
"""Runs that do not count: they allocate, and fill the caches."""
_COPY = "layout copy"
_WIDE_SPREAD = 1.5
"""Ratio of the 90th percentile of whole runs to the 10th from which on single calls are not to be trusted."""


@dataclass(frozen=True)
class KernelCall:
    """One call of a function of the library.

    Attributes:
        index: its place in the order of execution.
        name: the function.
        kind: what it computes ("conv", "matmul", ...); "" where the artifact's report does not say.
        note: the kernel and tile that were chosen.
        nodes: nodes of the graph that it computes; empty for a copy from one layout to another.
        origins: model functions that those nodes came from, as `domain::name`.
        shapes: its tensors as stored, weights included, the output last.
        flops: floating-point operations; of Winograd those of the direct method; 0 where nobody counted.
        bytes: size of its tensors together.
        time: time of the call.
        share: part of the time in all kernels.
        bound: "compute" or "memory", whichever of the two takes longer at the machine's best.
        roof_ms: that longer time; None where the peaks were not measured.
    """

    index: int
    name: str
    kind: str
    note: str
    nodes: tuple[str, ...]
    origins: tuple[str, ...]
    shapes: tuple[str, ...]
    flops: int
    bytes: int
    time: Timing
    share: float
    bound: str = MEMORY
    roof_ms: float | None = None

    @property
    def gflops(self) -> float | None:
        """Floating-point operations per nanosecond; None where they are not counted."""
        return self.flops / self.time.median_ms / 1e6 if self.flops and self.time.median_ms else None

    @property
    def gb_per_s(self) -> float | None:
        """Bytes of its tensors per nanosecond."""
        return self.bytes / self.time.median_ms / 1e6 if self.time.median_ms else None

    @property
    def share_of_peak(self) -> float | None:
        """Time at the machine's best over time taken; of the arithmetic or the bandwidth as `bound` says."""
        return (
            self.roof_ms / self.time.median_ms if self.roof_ms is not None and self.time.median_ms else None
        )

    def to_json(self) -> dict[str, Any]:
        """A JSON-able dictionary."""
        return {
            "index": self.index,
            "name": self.name,
            "kind": self.kind,
            "note": self.note,
            "nodes": list(self.nodes),
            "from": list(self.origins),
            "shapes": list(self.shapes),
            "flops": self.flops,
            "bytes": self.bytes,
            **self.time.to_json(),
            "share": self.share,
            "gflops": self.gflops,
            "gb_per_s": self.gb_per_s,
            "bound": self.bound,
            "share_of_peak": self.share_of_peak,
        }


@dataclass(frozen=True)
class KindTotal:
    """All calls of one kind together."""

    kind: str
    calls: int
    median_ms: float
    share: float
    flops: int
    bytes: int
    share_of_peak: float | None

    def to_json(self) -> dict[str, Any]:
        """A JSON-able dictionary."""
        return dict(self.__dict__)


@dataclass(frozen=True)
class Profile:
    """Times of all kernel calls of a model.

    Attributes:
        calls: in the order of execution.
        total: time of a whole run, not watched.
        peaks: the machine's limits; None if they were not measured.
        notes: what the reader should know about the figures.
    """

    calls: tuple[KernelCall, ...]
    total: Timing
    peaks: Peaks | None = None
    notes: tuple[str, ...] = field(default=())

    @property
    def kernels_ms(self) -> float:
        """Medians of all kernel calls together."""
        return sum(call.time.median_ms for call in self.calls)

    @cached_property
    def by_time(self) -> list[KernelCall]:
        """The calls, the longest first."""
        return sorted(self.calls, key=lambda call: -call.time.median_ms)

    def worst(self, count: int = 10) -> list[KernelCall]:
        """The calls with the smallest share of the machine's peak, the smallest first."""
        rated = [call for call in self.calls if call.share_of_peak is not None]
        return sorted(rated, key=lambda call: call.share_of_peak or 0.0)[:count]

    def kinds(self) -> list[KindTotal]:
        """Totals by kind, the longest first."""
        grouped: dict[str, list[KernelCall]] = defaultdict(list)
        for call in self.calls:
            grouped[call.kind].append(call)
        totals = [self._total(kind, calls) for kind, calls in grouped.items()]
        return sorted(totals, key=lambda total: -total.median_ms)

    def _total(self, kind: str, calls: Sequence[KernelCall]) -> KindTotal:
        taken = sum(call.time.median_ms for call in calls)
        roofs = [call.roof_ms for call in calls if call.roof_ms is not None]
        return KindTotal(
            kind,
            len(calls),
            taken,
            sum(call.share for call in calls),
            sum(call.flops for call in calls),
            sum(call.bytes for call in calls),
            sum(roofs) / taken if taken and len(roofs) == len(calls) else None,
        )

    def to_json(self) -> dict[str, Any]:
        """A JSON-able dictionary: calls by time, totals by kind, the ten worst by index."""
        return {
            "total": self.total.to_json(),
            "kernels_ms": self.kernels_ms,
            "peaks": self.peaks.to_json() if self.peaks else None,
            "calls": [call.to_json() for call in self.by_time],
            "kinds": [total.to_json() for total in self.kinds()],
            "worst": [call.index for call in self.worst()],
            "notes": list(self.notes),
        }


def profile_library(
    executable: TvmExecutable,
    feeds: Mapping[str, Any] | None,
    *,
    threads: int,
    repeats: int,
    peaks: bool,
) -> Profile:
    """Time every kernel call of a compiled library; see `Executable.profile`.

    Raises:
        ModelError: `threads` or `repeats` is not positive, or the feeds do not fit.
        TargetError: the library is for a GPU, whose kernels the host's clock does not see.
    """
    from .tvm.runtime import TvmProgram

    if threads < 1 or repeats < 1:
        raise ModelError("profile needs at least one thread and one run")
    if executable.target.device != "cpu":
        raise TargetError(
            f"profile times libraries for CPUs; for {executable.target.name} use NVIDIA's Nsight Systems"
        )
    given = executable.random_feeds() if feeds is None else feeds
    total = executable.benchmark(given, threads=threads, repeats=repeats)
    program = TvmProgram(executable.library, executable.weights, executable.target.device)
    program.set_threads(total.threads)
    parts = executable.calls(check_inputs(executable.inputs, given))
    if len(parts) > 1 and executable.batches is not None:
        raise ModelError(
            f"profile times one program, but this batch runs in {len(parts)} pieces; give one of "
            f"{', '.join(map(str, executable.batches.sizes))}"
        )
    ((entry, arrays),) = parts
    tensors = program.prepare(arrays)
    watcher = _Watcher()
    program.watch(watcher)
    runs = []
    for _ in range(_WARMUP + repeats):
        watcher.begin()
        program.invoke(tensors, entry)
        runs.append(watcher.times)
    table, missing = executable.kernel_table()
    measured = _peaks(total.threads, executable.target, table) if peaks else None
    table = [kernel for kernel in table if kernel.get("entry", ENTRY) == entry]
    calls = _calls(watcher.seen, np.array(runs[_WARMUP:]), table, total.threads, measured)
    return Profile(tuple(calls), total, measured, _notes(calls, total, missing))


def _peaks(threads: int, target: Target, table: Sequence[Mapping[str, Any]]) -> Peaks:
    """The machine's limits, those of the instructions that the kernels name among them."""
    from .tvm.dot_peaks import instruction_of
    from .tvm.peaks import measure_peaks

    dots = {instruction_of(str(kernel.get("note", "")))[0] for kernel in table}
    return measure_peaks(threads, target, frozenset(dots - {""}))


class _Watcher:
    """Takes the time of every call but the machine's own, and in the first run the tensors."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, tuple[str, ...], int]] = []
        self.times: list[float] = []
        self._runs = 0
        self._start = 0

    def begin(self) -> None:
        """Another run follows."""
        self._runs += 1
        self.times = []

    def __call__(self, name: str, before: bool, arguments: Callable[[], list[Any]]) -> None:
        now = time.perf_counter_ns()
        if name.startswith(_BUILT_IN):
            return
        if not before:
            self.times.append((now - self._start) / 1e6)
            return
        if self._runs == 1:
            self._look(name, arguments())
        self._start = time.perf_counter_ns()

    def _look(self, name: str, arguments: Sequence[Any]) -> None:
        tensors = [each for each in arguments if isinstance(each, Tensor)]
        shapes = tuple(f"{each.dtype}[{','.join(map(str, each.shape))}]" for each in tensors)
        self.seen.append((name, shapes, sum(tensor.bytes for tensor in tensors)))


def _calls(
    seen: Sequence[tuple[str, tuple[str, ...], int]],
    times: np.ndarray,
    table: Sequence[Mapping[str, Any]],
    threads: int,
    peaks: Peaks | None,
) -> list[KernelCall]:
    """A record per call; `times` is (runs, calls), in milliseconds."""
    if times.ndim != 2 or times.shape[1] != len(seen):
        raise ToolError("the library did not call the same kernels in every run; it cannot be profiled")
    kernels = {str(kernel["name"]): kernel for kernel in table}
    counts = Counter(name for name, _, _ in seen)
    done: Counter[str] = Counter()
    timings = [Timing.of(column, threads) for column in times.T]
    total = sum(timing.median_ms for timing in timings)
    calls = []
    for index, ((name, shapes, size), timing) in enumerate(zip(seen, timings, strict=True)):
        kernel = kernels.get(name, {})
        nodes = _nodes_of_call(kernel, done[name], counts[name])
        done[name] += 1
        flops = int(kernel.get("flops", 0))
        note = str(kernel.get("note", ""))
        bound, roof = _roof(flops, size, note, peaks)
        kind = str(kernel.get("kind") or re.sub(r"_\d+$", "", name))
        calls.append(
            KernelCall(
                index,
                name,
                kind if nodes or not kernel else _COPY,
                note,
                nodes,
                tuple(kernel.get("from", ())),
                shapes,
                flops,
                size,
                timing,
                timing.median_ms / total if total else 0.0,
                bound,
                roof,
            )
        )
    return calls


def _nodes_of_call(kernel: Mapping[str, Any], call: int, calls: int) -> tuple[str, ...]:
    """The nodes of one call of a function; those of all calls where the report does not tell them apart."""
    nodes = tuple(map(str, kernel.get("nodes", ())))
    sizes = [int(size) for size in kernel.get("nodes_per_call", ())]
    if len(sizes) != calls or sum(sizes) != len(nodes):
        return nodes
    start = sum(sizes[:call])
    return nodes[start : start + sizes[call]]


def _roof(flops: int, size: int, note: str, peaks: Peaks | None) -> tuple[str, float | None]:
    """What limits a kernel at the machine's best, and the milliseconds that it would then take."""
    if peaks is None:
        return (COMPUTE if flops else MEMORY), None
    compute, memory = flops / peaks.operations(note) / 1e6, size / peaks.bandwidth(size) / 1e6
    return (COMPUTE, compute) if compute > memory else (MEMORY, memory)


def _notes(calls: Sequence[KernelCall], total: Timing, missing: str | None) -> tuple[str, ...]:
    notes = [
        "Every call is timed between two callbacks, which adds about a microsecond and leaves out what the "
        "virtual machine does itself; the whole run is timed without them.",
        "A kernel is compute-bound or memory-bound by which of its arithmetic and its tensors takes longer "
        "at the measured peak; the share of peak is that time over the time taken.",
        "The bandwidth is that of the cache level that holds the kernel's tensors; what lies nearer is read "
        "faster, and what a kernel does not touch is counted: the share can exceed 100%.",
    ]
    if any("bf16" in call.note for call in calls):
        notes.append(
            "Those with tdpbf16ps multiply float32 in several products of bfloat16 (x3: three); the peak is "
            "that part of what the instruction does."
        )
    if any("winograd" in call.note for call in calls):
        notes.append(
            "Winograd kernels count the operations of the direct method, of which they do a part: their "
            "GFLOP/s and share of peak can exceed the machine's."
        )
    if total.p90 > _WIDE_SPREAD * total.p10:
        notes.append(
            f"Runs took {total.p10:.3f} to {total.p90:.3f} ms: something else uses this machine, and the "
            "figures of single calls may be far off; profile again when it is quiet, or with more repeats."
        )
    if missing:
        notes.append(missing)
    return tuple(notes)
