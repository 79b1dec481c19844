"""Which rewrite cost the accuracy: the first pass, then the first single rewrite, that breaks a bound."""

from __future__ import annotations

import dataclasses
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import onnx_ir as ir

from ..ir.bodies import all_graphs
from ..ir.clone import clone
from ..ir.compare import Comparison
from ..ir.errors import GraphwrightError
from .base import Firing, Pass
from .bounds import Bound
from .equivalence import Expectation
from .manager import PassManager
from .minimize import minimize
from .pipeline import Pipeline, as_pipeline, pass_text

_SHOWN = 8
_OTHERS = 3
_SECONDS_BETWEEN = 2.0


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
        nodes: Without `firing`, the fewest nodes that the pass must be let at to break the bound; empty where
            its selectors do not tell.
    """

    index: int
    text: str
    comparison: Comparison | None
    error: str
    firing: Firing | None
    number: int
    of: int
    before: ir.Model
    nodes: tuple[str, ...] = ()

    def __str__(self) -> str:
        what = self.error or str(self.comparison)
        lines = [f"first bad pass: {self.text} (number {self.index + 1} of the pipeline): {what}"]
        if self.firing is not None:
            made = f", which made {', '.join(self.firing.created)}" if self.firing.created else ""
            lines.append(
                f"first bad rewrite: number {self.number} of {self.of}, rule '{self.firing.rule}' at node "
                f"'{self.firing.node}' ({self.firing.op_type}){made}"
            )
        elif self.nodes:
            shown = ", ".join(f"'{name}'" for name in self.nodes[:_SHOWN])
            more = f" and {len(self.nodes) - _SHOWN} more" if len(self.nodes) > _SHOWN else ""
            lines.append(f"the pass works without rules; it takes what it does to {shown}{more}")
        else:
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
            "nodes": list(self.nodes),
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
        Expectation(model, inputs=inputs, seed=seed, progress=None if progress is None else _told(progress)),
        bound or Bound(),
        target,
        calibration,
        seed,
        progress or (lambda line: None),
    )
    working = clone(model)
    for index, instance in enumerate(as_pipeline(pipeline)):
        search.progress(f"trying pass {index + 1}: {pass_text(instance)}")
        trial = search.run(instance, working, None)
        if trial.bad:
            return search.narrow(index, instance, working, trial)
        working = trial.model
    return None


def _told(progress: Callable[[str], None]) -> Callable[[int, int | None, str], None]:
    """Runs on the reference are told of only where they take long."""
    last = time.monotonic()

    def tell(done: int, total: int | None, text: str) -> None:
        nonlocal last
        if time.monotonic() - last > _SECONDS_BETWEEN:
            last = time.monotonic()
            progress(text if total is None else f"{text} ({done + 1} of {total})")

    return tell


@dataclass(frozen=True)
class _Trial:
    model: ir.Model
    comparison: Comparison | None
    error: str
    firings: list[Firing]
    bad: bool
    label: str = ""


@dataclass
class _Search:
    expected: Expectation
    bound: Bound
    target: Any
    calibration: Any
    seed: int
    progress: Callable[[str], None]

    def run(self, instance: Pass, before: ir.Model, limit: int | None, label: str | None = None) -> _Trial:
        """Apply at most `limit` rewrites of one pass and compare with the original."""
        manager = PassManager(
            instance,
            target=self.target,
            calibration=self.calibration,
            seed=self.seed,
            rewrite_limit=limit,
            investigate=False,
        )
        try:
            after, _ = manager.run(before)
            found = self.expected.compare(after, bound=self.bound, first=True, label=label)
        except GraphwrightError as error:
            return _Trial(before, None, str(error), manager.firings, True)
        return _Trial(after, found.worst, "", manager.firings, not found.passed, found.inputs)

    def narrow(self, index: int, instance: Pass, before: ir.Model, whole: _Trial) -> Culprit:
        """Search the shortest run of rewrites that breaks the bound, on the premise that it stays broken."""
        label = whole.label or None
        good, bad, last = 0, len(whole.firings), whole
        if not bad or self.run(instance, before, 0, label).bad:
            # What is wrong happens outside of rules.
            nodes = self.narrow_by_nodes(instance, before, label)
            return Culprit(
                index, pass_text(instance), whole.comparison, whole.error, None, 0, 0, before, nodes
            )
        steps = bad.bit_length()
        while bad - good > 1:
            middle = (good + bad) // 2
            self.progress(
                f"trying {middle} of {len(whole.firings)} rewrites of {instance.name}, about "
                f"{(bad - good).bit_length()} of {steps} trials left"
            )
            trial = self.run(instance, before, middle, label)
            if trial.bad:
                bad, last = middle, trial
            else:
                good = middle
        return Culprit(
            index,
            pass_text(instance),
            last.comparison,
            last.error,
            whole.firings[bad - 1],
            bad,
            len(whole.firings),
            before,
        )

    def narrow_by_nodes(self, instance: Pass, before: ir.Model, label: str | None) -> tuple[str, ...]:
        """For passes without rules: the fewest nodes that the pass must be let at to break the bound."""
        shaped = clone(before)
        names = sorted({node.name for graph in all_graphs(shaped) for node in graph if node.name})

        def fails(kept: list[str]) -> bool:
            self.progress(f"trying {instance.name} on {len(kept)} of {len(names)} nodes")
            inside = set(kept)
            return self.run(
                _keeping_off(instance, [n for n in names if n not in inside]), before, None, label
            ).bad

        if not names or fails([]) or not fails(names):
            return ()
        kept = minimize(names, fails)
        others = [name for name in names if name not in kept][:_OTHERS]
        # A pass that ignores its selectors fails whatever node it is let at.
        return () if others and all(fails([name]) for name in others) else tuple(kept)


def _keeping_off(instance: Pass, names: list[str]) -> Pass:
    """The same pass, told by its selector to leave these nodes alone too."""
    pattern = f"(?:{'|'.join(map(re.escape, names))})$" if names else None
    both = "|".join(part for part in (instance.skip, pattern) if part)
    return dataclasses.replace(instance, skip=both or None)
