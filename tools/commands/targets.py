"""`graphwright targets`: the devices a model can be compiled for."""

from __future__ import annotations

from ..console import human_bytes, print_json, print_table
from ..options import JsonOption


def targets(as_json: JsonOption = False) -> None:
    """List the targets, and whether their code runs on this machine."""
    from ...backends.target import all_targets

    known = all_targets()
    if as_json:
        print_json(
            {name: {**target.to_json(), "runs_here": target.runs_here} for name, target in known.items()}
        )
        return
    rows = [
        (
            name,
            target.cpu,
            f"{target.vector_bits} bit" if target.device == "cpu" else "-",
            str(target.cores),
            human_bytes(target.l2_bytes) if target.l2_bytes else "-",
            "yes" if target.runs_here else f"no: {target.why_not_here()}",
            target.summary,
        )
        for name, target in known.items()
    ]
    columns = ["--target", "processor", "vectors", "cores", "L2", "runs here", "description"]
    print_table(None, columns, rows, left=7)
