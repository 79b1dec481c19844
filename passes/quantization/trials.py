"""Quantizes copies of a model, layers in other precisions, and measures what becomes of the outputs."""

from __future__ import annotations

import dataclasses
import math
import re
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from ...ir.account import account
from ...ir.clone import clone
from ...ir.compare import compare
from ...ir.constants import constant_array, constant_tensor
from ...ir.errors import GraphwrightError, PassError, one_line
from ...ir.reference import Reference
from ..base import PassContext
from .calibration import Calibration
from .operators import is_float
from .precisions import FLOAT, PRECISIONS, precision_selector
from .repair.layers import dequantizer_of
from .repair.walk import some_batches

if TYPE_CHECKING:
    from ..insert_qdq import InsertQdq

Metric = Callable[[ir.Model], float]
_WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul")


@dataclass(frozen=True)
class Layer:
    """A layer that can be quantized.

    Attributes:
        name, op_type: Of the node.
        macs: Multiply-accumulates of one run; symbolic sizes count as 1.
        weights: Numbers in its weight.
    """

    name: str
    op_type: str
    macs: int
    weights: int

    def bytes_in(self, precision: str) -> int:
        """Bytes of its weights in a precision."""
        if precision == FLOAT:
            return 4 * self.weights
        dtype = PRECISIONS[precision].weights
        bits = 8 if dtype is None else 4 if dtype.endswith("int4") else 16 if dtype.endswith("16") else 8
        return self.weights * bits // 8


@dataclass(frozen=True)
class Outcome:
    """How far a quantized version is off.

    Attributes:
        sqnr_db: The worst output against the float model's, +inf where they are equal.
        metric: What the user's metric says; None without one.
    """

    sqnr_db: float
    metric: float | None = None

    @property
    def noise(self) -> float:
        """Noise power relative to the signal; infinite where an output is NaN."""
        if math.isnan(self.sqnr_db):
            return math.inf
        return 0.0 if self.sqnr_db == math.inf else 10.0 ** (-self.sqnr_db / 10.0)

    def __str__(self) -> str:
        text = f"{self.sqnr_db:.1f} dB"
        return text if self.metric is None else f"{text}, metric {self.metric:.4g}"


class Trials:
    """Versions of one model, each measured once.

    Args:
        model: The float model; not changed.
        options: How it is quantized; its `layers` are kept, before those of a trial.
        calibration: The data that ranges are measured on.
        judged: The data that outputs are compared on.
        context: Target and seed.
        metric: The user's own quality of a model, larger is better.
        samples: Samples of `judged` that are looked at.

    Attributes:
        runs: Versions that were measured.
        samples: Samples that outputs are compared on.
        reference: What the float model reaches.

    Raises:
        PassError: The data does not suit the model, the model has no floating-point output, or the metric
            fails.
    """

    def __init__(
        self,
        model: ir.Model,
        options: InsertQdq,
        calibration: Calibration,
        judged: Calibration,
        context: PassContext,
        metric: Metric | None = None,
        samples: int = 64,
    ):
        self.model = model
        self.runs = 0
        self._options = options
        self._context = context
        self._metric = None if metric is None else finite_metric(metric)
        self._folder = tempfile.TemporaryDirectory(prefix="graphwright-ranges-")
        # Ranges are those of the float model: every version takes them from the first.
        self._data = calibration
        if calibration.cache is None or calibration.identity is None:
            self._data = Calibration.from_iterable(
                lambda: calibration.batches(model), identity="trials"
            ).with_cache(Path(self._folder.name) / "ranges.json")
            self._data.random = calibration.random
        self._batches = some_batches(judged, model, samples)
        self.samples = sum(
            max((len(array) for array in feeds.values() if array.ndim), default=1) for feeds in self._batches
        )
        self._expected = self._outputs(model)
        if not self._expected:
            raise PassError("the model has no floating-point output to compare")
        self.reference = Outcome(math.inf, None if self._metric is None else self._metric(model))
        self._known: dict[tuple[tuple[str, str], ...], Outcome] = {}

    def layers(self) -> list[Layer]:
        """The layers that the options quantize at all, in graph order.

        Those whose precision the options name are not among them: they stay in it.
        """
        quantized = self.quantized({})
        settled = precision_selector("", self._options.layers, self._options.name)
        costs = account(self.model).by_node
        weights = {str(node.name): node.inputs for node in self.model.graph}
        found = []
        for node in quantized.graph:
            name = str(node.name)
            if name not in weights or node.op_type not in (*_WEIGHTED, "Gather") or len(node.inputs) < 2:
                continue
            if settled(node):
                continue
            if node.op_type == "Gather":
                table = weights[name][0]
                if not is_float(table) or is_float(node.inputs[0]) or constant_tensor(table) is None:
                    continue
            elif dequantizer_of(node.inputs[1]) is None:
                continue
            array = constant_array(weights[name][0 if node.op_type == "Gather" else 1])
            cost = costs.get(name)
            macs = 0 if cost is None else cost.macs or _leading_number(cost.formula)
            found.append(Layer(name, node.op_type, macs, 0 if array is None else array.size))
        return found

    def quantized(self, precisions: Mapping[str, str]) -> ir.Model:
        """A copy of the model with a precision for each layer by name, and the options' for the others."""
        copy = clone(self.model)
        context = PassContext(target=self._context.target, calibration=self._data, seed=self._context.seed)
        chosen = self.chosen(precisions)
        context.active = chosen
        chosen.apply(copy, context)
        return copy

    def chosen(self, precisions: Mapping[str, str]) -> InsertQdq:
        """The pass that makes such a version."""
        text = layers_text(precisions)
        both = ";".join(part for part in (self._options.layers, text) if part)
        return dataclasses.replace(self._options, layers=both or None)

    def outcome(self, precisions: Mapping[str, str]) -> Outcome:
        """How far such a version is off."""
        key = tuple(sorted(precisions.items()))
        if key not in self._known:
            self.runs += 1
            version = self.quantized(precisions)
            worst = compare(self._expected, self._outputs(version))
            metric = None if self._metric is None else self._metric(version)
            self._known[key] = Outcome(float(worst.sqnr_db), metric)
        return self._known[key]

    def _outputs(self, model: ir.Model) -> dict[str, np.ndarray]:
        reference = Reference(model)
        parts: dict[str, list[np.ndarray]] = {}
        for feeds in self._batches:
            for name, array in reference.run(feeds).items():
                if isinstance(array, np.ndarray) and array.dtype.kind == "f":
                    parts.setdefault(name, []).append(array.reshape(-1))
        return {name: np.concatenate(arrays) for name, arrays in parts.items()}


def layers_text(precisions: Mapping[str, str]) -> str:
    """Precisions by layer name as the option `layers` of insert-qdq takes them."""
    by_precision: dict[str, list[str]] = {}
    for name, precision in precisions.items():
        # The option is cut at semicolons, so that none may stand in a name.
        by_precision.setdefault(precision, []).append(re.escape(name).replace(";", "."))
    return ";".join(f"(?:{'|'.join(names)})$={precision}" for precision, names in by_precision.items())


def labelled_accuracy(path: str, model: ir.Model) -> tuple[Metric, Calibration]:
    """The share of samples whose largest output stands at their label, and the samples as data.

    Args:
        path: A `.npz` file with an array `labels` `[samples]` beside the model's inputs.
        model: For the names of its inputs.

    Raises:
        PassError: The file cannot be read, has no labels, or they do not suit the model's first output.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except Exception as error:
        raise PassError(f"cannot read '{path}': {(str(error).splitlines() or [''])[0]}") from None
    labels = arrays.pop("labels", None)
    if labels is None:
        raise PassError(f"'{path}' has no array 'labels'; it has: {', '.join(arrays) or 'none'}")
    if (
        labels.ndim != 1
        or labels.dtype.kind not in "iu"
        or not all(array.ndim and len(array) == len(labels) for array in arrays.values())
    ):
        raise PassError(f"'{path}': labels must be whole numbers, one for each sample of the inputs")
    data = Calibration.from_arrays(arrays, source=Path(path).name, batch=64)

    highest = int(labels.max(initial=0))

    def accuracy(version: ir.Model) -> float:
        reference = Reference(version)
        name = str(version.graph.outputs[0].name)
        right = seen = 0
        for feeds in data.batches(model):
            scores = reference.run(feeds)[name]
            count = min(len(scores), len(labels) - seen)
            if scores.ndim != 2 or not count:
                raise PassError(f"accuracy wants scores [samples, classes]; '{name}' is {list(scores.shape)}")
            if highest >= scores.shape[1] or labels.min() < 0:
                raise PassError(
                    f"'{path}': labels go from {labels.min()} to {highest}, but '{name}' has scores for "
                    f"{scores.shape[1]} classes"
                )
            # A batch of fixed size ends with samples that came before.
            right += int((scores[-count:].argmax(axis=1) == labels[seen : seen + count]).sum())
            seen += count
        return right / max(seen, 1)

    return accuracy, data


def user_metric(spec: str) -> Metric:
    """The function that PKG.MODULE:FUNCTION names.

    Raises:
        PassError: There is none.
    """
    import importlib

    module, _, name = spec.partition(":")
    try:
        found: Any = getattr(importlib.import_module(module), name)
    except Exception as error:
        raise PassError(f"metric '{spec}': {one_line(error)}") from error
    if not callable(found):
        raise PassError(f"metric '{spec}' is not a function")
    return found  # type: ignore[no-any-return]


def finite_metric(metric: Metric) -> Metric:
    """The same metric, whose complaints are one line, as what it returns is a finite number.

    Raises:
        PassError: When called: the metric raised, or returned something else.
    """
    name = f"{getattr(metric, '__module__', '?')}:{getattr(metric, '__name__', type(metric).__name__)}"

    def measured(model: ir.Model) -> float:
        try:
            number = metric(model)
        except GraphwrightError:
            raise
        except Exception as error:
            raise PassError(f"metric '{name}' failed: {one_line(error)}") from error
        try:
            found = float(number)
        except (TypeError, ValueError):
            found = math.nan
        if not math.isfinite(found):
            raise PassError(f"metric '{name}' must return a finite number, not {str(number)[:40]!r}")
        return found

    return measured


def _leading_number(formula: str | None) -> int:
    found = re.match(r"\d+", formula or "")
    return int(found.group()) if found else 0
