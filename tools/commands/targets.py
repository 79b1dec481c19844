"""`graphwright targets`: the devices a model can be compiled for."""

from __future__ import annotations

from typing import Annotated

import typer

from ..console import human_bytes, print_json, print_line, print_table
from ..options import JsonOption


def targets(
    name: Annotated[
        str | None,
        typer.Argument(
            metavar="[TARGET]",
            help="Show this one and its features, e.g. host,-amx-bf16.",
            show_default=False,
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """List the targets, and whether their code runs on this machine.

    Features of a CPU are taken away and added after its name: `--target host,-amx-bf16,-amx-int8`,
    `--target x86-64-v3,+avxvnni`. What is built on a feature goes with it, what it is built on comes with it.
    """
    from ...backends.target import all_targets, resolve_target

    known = all_targets() if name is None else {name: resolve_target(name)}
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
    if name is None:
        print_line("features are taken away and added after the name: host,-amx-bf16; see `targets NAME`")
        return
    for text, features in (("features", known[name].features), ("without", known[name].without)):
        if features:
            print_line(f"{text}: {' '.join(features)}")
