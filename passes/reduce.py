"""The smallest slice and the shortest pipeline that still show a failure, in one file that replays."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import onnx_ir as ir

from ..ir.clone import clone
from ..ir.errors import GraphwrightError, PassCrash, ToolError
from ..ir.load import load
from ..ir.save import save
from .base import Pass
from .bounds import Bound, parse_bound
from .equivalence import check_equivalent
from .manager import PassManager
from .pipeline import Pipeline, as_pipeline
from .slicing import slice_model

PIPELINE_KEY = "graphwright.pipeline"
BOUND_KEY = "graphwright.bound"
SEED_KEY = "graphwright.seed"
FAILURE_KEY = "graphwright.failure"

T = TypeVar("T")


@dataclass(frozen=True)
class Failure:
    """How a pipeline fails on a model.

    Attributes:
        kind: What must stay the same while reducing: "bound", or the type of the error and its pass.
        message: The whole message.
    """

    kind: str
    message: str


@dataclass(frozen=True)
class Reproducer:
    """A model, a pipeline, and the failure that they show together."""

    model: ir.Model
    pipeline: str
    bound: Bound
    seed: int
    failure: Failure

    def save(self, path: str | Path) -> None:
        """Write one ONNX file that carries the pipeline and the bound in its metadata."""
        copy = clone(self.model)
        copy.metadata_props[PIPELINE_KEY] = self.pipeline
        copy.metadata_props[BOUND_KEY] = str(self.bound)
        copy.metadata_props[SEED_KEY] = str(self.seed)
        copy.metadata_props[FAILURE_KEY] = self.failure.message
        save(copy, path)


def observe(
    model: ir.Model,
    pipeline: str | Pass | Pipeline | list[Pass],
    *,
    bound: Bound | None = None,
    seed: int = 0,
    calibration: Any = None,
    target: Any = None,
) -> Failure | None:
    """Run a pipeline and compare the outputs; return how it fails, or None where it does not."""
    manager = PassManager(pipeline, calibration=calibration, target=target, seed=seed)
    try:
        after, _ = manager.run(model)
    except GraphwrightError as error:
        words = str(error).split("'")
        return Failure(f"{type(error).__name__} {words[1] if len(words) > 2 else ''}", str(error))
    try:
        found = check_equivalent(model, after, seed=seed, bound=bound or Bound())
    except GraphwrightError as error:
        return Failure(f"{type(error).__name__} afterwards", str(error))
    return None if found.passed else Failure("bound", str(found))


def reduce(
    model: ir.Model,
    pipeline: str | Pass | Pipeline | list[Pass],
    *,
    bound: Bound | None = None,
    seed: int = 0,
    calibration: Any = None,
    target: Any = None,
    progress: Callable[[str], None] | None = None,
) -> Reproducer:
    """Shrink first the pipeline, then the graph, as long as the same kind of failure shows.

    Delta debugging (Zeller and Hildebrandt, 2002) over the passes and over the nodes of the main graph.

    Args:
        model: The model on which the pipeline fails; not changed.
        pipeline: The failing pipeline.
        bound: How far the outputs may be apart; `max_rel<=1e-4` by default.
        seed: Seed of passes and inputs.
        calibration: Calibration data handed to the passes.
        target: Target description handed to the passes.
        progress: Called with a line whenever something got smaller.

    Raises:
        ToolError: The pipeline does not fail on this model.
    """
    tell = progress or (lambda line: None)
    kept_bound = bound or Bound()

    def failure_of(candidate: ir.Model, passes: Sequence[Pass]) -> Failure | None:
        return observe(
            candidate, list(passes), bound=kept_bound, seed=seed, calibration=calibration, target=target
        )

    passes = list(as_pipeline(pipeline))
    first = failure_of(model, passes)
    if first is None:
        raise ToolError(f"the pipeline does not fail on this model: the outputs keep {kept_bound}")

    def still_fails(candidate: ir.Model | None, remaining: Sequence[Pass]) -> bool:
        if candidate is None:
            return False
        try:
            found = failure_of(candidate, remaining)
        except Exception:
            return False
        return found is not None and found.kind == first.kind

    passes = _minimize(passes, lambda remaining: still_fails(model, remaining))
    tell(f"pipeline: {Pipeline(tuple(passes))}")
    # Slices need the shapes of what becomes an input.
    shaped, _ = PassManager("").run(model)
    names = [node.name or "" for node in shaped.graph]

    def fails(subset: Sequence[str]) -> bool:
        found = still_fails(slice_model(shaped, set(subset)), passes)
        if found:
            tell(f"{len(subset)} of {len(names)} nodes still show it")
        return found

    kept = _minimize(names, fails)
    smallest = slice_model(shaped, set(kept)) if len(kept) < len(names) else None
    final = smallest if smallest is not None else clone(model)
    failure = failure_of(final, passes) or first
    return Reproducer(final, str(Pipeline(tuple(passes))), kept_bound, seed, failure)


def save_crash(
    model: ir.Model,
    pipeline: str | Pass | Pipeline | list[Pass],
    crash: PassCrash,
    path: str | Path,
    seed: int = 0,
) -> Path:
    """Write the model as it was right before a pass crashed, with that pass as pipeline, so that it replays.

    Args:
        model: The model that went into the whole pipeline.
        pipeline: The whole pipeline.
        crash: The error that running it raised.
        path: Where to write.
        seed: The seed of the run.

    Returns:
        The path written.
    """
    passes = list(as_pipeline(pipeline))
    index = max(crash.index, 0)
    before, _ = PassManager(passes[:index], seed=seed).run(model)
    found = Failure("crash", str(crash))
    Reproducer(before, str(Pipeline((passes[index],))), Bound(), seed, found).save(path)
    return Path(path)


def replay(path: str | Path, *, calibration: Any = None, target: Any = None) -> Failure | None:
    """Load a reproducer and show its failure again; None where it is gone.

    Raises:
        ToolError: The file is a model but no reproducer.
    """
    model = load(path)
    pipeline = model.metadata_props.get(PIPELINE_KEY)
    if pipeline is None:
        raise ToolError(f"'{path}' is not a reproducer: it carries no pipeline")
    bound = parse_bound(model.metadata_props.get(BOUND_KEY, str(Bound())))
    seed = int(model.metadata_props.get(SEED_KEY, "0"))
    return observe(model, pipeline, bound=bound, seed=seed, calibration=calibration, target=target)


def _minimize(items: list[T], fails: Callable[[list[T]], bool]) -> list[T]:
    """Remove ever smaller chunks of `items` for as long as `fails` holds for the rest."""
    chunks = 2
    while len(items) > 1:
        size = -(-len(items) // chunks)
        for start in range(0, len(items), size):
            rest = items[:start] + items[start + size :]
            if rest and fails(rest):
                items, chunks = rest, max(chunks - 1, 2)
                break
        else:
            if size == 1:
                return items
            chunks = min(2 * chunks, len(items))
    return items
