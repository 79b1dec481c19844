"""How many threads a program runs on.

TVM keeps a pool of threads for every thread that runs a program in parallel. Pools die badly: after a fork
none of their threads is there any more, and a process that leaves waits for those that are still spinning. So
programs with more than one thread run on a thread of ours that belongs to the caller's; it costs some 15
microseconds per run. A forked child finds none and starts its own, and nobody waits for it at the end.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any

from .native import Native
from .runtime_library import limit_concurrency


class _Local(threading.local):
    """Who runs for each calling thread."""

    runner: _Runner | None = None


_here = _Local()


def run_with_threads(native: Native, count: int, function: Callable[..., Any], *arguments: Any) -> Any:
    """What a function returns that runs programs on `count` threads."""
    if count == 1 and limit_concurrency(1):
        try:
            return function(*arguments)
        finally:
            limit_concurrency(0)  # the thread is the caller's, who may use TVM otherwise
    if _here.runner is None:
        _here.runner = _Runner(native)
    return _here.runner.run(count, function, arguments)


class _Job:
    """One call: what to do, and what came of it."""

    __slots__ = ("arguments", "count", "done", "error", "function", "result")

    def __init__(self, count: int, function: Callable[..., Any], arguments: tuple[Any, ...]):
        self.count, self.function, self.arguments = count, function, arguments
        self.done = threading.Lock()
        self.done.acquire()
        self.result: Any = None
        self.error: BaseException | None = None


class _Runner:
    """A thread with a pool; it ends with the object."""

    def __init__(self, native: Native):
        self._jobs: SimpleQueue[_Job | None] = SimpleQueue()
        threading.Thread(
            target=_work, args=(native, self._jobs), name="graphwright-runner", daemon=True
        ).start()

    def run(self, count: int, function: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
        """What the function returns, or raises, on the thread."""
        job = _Job(count, function, arguments)
        self._jobs.put(job)
        job.done.acquire()  # whoever is interrupted here leaves a job behind that harms nobody
        if job.error is not None:
            raise job.error
        return job.result

    def __del__(self) -> None:
        self._jobs.put(None)


def _work(native: Native, jobs: SimpleQueue[_Job | None]) -> None:
    limit_concurrency(0)
    configured = 0
    while (job := jobs.get()) is not None:
        try:
            if job.count != configured:
                native.call("runtime.config_threadpool", 1, job.count)
                configured = job.count
            job.result = job.function(*job.arguments)
        except BaseException as error:
            job.error = error
        job.done.release()
        del job


def _forget() -> None:
    """In a forked child, where no other thread lives on."""
    global _here
    _here = _Local()


os.register_at_fork(after_in_child=_forget)
