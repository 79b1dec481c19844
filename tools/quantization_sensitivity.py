"""`graphwright sensitivity MODEL --kind quantize`: what quantizing costs, layer by layer."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..ir.errors import ToolError
from .console import plain, print_json, print_line, print_table, progress
from .feeds import calibration_feeds
from .options import load_model

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
        row += [_decibels(point.alone.sqnr_db), _decibels(point.without.sqnr_db)]
        row.append(_decibels(point.without.sqnr_db - found.together.sqnr_db))
        rows.append([*row, _metric(point.alone), _metric(point.without)] if metric else row)
    title = f"layers in {found.precision}; all of them: {found.together}"
    if found.reference.metric is not None:
        title += f"; metric of the float model: {found.reference.metric:.4g}"
    return [(title, head, rows)]


def svg(found: QuantizationScan) -> str:
    """Two charts over the layers in graph order: each alone, and all but each."""
    from .sensitivity_plot import HEIGHT, WIDTH, chart

    alone = [(float(i), _finite(point.alone.sqnr_db)) for i, point in enumerate(found.points)]
    without = [(float(i), _finite(point.without.sqnr_db)) for i, point in enumerate(found.points)]
    every = [(float(i), _finite(found.together.sqnr_db)) for i in range(len(found.points))]
    first = chart("Each layer alone", "layer", "SQNR, dB", {f"only it in {found.precision}": alone}, 0)
    second = chart(
        "All layers but one", "layer", "SQNR, dB", {"it in float": without, "none in float": every}, HEIGHT
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {2 * HEIGHT}" '
        f'width="{WIDTH}" height="{2 * HEIGHT}" font-family="sans-serif" font-size="12">\n'
        f'<rect width="100%" height="100%" fill="white"/>\n{first}{second}</svg>\n'
    )


def _write(output: Path, model: str, found: QuantizationScan) -> None:
    from html import escape

    lines = "\n\n".join(_markdown(title, head, rows) for title, head, rows in tables(found))
    if output.suffix == ".svg":
        text = svg(found)
    elif output.suffix == ".json":
        text = json.dumps(plain({"model": model, **found.to_json()}), indent=2) + "\n"
    elif output.suffix == ".md":
        text = lines
    else:
        title = escape(f"What quantizing costs: {model}")
        text = (
            f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title></head>\n'
            f'<body style="font-family: sans-serif; max-width: 60em; margin: 2em auto"><h1>{title}</h1>\n'
            f"{svg(found)}<pre>{escape(lines)}</pre></body></html>\n"
        )
    output.write_text(text, encoding="utf-8")


def _markdown(title: str, head: list[str], rows: list[list[str]]) -> str:
    lines = [" | ".join(head), " | ".join("---" for _ in head), *(" | ".join(row) for row in rows)]
    return f"{title}\n\n" + "\n".join(f"| {line} |" for line in lines) + "\n"


def _decibels(number: float) -> str:
    return f"{number:.1f}" if math.isfinite(number) else "inf"


def _finite(number: float) -> float:
    return number if math.isfinite(number) else math.nan


def _metric(outcome: Outcome) -> str:
    return "" if outcome.metric is None else f"{outcome.metric:.4g}"
