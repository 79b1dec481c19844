"""What each layer costs when it is quantized alone, and what is won when it alone is not."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from .precisions import FLOAT
from .trials import Layer, Outcome, Trials

Progress = Callable[[int, int | None, str], None]


@dataclass(frozen=True)
class LayerPoint:
    """One layer.

    Attributes:
        layer: The layer.
        alone: Only it is quantized (leave-one-in).
        without: All but it are (leave-one-out).
    """

    layer: Layer
    alone: Outcome
    without: Outcome


@dataclass
class QuantizationScan:
    """What a scan found.

    Attributes:
        precision: What layers were quantized to.
        points: One per layer, in graph order.
        together: All layers quantized.
        reference: The float model's metric.
    """

    precision: str
    together: Outcome
    reference: Outcome
    points: list[LayerPoint] = field(default_factory=list)

    @property
    def most_sensitive(self) -> list[LayerPoint]:
        """The layers, those that lose the most alone first; outputs that are NaN lose all."""
        return sorted(self.points, key=lambda point: point.alone.noise, reverse=True)

    def to_json(self) -> dict[str, Any]:
        """JSON-able data; an SQNR that is infinite or NaN is null."""
        return {
            "precision": self.precision,
            "together": _outcome_json(self.together),
            "metric": self.reference.metric,
            "layers": [
                {
                    "name": point.layer.name,
                    "op_type": point.layer.op_type,
                    "macs": point.layer.macs,
                    "weights": point.layer.weights,
                    "alone": _outcome_json(point.alone),
                    "without": _outcome_json(point.without),
                }
                for point in self.points
            ],
        }


def scan(trials: Trials, precision: str, progress: Progress | None = None) -> QuantizationScan:
    """Quantize every layer alone, and all but it.

    Args:
        trials: The model and how it is measured.
        precision: What the pass quantizes to without further word.
        progress: Called with (done, total, text).
    """
    layers = trials.layers()
    names = [layer.name for layer in layers]
    found = QuantizationScan(precision, trials.outcome({}), trials.reference)
    for done, layer in enumerate(layers):
        if progress is not None:
            progress(done, len(layers), layer.name)
        others = {name: FLOAT for name in names if name != layer.name}
        found.points.append(LayerPoint(layer, trials.outcome(others), trials.outcome({layer.name: FLOAT})))
    return found


def _outcome_json(outcome: Outcome) -> dict[str, float | None]:
    return {
        "sqnr_db": outcome.sqnr_db if math.isfinite(outcome.sqnr_db) else None,
        "metric": outcome.metric,
    }
