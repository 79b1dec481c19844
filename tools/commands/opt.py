"""`graphwright opt MODEL --pipeline TEXT`: passes on a graph, without a device."""

from __future__ import annotations

import dataclasses
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ...ir.errors import ToolError
from ..console import plain, print_json, print_line, progress, seconds_between_lines
from ..feeds import calibration_feeds, input_signature, match_feeds, read_npz
from ..options import (
    CalibrationCacheOption,
    CalibrationOption,
    DimOption,
    JsonOption,
    ModelArgument,
    PassTargetOption,
    PipelineOption,
    PluginOption,
    RandomCalibrationOption,
    RuleTimeoutOption,
    SeedOption,
    load_model,
    load_plugins,
    pipeline_text,
)

if TYPE_CHECKING:
    from ...passes.manager import Observer
    from ...passes.optimize import Result


def opt(
    model: ModelArgument,
    pipeline: PipelineOption = None,
    preset: Annotated[
        str | None, typer.Option("--preset", metavar="NAME", help="A named pipeline.", show_default=False)
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "-o", "--output", metavar="OUT.onnx", help="Where to write the result.", show_default=False
        ),
    ] = None,
    verify_each: Annotated[
        bool,
        typer.Option("--verify-each/--no-verify-each", help="Verify graph and shapes after every pass."),
    ] = True,
    check_each: Annotated[
        bool,
        typer.Option(
            "--check-each",
            help="Run the model before and after every pass, on random and edge-case inputs or on --inputs: "
            "lossless passes must keep the numbers, lossy ones are measured.",
        ),
    ] = False,
    proof: Annotated[
        bool,
        typer.Option("--proof/--no-proof", help="Prove pruned models equal to their masked originals."),
    ] = True,
    inputs: Annotated[
        Path | None,
        typer.Option(
            "--inputs",
            metavar="X.npz",
            help="Your own inputs for --check-each and the report.",
            show_default=False,
        ),
    ] = None,
    print_after_all: Annotated[
        bool, typer.Option("--print-after-all", help="Print the graph after every pass.")
    ] = False,
    print_changed: Annotated[
        bool, typer.Option("--print-changed", help="Print what every pass changed.")
    ] = False,
    timing: Annotated[
        bool,
        typer.Option("--timing", help="Print a tree of times: passes, their rules, shape updates, checks."),
    ] = False,
    stats: Annotated[
        bool, typer.Option("--stats", help="Print what every pass did, left alone, and what the model costs.")
    ] = False,
    keep_going: Annotated[
        bool,
        typer.Option("--keep-going", help="Leave out a pass that fails; the exit status is 1 then."),
    ] = False,
    explain: Annotated[
        str | None,
        typer.Option(
            "--explain",
            metavar="NODE",
            help="Say where a node came from, what became of it, which rules were tried on it, and why not.",
            show_default=False,
        ),
    ] = None,
    dump_dir: Annotated[
        Path | None,
        typer.Option(
            "--dump-dir",
            metavar="DIR",
            help="Write the graph after each pass here: 01-fold-constants.onnx, ...",
            show_default=False,
        ),
    ] = None,
    dim: DimOption = None,
    calibration: CalibrationOption = None,
    calibration_cache: CalibrationCacheOption = None,
    calibrate_random: RandomCalibrationOption = 0,
    target: PassTargetOption = None,
    seed: SeedOption = 0,
    rule_timeout: RuleTimeoutOption = None,
    plugin: PluginOption = None,
    as_json: JsonOption = False,
) -> None:
    """Apply passes to a model and write the optimized ONNX file.

    A pass that crashes, leaves an invalid graph, loses a shape or changes numbers that it must keep is
    reported with rule and node, and graphwright-reproducer.onnx is written to show it again. Nothing else is
    written then, unless with --keep-going.
    """
    load_plugins(plugin)
    text = pipeline_text(pipeline, preset)
    if text is None:
        raise ToolError("say what to do: --pipeline TEXT or --preset NAME (see `graphwright passes`)")
    if not proof:
        text = _without_proof(text)
    _refuse_bad_output(output)
    from ...backends.meter import latency_meter, wants_clock
    from ...backends.target import resolve_target
    from ...ir.save import save
    from ...passes.explain import explain as story_of
    from ...passes.optimize import optimize
    from ..observers import ChangePrinter, Dumper, Printer, ProgressTeller
    from ..reproducer import reproducer_on_crash
    from ..steps import StepRecorder

    resolved = resolve_target(target) if target is not None else None
    with progress(f"reading {model}", quiet=as_json):
        graph = load_model(model, dim).model
    feeds = None
    if inputs is not None:
        feeds = match_feeds(read_npz(inputs), input_signature(graph), f"'{inputs}'")
    recorder = StepRecorder(graph, feeds)
    observers: list[Observer] = [recorder]
    if print_after_all:
        observers.append(Printer())
    if print_changed:
        observers.append(ChangePrinter(graph))
    if dump_dir is not None:
        observers.append(Dumper(dump_dir))
    data = calibration_feeds(graph, calibration, calibrate_random, seed, calibration_cache)
    own = [feeds] if feeds is not None else None
    advice = "" if keep_going else "; --keep-going leaves the pass out"
    with progress(f"running {text}", quiet=as_json) as tell:
        teller = ProgressTeller(tell, seconds_between_lines())
        observers.append(teller)
        with reproducer_on_crash(
            graph,
            text,
            seed,
            advice=advice,
            plugins=plugin,
            inputs=own,
            calibration=data,
            target=resolved,
        ):
            result = optimize(
                graph,
                text,
                calibration=data,
                target=resolved,
                verify_each=verify_each,
                check_each=check_each,
                check_inputs=own,
                observers=observers,
                seed=seed,
                explain=explain,
                measure=latency_meter(resolved) if wants_clock(text) else None,
                progress=teller,
                timing=timing,
                statistics=stats,
                keep_going=keep_going,
                reproducer=None,
                rule_timeout=rule_timeout,
            )
        story = story_of(graph, result.model, result.report.records, explain) if explain else []
        if output is not None:
            save(result.model, output)
    if as_json:
        written = str(output) if output else None
        report = {**result.report.to_json(), "table": recorder.table.to_json(), "output": written}
        print_json({**report, "explanation": story} if explain else report)
        raise typer.Exit(1 if _failed(result) else 0)
    _print(result, recorder, timing=timing, stats=stats or check_each)
    for line in story:
        print_line(line)
    if output is not None:
        print_line(f"wrote {output}")
    for failure in _failed(result):
        print(f"graphwright: warning: {failure}; left out", file=sys.stderr)
    if _failed(result):
        raise typer.Exit(1)


def _failed(result: Result) -> list[str]:
    """Lines of the passes that were left out because they failed."""
    return [record.error for record in result.report.records if record.error]


def _without_proof(text: str) -> str:
    """The pipeline with `proof=false` in every pass that proves something."""
    from ...passes.pipeline import Pipeline, parse_pipeline

    parts = [
        dataclasses.replace(part, proof=False) if hasattr(part, "proof") else part  # type: ignore[call-arg]
        for part in parse_pipeline(text)
    ]
    return str(Pipeline(tuple(parts)))


def _refuse_bad_output(output: Path | None) -> None:
    if output is None:
        return
    if output.suffix != ".onnx":
        raise ToolError(f"-o writes ONNX; '{output}' should end in .onnx")
    if output.is_dir():
        raise ToolError(f"'{output}' is a folder, not a file to write")
    if not output.parent.is_dir():
        raise ToolError(f"there is no folder '{output.parent}' to write '{output.name}' into")
    if not os.access(output.parent, os.W_OK):
        raise ToolError(f"the folder '{output.parent}' may not be written to")


def _print(result: Result, recorder: Any, *, timing: bool, stats: bool) -> None:
    from ..passes_report import print_did, print_refused, print_timing

    records = plain(result.report.to_json()["passes"])
    recorder.table.print()
    if timing:
        print_timing(plain(result.report.timing.to_json()))
    if stats:
        print_did(records)
    else:
        print_refused([record for record in records if not record["lossless"]])
