"""`graphwright sensitivity MODEL --kind quantize`: what quantizing costs, layer by layer."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..ir.errors import ToolError
from .console import plain, print_json, print_line, print_table, progress
from .feeds import calibration_feeds
from .layer_plot import svg
from .options import load_model
from .steps import markdown_table

if TYPE_CHECKING:
    from ..passes.quantization.sensitivity import QuantizationScan
    from ..passes.quantization.trials import Outcome


@dataclass(frozen=True)
class Request:
    """What the command line asked for."""

    model: str
    options: str
    metric: Callable[[Any], float] | None
    output: Path | None
    dim: list[str] | None
    calibration: Path | None
    calibrate_random: int
    target: str | None
    seed: int
    as_json: bool


def run(request: Request) -> None:
    """Scan and show, or write, what was found."""
    from ..backends.target import resolve_target
    from ..ir.shapes import infer_shapes
    from ..passes.base import PassContext
    from ..passes.insert_qdq import InsertQdq
    from ..passes.pipeline import parse_pipeline
    from ..passes.quantization.calibration import as_calibration
    from ..passes.quantization.sensitivity import scan
    from ..passes.quantization.trials import Trials

    (chosen,) = parse_pipeline(f"insert-qdq{{{request.options}}}")
    assert isinstance(chosen, InsertQdq)
    with progress(f"scanning {request.model}", quiet=request.as_json) as say:
        graph = load_model(request.model, request.dim).model
        infer_shapes(graph)
        feeds = calibration_feeds(graph, request.calibration, request.calibrate_random, request.seed)
        if feeds is None:
            raise ToolError("outputs are compared on data: give --calibration FILE or --calibrate-random N")
        data = as_calibration(feeds)
        context = PassContext(
            target=resolve_target(request.target) if request.target is not None else None, seed=request.seed
        )
        trials = Trials(graph, chosen, data, data, context, request.metric)
        if not trials.layers():
            raise ToolError("nothing to scan: insert-qdq leaves every layer of this model in float")
        found = scan(trials, chosen.precision, lambda done, total, text: say(f"{done} of {total}: {text}"))
    if request.output is not None:
        _write(request.output, request.model, found)
    if request.as_json:
        print_json(
            {
                "model": request.model,
                "options": request.options,
                **found.to_json(),
                "output": request.output and str(request.output),
            }
        )
        return
    for title, head, rows in tables(found):
        print_table(title, head, rows)
    if data.random:
        print_line("measured on random numbers: they say little about the layers")
    if request.output is not None:
        print_line(f"wrote {request.output}")


def tables(found: QuantizationScan) -> list[tuple[str, list[str], list[list[str]]]]:
    """Title, head and rows: one row per layer, those that lose the most alone first."""
    metric = found.reference.metric is not None
    head = ["layer", "operator", "MACs", "alone dB", "all but it dB", "gain dB"]
    if metric:
        head += ["metric alone", "metric all but it"]
    macs = max(sum(point.layer.macs for point in found.points), 1)
    rows = []
    for point in found.most_sensitive:
        row = [point.layer.name, point.layer.op_type, f"{point.layer.macs / macs:.1%}"]
        row += [f"{point.alone.sqnr_db:.1f}", f"{point.without.sqnr_db:.1f}"]
        row.append(_gain(point.without.sqnr_db, found.together.sqnr_db))
        rows.append([*row, _metric(point.alone), _metric(point.without)] if metric else row)
    title = f"layers in {found.precision}; all of them: {found.together}"
    if found.reference.metric is not None:
        title += f"; metric of the float model: {found.reference.metric:.4g}"
    return [(title, head, rows)]


def _write(output: Path, model: str, found: QuantizationScan) -> None:
    if output.suffix == ".json":
        text = json.dumps(plain({"model": model, **found.to_json()}), indent=2) + "\n"
    elif output.suffix == ".md":
        parts = (f"{title}\n\n{markdown_table(head, rows, left=2)}\n" for title, head, rows in tables(found))
        text = "\n\n".join(parts)
    elif output.suffix == ".svg":
        text = svg(found)
    else:
        text = _page(f"What quantizing costs: {model}", found)
    output.write_text(text, encoding="utf-8")


def _page(title: str, found: QuantizationScan) -> str:
    """The picture and the table."""
    parts = [
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">',
        f"<title>{escape(title)}</title>",
        "<style>body { font-family: sans-serif; max-width: 60em; margin: 2em auto }",
        "td, th { padding: 2px 10px; text-align: right } td:nth-child(-n+2) { text-align: left }",
        "tr:nth-child(even) { background: #f4f4f4 }</style></head>",
        f"<body><h1>{escape(title)}</h1>\n{svg(found)}",
    ]
    for caption, head, rows in tables(found):
        parts.append(f"<h2>{escape(caption)}</h2>\n<table>")
        for tag, cells in (("th", head), *(("td", row) for row in rows)):
            parts.append("<tr>" + "".join(f"<{tag}>{escape(cell)}</{tag}>" for cell in cells) + "</tr>")
        parts.append("</table>")
    return "\n".join([*parts, "</body></html>\n"])


def _gain(one: float, other: float) -> str:
    """By how many decibels one is above the other; nothing where both are infinite."""
    return f"{0.0 if one == other else one - other:.1f}"


def _metric(outcome: Outcome) -> str:
    return "" if outcome.metric is None else f"{outcome.metric:.4g}"
