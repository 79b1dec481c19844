"""Simplifiers side by side: time, memory, what is left, and whether it still computes the same.

`graphwright bench --simplify` (or `make bench-simplify`, which installs the rivals) exports the models, runs
every tool on every model in processes of its own with its threads pinned, and prints a table and a list of
everything that crashed, changed outputs or beat us. Rivals that are not installed are named.
"""

from __future__ import annotations

import importlib.util
import json
import math
import re
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from ...ir.errors import ToolError
from ..processes import StepFailed, StepTimedOut, run_step
from .models import LARGE, MODELS, build_model, drop_model

OURS = "graphwright"
FUSED = "graphwright+fuse"
RIVALS = ("onnxsim", "onnxslim", "onnxscript", "onnxruntime")
SLOW_SECONDS = 60
"""A tool that takes longer on a model is run once: the run that also gives its memory."""
LARGE_SPACE = 8 * 2**30
"""Free bytes wanted for the model over 2 GB and a result of the same size."""


@dataclass(frozen=True)
class Outcome:
    """What one tool made of one model; `error` says why there is no result, or what is wrong with it.

    Attributes:
        model: its name in `MODELS`.
        tool: `OURS`, `FUSED` or one of `RIVALS`.
        nodes_before: in the file the tool was given.
        bytes_before: of its constants.
        wall: median seconds from file to file in a process that has warmed up.
        fastest: least such seconds.
        slowest: most such seconds.
        cpu: median CPU seconds.
        cold: seconds from the start of a fresh process to its end with the finished file.
        memory: bytes by which resident memory grew at its peak in the fresh process.
        runs: measured runs behind the medians.
        nodes: left in graph and subgraphs.
        foreign: of them, operators that are not standard.
        calls: of them, calls of functions that the model holds.
        constant_bytes: of the result.
        difference: largest relative difference of outputs over all seeds.
        error: empty where all is well.
    """

    model: str
    tool: str
    nodes_before: int
    bytes_before: int
    wall: float = math.nan
    fastest: float = math.nan
    slowest: float = math.nan
    cpu: float = math.nan
    cold: float = math.nan
    memory: int = 0
    runs: int = 0
    nodes: int = 0
    foreign: int = 0
    calls: int = 0
    constant_bytes: int = 0
    difference: float = math.nan
    error: str = ""

    def to_json(self) -> dict[str, Any]:
        """A JSON-able dictionary; numbers that there are not are null."""
        return {name: None if value != value else value for name, value in vars(self).items()}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Outcome:
        """What `to_json` made.

        Raises:
            ToolError: a field is missing or unknown.
        """
        if set(data) != {field.name for field in fields(cls)}:
            raise ToolError("the file of results was written by another version; remove it")
        values: dict[str, Any] = {name: math.nan if v is None else v for name, v in data.items()}
        return cls(**values)


@dataclass(frozen=True)
class Settings:
    """How to measure.

    Attributes:
        repeats: measured runs.
        core: CPU that every tool is pinned to.
        timeout: seconds that one run may take.
    """

    repeats: int = 5
    core: int = 0
    timeout: float = 600.0


def installed() -> list[str]:
    """Our tools and the rivals that can be imported."""
    from ...passes.registry import PRESETS

    ours = [OURS, FUSED] if "fuse" in PRESETS else [OURS]
    return [*ours, *(tool for tool in RIVALS if importlib.util.find_spec(tool) is not None)]


def run_benchmark(
    *,
    only: str = "",
    tools: Sequence[str] = (),
    settings: Settings = Settings(),
    models: Path | None = None,
    results: Path | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> list[Outcome]:
    """Run the tools on the models whose name `only` matches.

    Args:
        only: regular expression.
        tools: names; all that are installed where empty.
        settings: how to measure.
        models: folder in which exported models are kept; a temporary one where None. The model over 2 GB is
            removed again in either case.
        results: file of outcomes; those in it are not measured again, and new ones are added one by one.
        say: called with what is going on.

    Raises:
        ToolError: an unknown tool, no model of that name, or a file of results that cannot be read.
    """
    chosen = list(tools) or installed()
    for tool in chosen:
        if tool not in installed():
            known = tool in (OURS, FUSED, *RIVALS)
            raise ToolError(f"{tool!r} is not installed" if known else f"there is no simplifier {tool!r}")
    names = [name for name in MODELS if re.search(only, name)]
    if not names:
        raise ToolError(f"no model's name matches {only!r}; there are: {', '.join(MODELS)}")
    outcomes, skipped = _read(results), list[Outcome]()
    with tempfile.TemporaryDirectory() as scratch:
        folder = models or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        for name in names:
            missing = [t for t in chosen if not any((o.model, o.tool) == (name, t) for o in outcomes)]
            if not missing:
                continue
            if name == LARGE and shutil.disk_usage(folder).free < LARGE_SPACE:
                reason = f"not measured: it wants {LARGE_SPACE / 2**30:.0f} GiB of free disk"
                skipped += [Outcome(name, tool, 0, 0, error=reason) for tool in missing]
                continue
            say(f"building {name}")
            source = build_model(name, folder)
            for tool in missing:
                say(f"{name} with {tool}")
                outcomes.append(run_tool(tool, name, source, settings, scratch=folder))
                _write(results, outcomes)
            if name == LARGE:
                drop_model(source)
    found = {(o.model, o.tool): o for o in (*outcomes, *skipped)}
    return [found[name, tool] for name in names for tool in chosen]


def _read(path: Path | None) -> list[Outcome]:
    if path is None or not path.exists():
        return []
    try:
        return [Outcome.from_json(each) for each in json.loads(path.read_text(encoding="utf-8"))]
    except (ValueError, TypeError) as error:
        raise ToolError(f"'{path}' holds no results of this benchmark: {error}") from error


def _write(path: Path | None, outcomes: Sequence[Outcome]) -> None:
    if path is None:
        return
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(json.dumps([outcome.to_json() for outcome in outcomes], indent=1), encoding="utf-8")
    temporary.replace(path)


def run_tool(
    tool: str, name: str, source: Path, settings: Settings, *, scratch: Path | None = None
) -> Outcome:
    """Simplify `source` with `tool` in processes of its own and look at the result.

    A fresh process runs it once (`cold`, `memory`), a second one warms up and runs it `repeats` times.
    """
    before = _process(["simplifiers.judge", str(source)], settings, settings.timeout)
    known = Outcome(name, tool, before["nodes"], before["constant_bytes"])
    with tempfile.TemporaryDirectory(dir=scratch) as folder:
        target = str(Path(folder, "out.onnx"))
        command = ["simplifiers.worker", tool, str(source), target]
        try:
            start = time.perf_counter()
            first = _process([*command, "0", "1"], settings, settings.timeout)
            cold = time.perf_counter() - start
            again = first
            if cold <= SLOW_SECONDS:
                limit = settings.timeout + SLOW_SECONDS * settings.repeats
                again = _process([*command, "1", str(settings.repeats)], settings, limit)
            result = _process(["simplifiers.judge", str(source), target], settings, settings.timeout)
        except StepFailed as error:
            text = str(error).replace(f"{folder}/", "")[:160]
            return replace(known, error=text if isinstance(error, StepTimedOut) else f"crashes: {text}")
        result["error"] = result["error"].replace(f"{folder}/", "")
    return replace(
        known,
        wall=statistics.median(again["wall"]),
        fastest=min(again["wall"]),
        slowest=max(again["wall"]),
        cpu=statistics.median(again["cpu"]),
        runs=len(again["wall"]),
        cold=cold,
        memory=first["memory"],
        **result,
    )


def _process(arguments: list[str], settings: Settings, timeout: float) -> dict[str, Any]:
    """What a module of ours prints as JSON, run on one pinned core."""
    module, *rest = arguments
    return run_step(module, rest, timeout=timeout, cores=[settings.core])
