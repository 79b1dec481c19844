"""A pruning scan as a picture: one curve per group, SVG without any library."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..passes.pruning.sensitivity import Point, Sensitivity

WIDTH, HEIGHT = 760, 420
_LEFT, _RIGHT, _TOP, _BOTTOM = 60, 16, 50, 48
_COLOURS = ("#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377", "#bbbbbb")
_LABELLED = 8


def svg(scan: Sensitivity) -> str:
    """Two charts: quality by ratio for every group alone, and quality by MACs for all groups together."""
    label = "SQNR, dB" if scan.metric is None else "metric"
    curves: dict[str, list[tuple[float, float]]] = {}
    for point in scan.by_group:
        curves.setdefault(point.name, []).append((point.ratio, _shown(point)))
    together = {"all groups": [(point.macs, _shown(point)) for point in scan.together]}
    best = {"best (Pareto)": [(point.macs, _shown(point)) for point in scan.pareto]}
    first = chart("Each group alone", "share of its channels removed", label, curves, 0)
    second = chart("All groups together", "MACs kept", label, {**together, **best}, HEIGHT)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {2 * HEIGHT}" '
        f'width="{WIDTH}" height="{2 * HEIGHT}" font-family="sans-serif" font-size="12">\n'
        f'<rect width="100%" height="100%" fill="white"/>\n{first}{second}</svg>\n'
    )


def html(title: str, scan: Sensitivity, tables: str) -> str:
    """A page with the picture and the tables (as preformatted text)."""
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f"<title>{escape(title)}</title></head>\n"
        f'<body style="font-family: sans-serif; max-width: 60em; margin: 2em auto"><h1>{escape(title)}</h1>\n'
        f"{svg(scan)}<pre>{escape(tables)}</pre></body></html>\n"
    )


def _shown(point: Point) -> float:
    return point.quality if math.isfinite(point.quality) else math.nan


def chart(
    title: str, x_label: str, y_label: str, curves: dict[str, list[tuple[float, float]]], offset: int
) -> str:
    """One chart as SVG elements.

    Args:
        title: What stands above it.
        x_label: What stands below it.
        y_label: What stands beside it.
        curves: Points by name; not finite ones are left out.
        offset: How far down it stands, in pixels.
    """
    points = [(x, y) for curve in curves.values() for x, y in curve if math.isfinite(y)]
    if not points:
        return f'<text x="{_LEFT}" y="{offset + _TOP}">{escape(title)}: nothing to show</text>\n'
    x_ticks, y_ticks = ticks_around([x for x, _ in points]), ticks_around([y for _, y in points])

    def x_at(x: float) -> float:
        span = x_ticks[-1] - x_ticks[0]
        return _LEFT + (x - x_ticks[0]) / span * (WIDTH - _LEFT - _RIGHT - 190)

    def y_at(y: float) -> float:
        span = y_ticks[-1] - y_ticks[0]
        return offset + HEIGHT - _BOTTOM - (y - y_ticks[0]) / span * (HEIGHT - _TOP - _BOTTOM)

    parts = [f'<text x="{_LEFT}" y="{offset + 20}" font-size="15">{escape(title)}</text>']
    right, low, high = x_at(x_ticks[-1]), y_at(y_ticks[0]), y_at(y_ticks[-1])
    for tick in x_ticks:
        x = x_at(tick)
        parts.append(f'<line x1="{x:.1f}" y1="{low:.1f}" x2="{x:.1f}" y2="{high:.1f}" stroke="#eeeeee"/>')
        parts.append(f'<text x="{x:.1f}" y="{low + 16:.1f}" text-anchor="middle">{tick:g}</text>')
    for tick in y_ticks:
        y = y_at(tick)
        parts.append(f'<line x1="{_LEFT}" y1="{y:.1f}" x2="{right:.1f}" y2="{y:.1f}" stroke="#eeeeee"/>')
        parts.append(f'<text x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{tick:g}</text>')
    parts.append(
        f'<text x="{(_LEFT + right) / 2:.1f}" y="{low + 36:.1f}" text-anchor="middle">'
        f"{escape(x_label)}</text>"
    )
    parts.append(f'<text x="8" y="{high - 12:.1f}">{escape(y_label)}</text>')
    # Those that lose the most are named; with many groups the others would hide them.
    ranked = sorted(curves, key=lambda name: min((y for _, y in curves[name] if y == y), default=math.inf))
    for index, name in enumerate(ranked):
        colour = _COLOURS[index % len(_COLOURS)] if index < _LABELLED else "#cccccc"
        line = " ".join(f"{x_at(x):.1f},{y_at(y):.1f}" for x, y in curves[name] if math.isfinite(y))
        parts.append(
            f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="1.6">'
            f"<title>{escape(name)}</title></polyline>"
        )
        if index < _LABELLED:
            y = offset + _TOP + 16 * index + 8
            parts.append(f'<rect x="{right + 12:.1f}" y="{y - 9}" width="10" height="10" fill="{colour}"/>')
            parts.append(f'<text x="{right + 27:.1f}" y="{y}">{escape(_short(name))}</text>')
    return "\n".join(parts) + "\n"


def _short(name: str) -> str:
    return name if len(name) <= 24 else name[:23] + "…"


def ticks_around(values: Sequence[float]) -> list[float]:
    """Round numbers that enclose the values, about five of them."""
    low, high = min(values), max(values)
    span = (high - low) or abs(high) or 1.0
    raw = span / 4.0
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1.0, 2.0, 2.5, 5.0, 10.0) if factor * power >= raw)
    start = math.floor(low / step) * step
    ticks = [start]
    while ticks[-1] < high - 1e-9 * span:
        ticks.append(round(ticks[-1] + step, 12))
    return ticks if len(ticks) > 1 else [start, start + step]
