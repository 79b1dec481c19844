"""What an artifact folder holds, for `graphwright inspect DIR`: all that can be told without running it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ..backends.checksum import sha256_of
from ..backends.manifest import read_manifest
from ..backends.target import Target
from .console import human_bytes, print_json, print_line, print_table

_REPORT = "report.json"


def inspect_artifact(directory: str, as_json: bool) -> None:
    """Print the facts about an artifact.

    Raises:
        ToolError: the folder is no artifact, or its manifest is damaged.
    """
    facts = artifact_facts(directory)
    if as_json:
        print_json(facts)
        return
    rows = [
        (side[:-1], spec["name"], f"{spec['dtype']}[{','.join(map(str, spec['shape']))}]")
        for side in ("inputs", "outputs")
        for spec in facts[side]
    ]
    title = f"{facts['name'] or directory}, compiled for {facts['target']}"
    print_table(title, ["", "name", "type"], rows, left=3)
    files = [(name, human_bytes(each["bytes"]), each["state"]) for name, each in facts["files"].items()]
    print_table(None, ["file", "size", "state"], files)
    if facts["batch_sizes"]:
        print_table(
            None,
            ["batch size", "kernels", "weights", "of its own"],
            [
                (
                    row["size"],
                    row.get("kernels", "?"),
                    human_bytes(row["weight_bytes"]) if "weight_bytes" in row else "?",
                    human_bytes(row["own_weight_bytes"]) if "own_weight_bytes" in row else "?",
                )
                for row in facts["batch_sizes"]
            ],
        )
        print_line(f"other batches: {facts['other_batches']}")
    print_line(f"backend {facts['backend']}; needs {', '.join(facts['features']) or 'no special features'}")
    print_line(f"runs here: {facts['runs_here']}")
    if facts["records"] is not None:
        print_line(f"{facts['records']} of {facts['kernels']} kernels are built by tuning records")
    print_line(f"built {facts['created']} with {', '.join(f'{k} {v}' for k, v in facts['versions'].items())}")


def artifact_facts(directory: str) -> dict[str, Any]:
    """The facts as JSON-able data.

    Raises:
        ToolError: as for `inspect_artifact`.
    """
    folder = Path(directory)
    manifest = read_manifest(folder)
    target = Target.from_json(manifest["target"])
    report = _report(folder)
    kernels = report.get("kernels")
    batches = manifest.get("batches")
    tuned = isinstance(kernels, list) and sum(bool(isinstance(k, dict) and k.get("tuned")) for k in kernels)
    return {
        "name": manifest.get("name", ""),
        "backend": manifest["backend"],
        "target": str(target),
        "features": list(target.features),
        "runs_here": target.why_not_here() or "yes",
        "inputs": manifest["inputs"],
        "outputs": manifest["outputs"],
        "batch_sizes": _batch_rows(batches, report) if batches else [],
        "other_batches": batches["refusal"] or "in pieces" if batches else "",
        "pipeline": manifest["pipeline"],
        "kernels": len(kernels) if isinstance(kernels, list) else None,
        "records": tuned if isinstance(kernels, list) else None,
        "versions": manifest["versions"],
        "created": manifest.get("created", "?"),
        "files": {
            name: {**each, "state": _state(folder / name, each)} for name, each in manifest["files"].items()
        },
    }


def _report(folder: Path) -> dict[str, Any]:
    """The report of compiling as far as it is one."""
    try:
        report = json.loads((folder / _REPORT).read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return report if isinstance(report, dict) else {}


def _batch_rows(batches: dict[str, Any], report: dict[str, Any]) -> list[dict[str, Any]]:
    told = report.get("batches")
    rows = told.get("rows") if isinstance(told, dict) else None
    by_size = (
        {row.get("size"): row for row in rows if isinstance(row, dict)} if isinstance(rows, list) else {}
    )
    names = ("kernels", "weight_bytes", "own_weight_bytes")
    return [
        {
            "size": size,
            **{name: value for name in names if isinstance(value := by_size.get(size, {}).get(name), int)},
        }
        for size in batches["sizes"]
    ]


def _state(path: Path, recorded: dict[str, Any]) -> str:
    if not path.is_file():
        return "missing"
    if path.resolve().parent != path.parent.resolve():
        return "a link out of the folder"
    if path.stat().st_size != recorded["bytes"]:
        return f"has {path.stat().st_size} bytes"
    return "whole" if sha256_of(path) == recorded["sha256"] else "altered"
