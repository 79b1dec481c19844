"""Latency as text; measuring it in turns is the business of `backends.interleave`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..backends.interleave import PAUSE_SECONDS, TURNS, measure_interleaved

if TYPE_CHECKING:
    from ..backends.timing import Timing

__all__ = ["PAUSE_SECONDS", "TURNS", "measure_interleaved", "timing_text"]


def timing_text(timing: Timing | None) -> str:
    """`12.34 (12.10-13.00)`: the median and the 10th to 90th percentile, in milliseconds."""
    if timing is None:
        return "-"
    return f"{_ms(timing.median_ms)} ({_ms(timing.p10)}-{_ms(timing.p90)})"


def _ms(value: float) -> str:
    return f"{value:.3f}" if value < 1 else f"{value:.2f}" if value < 100 else f"{value:.0f}"
