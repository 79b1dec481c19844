"""`graphwright diff A B`: what differs between two graphs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..console import print_json, print_line
from ..options import JsonOption, load_model


def diff(
    before: Annotated[
        str, typer.Argument(metavar="A", help="A model, as for `compile`.", show_default=False)
    ],
    after: Annotated[str, typer.Argument(metavar="B", help="Another one.", show_default=False)],
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", metavar="FILE", help="Also write the diff here.", show_default=False),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Compare two graphs: nodes added, removed, changed; shapes, parameters, MACs.

    Exit code 0: the same; 1: they differ; 2: trouble.
    """
    from ...ir.diff import diff as diff_graphs

    found = diff_graphs(load_model(before, None).model, load_model(after, None).model)
    if output is not None:
        found.save(output)
    if as_json:
        print_json(found.to_json())
    else:
        print_line(found.text().rstrip("\n"))
    if found.changed:
        raise typer.Exit(1)
