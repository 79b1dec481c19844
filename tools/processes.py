"""Steps in processes of their own: pinned, limited in time, killed with all they start, answering in JSON."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, TextIO

from ..ir.errors import ToolError

_ROOM = __package__
_GRACE = 5.0
"""Seconds between asking a process to end and making it."""


class StepFailed(ToolError):
    """A step gave no answer; the text is a line that says why."""


class StepTimedOut(StepFailed):
    """A step took longer than it may."""


def environment(threads: int, more: Mapping[str, str] | None = None) -> dict[str, str]:
    """Variables under which every library uses that many threads."""
    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
    return {**os.environ, **dict.fromkeys(names, str(threads)), **(more or {})}


def run_step(
    module: str,
    arguments: Sequence[str],
    *,
    timeout: float,
    threads: int = 1,
    cores: Iterable[int] | None = None,
    prefix: Sequence[str] = (),
    variables: Mapping[str, str] | None = None,
) -> Any:
    """What a module of ours prints as JSON in its last line; None where it prints nothing.

    Args:
        module: in `graphwright.tools`, as in "runtimes.prepare".
        arguments: its arguments.
        timeout: seconds; then it is killed, and so is whatever it started.
        threads: threads that libraries may use.
        cores: what it is pinned to; all that this process has where None.
        prefix: command to put before it.
        variables: more of the environment.

    Raises:
        StepFailed: it fails; its last words.
        StepTimedOut: it takes longer.
    """
    pinned = None if cores is None else set(cores)
    with subprocess.Popen(
        [*prefix, sys.executable, "-m", f"{_ROOM}.{module}", *arguments],
        env=environment(threads, variables),
        preexec_fn=None if pinned is None else lambda: os.sched_setaffinity(0, pinned),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        process_group=0,
    ) as process:
        try:
            output, errors = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            raise StepTimedOut(f"not done after {timeout:.0f} s") from None
        finally:
            kill_group(process)
    if process.returncode:
        raise StepFailed(last_words(errors, process.returncode))
    lines = output.splitlines()
    return json.loads(lines[-1]) if lines else None


def kill_group(process: subprocess.Popen[Any]) -> None:
    """End a process that leads a group, and what it started; it may be over already."""
    if process.poll() is not None:
        return
    # What holds a machine for others gives it back when it is asked to end.
    for order, seconds in ((signal.SIGTERM, _GRACE), (signal.SIGKILL, None)):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, order)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(seconds)
            return


def last_words(errors: str, code: int) -> str:
    """Why a process ended, in a line: the signal, or the last line it wrote."""
    if code < 0:
        return f"killed by signal {-code}"
    lines = [line.strip() for line in errors.splitlines() if line.strip()]
    return (lines or [f"exit code {code} without a word"])[-1][:300]


@contextlib.contextmanager
def answers() -> Iterator[TextIO]:
    """Where a step writes its JSON; what libraries print meanwhile goes to the standard error."""
    with os.fdopen(os.dup(1), "w") as channel:
        os.dup2(2, 1)
        yield channel
