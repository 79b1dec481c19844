"""`graphwright sensitivity MODEL`: what pruning costs, group by group and all together."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ...ir.errors import PassError, ToolError
from ..console import plain, print_json, print_line, print_table, progress
from ..feeds import calibration_feeds
from ..options import (
    CalibrationOption,
    DimOption,
    JsonOption,
    ModelArgument,
    PluginOption,
    RandomCalibrationOption,
    SeedOption,
    load_model,
    load_plugins,
)

if TYPE_CHECKING:
    from ...passes.pruning.sensitivity import Point, Sensitivity

KINDS = ("prune", "quantize")
SUFFIXES = (".svg", ".html", ".json", ".md")


def sensitivity(
    model: ModelArgument,
    kind: Annotated[str, typer.Option("--kind", help="What is tried: prune or quantize.")] = "prune",
    options: Annotated[
        str,
        typer.Option(
            "--options",
            metavar="TEXT",
            help="Options of prune-channels, such as 'importance=wanda ranking=global multiple=8', or of "
            "insert-qdq, such as 'precision=a16w8'.",
        ),
    ] = "",
    ratios: Annotated[
        str, typer.Option("--ratios", help="Shares to prune from each group, separated by commas.")
    ] = "0.25,0.5,0.75",
    metric: Annotated[
        str | None,
        typer.Option(
            "--metric",
            metavar="PKG.MODULE:FUNCTION",
            help="Your own quality of a model (larger is better) instead of the SQNR; called with the model.",
            show_default=False,
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "-o",
            "--output",
            metavar="FILE",
            help="Where to write the result; .svg, .html, .json or .md.",
            show_default=False,
        ),
    ] = None,
    dim: DimOption = None,
    calibration: CalibrationOption = None,
    calibrate_random: RandomCalibrationOption = 0,
    target: Annotated[
        str | None, typer.Option("--target", help="Device whose vectors counts fit.", show_default=False)
    ] = None,
    seed: SeedOption = 0,
    plugin: PluginOption = None,
    as_json: JsonOption = False,
) -> None:
    """What each group of channels loses when it is pruned, or each layer when it is quantized.

    Pruning: every group alone at several ratios, then all together. Groups that lose much early want a small
    ratio (`ratios=` of prune-channels) or none; the best rows of the second table no other row beats in both
    MACs and quality. Quantization: every layer alone, and all layers but one.
    """
    if kind not in KINDS:
        raise ToolError(f"--kind knows {', '.join(KINDS)}, not {kind!r}")
    if output is not None and (output.suffix not in SUFFIXES or not output.parent.is_dir()):
        raise ToolError(f"-o writes {', '.join(SUFFIXES)} into a folder that exists, not '{output}'")
    load_plugins(plugin)
    if kind == "quantize":
        measure = _function(metric) if metric is not None else None
        from ..quantization_sensitivity import Request, run

        run(
            Request(
                model, options, measure, output, dim, calibration, calibrate_random, target, seed, as_json
            )
        )
        return
    from ...backends.target import resolve_target
    from ...ir.shapes import infer_shapes
    from ...passes.base import PassContext
    from ...passes.pipeline import parse_pipeline
    from ...passes.prune_channels import PruneChannels
    from ...passes.pruning.sensitivity import scan
    from ...passes.quantization.calibration import as_calibration

    (chosen,) = parse_pipeline(f"prune-channels{{{options}}}")
    assert isinstance(chosen, PruneChannels)
    shares = _shares(ratios)
    measure = _function(metric) if metric is not None else None
    with progress(f"scanning {model}", quiet=as_json) as say:
        graph = load_model(model, dim).model
        infer_shapes(graph)
        data = calibration_feeds(graph, calibration, calibrate_random, seed)
        if data is None:
            raise ToolError("outputs are compared on data: give --calibration FILE or --calibrate-random N")
        context = PassContext(
            target=resolve_target(target) if target is not None else None,
            seed=seed,
            progress=lambda done, total, text: say(f"{done} of {total}: {text}"),
            active=chosen,
        )
        found = scan(graph, as_calibration(data), chosen, ratios=shares, metric=measure, context=context)
    if output is not None:
        _write(output, model, found)
    if as_json:
        print_json({"model": model, "options": options, **found.to_json(), "output": output and str(output)})
        return
    for title, head, rows in tables(found):
        print_table(title, head, rows)
    if output is not None:
        print_line(f"wrote {output}")


def tables(found: Sensitivity) -> list[tuple[str, list[str], list[list[str]]]]:
    """Title, head and rows of the two tables."""
    quality = ["SQNR dB"] if found.metric is None else ["SQNR dB", f"metric ({found.metric:.4g} before)"]
    head = ["ratio", "channels kept", "MACs", "parameters", *quality]
    alone = [[point.name, *_cells(point)] for point in found.by_group]
    best = {id(point) for point in found.pareto}
    together = [[*_cells(point), "yes" if id(point) in best else ""] for point in found.together]
    return [
        ("each group alone", ["group", *head], alone),
        ("all groups together", [*head, "best"], together),
    ]


def _cells(point: Point) -> list[str]:
    sqnr = f"{point.sqnr_db:.1f}" if math.isfinite(point.sqnr_db) else "inf"
    kept = f"{point.kept[0]} of {point.kept[1]}"
    cells = [f"{point.ratio:g}", kept, f"{point.macs:.1%}", f"{point.params:.1%}", sqnr]
    return cells if point.metric is None else [*cells, f"{point.metric:.4g}"]


def _shares(text: str) -> list[float]:
    try:
        shares = [float(part) for part in text.split(",")]
    except ValueError:
        shares = [-1.0]
    if not all(0.0 < share < 1.0 for share in shares):
        raise ToolError(f"--ratios takes shares between 0 and 1 such as 0.25,0.5, not {text!r}")
    return shares


def _function(spec: str) -> Callable[[Any], float]:
    from ...passes.quantization.trials import finite_metric, user_metric

    try:
        return finite_metric(user_metric(spec))
    except PassError as error:
        raise ToolError(f"--{error}") from error


def _write(output: Path, model: str, found: Sensitivity) -> None:
    from ..sensitivity_plot import html, svg

    if output.suffix == ".svg":
        text = svg(found)
    elif output.suffix == ".json":
        text = json.dumps(plain({"model": model, **found.to_json()}), indent=2) + "\n"
    elif output.suffix == ".md":
        text = "\n".join(_markdown(title, head, rows) for title, head, rows in tables(found))
    else:
        lines = "\n\n".join(_markdown(title, head, rows) for title, head, rows in tables(found))
        text = html(f"What pruning costs: {model}", found, lines)
    output.write_text(text, encoding="utf-8")


def _markdown(title: str, head: list[str], rows: list[list[str]]) -> str:
    from ..steps import markdown_table

    return f"{title}\n\n{markdown_table(head, rows)}\n"
