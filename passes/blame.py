"""Failures of passes: one line that names the pass, and the single rewrite that is at fault."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

import onnx_ir as ir

from ..ir.errors import GraphwrightError, PassCrash, PassError, ShapeError, VerifyError
from .base import Firing
from .watchdog import RuleStuck, innermost, place_of, rule_at_work

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


def crash_of(kind: str, line: str) -> PassCrash:
    """Return a crash of one of the kinds that `PassCrash.kind` lists."""
    crash = PassCrash(line)
    crash.kind = kind
    return crash


@contextlib.contextmanager
def named_failures(name: str) -> Iterator[None]:
    """Turn whatever a pass raises into one line that begins with `name`.

    Raises:
        PassError: The user asked for what cannot be done.
        PassCrash: The pass is wrong.
    """
    try:
        yield
    except PassCrash as error:
        raise crash_of(error.kind, _begun(name, error)) from error
    except ShapeError as error:
        raise crash_of("shapes", f"{name} left contradictory shapes: {error}") from error
    except VerifyError as error:
        raise crash_of("graph", f"{name} left an {error}") from error
    except GraphwrightError as error:
        kind = PassCrash if _raised_by_rewriter(error) else PassError
        raise kind(_begun(name, error)) from error
    except RuleStuck as error:
        raise PassCrash(f"{name}: a rule of it {error}{place_of(error)} (option rule_timeout)") from error
    except (Exception, SystemExit) as error:
        raise PassCrash(f"{name} failed: {type(error).__name__}: {error}") from error


def name_interruption(error: KeyboardInterrupt, name: str, index: int, ours: bool) -> None:
    """Note on an interruption what was at work: a rule at a node, or code of a pass that is not ours.

    Args:
        error: The interruption; gets a note, and the position of the pass as `pass_index`.
        name: The pass.
        index: Its position in the pipeline.
        ours: Whether it belongs to this package; of those a long time is no news, unless a rule takes it.
    """
    found = rule_at_work(innermost(error.__traceback__))
    if found is None and ours:
        return
    where = "" if found is None else f", rule '{found[0]}' at node '{found[1]}' ({found[2]})"
    error.add_note(f"interrupted in pass '{name}'{where}{place_of(error)}")
    error.pass_index = index  # type: ignore[attr-defined]


def _begun(name: str, error: Exception) -> str:
    return str(error) if str(error).startswith(name) else f"{name}: {error}"


def _raised_by_rewriter(error: BaseException) -> bool:
    """Whether the rewriter refused what a pass told it to do, which is the pass's own mistake."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return trace is not None and Path(trace.tb_frame.f_code.co_filename).name in _REWRITER
