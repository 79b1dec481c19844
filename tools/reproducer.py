"""When a pass crashes, what is needed to see it crash again is written down without asking."""

from __future__ import annotations

import contextlib
import shlex
import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..ir.errors import GraphwrightError, PassCrash

if TYPE_CHECKING:
    import onnx_ir as ir

STEM = "graphwright-reproducer"


@contextlib.contextmanager
def reproducer_on_crash(
    model: ir.Model,
    pipeline: str,
    seed: int = 0,
    *,
    advice: str = "",
    plugins: Sequence[Path] | None = None,
    **data: Any,
) -> Iterator[None]:
    """Write `graphwright-reproducer.onnx` into the current folder if a pass crashes or is interrupted inside.

    The file holds the model as it was before the pass, and the pass. `graphwright reduce FILE --replay` runs
    it and `graphwright reduce FILE --pipeline ... -o SMALLER` shrinks it.

    Args:
        model: The model that goes into the pipeline.
        pipeline: The pipeline as text.
        seed: The seed of the run.
        advice: What else the user can do, added to the line.
        plugins: Files that the passes come from, for the line to name.
        **data: `inputs`, `calibration` and `target` of the run, as `passes.reproducer.save_crash` takes them.

    Raises:
        PassCrash: The crash, its line extended by the name of the file.
    """
    try:
        yield
    except PassCrash as crash:
        line = str(crash)
        if crash.reproducer is None:
            path, trouble = write_reproducer(model, pipeline, crash, seed, **data)
        else:
            line = line.removesuffix(f"; reproducer: {crash.reproducer}")
            path, trouble = _brought_here(Path(crash.reproducer)), ""
        if path is None:
            raise PassCrash(f"{line} (no reproducer could be written: {trouble})") from crash
        raise PassCrash(f"{line}; to see it again: {replay_command(path, plugins)}{advice}") from crash
    except KeyboardInterrupt as interruption:
        if hasattr(interruption, "pass_index"):
            _write_interrupted(interruption, model, pipeline, seed, plugins, **data)
        raise


def _write_interrupted(
    interruption: KeyboardInterrupt,
    model: ir.Model,
    pipeline: str,
    seed: int,
    plugins: Sequence[Path] | None,
    **data: Any,
) -> None:
    from ..passes.reproducer import save_interrupted

    line = "; ".join(interruption.__notes__)
    with contextlib.suppress(GraphwrightError, OSError):
        path = save_interrupted(model, pipeline, interruption, _free_name(), seed, **data)
        line = f"{line}; to see it again: {replay_command(path, plugins)}"
    # Now: what handles interruptions further out does not look at notes.
    print(f"graphwright: {line}", file=sys.stderr)


def replay_command(path: Path | str, plugins: Sequence[Path] | None) -> str:
    """The command that shows a reproducer's failure again."""
    words = ["graphwright", "reduce", str(path), "--replay"]
    for plugin in plugins or ():
        words += ["--plugin", str(plugin)]
    return shlex.join(words)


def _brought_here(file: Path) -> Path:
    """Move a reproducer that the library wrote into the current folder."""
    path = _free_name()
    try:
        return Path(shutil.move(file, path))
    except OSError:
        return file


def write_reproducer(
    model: ir.Model, pipeline: str, crash: PassCrash, seed: int = 0, **data: Any
) -> tuple[Path | None, str]:
    """Write the reproducer of a crash into the current folder; returns its path, or None and why not."""
    from ..passes.reproducer import save_crash

    path = _free_name()
    try:
        return save_crash(model, pipeline, crash, path, seed, **data), ""
    except (GraphwrightError, OSError) as trouble:
        return None, str(trouble)


def _free_name() -> Path:
    path, n = Path(f"{STEM}.onnx"), 1
    while path.exists():
        path, n = Path(f"{STEM}-{n}.onnx"), n + 1
    return path
