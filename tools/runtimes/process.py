"""Processes of the runtime benchmark: steps that end by themselves, contenders that wait, a quiet machine."""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ...backends.timing import Timing
from ...ir.errors import ToolError
from ..processes import StepTimedOut, environment, kill_group, last_words


def cores_for(threads: int) -> list[int]:
    """Cores that a contender with so many threads is pinned to: the last ones that this process may use.

    Raises:
        ToolError: there are not so many.
    """
    usable = sorted(os.sched_getaffinity(0))
    if threads > len(usable):
        raise ToolError(f"{threads} threads need as many cores; this machine has {len(usable)} to use")
    return usable[-threads:]


class Server:
    """A contender in its own process, started but perhaps not ready yet; see `server`.

    Attributes:
        ready: what it said when it had loaded.
        failure: why it cannot be measured; empty where it can.
    """

    def __init__(self, arguments: Sequence[str], threads: int, variables: Mapping[str, str] | None = None):
        self.threads = threads
        self.ready: dict[str, Any] = {}
        self.failure = ""
        self._errors = tempfile.TemporaryFile("w+", errors="replace")  # noqa: SIM115
        cores = cores_for(threads)
        self._process = subprocess.Popen(
            [sys.executable, "-m", f"{__package__}.server", *arguments, str(threads)],
            env=environment(threads, variables),
            preexec_fn=lambda: os.sched_setaffinity(0, cores),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            process_group=0,
        )
        self._read = bytearray()
        self._start = time.monotonic()

    def wait_until_ready(self, limit: float) -> None:
        """Wait until `limit` seconds after its start for it to load; sets `ready` or `failure`."""
        try:
            answer = self._answer(max(0.0, self._start + limit - time.monotonic()))
        except StepTimedOut:
            self.failure = f"not ready after {limit:.0f} s"
            return
        except ToolError as error:
            self.failure = str(error)
            return
        self.failure = answer.pop("failure", "")
        self.ready = answer

    def run(self, repeats: int, *, cold: bool, timeout: float) -> list[float]:
        """Milliseconds of so many runs.

        Raises:
            ToolError: it dies or takes longer than `timeout` seconds.
        """
        return self._ask({"do": "run", "repeats": repeats, "cold": cold}, timeout)["ms"]

    def profile(self, timeout: float) -> dict[str, Any]:
        """Where its time goes.

        Raises:
            ToolError: as for `run`.
        """
        return self._ask({"do": "profile"}, timeout)

    def close(self) -> None:
        """End the process; it may be ended already."""
        if self._errors.closed:
            return
        with contextlib.suppress(OSError):
            assert self._process.stdin is not None
            self._process.stdin.close()
        kill_group(self._process)
        assert self._process.stdout is not None
        self._process.stdout.close()
        self._errors.close()

    def _ask(self, order: dict[str, Any], timeout: float) -> dict[str, Any]:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(order).encode() + b"\n")
            self._process.stdin.flush()
        except OSError:
            raise ToolError(f"died: {self._last_words()}") from None
        return self._answer(timeout)

    def _answer(self, timeout: float) -> dict[str, Any]:
        assert self._process.stdout is not None
        end = time.monotonic() + timeout
        with selectors.DefaultSelector() as selector:
            selector.register(self._process.stdout, selectors.EVENT_READ)
            while b"\n" not in self._read:
                if not selector.select(max(0.0, end - time.monotonic())):
                    raise StepTimedOut(f"no answer after {timeout:.0f} s")
                piece = os.read(self._process.stdout.fileno(), 1 << 16)
                if not piece:
                    raise ToolError(f"died: {self._last_words()}")
                self._read += piece
        line, _, rest = self._read.partition(b"\n")
        self._read = bytearray(rest)
        return json.loads(line)

    def _last_words(self) -> str:
        code = self._process.wait()
        self._errors.seek(0)
        return last_words(self._errors.read(), code)


class Runs:
    """A server's runs, warm or cold, as `measure_interleaved` wants them."""

    def __init__(self, server: Server, *, cold: bool, timeout: float):
        self.server, self.cold, self.timeout = server, cold, timeout

    def benchmark(
        self,
        feeds: Mapping[str, Any] | None = None,
        *,
        threads: int = 1,
        repeats: int | None = None,
        warmup: int = 1,
    ) -> Timing:
        """Runs on the inputs and threads that the server was started with."""
        assert repeats is not None and threads == self.server.threads
        return Timing.of(self.server.run(repeats, cold=self.cold, timeout=self.timeout), threads)


@contextlib.contextmanager
def quiet_machine(
    prefix: str | None, limit: float, afterwards: Sequence[str] = (), *, timeout: float = 600.0
) -> Iterator[list[str]]:
    """Hold the machine while the clock runs.

    Args:
        prefix: command that waits for its turn, runs what stands after it, and keeps others out meanwhile,
            such as `flock FILE`; nothing is held where None.
        limit: seconds after which the machine is given back whatever happens.
        afterwards: command to run at the end, before the machine is given back.
        timeout: seconds that it may take.

    Yields:
        A list into which the lines come that `afterwards` prints; none where it fails.

    Raises:
        ToolError: `prefix` does not run what stands after it.
    """
    with tempfile.TemporaryDirectory() as folder:
        flag, done = Path(folder, "held"), Path(folder, "done")
        flag.touch()
        waiting = (
            f"echo held; n=0; while [ -e {shlex.quote(str(flag))} ] && kill -0 {os.getpid()} && "
            f"[ $n -lt {int(limit * 5)} ]; do sleep 0.2; n=$((n+1)); done; "
            f'[ ! -e {shlex.quote(str(done))} ] || [ $# = 0 ] || exec "$@"'
        )
        holder = subprocess.Popen(
            [*shlex.split(prefix or ""), "sh", "-c", waiting, "sh", *afterwards],
            stdout=subprocess.PIPE,
            stdin=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        assert holder.stdout is not None
        lines: list[str] = []
        try:
            with _named("bench-driver"):
                if holder.stdout.readline().strip() != b"held":
                    raise ToolError(f"{prefix!r} did not run what it was given")
                yield lines
                done.touch()
                flag.unlink()
            with contextlib.suppress(subprocess.TimeoutExpired):
                lines += holder.communicate(timeout=timeout)[0].decode(errors="replace").splitlines()
        finally:
            flag.unlink(missing_ok=True)
            holder.kill()
            holder.stdout.close()
            holder.wait()


@contextlib.contextmanager
def _named(name: str) -> Iterator[None]:
    """Show this process by another name: what stops every `python` meanwhile must not stop the clock."""
    place = Path("/proc/self/comm")
    try:
        before = place.read_text()
        place.write_text(name)
    except OSError:
        yield
        return
    try:
        yield
    finally:
        place.write_text(before.strip())
