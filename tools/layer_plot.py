"""A quantization scan as a picture: one row per layer, SVG without any library."""

from __future__ import annotations

import math
from html import escape
from typing import TYPE_CHECKING

from .sensitivity_plot import ticks_around

if TYPE_CHECKING:
    from ..passes.quantization.sensitivity import QuantizationScan

WIDTH = 900
_LEFT, _RIGHT, _TOP, _BOTTOM, _ROW = 270, 40, 66, 50, 18
_NAME = 36
_ALONE, _WITHOUT, _TOGETHER = "#4477aa", "#ee6677", "#666666"


def svg(found: QuantizationScan) -> str:
    """Layers in graph order: the SQNR with only each quantized (lower loses more), and with all but each."""
    rows = [(each.layer.name, each.alone.sqnr_db, each.without.sqnr_db) for each in found.points]
    together = found.together.sqnr_db
    numbers = [number for _, *both in rows for number in (*both, together) if math.isfinite(number)]
    height = _TOP + _BOTTOM + _ROW * len(rows)
    ticks = ticks_around(numbers or [0.0, 1.0])
    bottom = _TOP + _ROW * len(rows)

    def across(decibels: float) -> float:
        share = (min(decibels, ticks[-1]) - ticks[0]) / (ticks[-1] - ticks[0])
        return _LEFT + share * (WIDTH - _LEFT - _RIGHT)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" '
        f'height="{height}" font-family="sans-serif" font-size="12">',
        '<rect width="100%" height="100%" fill="white"/>',
        f'<text x="12" y="20" font-size="15">SQNR of the outputs, layers in {escape(found.precision)}</text>',
        *_legend(found.precision, together),
    ]
    for tick in ticks:
        x = across(tick)
        parts.append(f'<line x1="{x:.1f}" y1="{_TOP}" x2="{x:.1f}" y2="{bottom}" stroke="#eeeeee"/>')
        parts.append(f'<text x="{x:.1f}" y="{bottom + 16}" text-anchor="middle">{tick:g}</text>')
    parts.append(
        f'<text x="{(_LEFT + WIDTH - _RIGHT) / 2}" y="{bottom + 36}" text-anchor="middle">SQNR, dB</text>'
    )
    if math.isfinite(together):
        x = across(together)
        parts.append(
            f'<line x1="{x:.1f}" y1="{_TOP}" x2="{x:.1f}" y2="{bottom}" stroke="{_TOGETHER}" '
            'stroke-dasharray="4 3"/>'
        )
    for index, (name, alone, without) in enumerate(rows):
        y = _TOP + _ROW * index + _ROW / 2
        parts.append(
            f'<text x="{_LEFT - 10}" y="{y + 4}" text-anchor="end">{escape(_short(name))}'
            f"<title>{escape(name)}</title></text>"
        )
        parts.append(f'<line x1="{_LEFT}" y1="{y}" x2="{WIDTH - _RIGHT}" y2="{y}" stroke="#f4f4f4"/>')
        for number, colour, what in ((alone, _ALONE, "only it"), (without, _WITHOUT, "all but it")):
            if not math.isnan(number) and number != -math.inf:
                # What loses nothing at all stands at the right end.
                parts.append(
                    f'<circle cx="{across(number):.1f}" cy="{y}" r="4.5" fill="{colour}">'
                    f"<title>{escape(name)}, {what}: {number:.1f} dB</title></circle>"
                )
    return "\n".join([*parts, "</svg>\n"])


def _legend(precision: str, together: float) -> list[str]:
    parts = []
    entries = (
        (12, _ALONE, f"only it in {escape(precision)} (left: loses the most)"),
        (290, _WITHOUT, "all but it (right: gains the most in float)"),
    )
    for x, colour, text in entries:
        parts.append(f'<circle cx="{x + 5}" cy="40" r="4.5" fill="{colour}"/>')
        parts.append(f'<text x="{x + 16}" y="44">{text}</text>')
    parts.append(
        f'<line x1="600" y1="40" x2="622" y2="40" stroke="{_TOGETHER}" stroke-dasharray="4 3"/>'
        f'<text x="628" y="44">all layers: {together:.1f} dB</text>'
    )
    return parts


def _short(name: str) -> str:
    """The end of a long name: layers differ there."""
    return name if len(name) <= _NAME else "…" + name[1 - _NAME :]
