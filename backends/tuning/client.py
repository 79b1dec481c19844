"""The parent's side of the worker: requests with a time limit, and a new worker where one is lost."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Any

from ...ir.errors import CompileError

BUILD_SECONDS = 60.0
"""Time for a candidate's code; LLVM takes minutes for code that is unrolled too far."""
_START_SECONDS = 120.0


class CandidateError(Exception):
    """A candidate failed: it does not compile, crashes, hangs or computes something else."""


class Worker:
    """A worker process, started when it is first needed.

    Args:
        target: what to build for.
        threads: threads that candidates run on.
    """

    def __init__(self, target: Any, threads: int):
        self._target, self._threads = target, threads
        self._spec: Any = None
        self._process: subprocess.Popen[bytes] | None = None
        self._requests: Connection | None = None
        self._answers: Connection | None = None
        self._built: dict[str, dict[str, Any]] = {}

    def open(self, spec: Any) -> None:
        """Turn to another group; what was built before is forgotten.

        Raises:
            CompileError: the process does not start.
        """
        self._spec, self._built = spec, {}
        if self._process is None:
            self._start()
        else:
            self._ask(_START_SECONDS, "open", spec, self._target, self._threads)

    def build(self, name: str, schedule: dict[str, Any]) -> dict[str, Any]:
        """See `worker.Bench.build`.

        Raises:
            CandidateError: it does not compile, crashes or computes something else.
        """
        answer = self._ask(BUILD_SECONDS, "build", name, schedule)
        if answer["error"]:
            raise CandidateError(answer["error"])
        self._built[name] = schedule
        return answer

    def time(self, name: str, runs: int, seconds: float) -> list[float]:
        """Seconds of single calls.

        Raises:
            CandidateError: they crash, or take longer than `seconds` in all.
        """
        return self._ask(seconds, "time", name, runs)

    def drop(self, names: Sequence[str]) -> None:
        """Forget candidates."""
        for name in names:
            self._built.pop(name, None)
        self._ask(BUILD_SECONDS, "drop", list(names))

    def close(self) -> None:
        """End the process."""
        for connection in (self._requests, self._answers):
            if connection is not None:
                connection.close()
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        self._process = self._requests = self._answers = None

    def __enter__(self) -> Worker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _start(self) -> None:
        there, requests = os.pipe()
        answers, back = os.pipe()
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "graphwright.backends.tuning.worker", str(there), str(back)],
                pass_fds=(there, back),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                process_group=0,  # Ctrl-C is the parent's business.
            )
        finally:
            os.close(there)
            os.close(back)
        self._requests, self._answers = (
            Connection(requests, readable=False),
            Connection(answers, writable=False),
        )
        try:
            self._ask(_START_SECONDS, "open", self._spec, self._target, self._threads)
        except CandidateError as error:
            self.close()
            raise CompileError(f"the process that measures kernels does not start: {error}") from error

    def _restart(self, lost: str | None) -> None:
        """A new worker with the candidates of the old one, except the one that it was lost with."""
        self.close()
        kept = {name: schedule for name, schedule in self._built.items() if name != lost}
        self._built = {}
        self._start()
        for name, schedule in kept.items():
            self.build(name, schedule)

    def _ask(self, seconds: float, kind: str, *arguments: Any) -> Any:
        assert self._requests is not None and self._answers is not None
        try:
            self._requests.send((kind, *arguments))
            if not self._answers.poll(seconds):
                raise TimeoutError
            is_fine, answer = self._answers.recv()
        except TimeoutError:
            self._lost(kind, arguments)
            raise CandidateError(f"no answer within {seconds:.0f} s") from None
        except (EOFError, OSError):
            code = self._process.wait() if self._process is not None else None
            self._lost(kind, arguments)
            raise CandidateError(f"the process died ({_ending(code)})") from None
        if not is_fine:
            raise CandidateError(answer)
        return answer

    def _lost(self, kind: str, arguments: Sequence[Any]) -> None:
        if kind == "open":
            return
        self._restart(arguments[0] if kind in ("build", "time") else None)


def _ending(code: int | None) -> str:
    if code is None:
        return "unknown reason"
    return f"signal {-code}" if code < 0 else f"exit code {code}"
