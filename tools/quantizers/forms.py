"""What each form of quantization costs: SQNR, accuracy and file size of one model in all of them.

`python -m graphwright.tools.quantizers.bench MODEL --forms`. SQNR is taken at the outputs, over samples
that were not calibrated on; trained networks have their accuracy as well.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx_ir as ir

from ...ir.reference import Reference
from ...ir.save import serialized_size
from ...passes.optimize import optimize

Feeds = dict[str, np.ndarray]

DIGITS = ("digits-cnn", "digits-vit")
PREPARATION = "simplify,fold-batch-norm"

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

    def cells(self) -> list[str]:
        """For a table: model, way, SQNR, accuracy, size."""
        if self.error:
            return [self.task, self.way, self.error, "", ""]
        sqnr = "exact" if self.sqnr_db == math.inf else f"{self.sqnr_db:.1f}"
        accuracy = "" if self.accuracy is None else f"{self.accuracy:.1%}"
        return [self.task, self.way, sqnr, accuracy, "" if self.size is None else f"{self.size / 1e6:.2f} MB"]


@dataclass
class Judge:
    """Compares quantized models with the float one."""

    task: Task
    _expected: list[Feeds] = field(default_factory=list)

    def __post_init__(self) -> None:
        reference = Reference(self.task.model)
        self._expected = [reference.run(feeds) for feeds in self.task.tests]

    def score(self, way: str, make: Callable[[], ir.Model]) -> Score:
        """Makes a model and measures it; what goes wrong stands in the score."""
        score = Score(self.task.name, way)
        try:
            model = make()
            score.sqnr_db = self._sqnr(model)
            score.size = serialized_size(model)
            score.accuracy = None if self.task.accuracy is None else self.task.accuracy(model)
        except Exception as error:
            # A failure is a line of the table, whatever it is.
            score.error = (str(error).splitlines() or [type(error).__name__])[0][:90]
        return score

    def _sqnr(self, model: ir.Model) -> float:
        signal = noise = 0.0
        reference = Reference(model)
        for feeds, expected in zip(self.task.tests, self._expected, strict=True):
            for wanted, found in zip(expected.values(), reference.run(feeds).values(), strict=True):
                if wanted.dtype.kind == "f":
                    signal += float(np.square(wanted, dtype=np.float64).sum())
                    noise += float(np.square(found.astype(np.float64) - wanted).sum())
        return math.inf if noise == 0.0 else 10.0 * math.log10(signal / noise) if signal else -math.inf


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


def task_of(name: str, folder: Path) -> Task:
    """A model of the zoo, or a network trained on the digits (once, kept in `folder`).

    Raises:
        ToolError: there is no such model.
    """
    if name in DIGITS:
        return _digits_task(name, folder)
    from ...ir.inputs import random_inputs
    from ..zoo import zoo_model

    model = optimize(zoo_model(name), PREPARATION).model
    batches = [random_inputs(model, seed=seed) for seed in range(CALIBRATION_SAMPLES + TEST_SAMPLES)]
    return Task(name, model, batches[:CALIBRATION_SAMPLES], batches[CALIBRATION_SAMPLES:], None)


def _digits_task(name: str, folder: Path) -> Task:
    from ..digits import load_digits
    from ..pruning_bench import BATCH, load_subject

    folder.mkdir(parents=True, exist_ok=True)
    subject = load_subject(name.removeprefix("digits-"), folder)
    model = optimize(subject.model, PREPARATION).model
    images = load_digits().test_images
    key = str(model.graph.inputs[0].name)
    tests = [{key: images[start : start + BATCH]} for start in range(0, len(images) - BATCH, BATCH)]
    return Task(name, model, subject.calibration, tests, subject.accuracy)
