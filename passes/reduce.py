"""The smallest slice and the shortest pipeline that still show a failure, in one file that replays."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from ..ir.clone import clone
from ..ir.errors import GraphwrightError, ToolError
from ..ir.reference import Reference
from .base import Pass
from .bounds import Bound
from .manager import PassManager
from .minimize import minimize
from .pipeline import Pipeline, as_pipeline
from .reproducer import Failure, Feeds, Reproducer, feeds_of, observe, replay, save_crash
from .slicing import bodies_in, body_model, slice_model

__all__ = ["Failure", "Reproducer", "observe", "reduce", "replay", "save_crash"]

_CAPTURE_LIMIT = 1 << 30
"""Bytes of intermediate results that are kept to feed slices with what they really saw."""


def reduce(
    model: ir.Model,
    pipeline: str | Pass | Pipeline | list[Pass],
    *,
    bound: Bound | None = None,
    seed: int = 0,
    calibration: Any = None,
    target: Any = None,
    inputs: Sequence[Feeds] | None = None,
    progress: Callable[[str], None] | None = None,
) -> Reproducer:
    """Shrink first the pipeline, then the graph, as long as the same kind of failure shows.

    Delta debugging over the passes and over the nodes of the main graph; where a node with bodies is all that
    is left, over the nodes of the body. Where a slice cuts into the graph it is fed what the whole model
    computed there, if random numbers alone do not show the failure.

    Args:
        model: The model on which the pipeline fails; not changed.
        pipeline: The failing pipeline.
        bound: How far the outputs may be apart; `max_rel<=1e-4` by default.
        seed: Seed of passes and inputs.
        calibration: Calibration data handed to the passes.
        target: Target description handed to the passes.
        inputs: Inputs on which it fails; seeded random and edge-case inputs where None.
        progress: Called with a line before trials and whenever something got smaller.

    Raises:
        ToolError: The pipeline does not fail on this model.
    """
    data = feeds_of(calibration, model)
    search = _Reduction(bound or Bound(), seed, data, target, progress or (lambda line: None))
    passes = list(as_pipeline(pipeline))
    search.tell("running the whole pipeline")
    first = search.failure(model, passes, inputs, data)
    if first is None:
        raise ToolError(f"the pipeline does not fail on this model: the outputs keep {search.bound}")
    search.kind = first.kind
    passes = minimize(passes, lambda rest: search.fails(model, rest, inputs, data))
    search.tell(f"pipeline: {Pipeline(tuple(passes))}")
    # Slices need the shapes of what becomes an input.
    shaped, _ = PassManager("").run(model)
    best = _Candidate(shaped, inputs, data)
    while True:
        smaller = search.shrink(best, passes, first.inputs)
        inner = search.step_inside(smaller, passes)
        best = inner or smaller
        if inner is None:
            break
    failure = search.failure(best.model, passes, best.inputs, best.calibration) or first
    text = str(Pipeline(tuple(passes)))
    return Reproducer(best.model, text, search.bound, seed, failure, best.inputs, best.calibration)


class _Candidate:
    """A model with the data that it is tried on."""

    def __init__(self, model: ir.Model, inputs: Sequence[Feeds] | None, calibration: Sequence[Feeds] | None):
        self.model = model
        self.inputs = inputs
        self.calibration = calibration


class _Reduction:
    def __init__(
        self,
        bound: Bound,
        seed: int,
        calibration: Sequence[Feeds] | None,
        target: Any,
        tell: Callable[[str], None],
    ):
        self.bound = bound
        self.seed = seed
        self.target = target
        self.tell = tell
        self.kind = ""

    def failure(
        self,
        model: ir.Model,
        passes: Sequence[Pass],
        inputs: Sequence[Feeds] | None,
        calibration: Sequence[Feeds] | None,
    ) -> Failure | None:
        """How the passes fail on a model."""
        return observe(
            model,
            list(passes),
            bound=self.bound,
            seed=self.seed,
            calibration=calibration,
            target=self.target,
            inputs=inputs,
        )

    def fails(
        self,
        model: ir.Model | None,
        passes: Sequence[Pass],
        inputs: Sequence[Feeds] | None,
        calibration: Sequence[Feeds] | None,
    ) -> bool:
        """Whether the passes fail on a model in the way that is being reduced."""
        if model is None:
            return False
        try:
            found = self.failure(model, passes, inputs, calibration)
        except Exception:
            return False
        return found is not None and found.kind == self.kind

    def shrink(self, whole: _Candidate, passes: Sequence[Pass], feeds: Feeds | None) -> _Candidate:
        """Leave out nodes of the main graph."""
        names = [node.name or "" for node in whole.model.graph]
        real = _Captured(whole.model, [feeds] if feeds else [])
        seen = _Captured(whole.model, whole.calibration or [])
        found: dict[frozenset[str], _Candidate] = {frozenset(names): whole}
        trials = 0

        def smaller(subset: Sequence[str]) -> bool:
            nonlocal trials
            trials += 1
            piece = slice_model(whole.model, set(subset))
            if piece is None:
                return False
            inside = [str(value.name) for value in piece.graph.inputs]
            calibration = seen.at(inside) if whole.calibration is not None else None
            for inputs in (None, real.at(inside)):
                if (inputs is not None or whole.inputs is None) and self.fails(
                    piece, passes, inputs, calibration
                ):
                    found[frozenset(subset)] = _Candidate(piece, inputs, calibration)
                    self.tell(f"{len(subset)} of {len(names)} nodes still show it (trial {trials})")
                    return True
                if self.kind != "bound":
                    break
            if trials % 10 == 0:
                self.tell(f"trial {trials}, without {len(names) - len(subset)} of {len(names)} nodes")
            return False

        kept = minimize(names, smaller) if len(set(names)) == len(names) else names
        return found.get(frozenset(kept), whole)

    def step_inside(self, outer: _Candidate, passes: Sequence[Pass]) -> _Candidate | None:
        """A body in place of the model around it, where it shows the failure too."""
        for node, body in bodies_in(outer.model):
            piece = body_model(outer.model, node, body)
            if self.fails(piece, passes, None, None):
                assert piece is not None
                self.tell(f"the body '{body.name}' of '{node.name}' still shows it")
                return _Candidate(piece, None, None)
        return None


class _Captured:
    """What the values of a model are on given feeds, run when first asked for."""

    def __init__(self, model: ir.Model, feeds: Sequence[Feeds]):
        self._model = model
        self._feeds = feeds
        self._runs: list[dict[str, np.ndarray]] | None = None

    def at(self, names: Sequence[str]) -> list[Feeds] | None:
        """The values called `names`, per feed; None where they cannot be had."""
        if self._runs is None:
            self._runs = self._run()
        if not self._runs or any(name not in self._runs[0] for name in names):
            return None
        return [{name: run[name] for name in names} for run in self._runs]

    def _run(self) -> list[dict[str, np.ndarray]]:
        wanted = [
            str(value.name)
            for node in self._model.graph
            for value in node.outputs
            if value.name and isinstance(value.type, ir.TensorType)
        ]
        wanted += [str(value.name) for value in self._model.graph.inputs]
        try:
            reference = Reference(clone(self._model))
            runs: list[dict[str, np.ndarray]] = []
            for feeds in self._feeds:
                runs.append(reference.run_values(feeds, wanted))
                if sum(array.nbytes for run in runs for array in run.values()) > _CAPTURE_LIMIT:
                    return []
            return runs
        except (GraphwrightError, MemoryError):
            return []
