"""What each pass did and what it left alone, for people."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .console import print_line, print_table

SHOWN_NODES = 3
"""Names of nodes shown per reason; the JSON report has them all."""


def timing_rows(records: Sequence[dict[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """Column names and rows: one per pass with nodes before and after, time and share of the whole."""
    total = sum(record["seconds"] for record in records) or 1.0
    rows = [
        [
            record["text"],
            f"{record['nodes_before']} -> {record['nodes_after']}",
            "yes" if record["changed"] else "no",
            f"{record['seconds'] * 1e3:.1f}",
            f"{record['seconds'] / total:.0%}",
        ]
        for record in records
    ]
    return ["pass", "nodes", "changed", "ms", "share"], rows


def did_lines(records: Sequence[dict[str, Any]]) -> list[str]:
    """One line per pass with what it counted, one per reason for leaving something alone, and its notes."""
    lines = []
    for record in records:
        counted = ", ".join(f"{name}: {count}" for name, count in record["statistics"].items())
        lines.append(f"{record['text']}: {counted or ('changed' if record['changed'] else 'nothing to do')}")
        for entry in record["left_alone"]:
            names = ", ".join(name or "?" for name in entry["nodes"][:SHOWN_NODES])
            more = ", ..." if entry["count"] > SHOWN_NODES else ""
            lines.append(
                f"  left alone: {entry['count']} {entry['op_type']} ({names}{more}): {entry['reason']}"
            )
        lines += [f"  note: {note}" for note in record["notes"]]
        if record["check"]:
            lines.append(f"  checked on {record['check']['input_sets']} input sets: {_check_text(record)}")
    return lines


def print_timing(records: Sequence[dict[str, Any]]) -> None:
    """The timing table on standard output."""
    print_table("timing", *timing_rows(records))


def print_did(records: Sequence[dict[str, Any]]) -> None:
    """What the passes did, on standard output."""
    for line in did_lines(records):
        print_line(line)


def _check_text(record: dict[str, Any]) -> str:
    check = record["check"]
    # JSON has no infinity, so these may be the texts "inf" and "-inf".
    error, noise = float(check["max_rel"]), float(check["sqnr_db"])
    return f"max relative error {error:.2g}, SQNR {noise:.1f} dB"
