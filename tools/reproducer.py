"""When a pass crashes, what is needed to see it crash again is written down without asking."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from ..ir.errors import GraphwrightError, PassCrash

if TYPE_CHECKING:
    import onnx_ir as ir

STEM = "graphwright-reproducer"


@contextlib.contextmanager
def reproducer_on_crash(model: ir.Model, pipeline: str, seed: int = 0) -> Iterator[None]:
    """Write `graphwright-reproducer.onnx` into the current folder if a pass crashes inside.

    The file holds the model as it was before the pass, and the pass. `graphwright reduce FILE --replay` runs
    it and `graphwright reduce FILE --pipeline ... -o SMALLER` shrinks it.

    Raises:
        PassCrash: The crash, its line extended by the name of the file.
    """
    try:
        yield
    except PassCrash as crash:
        from ..passes.reduce import save_crash

        path = _free_name()
        try:
            save_crash(model, pipeline, crash, path, seed)
        except (GraphwrightError, OSError) as trouble:
            raise PassCrash(f"{crash} (no reproducer could be written: {trouble})") from crash
        raise PassCrash(f"{crash}; to see it again: graphwright reduce {path} --replay") from crash


def _free_name() -> Path:
    path, n = Path(f"{STEM}.onnx"), 1
    while path.exists():
        path, n = Path(f"{STEM}-{n}.onnx"), n + 1
    return path
