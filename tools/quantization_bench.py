"""What quantization costs, measured: `python -m graphwright.tools.quantization_bench [MODELS] [--forms]`.

Static int8 is compared with ONNX Runtime's `quantize_static` (QDQ, per channel) on the same model and data,
each with the best of its calibrators; forms are compared by SQNR and file size. SQNR is taken at the outputs,
over samples that were not calibrated on; trained networks have their accuracy as well.
"""

from __future__ import annotations

import contextlib
import functools
import io
import logging
import math
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import onnx_ir as ir
import typer

from ..ir.errors import GraphwrightError, ToolError
from ..ir.reference import Reference
from ..ir.save import serialized_size
from ..passes.optimize import optimize
from .console import print_json, print_line, print_table, progress

Feeds = dict[str, np.ndarray]

DIGITS = ("digits-cnn", "digits-vit")
MODELS = (*DIGITS, "resnet18", "mobilenet_v2", "bert_base_small", "vit_s16_small")
PREPARATION = "simplify,fold-batch-norm"
OURS = ("minmax", "percentile", "mse", "entropy")
THEIRS = ("MinMax", "Percentile", "Entropy")
CALIBRATION_SAMPLES, TEST_SAMPLES = 16, 8
FORMS = {
    "float32": "",
    "int8 static": "insert-qdq{target=generic}",
    "int8 static, asymmetric weights": "insert-qdq{target=generic symmetric_weights=false}",
    "int8 static, symmetric": "insert-qdq{target=cuda}",
    "int8 dynamic": "quantize-dynamic{target=generic}",
    "a16w8": "insert-qdq{target=generic precision=a16w8}",
    "a16w16": "insert-qdq{target=generic precision=a16w16}",
    "a8w4": "insert-qdq{target=generic precision=a8w4}",
    "fp8-e4m3": "insert-qdq{target=generic precision=fp8-e4m3}",
    "fp8-e5m2": "insert-qdq{target=generic precision=fp8-e5m2}",
    "float16": "convert-float",
    "bfloat16": "convert-float{to=bfloat16}",
    **{
        f"weights {form}": f"quantize-weights{{form={form}}}"
        for form in (
            *("int8", "int8 symmetric=false", "int4", "int4 symmetric=false", "int4 block=32", "int2"),
            *("ternary", "binary", "kmeans", "kmeans bits=8", "power-of-two", "nf4", "fp4"),
            *("fp8-e4m3", "fp8-e5m2"),
        )
    },
}


@dataclass(frozen=True)
class Task:
    """A model with data to calibrate on and other data to judge by.

    Attributes:
        name: of the model.
        model: prepared: simplified, batch norms folded.
        calibration: batches as the model takes them.
        tests: other batches.
        accuracy: share of right answers, where the network was trained to give any.
    """

    name: str
    model: ir.Model
    calibration: list[Feeds]
    tests: list[Feeds]
    accuracy: Callable[[ir.Model], float] | None


@dataclass
class Score:
    """What became of one model in one way."""

    task: str
    way: str
    sqnr_db: float | None = None
    accuracy: float | None = None
    size: int | None = None
    error: str = ""
    calibrator: str = ""

    def cells(self) -> list[str]:
        """For a table: model, way, SQNR, accuracy, size."""
        if self.error:
            return [self.task, self.way, self.error, "", ""]
        sqnr = "exact" if self.sqnr_db == math.inf else f"{self.sqnr_db:.1f}"
        name = f"{self.way} ({self.calibrator})" if self.calibrator else self.way
        accuracy = "" if self.accuracy is None else f"{self.accuracy:.1%}"
        return [self.task, name, sqnr, accuracy, "" if self.size is None else f"{self.size / 1e6:.2f} MB"]


@dataclass
class Judge:
    """Compares quantized models with the float one."""

    task: Task
    _expected: list[Feeds] = field(default_factory=list)

    def __post_init__(self) -> None:
        reference = Reference(self.task.model)
        self._expected = [reference.run(feeds) for feeds in self.task.tests]

    def score(self, way: str, make: Callable[[], ir.Model], calibrator: str = "") -> Score:
        """Makes a model and measures it; what goes wrong stands in the score."""
        score = Score(self.task.name, way, calibrator=calibrator)
        try:
            model = make()
            score.sqnr_db = self._sqnr(model)
            score.size = serialized_size(model)
            score.accuracy = None if self.task.accuracy is None else self.task.accuracy(model)
        except Exception as error:
            # A rival's failure is a line of the table, whatever it throws.
            score.error = (str(error).splitlines() or [type(error).__name__])[0][:90]
        return score

    def _sqnr(self, model: ir.Model) -> float:
        signal = noise = 0.0
        reference = Reference(model)
        for feeds, expected in zip(self.task.tests, self._expected, strict=True):
            # Output names may differ: quantize_static keeps them, but positions are what counts.
            for wanted, found in zip(expected.values(), reference.run(feeds).values(), strict=True):
                if wanted.dtype.kind == "f":
                    signal += float(np.square(wanted, dtype=np.float64).sum())
                    noise += float(np.square(found.astype(np.float64) - wanted).sum())
        return math.inf if noise == 0.0 else 10.0 * math.log10(signal / noise) if signal else -math.inf


def static_int8(task: Task, say: Callable[[str], None]) -> list[Score]:
    """Ours and ONNX Runtime's, each with the best of its calibrators."""
    judge = Judge(task)
    ours, theirs = [], []
    for name in OURS:
        say(f"{task.name}: {name}")
        text = f"insert-qdq{{target=generic calibration={name}}}"
        ours.append(judge.score("graphwright", functools.partial(quantized, task, text), name))
    for name in THEIRS:
        say(f"{task.name}: ONNX Runtime {name}")
        theirs.append(judge.score("ONNX Runtime", functools.partial(quantize_static, task, name), name))
    return [max(scores, key=_sqnr_of) for scores in (ours, theirs)]


def _sqnr_of(score: Score) -> float:
    return -math.inf if score.sqnr_db is None else score.sqnr_db


def forms(task: Task, names: list[str], say: Callable[[str], None]) -> list[Score]:
    """SQNR and file size of forms."""
    judge = Judge(task)
    scores = []
    for name in names:
        say(f"{task.name}: {name}")
        scores.append(judge.score(name, functools.partial(quantized, task, FORMS[name])))
    return scores


def quantized(task: Task, pipeline: str) -> ir.Model:
    """The task's model behind a pipeline, which may be empty."""
    return optimize(task.model, pipeline, calibration=task.calibration).model if pipeline else task.model


def quantize_static(task: Task, method: str) -> ir.Model:
    """ONNX Runtime's own quantization of the same model on the same data."""
    from onnxruntime.quantization import (
        CalibrationDataReader,
        CalibrationMethod,
        QuantFormat,
        QuantType,
    )
    from onnxruntime.quantization import quantize_static as quantize

    from ..ir.load import load
    from ..ir.save import save

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self._batches = iter(task.calibration)

        def get_next(self) -> Feeds | None:
            return next(self._batches, None)

    with tempfile.TemporaryDirectory() as folder:
        source, result = Path(folder) / "float.onnx", Path(folder) / "int8.onnx"
        save(task.model, source)
        # It prints and warns as it goes.
        with contextlib.redirect_stdout(io.StringIO()), _without_warnings():
            quantize(
                str(source),
                str(result),
                Reader(),
                quant_format=QuantFormat.QDQ,
                per_channel=True,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
                calibrate_method=CalibrationMethod[method],
            )
        model = load(result)
        for value in model.graph.initializers.values():
            tensor = value.const_value
            if isinstance(tensor, ir.ExternalTensor):
                value.const_value = ir.tensor(tensor.numpy().copy(), name=value.name)
        return model


@contextlib.contextmanager
def _without_warnings() -> Iterator[None]:
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)


def task_of(name: str, folder: Path) -> Task:
    """A model of the zoo, or a network trained on the digits (once, kept in `folder`).

    Raises:
        ToolError: there is no such model.
    """
    if name in DIGITS:
        return _digits_task(name, folder)
    from ..ir.inputs import random_inputs
    from .zoo import zoo_model

    model = optimize(zoo_model(name), PREPARATION).model
    batches = [random_inputs(model, seed=seed) for seed in range(CALIBRATION_SAMPLES + TEST_SAMPLES)]
    return Task(name, model, batches[:CALIBRATION_SAMPLES], batches[CALIBRATION_SAMPLES:], None)


def _digits_task(name: str, folder: Path) -> Task:
    from .digits import load_digits
    from .pruning_bench import BATCH, load_subject

    folder.mkdir(parents=True, exist_ok=True)
    subject = load_subject(name.removeprefix("digits-"), folder)
    model = optimize(subject.model, PREPARATION).model
    images = load_digits().test_images
    key = str(model.graph.inputs[0].name)
    tests = [{key: images[start : start + BATCH]} for start in range(0, len(images) - BATCH, BATCH)]
    return Task(name, model, subject.calibration, tests, subject.accuracy)


def main(
    models: Annotated[list[str] | None, typer.Argument(help=f"Of {', '.join(MODELS)} and the zoo.")] = None,
    compare_forms: Annotated[
        bool, typer.Option("--forms/--static", help="All forms, or int8 beside ONNX Runtime.")
    ] = False,
    only: Annotated[str, typer.Option("--only", help="With --forms: those whose name starts so.")] = "",
    folder: Annotated[Path, typer.Option("--folder", help="Where trained networks are kept.")] = Path(
        "demo-out"
    ),
    as_json: Annotated[bool, typer.Option("--json", help="One JSON document.")] = False,
) -> None:
    """Measure what quantization costs."""
    scores: list[Score] = []
    chosen = [name for name in FORMS if name.startswith(only)]
    try:
        for name in models or MODELS:
            with progress(name, quiet=as_json) as say:
                task = task_of(name, folder)
                scores += forms(task, chosen, say) if compare_forms else static_int8(task, say)
    except GraphwrightError as error:
        raise typer.BadParameter(str(error)) from ToolError(str(error))
    if as_json:
        print_json([vars(score) for score in scores])
        return
    title = "SQNR at the outputs (dB), accuracy, file size"
    print_table(title, ["model", "way", "SQNR", "accuracy", "size"], [s.cells() for s in scores], left=2)
    for line in lost(scores):
        print_line(line)


def lost(scores: list[Score]) -> list[str]:
    """Where the rival's SQNR is higher."""
    found: dict[str, dict[str, Any]] = {}
    for score in scores:
        if score.way in ("graphwright", "ONNX Runtime") and score.sqnr_db is not None:
            found.setdefault(score.task, {})[score.way] = score.sqnr_db
    return [
        f"{task}: ONNX Runtime's SQNR is {each['ONNX Runtime'] - each['graphwright']:.1f} dB higher"
        for task, each in found.items()
        if len(each) == 2 and each["ONNX Runtime"] > each["graphwright"]
    ]


if __name__ == "__main__":
    typer.run(main)
