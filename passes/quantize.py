"""Quantization within a budget: the cheapest mix of precisions that keeps a bound on quality.

    quantize{budget="sqnr>=30dB"}    quantize{budget="accuracy>=-0.5%" data=labelled.npz}

Layers that lose too much in 8 bits get 16-bit activations or stay in float, those first for which it pays
the most. The result is what one `insert-qdq{layers=...}` makes, whose text is in the report.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, ClassVar

import onnx_ir as ir

from ..ir.errors import PassError
from .base import Pass, PassContext
from .functions import flatten_functions
from .insert_qdq import InsertQdq
from .quantization.budget import COSTS, Budget, Choice, cost_of, search, totals
from .quantization.calibration import Calibration, as_calibration
from .quantization.precisions import FLOAT, PRECISIONS
from .quantization.tables import find_table
from .quantization.trials import Metric, Trials, labelled_accuracy, user_metric
from .registry import register


@register
@dataclass(frozen=True)
class Quantize(Pass):
    """Quantize to the cheapest mix of precisions that keeps a budget, such as sqnr>=30dB or accuracy>=-0.5%.

    Every layer is measured alone in every precision; layers leave the cheapest one in the order in which that
    pays, as far as whole models, measured, need it. Needs calibration data; `accuracy` needs labels too.
    Fails with one line, and the best that can be reached, where no mix keeps the budget. Lossy.
    """

    name: ClassVar[str] = "quantize"
    lossless: ClassVar[bool] = False

    budget: str = "sqnr>=30dB"
    """sqnr>=N dB of the outputs, accuracy>=N% or metric>=N; accuracy>=-N% and metric>=-N against float."""
    target: str | None = None
    """Quantization table, as for insert-qdq."""
    precisions: str = "int8,a16w8,float"
    """What layers may be in, separated by commas; those that the target lacks are left out."""
    data: str | None = None
    """File (.npz) that the budget is measured on; for accuracy with an array `labels`. By default sqnr is
    measured on the calibration data."""
    metric: str | None = None
    """With a budget on `metric`: PKG.MODULE:FUNCTION, called with a model, larger is better."""
    options: str = ""
    """Further options of insert-qdq, such as 'calibration=mse ends=float'."""
    samples: int = 64
    """Samples that the sqnr is measured on."""

    def __post_init__(self) -> None:
        super().__post_init__()
        budget = Budget.parse(self.budget)
        if budget.what == "accuracy" and self.data is None:
            raise PassError(
                f"{self.name}: a budget on accuracy needs labelled data: data=FILE.npz with 'labels'"
            )
        if budget.what == "metric" and self.metric is None:
            raise PassError(f"{self.name}: a budget on metric needs the function: metric=PKG.MODULE:FUNCTION")
        if self.samples < 1:
            raise PassError(f"{self.name}: option 'samples' must be at least 1, not {self.samples}")
        for precision in self._named():
            if precision not in COSTS:
                known = ", ".join((*PRECISIONS, FLOAT))
                raise PassError(f"{self.name}: there is no precision '{precision}'; there are: {known}")
        self._pass()

    def apply(self, model: ir.Model, context: PassContext) -> None:
        """Search, then quantize with what was found.

        Raises:
            PassError: There is no data, it does not suit the model, or no mix keeps the budget.
        """
        if context.calibration is None:
            raise PassError(
                "it measures ranges and outputs: give `--calibration FILE.npz|FOLDER` "
                "(in Python: `calibration=`)"
            )
        flatten_functions(model, context)
        data = as_calibration(context.calibration)
        if not data.repeatable:
            raise PassError(f"it reads the data often, but an {data.source} can be read once only")
        budget = Budget.parse(self.budget)
        table = find_table(self.target, context.target)
        named = self._named()
        if named in ([], [FLOAT]):
            raise PassError(f"option 'precisions' names none to quantize to: '{self.precisions}'")
        precisions = [name for name in named if name == FLOAT or name in table.precisions]
        if precisions in ([], [FLOAT]):
            raise PassError(
                f"quantization table '{table.name}' has none of {self.precisions}; "
                f"it has: {', '.join(table.precisions)}"
            )
        metric, judged = self._judge(model, data)
        trials = Trials(model, self._pass(), data, judged, context, metric, self.samples)
        choice = search(trials, budget, precisions, context.progress)
        self._report(trials, budget, choice, judged, context)
        trials.chosen(choice.precisions).apply(model, context)

    def _pass(self) -> InsertQdq:
        from .pipeline import parse_pipeline

        (made,) = parse_pipeline(f"insert-qdq{{{self.options}}}")
        assert isinstance(made, InsertQdq)
        mine = {name: getattr(self, name) for name in ("target", "only", "skip")}
        return dataclasses.replace(made, **{name: value for name, value in mine.items() if value is not None})

    def _named(self) -> list[str]:
        return list(dict.fromkeys(part.strip() for part in self.precisions.split(",") if part.strip()))

    def _judge(self, model: ir.Model, data: Calibration) -> tuple[Metric | None, Calibration]:
        """The metric, and the data that outputs are compared on."""
        what = Budget.parse(self.budget).what
        if what == "accuracy":
            assert self.data is not None
            return labelled_accuracy(self.data, model)
        judged = data if self.data is None else Calibration.load(self.data)
        if what == "metric":
            assert self.metric is not None
            return user_metric(self.metric), judged
        return None, judged

    def _report(
        self, trials: Trials, budget: Budget, choice: Choice, judged: Calibration, context: PassContext
    ) -> None:
        layers = trials.layers()
        found = totals(layers, choice.precisions)
        macs = max(sum(row["macs"] for row in found.values()), 1)
        size = max(sum(row["weight_bytes"] for row in found.values()), 1)
        context.note(
            f"budget {budget.text}: {budget.shown(choice.outcome)} with this mix, "
            f"{budget.shown(choice.cheapest)} with every layer in the cheapest precision; "
            f"models measured: {choice.runs}"
        )
        if budget.what == "sqnr":
            seen = (
                "which ranges were measured on too" if self.data is None else "which no range was measured on"
            )
            context.note(f"measured on {trials.samples} samples ({judged.source}), {seen}")
        for precision in sorted(found, key=lambda name: COSTS[name]):
            row = found[precision]
            context.note(
                f"{precision}: layers {row['layers']}, {row['macs'] / macs:.1%} of their MACs, "
                f"{row['weight_bytes'] / size:.1%} of their bytes"
            )
            context.count(f"layers in {precision}", row["layers"])
        rows: list[dict[str, Any]] = []
        for layer in layers:
            outcomes = {p: o.sqnr_db for (name, p), o in choice.alone.items() if name == layer.name}
            precision = choice.precisions[layer.name]
            rows.append(
                {"node": layer.name, "precision": precision, "macs": layer.macs, "alone_sqnr_db": outcomes}
            )
            cheapest = min(outcomes, key=lambda name: COSTS[name], default=precision)
            if precision != cheapest:
                context.note(
                    f"{layer.name}: {precision}, as alone in {cheapest} it leaves {outcomes[cheapest]:.1f} dB"
                )
        context.details["budget"] = {
            "text": budget.text,
            "quality": budget.quality(choice.outcome),
            "cheapest": budget.quality(choice.cheapest),
            "cost": cost_of(layers, choice.precisions),
            "totals": found,
            "layers": rows,
            "option": trials.chosen(choice.precisions).layers,
        }
