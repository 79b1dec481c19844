"""`graphwright bench MODEL|DIR`: latency beside ONNX Runtime's, in one run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ...ir.errors import ToolError
from ..console import print_json, progress
from ..options import (
    DimOption,
    JsonOption,
    PipelineOption,
    PluginOption,
    load_model,
    load_plugins,
    parse_threads,
    pipeline_text,
)

RIVALS = ("onnxruntime",)


def bench(
    model: Annotated[
        str | None,
        typer.Argument(metavar="[MODEL|DIR]", help="A model, or what `compile` wrote.", show_default=False),
    ] = None,
    zoo: Annotated[
        bool, typer.Option("--zoo", help="Measure every model of the zoo instead, and print the tables.")
    ] = False,
    only: Annotated[
        str | None,
        typer.Option("--only", metavar="REGEX", help="Models of the zoo to measure.", show_default=False),
    ] = None,
    against: Annotated[
        str, typer.Option("--against", help="Rivals, separated by commas; onnxruntime.")
    ] = "onnxruntime",
    threads: Annotated[str, typer.Option("--threads", help="Thread counts, separated by commas.")] = "1,2",
    repeats: Annotated[
        int | None,
        typer.Option(
            "--repeats",
            min=1,
            help="Runs to time; as many as fit into --seconds if not given.",
            show_default=False,
        ),
    ] = None,
    seconds: Annotated[float, typer.Option("--seconds", min=0.1, help="Time for each contender.")] = 2.0,
    output: Annotated[
        Path | None,
        typer.Option(
            "-o", "--output", metavar="FILE.md", help="Also write the zoo's table.", show_default=False
        ),
    ] = None,
    target: Annotated[str, typer.Option("--target", "-t", help="Device, for a MODEL.")] = "x86",
    pipeline: PipelineOption = None,
    dim: DimOption = None,
    plugin: PluginOption = None,
    as_json: JsonOption = False,
) -> None:
    """Time a compiled model and its rivals in turns; medians with the 10th to 90th percentile.

    Rivals run the artifact's optimized graph with their own optimizations on; a MODEL that is not compiled
    yet is compiled first, and rivals run it as it is.
    """
    load_plugins(plugin)
    text = pipeline_text(pipeline, None)
    counts = parse_threads(threads)
    rivals = [name.strip() for name in against.split(",") if name.strip()]
    unknown = [name for name in rivals if name not in RIVALS]
    if unknown:
        raise ToolError(f"--against knows {', '.join(RIVALS)}, not {unknown[0]!r}")
    from .. import bench as benchmark

    if zoo:
        if model is not None:
            raise ToolError("give either a model or --zoo, not both")
        benchmark.run_zoo(only=only, threads=counts, seconds=seconds, as_json=as_json, output=output)
        return
    if model is None:
        raise ToolError("say what to measure: a model, a folder that `compile` wrote, or --zoo")
    with progress(f"preparing {model}", quiet=as_json) as say:
        if Path(model).is_dir():
            contenders = benchmark.from_artifact(Path(model), rivals)
        else:
            loaded = load_model(model, dim)
            contenders = benchmark.from_model(loaded.model, rivals, target=target, pipeline=text)
        say(f"measuring {model}")
        rows = benchmark.measure_all(contenders, counts, repeats=repeats, seconds=seconds)
    if as_json:
        print_json({"model": model, "results": [row.to_json() for row in rows]})
        return
    benchmark.print_rows(model, rows)
