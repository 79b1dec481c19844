"""Rules that do not come back: found out while they run, stopped, and named."""

from __future__ import annotations

import contextlib
import ctypes
import sys
import threading
import time
from collections.abc import Iterator
from contextvars import ContextVar
from pathlib import Path
from types import FrameType, TracebackType

DEFAULT_LIMIT = 60.0
"""Seconds that one rule may take at one node, where nobody says otherwise."""

_DEBUGGERS = ("pdb", "bdb", "pydevd", "_pydevd_bundle", "debugpy")


class RuleStuck(BaseException):
    """Raised inside a rule that takes too long; no `Exception`, so that no handler there takes it for one.

    Attributes:
        limit: The seconds it was given.
    """

    limit: float = DEFAULT_LIMIT

    def __str__(self) -> str:
        return f"did not come to an end within {self.limit:g} s"


_limit: ContextVar[float] = ContextVar("rule_timeout", default=DEFAULT_LIMIT)
_watched: ContextVar[bool] = ContextVar("rule_watched", default=False)


@contextlib.contextmanager
def rule_limit(seconds: float | None) -> Iterator[None]:
    """Set the limit of all runs inside that are given none of their own; 0: no limit, None: as it is."""
    if seconds is None:
        yield
        return
    token = _limit.set(seconds)
    try:
        yield
    finally:
        _limit.reset(token)


@contextlib.contextmanager
def watching(limit: float | None) -> Iterator[None]:
    """Raise `RuleStuck` in this thread when one try of one rule takes longer than `limit` seconds.

    The driver is looked at from outside, so that it does not pay for it. What hangs in native code is
    interrupted only when that returns. Time spent in a debugger does not count. Inside of another watch this
    does nothing.

    Args:
        limit: Seconds; 0 for no limit, None for the one that `rule_limit` set.
    """
    limit = _limit.get() if limit is None else limit
    if not limit or _watched.get():
        yield
        return
    token = _watched.set(True)
    stop, raised, deciding = threading.Event(), threading.Event(), threading.Lock()
    thread = threading.get_ident()
    watcher = threading.Thread(
        target=_watch, args=(thread, limit, stop, raised, deciding), name="graphwright-watchdog", daemon=True
    )
    watcher.start()
    try:
        yield
    finally:
        # One that was raised when the rule had just come back arrives here, not in what follows. It cannot be
        # taken back: CPython 3.11 then hangs as soon as somebody traces or profiles.
        with contextlib.suppress(RuleStuck):
            with deciding:
                stop.set()
            for _ in range(1000 if raised.is_set() else 0):
                pass
        stop.set()
        _watched.reset(token)


def rule_at_work(frame: FrameType | None) -> tuple[str, str, str] | None:
    """Rule, node and operator type that the driver is trying in a stack that ends in `frame`."""
    found = _driver_of(frame)
    if found is None:
        return None
    names = found.f_locals
    rule, node = names.get("rule"), names.get("node")
    if rule is None or node is None or "op_type" not in names:
        return None
    return rule.label, str(names.get("name") or node.name or ""), str(names["op_type"])


def innermost(trace: TracebackType | None) -> FrameType | None:
    """The frame in which an exception was raised."""
    entry = _last(trace)
    return None if entry is None else entry.tb_frame


def place_of(error: BaseException) -> str:
    """File and line in which an exception was raised, as ` at rules.py:12`; empty where that is not known."""
    entry = _last(error.__traceback__)
    return "" if entry is None else f" at {Path(entry.tb_frame.f_code.co_filename).name}:{entry.tb_lineno}"


def _last(trace: TracebackType | None) -> TracebackType | None:
    """The last entry of a traceback that does not belong to a handler of signals."""
    found = trace
    while trace is not None:
        if not str(trace.tb_frame.f_globals.get("__name__")).endswith(".tools.cli"):
            found = trace
        trace = trace.tb_next
    return found


def _driver_of(frame: FrameType | None) -> FrameType | None:
    from .driver import _exhaust

    while frame is not None:
        if frame.f_code is _exhaust.__code__:
            return frame
        frame = frame.f_back
    return None


def _watch(
    thread: int, limit: float, stop: threading.Event, raised: threading.Event, deciding: threading.Lock
) -> None:
    tick = min(limit / 4, 1.0)
    last: tuple[object, ...] | None = None
    spent, seen = 0.0, time.monotonic()
    stuck = type("RuleStuck", (RuleStuck,), {"limit": limit})
    while not stop.wait(tick):
        now = time.monotonic()
        here = _attempt(sys._current_frames().get(thread))
        # A process that was stopped meanwhile did not work all that time.
        spent = spent + min(now - seen, 2 * tick) if here is not None and here == last else 0.0
        last, seen = here, now
        if spent >= limit:
            with deciding:
                if not stop.is_set():
                    raised.set()
                    _raise_in(thread, stuck)
            last = None


def _attempt(frame: FrameType | None) -> tuple[object, ...] | None:
    """What tells one try of a rule from the next; None outside of the driver, and in a debugger."""
    driver = _driver_of(frame)
    if driver is None:
        return None
    inner = frame
    while inner is not None and inner is not driver:
        if str(inner.f_globals.get("__name__")).partition(".")[0] in _DEBUGGERS:
            return None
        inner = inner.f_back
    names = driver.f_locals
    if inner is frame or names.get("rule") is None:
        return None
    return id(driver), id(names.get("node")), id(names["rule"]), names.get("fired"), len(names["worklist"])


def _raise_in(thread: int, error: type[BaseException]) -> None:
    """Have an exception raised in a thread, soon."""
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), ctypes.py_object(error))
