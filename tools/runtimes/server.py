"""One contender in a process of its own: loads, then runs as often as it is told; see `bench`.

`python -m graphwright.tools.runtimes.server CONTENDER FOLDER MODEL VARIANT THREADS` writes a line of JSON
when it has loaded, and one for every line `{"do": "run", "repeats": 5, "cold": false}` or `{"do": "profile"}`
that it reads; it ends with its input. Whoever starts it pins it to cores.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np

from ..processes import answers
from .contenders import OURS, Ours, difference, make_contender
from .models import PRUNED

_FLUSH_BYTES = (64 << 20, 256 << 20)
"""At least and at most; between them twice the third-level cache."""
_PROFILE_RUNS = 12
_KEPT_CALLS = 40
"""Longest kernel calls that a record keeps."""


class Flusher:
    """Writes over a large buffer on every core that the contender uses, so that its data leaves the caches.

    A third-level cache that a virtual machine shares with a whole server may be larger than the buffer.
    """

    def __init__(self, threads: int):
        from ...backends.host import host_caches

        size = int(np.clip(2 * host_caches()[3], *_FLUSH_BYTES))
        cores = sorted(os.sched_getaffinity(0))[:threads]
        parts = np.array_split(np.zeros(size // 4, np.float32), len(cores))
        self._parts = list(zip(cores, parts, strict=True))

    def __call__(self) -> None:
        """Flush; returns when all cores are done."""
        workers = [threading.Thread(target=_overwrite, args=part) for part in self._parts]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()


def _overwrite(core: int, part: np.ndarray) -> None:
    os.sched_setaffinity(0, {core})  # of this thread alone
    np.add(part, 1.0, out=part)


def profile(contender: Ours, threads: int) -> dict[str, Any]:
    """Share of the machine's peak, of the whole and of the longest kernel calls."""
    found = contender.executable.profile(contender.feeds, threads=threads, repeats=_PROFILE_RUNS)
    roofs = [call.roof_ms for call in found.calls if call.roof_ms is not None]
    whole = found.total.median_ms
    calls = [
        {**call.to_json(), "roof_ms": call.roof_ms, "nodes": list(call.nodes[:2])}
        for call in found.by_time[:_KEPT_CALLS]
    ]
    for call in calls:
        del call["from"]
    return {
        "total_ms": whole,
        "kernels_ms": found.kernels_ms,
        "calls": len(found.calls),
        "flops": sum(call.flops for call in found.calls),
        "gflops": sum(call.flops for call in found.calls) / whole / 1e6,
        "share_of_peak": sum(roofs) / whole,
        "peaks": found.peaks.to_json() if found.peaks else None,
        "kinds": [kind.to_json() for kind in found.kinds()],
        "longest": calls,
    }


def main(name: str, folder: Path, model: str, variant: str, threads: int, channel: Any) -> None:
    """Load, then obey until the input ends."""

    def answer(data: dict[str, Any]) -> None:
        print(json.dumps(data), file=channel, flush=True)

    start = time.perf_counter()
    try:
        contender = make_contender(name, folder, model, pruned=variant == PRUNED, threads=threads)
        loaded = time.perf_counter() - start
        apart = difference(contender, folder)
        flush = Flusher(threads)
        if name == OURS:
            from ...backends.tvm_import import import_tvm

            import_tvm()  # what `profile` would have to wait for
    except Exception as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        answer({"failure": lines[-1 if len(lines) > 20 else 0][:300]})
        return
    _call_process(f"bench-{name[:3]}")
    answer(
        {
            "load_seconds": loaded,
            "max_relative_error": apart,
            "choice": contender.choice,
            "notes": contender.notes,
        }
    )
    for line in sys.stdin:
        order = json.loads(line)
        if order["do"] == "profile":
            assert isinstance(contender, Ours)
            answer(profile(contender, threads))
        elif order["cold"]:
            answer({"ms": contender.timed_cold(order["repeats"], flush)})
        else:
            # The first run finds the caches full of somebody else's data.
            answer({"ms": contender.timed(order["repeats"] + 1)[1:]})


def _call_process(name: str) -> None:
    """Lists of processes show the contender instead of `python`."""
    with contextlib.suppress(OSError):
        Path("/proc/self/comm").write_text(name)


if __name__ == "__main__":
    with answers() as channel:
        main(sys.argv[1], Path(sys.argv[2]), sys.argv[3], sys.argv[4], int(sys.argv[5]), channel)
