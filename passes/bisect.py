"""Which rewrite cost the accuracy: the first pass, then the first single rewrite, that breaks a bound."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import onnx_ir as ir

from ..ir.clone import clone
from ..ir.compare import Comparison
from ..ir.errors import GraphwrightError
from .base import Firing, Pass
from .bounds import Bound
from .equivalence import check_equivalent
from .manager import PassManager
from .pipeline import Pipeline, as_pipeline, pass_text


@dataclass(frozen=True)
class Culprit:
    """What breaks the bound.

    Attributes:
        index: Position of the pass in the pipeline, from 0.
        text: The pass as pipeline text.
        comparison: The outputs after the pass against the original's, or None where it failed altogether.
        error: The message of a pass that failed or left a model that does not run; "" otherwise.
        firing: The first single rewrite that breaks the bound, or None where the pass does not work by rules.
        number: How many rewrites of the pass it takes, this one included; 0 without `firing`.
        of: How many rewrites the whole pass makes.
        before: The model right before the guilty pass.
    """

    index: int
    text: str
    comparison: Comparison | None
    error: str
    firing: Firing | None
    number: int
    of: int
    before: ir.Model

    def __str__(self) -> str:
        what = self.error or str(self.comparison)
        lines = [f"first bad pass: {self.text} (number {self.index + 1} of the pipeline): {what}"]
        if self.firing is not None:
            made = f", which made {', '.join(self.firing.created)}" if self.firing.created else ""
            lines.append(
                f"first bad rewrite: number {self.number} of {self.of}, rule '{self.firing.rule}' at node "
                f"'{self.firing.node}' ({self.firing.op_type}){made}"
            )
        elif self.of == 0:
            lines.append("the pass does not work by single rewrites, so it is named as a whole")
        return "\n".join(lines)

    def to_json(self) -> dict[str, Any]:
        """Return the finding as JSON-able data."""
        firing = self.firing
        return {
            "index": self.index,
            "pass": self.text,
            "comparison": self.comparison.to_json() if self.comparison else None,
            "error": self.error,
            "rewrite": None
            if firing is None
            else {
                "number": self.number,
                "of": self.of,
                "rule": firing.rule,
                "node": firing.node,
                "op_type": firing.op_type,
                "created": list(firing.created),
            },
        }


def bisect(
    model: ir.Model,
    pipeline: str | Pass | Pipeline | list[Pass],
    *,
    bound: Bound | None = None,
    inputs: Sequence[dict[str, Any]] | None = None,
    target: Any = None,
    calibration: Any = None,
    seed: int = 0,
    progress: Callable[[str], None] | None = None,
) -> Culprit | None:
    """Find the first pass, and in it the first rewrite, after which the outputs break `bound`.

    Args:
        model: The original model; what every step is compared with.
        pipeline: The pipeline to search.
        bound: How far the outputs may be from the original's; `max_rel<=1e-4` by default.
        inputs: Feeds to compare on; seeded random and edge-case inputs where None.
        target: Target description handed to the passes.
        calibration: Calibration data handed to the passes.
        seed: Seed of passes and inputs.
        progress: Called with a line before each trial.

    Returns:
        The culprit, or None where the whole pipeline keeps the bound.
    """
    search = _Search(
        model, bound or Bound(), inputs, target, calibration, seed, progress or (lambda line: None)
    )
    working = clone(model)
    for index, instance in enumerate(as_pipeline(pipeline)):
        search.progress(f"trying pass {index + 1}: {pass_text(instance)}")
        trial = search.run(instance, working, None)
        if trial.bad:
            return search.narrow(index, instance, working, trial)
        working = trial.model
    return None


@dataclass(frozen=True)
class _Trial:
    model: ir.Model
    comparison: Comparison | None
    error: str
    firings: list[Firing]
    bad: bool


@dataclass
class _Search:
    original: ir.Model
    bound: Bound
    inputs: Sequence[dict[str, Any]] | None
    target: Any
    calibration: Any
    seed: int
    progress: Callable[[str], None]

    def run(self, instance: Pass, before: ir.Model, limit: int | None) -> _Trial:
        """Apply at most `limit` rewrites of one pass and compare with the original."""
        manager = PassManager(
            instance,
            target=self.target,
            calibration=self.calibration,
            seed=self.seed,
            rewrite_limit=limit,
        )
        try:
            after, _ = manager.run(before)
            found = check_equivalent(
                self.original, after, inputs=self.inputs, seed=self.seed, bound=self.bound
            )
        except GraphwrightError as error:
            return _Trial(before, None, str(error), manager.firings, True)
        return _Trial(after, found.worst, "", manager.firings, not found.passed)

    def narrow(self, index: int, instance: Pass, before: ir.Model, whole: _Trial) -> Culprit:
        """Search the shortest run of rewrites that breaks the bound, on the premise that it stays broken."""
        good, bad, last = 0, len(whole.firings), whole
        if bad and self.run(instance, before, 0).bad:
            # What is wrong happens outside of rules.
            return Culprit(index, pass_text(instance), whole.comparison, whole.error, None, 0, 0, before)
        while bad - good > 1:
            middle = (good + bad) // 2
            self.progress(f"trying {middle} of {len(whole.firings)} rewrites of {instance.name}")
            trial = self.run(instance, before, middle)
            if trial.bad:
                bad, last = middle, trial
            else:
                good = middle
        firing = whole.firings[bad - 1] if bad else None
        return Culprit(
            index,
            pass_text(instance),
            last.comparison,
            last.error,
            firing,
            bad,
            len(whole.firings),
            before,
        )
