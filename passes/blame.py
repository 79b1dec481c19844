"""Which single rewrite made a pass fail: fewer and fewer of them are let through."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import onnx_ir as ir

from ..ir.errors import PassCrash
from .base import Firing

_REWRITER = {"rewriter.py", "watched.py"}


def blamed(
    crash: PassCrash, before: ir.Model, fails: Callable[[int | None], list[Firing] | None]
) -> PassCrash:
    """Return the crash with rule and node in its line, where a single rewrite is at fault.

    Args:
        crash: What went wrong. One that was raised by a rule names it already.
        before: The model before the pass.
        fails: Runs the pass on that model with at most so many rewrites; the rewrites made if it fails in the
            same way, None if it does not.
    """
    if crash.kind == "raised":
        return crash
    whole = fails(None)
    if not whole or fails(0) is not None:
        return crash
    good, bad = 0, len(whole)
    while bad - good > 1:
        middle = (good + bad) // 2
        if fails(middle) is not None:
            bad = middle
        else:
            good = middle
    firing = whole[bad - 1]
    found = PassCrash(
        f"{crash}; rule '{firing.rule}' at node '{firing.node}' ({firing.op_type}) is the first to do so, "
        f"rewrite {bad} of {len(whole)}"
    )
    found.kind = crash.kind
    return found


def raised_by_rewriter(error: BaseException) -> bool:
    """Whether the rewriter refused what a pass told it to do, which is the pass's own mistake."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return trace is not None and Path(trace.tb_frame.f_code.co_filename).name in _REWRITER
