"""`graphwright bisect MODEL --pipeline TEXT`: which pass, and which single rewrite, broke the bound."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..console import print_json, print_line, progress
from ..feeds import calibration_feeds, input_signature, match_feeds, read_npz
from ..options import (
    BoundOption,
    CalibrationOption,
    DimOption,
    JsonOption,
    ModelArgument,
    PassTargetOption,
    PluginOption,
    RandomCalibrationOption,
    RequiredPipelineOption,
    RuleTimeoutOption,
    SeedOption,
    load_model,
    load_plugins,
    pipeline_text,
)


def bisect(
    model: ModelArgument,
    pipeline: RequiredPipelineOption,
    bound: BoundOption = "max_rel<=1e-4",
    inputs: Annotated[
        Path | None,
        typer.Option("--inputs", metavar="X.npz", help="Your own inputs to compare on.", show_default=False),
    ] = None,
    dim: DimOption = None,
    calibration: CalibrationOption = None,
    calibrate_random: RandomCalibrationOption = 0,
    target: PassTargetOption = None,
    seed: SeedOption = 0,
    rule_timeout: RuleTimeoutOption = None,
    plugin: PluginOption = None,
    as_json: JsonOption = False,
) -> None:
    """Find the first pass, and in it the first rewrite, that breaks a bound on the outputs.

    Exit status 0: the pipeline keeps the bound; 1: a culprit was found; 2: trouble.
    """
    load_plugins(plugin)
    text = pipeline_text(pipeline, None)
    assert text is not None
    from ...backends.target import resolve_target
    from ...passes import bisect as search
    from ...passes.bounds import parse_bound
    from ...passes.watchdog import rule_limit

    limit = parse_bound(bound)
    resolved = resolve_target(target) if target is not None else None
    with progress(f"reading {model}", quiet=as_json):
        graph = load_model(model, dim).model
    feeds = None
    if inputs is not None:
        feeds = [match_feeds(read_npz(inputs), input_signature(graph), f"'{inputs}'")]
    with progress(f"bisecting {text}", quiet=as_json) as update, rule_limit(rule_timeout):
        culprit = search.bisect(
            graph,
            text,
            bound=limit,
            inputs=feeds,
            target=resolved,
            calibration=calibration_feeds(graph, calibration, calibrate_random, seed),
            seed=seed,
            progress=update,
        )
    if as_json:
        print_json({"bound": str(limit), "culprit": culprit.to_json() if culprit else None})
    else:
        print_line(str(culprit) if culprit else f"the pipeline keeps {limit}")
    if culprit:
        raise typer.Exit(1)
