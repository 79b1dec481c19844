"""What repair without training gains: SQNR and accuracy of quantized models before and after each repair.

`python -m graphwright.tools.repair_bench` (or `make bench-repair`) quantizes two networks trained on scanned
digits and some of the zoo in three ways, repairs them by every pass there is, and prints the SQNR of the
outputs on data that calibration has not seen, with the accuracy where there is one.
"""

from __future__ import annotations

import dataclasses
import json
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import numpy as np
import typer

from ..ir.errors import GraphwrightError, ToolError
from .console import print_line, progress
from .steps import markdown_table

if TYPE_CHECKING:
    import onnx_ir as ir

    Feeds = dict[str, np.ndarray]

DIGITS = {"digits-cnn": "cnn", "digits-vit": "vit"}
ZOO = ("resnet18", "mobilenet_v2", "bert_base_small", "vit_s16_small")
WAYS: dict[str, tuple[str, ...]] = {
    "int8, a weight scale per channel": (
        "insert-qdq",
        "insert-qdq,bias-correction",
        "insert-qdq,gptq",
        "insert-qdq,ada-round",
        "insert-qdq,gptq,bias-correction",
        "equalize,insert-qdq",
        "smooth-quant,insert-qdq",
        "smooth-quant{insert=true},insert-qdq",
    ),
    "int8, one weight scale per tensor": (
        "insert-qdq{target=TENSOR}",
        "equalize,insert-qdq{target=TENSOR}",
        "relax-clips{share=1},equalize,insert-qdq{target=TENSOR}",
        "equalize,insert-qdq{target=TENSOR},gptq,bias-correction",
    ),
    "int4 weights in blocks of 64": (
        "quantize-weights{form=int4 scale=absmax sums=false}",
        "quantize-weights{form=int4}",
        "quantize-weights{form=int4 scale=absmax},hqq",
        "awq,quantize-weights{form=int4}",
        "awq{clip=true},quantize-weights{form=int4 scale=absmax}",
        "quantize-weights{form=int4},gptq",
        "quantize-weights{form=int4},ada-round",
        "quantize-weights{form=int4},gptq,bias-correction",
    ),
}
_BATCH = 50
_CALIBRATION = 32
_TESTS = 16


@dataclass(frozen=True)
class Subject:
    """A float model, data to calibrate on and data to judge by; `accuracy` where there are labels."""

    model: ir.Model
    calibration: Sequence[Feeds]
    tests: Sequence[Feeds]
    accuracy: Callable[[ir.Model], float] | None = None


def main(
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Also write the tables to this Markdown file.")
    ] = None,
    folder: Annotated[
        Path, typer.Option("--folder", help="Where the trained networks are kept between runs.")
    ] = Path("demo-out"),
    models: Annotated[
        str, typer.Option("--models", help="Separated by commas: digits-cnn, digits-vit, names of the zoo.")
    ] = ",".join((*DIGITS, *ZOO)),
    only: Annotated[
        str | None, typer.Option("--only", help="Only pipelines that hold this text.", show_default=False)
    ] = None,
) -> None:
    """Quantize, repair, and print the figures."""
    start = time.perf_counter()
    names = [name.strip() for name in models.split(",")]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        columns = {name: measure(name, folder, only) for name in names}
    except (GraphwrightError, OSError) as error:
        print(f"repair-bench: error: {error}", file=sys.stderr)
        raise typer.Exit(2) from None
    text = tables(columns)
    print_line(text)
    print_line(f"{time.perf_counter() - start:.0f} s in all")
    if output is not None:
        output.write_text(text, encoding="utf-8")


def measure(name: str, folder: Path, only: str | None = None) -> dict[str, str]:
    """The cell of every pipeline for one model."""
    from ..ir.compare import compare
    from ..ir.reference import Reference
    from ..passes.optimize import optimize

    subject = load_subject(name, folder)

    def results(model: ir.Model) -> dict[str, np.ndarray]:
        reference = Reference(model)
        runs = [reference.run(feeds) for feeds in subject.tests]
        floats = [key for key, array in runs[0].items() if array.dtype.kind == "f"]
        return {key: np.concatenate([run[key].reshape(-1) for run in runs]) for key in floats}

    expected = results(subject.model)
    cells: dict[str, str] = {}
    if subject.accuracy is not None:
        cells["float"] = f"{subject.accuracy(subject.model):.2%}"
    with tempfile.TemporaryDirectory() as scratch:
        table = _per_tensor_table(Path(scratch) / "per-tensor.json")
        for text in (pipeline for pipelines in WAYS.values() for pipeline in pipelines):
            if only is not None and only not in text:
                continue
            with progress(f"{name}: {text}") as say:
                made = optimize(
                    subject.model,
                    text.replace("TENSOR", f'"{table}"'),
                    calibration=list(subject.calibration),
                    progress=lambda done, total, what, say=say, text=text: say(f"{text}: {what}"),
                ).model
                cell = f"{compare(expected, results(made)).sqnr_db:.1f}"
                if subject.accuracy is not None:
                    cell += f" ({subject.accuracy(made):.2%})"
            cells[text] = cell
            # It takes long: what is known by now should not be lost.
            print_line(f"{name}: {text}: {cell}")
    return cells


def tables(columns: dict[str, dict[str, str]]) -> str:
    """One table for each way to quantize: pipelines by models."""
    parts = []
    floats = {name: cells["float"] for name, cells in columns.items() if "float" in cells}
    if floats:
        parts.append(
            "Accuracy in float: " + ", ".join(f"{name} {cell}" for name, cell in floats.items()) + "."
        )
    for way, pipelines in WAYS.items():
        rows = [
            [
                f"`{text.replace('{target=TENSOR}', '')}`",
                *(cells.get(text, "-") for cells in columns.values()),
            ]
            for text in pipelines
            if any(text in cells for cells in columns.values())
        ]
        if rows:
            table = markdown_table(["pipeline", *columns], rows)
            parts.append(f"{way[0].upper()}{way[1:]}; SQNR in dB (accuracy):\n\n{table}")
    return "\n\n".join(parts) + "\n"


def load_subject(name: str, folder: Path) -> Subject:
    """The model called `name`, simplified, with its data."""
    from ..ir.inputs import random_inputs
    from ..passes.optimize import optimize
    from .zoo import MODEL_NAMES, SMALL_NAMES, zoo_model

    if name in DIGITS:
        from .digits import load_digits
        from .pruning_bench import load_subject as trained

        subject = trained(DIGITS[name], folder)
        model = optimize(subject.model, "simplify,fold-batch-norm").model
        images = load_digits().test_images
        key = str(model.graph.inputs[0].name)
        tests = [{key: images[start : start + _BATCH]} for start in range(0, len(images), _BATCH)]
        return Subject(model, subject.calibration, tests, subject.accuracy)
    if name not in (*MODEL_NAMES, *SMALL_NAMES):
        known = ", ".join((*DIGITS, *MODEL_NAMES, *SMALL_NAMES))
        raise ToolError(f"--models knows {known}, not {name!r}")
    model = optimize(zoo_model(name), "simplify,fold-batch-norm").model
    return Subject(
        model,
        [random_inputs(model, seed=seed) for seed in range(_CALIBRATION)],
        [random_inputs(model, seed=1000 + seed) for seed in range(_TESTS)],
    )


def _per_tensor_table(path: Path) -> Path:
    """The generic table with one scale for each weight tensor."""
    from ..passes.quantization.tables import TABLES

    generic = TABLES["generic"]
    weighted = {
        op_type: dataclasses.replace(kind, per_channel=False) for op_type, kind in generic.weighted.items()
    }
    path.write_text(json.dumps(dataclasses.replace(generic, weighted=weighted).to_json()), encoding="utf-8")
    return path


if __name__ == "__main__":
    typer.run(main)
