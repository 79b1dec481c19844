"""`graphwright compile MODEL --target T -o DIR`: from a model to a folder that runs on a device."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ...ir.errors import ToolError
from ..console import print_line, progress
from ..feeds import calibration_feeds
from ..options import (
    CalibrationCacheOption,
    CalibrationOption,
    DimOption,
    JsonOption,
    ModelArgument,
    PipelineOption,
    PluginOption,
    RandomCalibrationOption,
    SeedOption,
    load_model,
    load_plugins,
    parse_threads,
    pipeline_text,
)
from .tune import DatabaseOption, existing_database, sparing

if TYPE_CHECKING:
    import numpy as np
    import onnx_ir as ir


def compile_model(
    model: ModelArgument,
    output: Annotated[
        Path,
        typer.Option("-o", "--output", metavar="DIR", help="The folder to write.", show_default=False),
    ],
    target: Annotated[
        str, typer.Option("--target", "-t", help="x86, arm, cuda or a preset; see `graphwright targets`.")
    ] = "x86",
    pipeline: PipelineOption = None,
    preset: Annotated[
        str | None, typer.Option("--preset", metavar="NAME", help="A named pipeline.", show_default=False)
    ] = None,
    trials: Annotated[
        int, typer.Option("--trials", min=0, help="Tuning trials to spend; see `graphwright tune`.")
    ] = 0,
    database: DatabaseOption = None,
    use_records: Annotated[
        bool,
        typer.Option("--records/--no-records", help="Build by records of the database and of the package."),
    ] = True,
    dim: DimOption = None,
    calibration: CalibrationOption = None,
    calibration_cache: CalibrationCacheOption = None,
    calibrate_random: RandomCalibrationOption = 0,
    backend: Annotated[
        str,
        typer.Option(
            "--backend",
            help="tvm, onnxruntime, or auto: the faster of the two on this model and machine.",
        ),
    ] = "tvm",
    check: Annotated[
        bool, typer.Option("--check/--no-check", help="Compare with the reference, step by step.")
    ] = True,
    check_each: Annotated[
        bool, typer.Option("--check-each", help="Prove every lossless pass on several inputs.")
    ] = False,
    emulate: Annotated[
        bool, typer.Option("--emulate", help="Check libraries for 64-bit ARM under qemu.")
    ] = False,
    measure: Annotated[
        bool, typer.Option("--measure/--no-measure", help="Time the result and the original if it runs here.")
    ] = True,
    batch_sizes: Annotated[
        str | None,
        typer.Option(
            "--batch-sizes",
            metavar="N,N,...",
            help="Build a program for each batch size, such as 1,4,8; a run takes the one that fits.",
            show_default=False,
        ),
    ] = None,
    threads: Annotated[
        str,
        typer.Option("--threads", help="Threads to time with and to tune for, also for --backend auto."),
    ] = "1",
    seed: SeedOption = 0,
    plugin: PluginOption = None,
    as_json: JsonOption = False,
) -> None:
    """Compile a model for a device: library, weights, optimized graph, manifest and report in one folder.

    Without a pipeline only lossless passes run.
    """
    load_plugins(plugin)
    text = pipeline_text(pipeline, preset)
    thread_count = parse_threads(threads)[0]
    sizes = None if batch_sizes is None else parse_sizes(batch_sizes)
    _refuse_in_the_way(output)
    from ...backends.compile import DEFAULT_PIPELINE
    from ...backends.compile import compile as compile_graph
    from ...backends.target import resolve_target
    from ..compile_table import complete_table, print_batches, report_files, time_batches
    from ..reproducer import reproducer_on_crash
    from ..steps import StepRecorder

    resolved = resolve_target(target)
    with progress(f"reading {model}", quiet=as_json) as say:
        loaded = load_model(model, dim)
        feeds = None
        if check or measure:
            feeds = check_feeds(loaded.model, loaded.example_inputs, seed, sizes)
        recorder = StepRecorder(loaded.model, feeds if check else None)
        with reproducer_on_crash(
            loaded.model, DEFAULT_PIPELINE if text is None else text, seed, plugins=plugin
        ):
            executable = compile_graph(
                loaded.model,
                resolved,
                pipeline=text,
                trials=trials,
                database=existing_database(database, trials) if use_records or trials else False,
                calibration=calibration_feeds(
                    loaded.model, calibration, calibrate_random, seed, calibration_cache
                ),
                backend=backend,
                threads=thread_count,
                batch_sizes=sizes,
                check="qemu" if check and emulate else check,
                check_feeds=feeds,
                check_each=check_each,
                observers=[recorder],
                source=model,
                seed=seed,
                progress=sparing(say, f"{model} for {resolved.name}: "),
            )
        if measure and feeds is not None and resolved.runs_here:
            say(f"{model} for {resolved.name}: measure")
            complete_table(recorder, loaded.model, executable, feeds, threads=thread_count)
        else:
            complete_table(recorder, loaded.model, executable, feeds if check else None, threads=None)
        if measure:
            time_batches(executable, thread_count)
        say(f"{model} for {resolved.name}: write")
        from ...backends.artifact import save_artifact

        files = report_files(executable, recorder.table)
        folder = save_artifact(executable, output, files=files)
    assert executable.report is not None
    if as_json:
        print_line(files["report.json"].rstrip("\n"))
        return
    recorder.table.print(f"{executable.report.name} for {resolved}")
    print_batches(executable)
    print_line(str(executable.report.check))
    if executable.report.tuning:
        print_line(str(executable.report.tuning))
    for note in filter(None, [executable.report.fallback, *executable.report.notes]):
        print_line(note)
    if executable.report.choice:
        print_line(str(executable.report.choice))
    print_line(f"compiled in {executable.report.seconds:.1f} s; wrote {folder}")


def parse_sizes(text: str) -> list[int]:
    """`"1,4,8"` to `[1, 4, 8]`.

    Raises:
        ToolError: an entry is not a positive number.
    """
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise ToolError(f"--batch-sizes takes numbers such as 1,4,8, not {text!r}")
    return [int(part) for part in parts]


def check_feeds(
    model: ir.Model, example: dict[str, np.ndarray] | None, seed: int, sizes: list[int] | None = None
) -> dict[str, np.ndarray] | None:
    """Inputs to try the model on: those it was traced with, random ones where it was not or they do not fit.

    With batch sizes random ones of the smallest. None where the shapes are not fixed; compiling then says so
    better.
    """
    from ...ir.inputs import random_inputs
    from ..feeds import input_signature, match_feeds

    signature = input_signature(model)
    if sizes is not None:
        leading = {shape[0] for _, shape, _ in signature if shape}
        others = {size for _, shape, _ in signature for size in shape[1:] if isinstance(size, str)}
        batch = next(iter(leading), None)
        if len(leading) != 1 or others or (isinstance(batch, int) and batch not in sizes):
            return None
        return random_inputs(model, seed=seed, dims={batch: min(sizes)} if isinstance(batch, str) else {})
    if any(isinstance(size, str) for _, shape, _ in signature for size in shape):
        return None
    if example is not None:
        try:
            return match_feeds(example, signature, "the example inputs")
        except ToolError:
            pass
    return random_inputs(model, seed=seed)


def _refuse_in_the_way(output: Path) -> None:
    """Say now what writing would say after minutes of compiling."""
    from ...backends.artifact import is_artifact

    if output.is_dir() and any(output.iterdir()) and not is_artifact(output):
        raise ToolError(f"{output} is not empty and holds no artifact; choose another folder")
    if output.exists() and not output.is_dir():
        raise ToolError(f"{output} is a file; give a folder to write the artifact to")
