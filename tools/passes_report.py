"""What each pass did and what it left alone, for people."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .console import human_bytes, human_count, print_line

SHOWN_NODES = 3
SHOWN_REASONS = 8
"""Names of nodes shown per reason; the JSON report has them all."""


def timing_lines(tree: dict[str, Any]) -> list[str]:
    """A line per part of the run, indented under what it is part of: time, share of the whole, counts.

    Parts below a thousandth of the run are summed up. What a part spends outside of its own parts has a line
    of its own.
    """
    parts = tree.get("parts", [])
    total = sum(part["seconds"] for part in parts) or 1e-9
    lines = [f"{'ms':>10}  share  where"]
    for part in parts:
        _timing_part(part, total, 0, lines)
    lines.append(f"{total * 1e3:10.1f}  100.0%  total")
    return lines


def _timing_part(part: dict[str, Any], total: float, depth: int, lines: list[str]) -> None:
    lines.append(_timing_line(part["seconds"], total, depth, f"{part['name']}{_times(part)}"))
    inner = (
        sorted(part.get("parts", ()), key=lambda each: -each["seconds"]) if depth else part.get("parts", ())
    )
    shown = [each for each in inner if each["seconds"] >= total / 1000 or depth == 0]
    for each in shown:
        _timing_part(each, total, depth + 1, lines)
    small = sum(each["seconds"] for each in inner) - sum(each["seconds"] for each in shown)
    if len(inner) > len(shown):
        lines.append(_timing_line(small, total, depth + 1, f"{len(inner) - len(shown)} more"))
    rest = part["seconds"] - sum(each["seconds"] for each in inner)
    if inner and rest >= total / 1000:
        lines.append(_timing_line(rest, total, depth + 1, "the rest"))


def _timing_line(seconds: float, total: float, depth: int, text: str) -> str:
    return f"{seconds * 1e3:10.1f}  {seconds / total:6.1%} {'  ' * depth} {text}"


def _times(part: dict[str, Any]) -> str:
    if part.get("fired") is not None:
        return f" ({part['count']} tries, fired {part['fired']} times)"
    return f" ({part['count']} times)" if part["count"] > 1 else ""


def did_lines(records: Sequence[dict[str, Any]]) -> list[str]:
    """One line per pass with what it counted, one per reason for leaving something alone, and its notes."""
    lines = []
    for record in records:
        counted = ", ".join(f"{name}: {count}" for name, count in record["statistics"].items())
        done = counted or ("changed" if record["changed"] else "nothing to do")
        lines.append(f"{record['text']}: {record.get('error') or done}")
        if record.get("costs"):
            lines.append(f"  {_costs_text(record)}")
        lines += [_left_text(entry) for entry in record["left_alone"]]
        lines += [f"  note: {note}" for note in record["notes"]]
        if record["check"]:
            lines.append(f"  checked on {record['check']['input_sets']} input sets: {_check_text(record)}")
    return lines


def refused_lines(records: Sequence[dict[str, Any]]) -> list[str]:
    """What passes left alone and why, the first few reasons of each, and their notes."""
    lines = []
    for record in records:
        left = record["left_alone"]
        found = [_left_text(entry) for entry in left[:SHOWN_REASONS]]
        if len(left) > SHOWN_REASONS:
            found.append(f"  and for {len(left) - SHOWN_REASONS} more reasons, which --stats prints")
        found += [f"  note: {note}" for note in record["notes"]]
        lines += [f"{record['name']}:", *found] if found else []
    return lines


def _left_text(entry: dict[str, Any]) -> str:
    names = ", ".join(name or "?" for name in entry["nodes"][:SHOWN_NODES])
    more = ", ..." if entry["count"] > SHOWN_NODES else ""
    return f"  left alone: {entry['count']} {entry['op_type']} ({names}{more}): {entry['reason']}"


def print_refused(records: Sequence[dict[str, Any]]) -> None:
    """What passes left alone, on standard output."""
    for line in refused_lines(records):
        print_line(line)


def print_timing(tree: dict[str, Any]) -> None:
    """The timing tree on standard output."""
    for line in timing_lines(tree):
        print_line(line)


def print_did(records: Sequence[dict[str, Any]]) -> None:
    """What the passes did, on standard output."""
    for line in did_lines(records):
        print_line(line)


def _costs_text(record: dict[str, Any]) -> str:
    macs, moved = record["costs"]["macs"], record["costs"]["bytes_moved"]
    work = macs if isinstance(macs, str) else human_count(macs)
    nodes = f"{record['nodes_before']} -> {record['nodes_after']} nodes"
    return f"{nodes}, then {work} multiply-accumulates, {human_bytes(moved)} read and written"


def _check_text(record: dict[str, Any]) -> str:
    check = record["check"]
    # JSON has no infinity, so these may be the texts "inf" and "-inf".
    error, noise = float(check["max_rel"]), float(check["sqnr_db"])
    return f"max relative error {error:.2g}, SQNR {noise:.1f} dB"
