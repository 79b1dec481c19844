"""`graphwright reduce MODEL --pipeline TEXT -o REPRO.onnx`: the smallest model and pipeline that fail."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ...ir.errors import ToolError
from ..console import print_json, print_line, progress
from ..feeds import calibration_feeds, input_signature, match_feeds, read_npz
from ..options import (
    BoundOption,
    CalibrationOption,
    DimOption,
    JsonOption,
    ModelArgument,
    PipelineOption,
    PluginOption,
    RandomCalibrationOption,
    RuleTimeoutOption,
    SeedOption,
    load_model,
    load_plugins,
    pipeline_text,
)


def reduce(
    model: ModelArgument,
    pipeline: PipelineOption = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "-o", "--output", metavar="REPRO.onnx", help="Where to write the reproducer.", show_default=False
        ),
    ] = None,
    replay: Annotated[
        bool, typer.Option("--replay", help="MODEL is a reproducer: run it and show its failure.")
    ] = False,
    bound: BoundOption = "max_rel<=1e-4",
    inputs: Annotated[
        Path | None,
        typer.Option(
            "--inputs", metavar="X.npz", help="Inputs of your own on which it fails.", show_default=False
        ),
    ] = None,
    dim: DimOption = None,
    calibration: CalibrationOption = None,
    calibrate_random: RandomCalibrationOption = 0,
    seed: SeedOption = 0,
    rule_timeout: RuleTimeoutOption = None,
    plugin: PluginOption = None,
    as_json: JsonOption = False,
) -> None:
    """Shrink a failing model and pipeline to one small file that replays the failure.

    The file carries the pipeline, the seed and whatever data the failure needs. With --replay the exit status
    is 1 while the failure shows and 0 once it is gone.
    """
    load_plugins(plugin)
    from ...passes import reduce as reducer
    from ...passes.bounds import parse_bound
    from ...passes.watchdog import rule_limit
    from ..reproducer import replay_command

    if replay:
        data = None
        if calibration is not None or calibrate_random:
            from ...ir.load import load

            data = calibration_feeds(load(model), calibration, calibrate_random, seed)
        with rule_limit(rule_timeout):
            failure = reducer.replay(model, calibration=data)
        if as_json:
            print_json({"failure": None if failure is None else failure.message})
        else:
            print_line(f"it still fails: {failure.message}" if failure else "the failure is gone")
        raise typer.Exit(1 if failure else 0)
    text = pipeline_text(pipeline, None)
    if text is None:
        raise ToolError("say which pipeline fails: --pipeline TEXT")
    if output is None:
        raise ToolError("say where to write the reproducer: -o REPRO.onnx")
    with progress(f"reading {model}", quiet=as_json):
        graph = load_model(model, dim).model
    feeds = None
    if inputs is not None:
        feeds = [match_feeds(read_npz(inputs), input_signature(graph), f"'{inputs}'")]
    with progress(f"reducing {text}", quiet=as_json) as update, rule_limit(rule_timeout):
        found = reducer.reduce(
            graph,
            text,
            bound=parse_bound(bound),
            seed=seed,
            calibration=calibration_feeds(graph, calibration, calibrate_random, seed),
            inputs=feeds,
            progress=update,
        )
        found.save(output)
    nodes = [node.op_type for node in found.model.graph]
    if as_json:
        print_json(
            {
                "output": str(output),
                "pipeline": found.pipeline,
                "nodes": nodes,
                "failure": found.failure.message,
            }
        )
        return
    print_line(f"pipeline: {found.pipeline}")
    print_line(f"{len(nodes)} nodes: {', '.join(nodes[:12])}{' ...' if len(nodes) > 12 else ''}")
    print_line(f"failure: {found.failure.message}")
    print_line(f"wrote {output}; replay it with: {replay_command(output, plugin)}")
