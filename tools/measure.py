"""Latency as text; measuring it in turns is the business of `backends.interleave`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..backends.interleave import PAUSE_SECONDS, TURNS, measure_interleaved

if TYPE_CHECKING:
    from ..backends.timing import Timing

__all__ = ["PAUSE_SECONDS", "TURNS", "measure_interleaved", "milliseconds", "times_text", "timing_text"]


def timing_text(timing: Timing | None) -> str:
    """`12.34 (12.10-13.00)`: the median and the 10th to 90th percentile, in milliseconds."""
    if timing is None:
        return "-"
    return times_text(timing.median_ms, timing.p10, timing.p90)


def times_text(median: float, p10: float, p90: float) -> str:
    """The same of numbers."""
    return f"{milliseconds(median)} ({milliseconds(p10)}-{milliseconds(p90)})"


def milliseconds(value: float) -> str:
    """Three or four figures."""
    return f"{value:.3f}" if value < 1 else f"{value:.2f}" if value < 100 else f"{value:.0f}"
