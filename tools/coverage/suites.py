"""How many published architectures are pruned, and proven: each in a process of its own.

`graphwright coverage` (or `make coverage`, which installs the suites in an environment of their own) builds
every architecture with random weights, exports it, prunes half the channels of every group, and compares the
saved file with the masked original. Results are kept line by line, so that a run that was stopped goes on
where it was.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from ...ir.errors import ToolError
from .records import OURS, Outcome, append_outcome, read_outcomes

SUITES = ("torchvision", "timm", "transformers")
_FIELDS = {field.name for field in fields(Outcome)}


@dataclass(frozen=True)
class Settings:
    """How to run.

    Attributes:
        ratio: share of the channels to remove from every group.
        allow_statistical: also those that a normalization takes statistics over.
        time_limit: seconds for one architecture and tool.
        memory_gib: GiB that its process may allocate.
        jobs: processes at a time.
        again: run what the file of results already has.
    """

    ratio: float = 0.5
    allow_statistical: bool = True
    time_limit: float = 600.0
    memory_gib: float = 16.0
    jobs: int = 1
    again: bool = False

    @property
    def text(self) -> str:
        """What of it changes results."""
        return f"ratio {self.ratio:g}, statistical groups {'pruned' if self.allow_statistical else 'kept'}"

    def options(self) -> str:
        """What the worker is told."""
        names = ("ratio", "allow_statistical", "memory_gib")
        return json.dumps({name: getattr(self, name) for name in names})


def list_architectures(suites: Iterable[str], only: str = "") -> list[tuple[str, str]]:
    """Suite and name of everything that `only`, a regular expression, is found in as `suite/name`.

    Raises:
        ToolError: an unknown suite, one that is not installed, or nothing matches.
    """
    found = []
    for suite in suites:
        if suite not in SUITES:
            raise ToolError(f"there is no suite {suite!r}; there are: {', '.join(SUITES)}, all")
        if importlib.util.find_spec(suite) is None:
            raise ToolError(f"{suite} is not installed here; `make coverage` has an environment that has it")
        names = importlib.import_module(f".{suite}", __package__).names()
        found += [(suite, name) for name in names if re.search(only, f"{suite}/{name}")]
    if not found:
        raise ToolError(f"no architecture matches {only!r}")
    return found


def has_rival() -> bool:
    """Whether Torch-Pruning can be imported."""
    return importlib.util.find_spec("torch_pruning") is not None


def run_coverage(
    architectures: Sequence[tuple[str, str]],
    settings: Settings,
    *,
    tools: Sequence[str] = (OURS,),
    results: Path | None = None,
    say: Callable[[str], None] = lambda text: None,
    run: bool = True,
) -> list[Outcome]:
    """Run the tools on the architectures; all of the first tool before any of the second.

    Args:
        architectures: suite and name of each.
        settings: how.
        tools: `OURS`, `RIVAL`.
        results: file of JSON lines; what it has under the same settings is not run again.
        say: called with what is going on.
        run: where false, nothing is run.

    Returns:
        One outcome each, in order, of earlier runs where there are any; without `run` only these.

    Raises:
        ToolError: the file of results cannot be read.
    """
    known = {each.key: each for each in read_outcomes(results) if each.options == settings.text}
    wanted = [(suite, name, tool) for tool in tools for suite, name in architectures]
    todo = [key for key in wanted if run and (settings.again or key not in known)]
    lock = threading.Lock()
    running = set[subprocess.Popen[bytes]]()
    interrupted = threading.Event()
    count = 0

    def one(key: tuple[str, str, str]) -> None:
        nonlocal count
        outcome = run_one(key, settings, running)
        with lock:
            if interrupted.is_set():
                return
            count += 1
            known[key] = outcome
            append_outcome(results, outcome)
            trouble = f": {outcome.cause}" if outcome.cause else ""
            name = "/".join(key[:2]) + ("" if key[2] == OURS else f" by {key[2]}")
            say(f"{count} of {len(todo)}: {name} {outcome.status()}{trouble}")

    with ThreadPoolExecutor(max_workers=settings.jobs) as pool:
        try:
            for future in [pool.submit(one, key) for key in todo]:
                future.result()
        except BaseException:
            # Processes that are killed now did not fail.
            interrupted.set()
            pool.shutdown(wait=False, cancel_futures=True)
            for process in list(running):
                _kill(process)
            raise
    return [known[key] for key in wanted if key in known]


def run_one(
    key: tuple[str, str, str], settings: Settings, running: set[subprocess.Popen[bytes]] | None = None
) -> Outcome:
    """One tool on one architecture, in a process of its own that is stopped after the time limit."""
    suite, name, tool = key
    command = [sys.executable, "-m", f"{__package__}.worker", tool, suite, name, settings.options()]
    start = time.perf_counter()
    environment = {"OMP_NUM_THREADS": "1", **os.environ}
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment, start_new_session=True
    )
    if running is not None:
        running.add(process)
    cause = ""
    try:
        output, errors = process.communicate(timeout=settings.time_limit)
    except subprocess.TimeoutExpired:
        _kill(process)
        output, errors = process.communicate()
        cause = f"stopped after {settings.time_limit:g} s"
    except BaseException:
        _kill(process)
        raise
    finally:
        if running is not None:
            running.discard(process)
    told = parse_told(output.decode(errors="replace"))
    if not cause and not told.get("cause") and (process.returncode or told.get("phase") != "done"):
        cause = _death(process.returncode, errors.decode(errors="replace"))
    seconds = time.perf_counter() - start
    more = {"seconds": seconds, "options": settings.text, **({"cause": cause} if cause else {})}
    return Outcome.from_json({"suite": suite, "name": name, "tool": tool, **told, **more})


def parse_told(text: str) -> dict[str, Any]:
    """What the lines that a worker printed say together; the last line may be cut."""
    told: dict[str, Any] = {}
    for line in text.splitlines():
        with contextlib.suppress(ValueError):
            data = json.loads(line)
            if isinstance(data, dict):
                told.update((name, value) for name, value in data.items() if name in _FIELDS)
    return told


def _kill(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(OSError):
        os.killpg(process.pid, signal.SIGKILL)


def _death(code: int, errors: str) -> str:
    if code == -signal.SIGKILL:
        return "killed, most likely for want of memory"
    if code < 0:
        return f"crashed with {signal.Signals(-code).name}"
    lines = errors.strip().splitlines()
    return f"ended with exit code {code}" + (f": {lines[-1][:200]}" if lines else "")
