"""Watchers of a pipeline that `graphwright opt` offers: printers and a dumper."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from ..ir.clone import clone
from ..ir.errors import ToolError
from ..passes.manager import Observer
from .console import print_line

if TYPE_CHECKING:
    import onnx_ir as ir

    from ..passes.base import Pass
    from ..passes.manager import PassRecord


class Printer(Observer):
    """Prints the whole graph after every pass."""

    def after_pass(self, instance: Pass, model: ir.Model, record: PassRecord) -> None:
        """Print the graph."""
        from ..ir.text import to_text

        print_line(f"// after {record.text}")
        print_line(to_text(model).rstrip("\n"))


class ChangePrinter(Observer):
    """Prints what differs after every pass that changed something."""

    def __init__(self, original: ir.Model):
        self._before = clone(original)

    def after_pass(self, instance: Pass, model: ir.Model, record: PassRecord) -> None:
        """Print the difference to the graph before this pass."""
        if not record.changed:
            print_line(f"// {record.text} changed nothing")
            return
        from ..ir.diff import diff

        print_line(f"// changed by {record.text}")
        print_line(diff(self._before, model).text().rstrip("\n"))
        self._before = clone(model)


class ProgressTeller(Observer):
    """Says which pass is running, and what it says of itself; on a terminal always, elsewhere now and then.

    Args:
        tell: Shows one line.
        every: Least seconds between two lines.
    """

    def __init__(self, tell: Callable[[str], None], every: float):
        self._tell = tell
        self._every = every
        self._last = time.monotonic()
        self._pass = ""

    def before_pass(self, instance: Pass, model: ir.Model, index: int, total: int) -> None:
        """Name the pass."""
        self._pass = f"pass {index + 1} of {total}: {instance.name}"
        self._say(self._pass)

    def __call__(self, done: int, total: int | None, text: str) -> None:
        """Show how far the pass is, as passes and checks call it."""
        of = f" {_bar(done, total)} ({min(done + 1, total)} of {total})" if total else ""
        self._say(f"{self._pass}: {text}{of}" if self._pass else f"{text}{of}")

    def _say(self, line: str) -> None:
        now = time.monotonic()
        if now - self._last >= self._every:
            self._last = now
            self._tell(line)


def _bar(done: int, total: int, width: int = 16) -> str:
    full = min(width, done * width // total)
    return "━" * full + "╌" * (width - full)


class Dumper(Observer):
    """Writes the graph after every pass into a folder: `01-fold-constants.onnx`, ...

    Raises:
        ToolError: the folder cannot be made.
    """

    def __init__(self, folder: Path):
        self._folder = folder
        self._index = 0
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ToolError(f"cannot make the folder '{folder}': {error.strerror}") from error

    def after_pass(self, instance: Pass, model: ir.Model, record: PassRecord) -> None:
        """Write the graph."""
        from ..ir.save import save

        self._index += 1
        stem = re.sub(r"[^A-Za-z0-9._-]", "_", instance.name)
        save(clone(model), self._folder / f"{self._index:02d}-{stem}.onnx")
