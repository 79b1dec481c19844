"""A failure in one file: an ONNX model that carries pipeline, bound, seed and, where needed, the data."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
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

PIPELINE_KEY = "graphwright.pipeline"
BOUND_KEY = "graphwright.bound"
SEED_KEY = "graphwright.seed"
FAILURE_KEY = "graphwright.failure"
INPUTS_KEY = "graphwright.inputs"
CALIBRATION_KEY = "graphwright.calibration"

_EMBED_LIMIT = 256 << 20
"""Bytes of data that are written into a file; what is beyond has to be given again."""

Feeds = dict[str, Any]


@dataclass(frozen=True)
class Failure:
    """How a pipeline fails on a model.

    Attributes:
        kind: What must stay the same while reducing: "bound", or the type of the error and its pass.
        message: The whole message.
        inputs: The inputs on which outputs are furthest off; None for a failure that needs none.
    """

    kind: str
    message: str
    inputs: Feeds | None = None


@dataclass(frozen=True)
class Reproducer:
    """A model, a pipeline, and the failure that they show together.

    Attributes:
        model: The model.
        pipeline: The pipeline as text.
        bound: What the outputs must keep.
        seed: Seed of passes and inputs.
        failure: How it fails.
        inputs: Inputs that the failure needs; made up where None.
        calibration: Calibration data that the passes need.
    """

    model: ir.Model
    pipeline: str
    bound: Bound
    seed: int
    failure: Failure
    inputs: Sequence[Feeds] | None = None
    calibration: Sequence[Feeds] | None = None

    def save(self, path: str | Path) -> None:
        """Write one ONNX file that carries everything else in its metadata."""
        copy = clone(self.model)
        facts = {
            PIPELINE_KEY: self.pipeline,
            BOUND_KEY: str(self.bound),
            SEED_KEY: str(self.seed),
            FAILURE_KEY: self.failure.message,
            INPUTS_KEY: packed(self.inputs),
            CALIBRATION_KEY: packed(self.calibration),
        }
        for key, text in facts.items():
            copy.metadata_props.pop(key, None)
            if text is not None:
                copy.metadata_props[key] = text
        save(copy, path)


def observe(
    model: ir.Model,
    pipeline: str | Pass | Pipeline | list[Pass],
    *,
    bound: Bound | None = None,
    seed: int = 0,
    calibration: Any = None,
    target: Any = None,
    inputs: Sequence[Feeds] | None = None,
) -> Failure | None:
    """Run a pipeline and compare the outputs; return how it fails, or None where it does not."""
    manager = PassManager(pipeline, calibration=calibration, target=target, seed=seed, investigate=False)
    try:
        after, _ = manager.run(model)
    except GraphwrightError as error:
        words = str(error).split("'")
        crash = f" {error.kind}" if isinstance(error, PassCrash) else ""
        name = words[1] if len(words) > 2 else ""
        return Failure(f"{type(error).__name__}{crash} {name}", str(error))
    try:
        found = check_equivalent(model, after, inputs=inputs, seed=seed, bound=bound or Bound())
    except GraphwrightError as error:
        return Failure(f"{type(error).__name__} afterwards", str(error))
    return None if found.passed else Failure("bound", str(found), found.feeds)


def save_crash(
    model: ir.Model,
    pipeline: str | Pass | Pipeline | list[Pass],
    crash: PassCrash,
    path: str | Path,
    seed: int = 0,
    *,
    inputs: Sequence[Feeds] | None = None,
    calibration: Any = None,
    target: Any = None,
) -> Path:
    """Write the model as it was right before a pass crashed, with that pass as pipeline, so that it replays.

    Args:
        model: The model that went into the whole pipeline.
        pipeline: The whole pipeline.
        crash: The error that running it raised.
        path: Where to write.
        seed: The seed of the run.
        inputs: The user's own inputs, for a crash that is about numbers.
        calibration: The calibration data of the run.
        target: The target of the run.

    Returns:
        The path written.
    """
    passes = list(as_pipeline(pipeline))
    index = max(crash.index, 0)
    before = crash.before
    if before is None:
        manager = PassManager(
            passes[:index], seed=seed, calibration=calibration, target=target, investigate=False
        )
        before, _ = manager.run(model)
    found = Failure("crash", str(crash))
    wanted = inputs if crash.kind == "numbers" else None
    Reproducer(
        before,
        str(Pipeline((passes[index],))),
        Bound(),
        seed,
        found,
        wanted,
        _feeds_to_keep(calibration, model),
    ).save(path)
    return Path(path)


def save_interrupted(
    model: ir.Model,
    pipeline: str | Pass | Pipeline | list[Pass],
    interruption: KeyboardInterrupt,
    path: str | Path,
    seed: int = 0,
    *,
    calibration: Any = None,
    **data: Any,
) -> Path:
    """Write the model and the pipeline up to the pass that was interrupted; nothing is run again for it.

    Args:
        model: The model that went into the whole pipeline.
        pipeline: The whole pipeline.
        interruption: What `PassManager.run` raised, with the position of the pass.
        path: Where to write.
        seed: The seed of the run.
        calibration: The calibration data of the run.
        **data: What else is known of the run and not needed.

    Returns:
        The path written.
    """
    passes = list(as_pipeline(pipeline))[: interruption.pass_index + 1]  # type: ignore[attr-defined]
    found = Failure("interrupted", "; ".join(getattr(interruption, "__notes__", [])))
    stored = _feeds_to_keep(calibration, model)
    Reproducer(model, str(Pipeline(tuple(passes))), Bound(), seed, found, None, stored).save(path)
    return Path(path)


def replay(path: str | Path, *, calibration: Any = None, target: Any = None) -> Failure | None:
    """Load a reproducer and show its failure again; None where it is gone.

    Args:
        path: The file.
        calibration: Calibration data in place of what the file carries.
        target: Target description handed to the passes.

    Raises:
        ToolError: The file is a model but no reproducer.
    """
    model = load(path)
    pipeline = model.metadata_props.get(PIPELINE_KEY)
    if pipeline is None:
        raise ToolError(f"'{path}' is not a reproducer: it carries no pipeline")
    bound = parse_bound(model.metadata_props.get(BOUND_KEY, str(Bound())))
    return observe(
        model,
        pipeline,
        bound=bound,
        seed=int(model.metadata_props.get(SEED_KEY, "0")),
        calibration=calibration or unpacked(model.metadata_props.get(CALIBRATION_KEY), path),
        target=target,
        inputs=unpacked(model.metadata_props.get(INPUTS_KEY), path),
    )


def feeds_of(calibration: Any, model: ir.Model) -> list[Feeds] | None:
    """Calibration data in any form that passes take, as feeds of `model`; None where there is none."""
    if calibration is None:
        return None
    from .quantization.calibration import as_calibration

    return list(as_calibration(calibration).batches(model))


def _feeds_to_keep(calibration: Any, model: ir.Model) -> list[Feeds] | None:
    """Calibration data that a reproducer can carry; None where it is too large or cannot be had again."""
    if calibration is None:
        return None
    from .quantization.calibration import as_calibration

    kept: list[Feeds] = []
    size = 0
    try:
        for feeds in as_calibration(calibration).batches(model):
            size += sum(np.asarray(array).nbytes for array in feeds.values())
            if size > _EMBED_LIMIT:
                return None
            kept.append(feeds)
    except GraphwrightError:
        return None
    return kept


def packed(feeds: Iterable[Feeds] | None) -> str | None:
    """Arrays as text (a compressed .npz in base 64); None where there are none or too many."""
    if feeds is None:
        return None
    arrays = {
        f"{i}/{name}": np.asarray(array) for i, each in enumerate(feeds) for name, array in each.items()
    }
    if not arrays or sum(array.nbytes for array in arrays.values()) > _EMBED_LIMIT:
        return None
    if any(array.dtype.kind not in "biufc" for array in arrays.values()):
        # The files of numpy know none but its own types.
        return None
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)  # type: ignore[arg-type]
    return base64.b64encode(buffer.getvalue()).decode("ascii")


def unpacked(text: str | None, path: str | Path) -> list[Feeds] | None:
    """Arrays back from text.

    Raises:
        ToolError: The text is damaged.
    """
    if text is None:
        return None
    try:
        with np.load(io.BytesIO(base64.b64decode(text, validate=True)), allow_pickle=False) as stored:
            arrays = dict(stored)
        found: dict[int, Feeds] = {}
        for key, array in arrays.items():
            index, _, name = key.partition("/")
            found.setdefault(int(index), {})[name] = array
    except (ValueError, OSError, KeyError) as error:
        raise ToolError(f"'{path}' carries data that cannot be read: {error}") from error
    return [found[index] for index in sorted(found)]
