"""`graphwright run DIR --input in.npz`: one run of a compiled model."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import numpy as np
import typer

from ...ir.errors import ToolError
from ..console import print_json, print_line, print_table
from ..feeds import match_feeds, read_npz, write_npz
from ..options import JsonOption

if TYPE_CHECKING:
    from ...backends.executable import Executable


def run(
    directory: Annotated[
        Path, typer.Argument(metavar="DIR", help="What `compile` wrote.", show_default=False)
    ],
    inputs: Annotated[
        Path, typer.Option("--input", "-i", metavar="IN.npz", help="Inputs by name.", show_default=False)
    ],
    output: Annotated[
        Path | None,
        typer.Option(
            "-o", "--output", metavar="OUT.npz", help="Where to write the outputs.", show_default=False
        ),
    ] = None,
    threads: Annotated[int, typer.Option("--threads", min=1, help="Threads to use.")] = 1,
    as_json: JsonOption = False,
) -> None:
    """Run a compiled model on the inputs in a file; print or save its outputs."""
    from ...backends.artifact import load_executable

    if output is not None and not output.parent.is_dir():
        raise ToolError(f"there is no folder '{output.parent}' to write '{output.name}' into")
    arrays = read_npz(inputs)
    executable = load_executable(directory)
    signature = [(spec.name, spec.shape, spec.numpy_dtype()) for spec in executable.inputs]
    feeds = match_feeds(arrays, signature, f"'{inputs}'")
    executable.set_threads(threads)
    start = time.perf_counter()
    results = executable.run(feeds)
    milliseconds = (time.perf_counter() - start) * 1e3
    pieces = _pieces(executable, feeds)
    if output is not None:
        write_npz(output, results)
    if as_json:
        described = [{"name": n, "shape": list(a.shape), "dtype": str(a.dtype)} for n, a in results.items()]
        print_json(
            {
                "outputs": described,
                "milliseconds": milliseconds,
                "batch": pieces,
                "file": str(output) if output else None,
            }
        )
        return
    rows = [(name, f"{a.dtype}{list(a.shape)}", _preview(a)) for name, a in results.items()]
    print_table(f"{directory}: {milliseconds:.2f} ms (first run)", ["output", "type", "values"], rows, left=3)
    if pieces is not None:
        print_line(f"the batch ran as {pieces}")


def _pieces(executable: Executable, feeds: dict[str, np.ndarray]) -> str | None:
    """The programs that a batch ran by, "4 + 1"; None where there is one program."""
    batches = executable.batches
    if batches is None or executable.backend != "tvm":
        return None
    return batches.describe(batches.size_of([feeds[spec.name] for spec in executable.inputs]))


def _preview(array: np.ndarray) -> str:
    flat = array.reshape(-1)
    text = " ".join(f"{value:.5g}" if array.dtype.kind == "f" else str(value) for value in flat[:6])
    return text + (" ..." if flat.size > 6 else "")
