"""`graphwright bench MODEL|DIR`: latency beside ONNX Runtime's, in one run; or simplifiers side by side."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ...ir.errors import ToolError
from ..console import print_json, print_line, progress
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

if TYPE_CHECKING:
    from ...backends.executable import Executable

RIVALS = ("onnxruntime",)


def bench(
    model: Annotated[
        str | None,
        typer.Argument(metavar="[MODEL|DIR]", help="A model, or what `compile` wrote.", show_default=False),
    ] = None,
    zoo: Annotated[
        bool, typer.Option("--zoo", help="Measure every model of the zoo instead, and print the tables.")
    ] = False,
    profile: Annotated[
        bool,
        typer.Option(
            "--profile",
            help="Time every kernel instead: GFLOP/s or GB/s, share of this machine's measured peak, the "
            "kernel chosen; with the first of --threads, 20 --repeats if not given.",
        ),
    ] = False,
    simplify: Annotated[
        bool,
        typer.Option("--simplify", help="Compare simplifiers instead: time, memory, nodes left, equality."),
    ] = False,
    only: Annotated[
        str | None,
        typer.Option(
            "--only", metavar="REGEX", help="Models of --zoo or --simplify to measure.", show_default=False
        ),
    ] = None,
    against: Annotated[
        str | None,
        typer.Option(
            "--against",
            help="Rivals, separated by commas: onnxruntime; with --simplify those that are installed of "
            "onnxsim, onnxslim, onnxscript, onnxruntime.",
            show_default=False,
        ),
    ] = None,
    threads: Annotated[str, typer.Option("--threads", help="Thread counts, separated by commas.")] = "1,2",
    repeats: Annotated[
        int | None,
        typer.Option(
            "--repeats",
            min=1,
            help="Runs to time; as many as fit into --seconds if not given, 5 with --simplify.",
            show_default=False,
        ),
    ] = None,
    seconds: Annotated[float, typer.Option("--seconds", min=0.1, help="Time for each contender.")] = 2.0,
    output: Annotated[
        Path | None,
        typer.Option(
            "-o",
            "--output",
            metavar="FILE.md",
            help="Also write the tables of --zoo, --simplify or --profile.",
            show_default=False,
        ),
    ] = None,
    models: Annotated[
        Path | None,
        typer.Option(
            "--models",
            metavar="DIR",
            help="Keep the exported models of --simplify here.",
            show_default=False,
        ),
    ] = None,
    results: Annotated[
        Path | None,
        typer.Option(
            "--results",
            metavar="FILE.json",
            help="Keep the results of --simplify here; what is in it is not measured again.",
            show_default=False,
        ),
    ] = None,
    timeout: Annotated[
        float, typer.Option("--timeout", min=1, help="Seconds that one run of --simplify may take.")
    ] = 600.0,
    target: Annotated[str, typer.Option("--target", "-t", help="Device, for a MODEL.")] = "x86",
    pipeline: PipelineOption = None,
    dim: DimOption = None,
    plugin: PluginOption = None,
    as_json: JsonOption = False,
) -> None:
    """Time a compiled model and its rivals in turns, or its kernels; medians, 10th to 90th percentile.

    Rivals run the artifact's optimized graph with their own optimizations on; a MODEL that is not compiled
    yet is compiled first, and rivals run it as it is.
    """
    if simplify:
        if model is not None or zoo:
            raise ToolError("give one of: a model, --zoo, --simplify")
        if profile:
            raise ToolError("--profile takes a model or a folder that `compile` wrote, not --simplify")
        names = None if against is None else _names(against)
        _compare_simplifiers(only, names, repeats, timeout, models, results, as_json, output)
        return
    load_plugins(plugin)
    text = pipeline_text(pipeline, None)
    counts = parse_threads(threads)
    rivals = _names("onnxruntime" if against is None else against)
    unknown = [name for name in rivals if name not in RIVALS]
    if unknown:
        raise ToolError(f"--against knows {', '.join(RIVALS)}, not {unknown[0]!r}")
    from .. import bench as benchmark

    if zoo:
        if model is not None:
            raise ToolError("give either a model or --zoo, not both")
        if profile:
            raise ToolError("--profile takes a model or a folder that `compile` wrote, not --zoo")
        benchmark.run_zoo(only=only, threads=counts, seconds=seconds, as_json=as_json, output=output)
        return
    if model is None:
        raise ToolError("say what to measure: a model, a folder that `compile` wrote, --zoo or --simplify")
    if profile:
        if against is not None:
            raise ToolError("--profile times our own kernels; leave --against out")
        _profile(model, target, text, dim, counts[0], repeats, as_json, output)
        return
    with progress(f"preparing {model}", quiet=as_json) as say:
        if Path(model).is_dir():
            contenders = benchmark.from_artifact(Path(model), rivals)
        else:
            loaded = load_model(model, dim)
            contenders = benchmark.from_model(loaded.model, rivals, target=target, pipeline=text)
        say(f"measuring {model}")
        rows = benchmark.measure_all(contenders, counts, repeats=repeats, seconds=seconds)
    backend = contenders[benchmark.OURS].backend
    if as_json:
        print_json({"model": model, "backend": backend, "results": [row.to_json() for row in rows]})
        return
    benchmark.print_rows(model, rows)
    _print_fallback(contenders[benchmark.OURS])
    if backend in rivals:
        print_line(f"{model} was compiled for {backend} itself: both rows are the same program")


def _profile(
    model: str,
    target: str,
    pipeline: str | None,
    dim: list[str] | None,
    threads: int,
    repeats: int | None,
    as_json: bool,
    output: Path | None,
) -> None:
    from .. import bench as benchmark
    from .. import profile_report

    if output is not None and not output.parent.is_dir():
        raise ToolError(f"there is no folder '{output.parent}' to write '{output.name}' into")
    with progress(f"preparing {model}", quiet=as_json) as say:
        if Path(model).is_dir():
            contenders = benchmark.from_artifact(Path(model), [])
        else:
            contenders = benchmark.from_model(
                load_model(model, dim).model, [], target=target, pipeline=pipeline
            )
        say(f"profiling {model}")
        found = contenders[benchmark.OURS].profile(threads=threads, repeats=repeats or 20)
    if output is not None:
        output.write_text(profile_report.profile_markdown(model, found), encoding="utf-8")
    if as_json:
        print_json({"model": model, "machine": benchmark.machine(), "profile": found.to_json()})
        return
    profile_report.print_profile(model, found)
    _print_fallback(contenders[benchmark.OURS])


def _print_fallback(executable: Executable) -> None:
    """Say that what was measured is not what was asked for, where that is so."""
    if executable.report is not None and executable.report.fallback:
        print_line(executable.report.fallback)


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def _compare_simplifiers(
    only: str | None,
    rivals: list[str] | None,
    repeats: int | None,
    timeout: float,
    models: Path | None,
    results: Path | None,
    as_json: bool,
    output: Path | None,
) -> None:
    from ..simplifiers import bench as simplify_bench
    from ..simplifiers import report as simplify_report

    present = simplify_bench.installed()
    ours = [name for name in present if name not in simplify_bench.RIVALS]
    absent = [name for name in simplify_bench.RIVALS if name not in present]
    if absent and rivals is None and not as_json:
        print_line(f"not installed: {', '.join(absent)} (`make bench-simplify` installs them)")
    settings = simplify_bench.Settings(repeats=repeats or 5, timeout=timeout)
    with progress("simplifiers", quiet=as_json) as say:
        outcomes = simplify_bench.run_benchmark(
            only=only or "",
            tools=present if rivals is None else [*ours, *rivals],
            settings=settings,
            models=models,
            results=results,
            say=say,
        )
    if output is not None:
        output.write_text(simplify_report.markdown(outcomes), encoding="utf-8")
    if as_json:
        print_json([outcome.to_json() for outcome in outcomes])
        return
    simplify_report.print_report(outcomes)
