"""The tables of `graphwright bench --profile`: kernel calls by time, totals by kind, the worst."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from .console import human_bytes, human_count, print_line, print_table
from .measure import timing_text
from .steps import markdown_table

if TYPE_CHECKING:
    from ..backends.profile import KernelCall, KindTotal, Profile
    from ..backends.tvm.peaks import Peaks

_NODES = 3
"""Nodes named in a row; JSON has them all."""
_CALLS = (
    *("#", "kernel", "chosen", "nodes", "ms", "share", "FLOPs", "GFLOP/s", "GB/s"),
    *("bound", "of peak", "shapes as stored"),
)
_KINDS = ("kind", "calls", "ms", "share", "FLOPs", "bytes", "of peak")
_WORST = ("#", "kernel", "chosen", "nodes", "bound", "of peak", "ms", "ms at peak")


def print_profile(title: str, profile: Profile) -> None:
    """The profile as tables on standard output."""
    for line in _head(profile):
        print_line(line)
    for name, columns, rows, left in _tables(profile):
        print_table(f"{title}: {name}", columns, rows, left=left)
    for note in profile.notes:
        print_line(f"- {note}")


def profile_markdown(title: str, profile: Profile) -> str:
    """The profile as a page."""
    parts = [f"# {title}: kernels", "\n".join(f"- {line}" for line in _head(profile))]
    for name, columns, rows, _ in _tables(profile):
        parts += [f"## {name[0].upper()}{name[1:]}", markdown_table(list(columns), rows)]
    parts.append("\n".join(f"- {note}" for note in profile.notes))
    return "\n\n".join(parts) + "\n"


def _tables(profile: Profile) -> list[tuple[str, Sequence[str], list[list[str]], int]]:
    worst = profile.worst()
    tables: list[tuple[str, Sequence[str], list[list[str]], int]] = [
        ("kernel calls by time", _CALLS, [_call(call) for call in profile.by_time], 4),
        ("totals by kind", _KINDS, [_kind(total) for total in profile.kinds()], 1),
    ]
    if worst:
        name = f"the {len(worst)} worst by share of peak"
        tables.append((name, _WORST, [_worst(call) for call in worst], 5))
    return tables


def _head(profile: Profile) -> list[str]:
    outside = profile.total.median_ms - profile.kernels_ms
    lines = [
        f"a run: {timing_text(profile.total)} ms on {profile.total.threads} thread(s), median (10th-90th "
        f"percentile) of {profile.total.samples}; {len(profile.calls)} kernel calls: "
        f"{profile.kernels_ms:.3f} ms, rest: {max(0.0, outside):.3f} ms"
    ]
    return [*lines, _limits(profile.peaks)] if profile.peaks else lines


def _limits(peaks: Peaks) -> str:
    rates = ", ".join(f"{rate:.1f} GB/s up to {human_bytes(size)}" for size, rate in peaks.bandwidths)
    dots = "".join(f", {name} {rate:.1f} Gop/s" for name, rate in peaks.dots)
    return f"this machine's measured peak: {peaks.gflops:.1f} GFLOP/s{dots}; {rates} ({peaks.method})"


def _call(call: KernelCall) -> list[str]:
    return [
        str(call.index),
        call.name,
        call.note or call.kind,
        _nodes(call),
        _ms(call.time.median_ms),
        _percent(call.share),
        human_count(call.flops) if call.flops else "-",
        _rate(call.gflops),
        _rate(call.gb_per_s),
        call.bound,
        _percent(call.share_of_peak),
        _shapes(call),
    ]


def _kind(total: KindTotal) -> list[str]:
    return [
        total.kind,
        str(total.calls),
        _ms(total.median_ms),
        _percent(total.share),
        human_count(total.flops) if total.flops else "-",
        human_bytes(total.bytes),
        _percent(total.share_of_peak),
    ]


def _worst(call: KernelCall) -> list[str]:
    return [
        str(call.index),
        call.name,
        call.note or call.kind,
        _nodes(call),
        call.bound,
        _percent(call.share_of_peak),
        _ms(call.time.median_ms),
        "-" if call.roof_ms is None else _ms(call.roof_ms),
    ]


def _nodes(call: KernelCall) -> str:
    more = len(call.nodes) - _NODES
    text = ", ".join(call.nodes[:_NODES]) + (f" and {more} more" if more > 0 else "")
    return f"{text or '-'} (from {', '.join(call.origins)})" if call.origins else text or "-"


def _shapes(call: KernelCall) -> str:
    short = [shape.removeprefix("float32") for shape in call.shapes]
    return " ".join(short[:-1]) + f" -> {short[-1]}" if short else "-"


def _ms(value: float) -> str:
    return f"{value:.4f}" if value < 1 else f"{value:.3f}"


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.1%}"


def _rate(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"
