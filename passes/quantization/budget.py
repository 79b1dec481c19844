"""Searches the cheapest mix of precisions that keeps a budget.

Noise of layers adds up, as far as it is small: what each layer costs alone says in which order layers should
leave the cheapest precision, the one first that takes away most noise for its extra cost. How many of those
steps it takes is found by measuring whole models, and cheaper mixes are then looked for from there.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ...ir.errors import PassError
from .cheaper import Mix, Space, improve
from .precisions import FLOAT
from .trials import Layer, Outcome, Trials

Progress = Callable[[int, int | None, str], None]

COSTS: Mapping[str, float] = {
    "int8": 1.0,
    "a8w4": 1.0,
    "fp8-e4m3": 1.0,
    "fp8-e5m2": 1.0,
    "a16w8": 2.0,
    "a16w16": 2.0,
    FLOAT: 4.0,
}
"""What a multiply-accumulate costs beside one in int8: lanes of a vector that it takes."""


@dataclass(frozen=True)
class Budget:
    """A bound on quality.

    Attributes:
        text: As the user wrote it.
        what: "sqnr", "accuracy" or "metric".
        bound: dB, or a share; a difference to the float model's where `relative`.
        relative: Whether it is a loss that is allowed.
    """

    text: str
    what: str
    bound: float
    relative: bool

    @classmethod
    def parse(cls, text: str) -> Budget:
        """Reads "sqnr>=30dB", "accuracy>=-0.5%", "accuracy>=98%" or "metric>=-0.01".

        Raises:
            PassError: It is none of these.
        """
        pattern = r"\s*(sqnr|accuracy|metric)\s*>=\s*([-+]?\d+(?:\.\d+)?)\s*(db|%)?\s*"
        found = re.fullmatch(pattern, text, re.IGNORECASE)
        if found is None:
            raise PassError(
                f"budget '{text}' is none of sqnr>=30dB, accuracy>=-0.5% (against float), accuracy>=98%, "
                "metric>=-0.01"
            )
        what, number, unit = found.group(1).lower(), float(found.group(2)), (found.group(3) or "").lower()
        if (unit == "db") != (what == "sqnr") and unit:
            raise PassError(f"budget '{text}': {what} is not measured in {found.group(3)}")
        if what == "sqnr":
            return cls(text, what, number, False)
        share = number / 100.0 if unit == "%" else number
        if what == "accuracy" and abs(share) > 1.0:
            raise PassError(
                f"budget '{text}': accuracy is a share of 1, so write {what}>={found.group(2)}% or less"
                if unit == ""
                else f"budget '{text}': no accuracy is above 100%"
            )
        return cls(text, what, share, found.group(2)[0] in "-+")

    def keeps(self, outcome: Outcome, reference: Outcome) -> bool:
        """Whether a version keeps the bound."""
        return self.quality(outcome) >= self._bound(reference) - 1e-12

    def quality(self, outcome: Outcome) -> float:
        """What is bounded."""
        if self.what == "sqnr":
            return outcome.sqnr_db
        assert outcome.metric is not None
        return outcome.metric

    def shown(self, outcome: Outcome) -> str:
        """The quality of a version as text."""
        quality = self.quality(outcome)
        if self.what == "sqnr":
            return f"{quality:.1f} dB"
        return f"{quality:.2%}" if self.what == "accuracy" else f"{quality:.5g}"

    def _bound(self, reference: Outcome) -> float:
        return self.bound + (self.quality(reference) if self.relative else 0.0)


@dataclass(frozen=True)
class Choice:
    """A mix of precisions that keeps a budget.

    Attributes:
        precisions: By layer name.
        outcome: Of the whole model.
        cheapest: Of the model with every layer in the cheapest precision.
        alone: Of each layer alone in each precision: what the search went by.
        runs: Versions that were measured.
    """

    precisions: Mapping[str, str]
    outcome: Outcome
    cheapest: Outcome
    alone: Mapping[tuple[str, str], Outcome]
    runs: int


def search(
    trials: Trials, budget: Budget, precisions: Sequence[str], progress: Progress | None = None
) -> Choice:
    """The cheapest mix found.

    Args:
        trials: The model and how it is measured.
        budget: The bound.
        precisions: What layers may be in, `FLOAT` included.
        progress: Called with (done, total, text).

    Raises:
        PassError: Nothing can be quantized, or no mix keeps the budget; the line says how far one comes.
    """
    layers = trials.layers()
    if not layers:
        raise PassError("nothing can be quantized: no layer is left in integers (see what insert-qdq says)")
    ladder = sorted(precisions, key=lambda name: (COSTS[name], layers[0].bytes_in(name)))
    state = {layer.name: ladder[0] for layer in layers}
    cheapest = trials.outcome(state)
    if budget.keeps(cheapest, trials.reference):
        return Choice(state, cheapest, cheapest, {}, trials.runs)
    _refuse_hopeless(trials, budget, layers, ladder)
    told = progress if progress is not None else lambda done, total, text: None
    in_float = {layer.name: FLOAT for layer in layers}
    alone: dict[tuple[str, str], Outcome] = {}
    for done, layer in enumerate(layers):
        told(done, len(layers), f"{layer.name} alone")
        for precision in ladder:
            if precision != FLOAT:
                alone[layer.name, precision] = trials.outcome({**in_float, layer.name: precision})
    # What the user's own choice for other layers costs.
    floor = trials.outcome(in_float).noise
    noise = {key: max(outcome.noise - floor, 0.0) for key, outcome in alone.items()}
    space = Space(layers, ladder, COSTS, noise)
    forbidden = space.mix(in_float) if FLOAT in ladder else None
    found = [_fewest_steps(trials, budget, state, _steps(space), told)]
    found += [tuple(precision for _ in layers) for precision in ladder[1:]]
    if forbidden is not None:
        found += [space.mix({**in_float, name: precision}) for name, precision in alone]

    def keeps(mix: Mix) -> bool:
        return budget.keeps(trials.outcome(space.named(mix)), trials.reference)

    kept = [mix for mix in found if mix is not None and mix != forbidden and keeps(mix)]
    if not kept:
        best = max(alone.values(), key=budget.quality)
        raise PassError(
            f"budget '{budget.text}' cannot be kept with any layer quantized; the best reachable with one is "
            f"{budget.shown(best)}"
        )
    chosen = improve(
        space,
        min(kept, key=space.cost),
        keeps,
        forbidden,
        lambda done, total: told(done, total, "looking for a cheaper mix"),
    )
    state = space.named(chosen)
    return Choice(state, trials.outcome(state), cheapest, alone, trials.runs)


def cost_of(layers: Sequence[Layer], precisions: Mapping[str, str]) -> float:
    """What a mix costs, beside everything in int8."""
    total = sum(max(layer.macs, 1) for layer in layers)
    spent = sum(max(layer.macs, 1) * COSTS[precisions[layer.name]] for layer in layers)
    return spent / max(total, 1)


def totals(layers: Sequence[Layer], precisions: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """Layers, multiply-accumulates and bytes of weights in each precision."""
    found: dict[str, dict[str, Any]] = {}
    for layer in layers:
        precision = precisions[layer.name]
        row = found.setdefault(precision, {"layers": 0, "macs": 0, "weight_bytes": 0})
        row["layers"] += 1
        row["macs"] += layer.macs
        row["weight_bytes"] += layer.bytes_in(precision)
    return found


def _refuse_hopeless(trials: Trials, budget: Budget, layers: Sequence[Layer], ladder: Sequence[str]) -> None:
    if ladder[-1] == FLOAT:
        if not budget.keeps(trials.reference, trials.reference):
            raise PassError(
                f"budget '{budget.text}' cannot be kept: the float model itself reaches "
                f"{budget.shown(trials.reference)}"
            )
        return
    versions = [trials.outcome({layer.name: precision for layer in layers}) for precision in ladder]
    if not any(budget.keeps(each, trials.reference) for each in versions):
        best = max(versions, key=budget.quality)
        raise PassError(
            f"budget '{budget.text}' cannot be kept with precisions {', '.join(ladder)}; the best reachable "
            f"is {budget.shown(best)}"
        )


def _steps(space: Space) -> list[tuple[str, str]]:
    """Layers that go to a costlier precision, the best bargain first."""
    ladder = space.ladder
    at = {layer.name: ladder[0] for layer in space.layers}
    steps: list[tuple[str, str]] = []
    while True:
        best: tuple[float, str, str] | None = None
        for layer in space.layers:
            current = at[layer.name]
            for precision in ladder[ladder.index(current) + 1 :]:
                won = space.noise[layer.name, current] - space.noise.get((layer.name, precision), 0.0)
                extra = (COSTS[precision] - COSTS[current]) * max(layer.macs, 1)
                if won > 0.0 and (best is None or won / max(extra, 1e-9) > best[0]):
                    best = won / max(extra, 1e-9), layer.name, precision
        if best is None:
            return steps
        at[best[1]] = best[2]
        steps.append(best[1:])


def _fewest_steps(
    trials: Trials,
    budget: Budget,
    start: Mapping[str, str],
    steps: Sequence[tuple[str, str]],
    told: Progress,
) -> Mix | None:
    """The mix after the first steps that suffice, by bisection over whole models; None where all do not."""

    def after(count: int) -> dict[str, str]:
        return {**start, **dict(steps[:count])}

    low, high = 0, len(steps)
    if not budget.keeps(trials.outcome(after(high)), trials.reference):
        return None
    while high - low > 1:
        middle = (low + high) // 2
        told(middle, len(steps), f"{middle} of {len(steps)} steps")
        if budget.keeps(trials.outcome(after(middle)), trials.reference):
            high = middle
        else:
            low = middle
    return tuple(after(high).values())
