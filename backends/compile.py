"""`gw.compile`: from a model to something that runs on a device, checked against the reference on the way."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx_ir as ir

from ..ir.account import account
from ..ir.clone import clone
from ..ir.errors import CompileError, TargetError
from ..ir.inputs import random_inputs
from ..ir.shapes import bind_dims, infer_shapes
from ..ir.upgrade import upgrade
from ..ir.verify import verify
from ..passes.manager import Observer
from ..passes.optimize import optimize
from .batches import checked_sizes
from .choice import AUTO, BACKENDS, ONNXRUNTIME, TVM, Choice, attempt, decide, why_no_choice
from .compile_report import CompileReport
from .cross import linker_for
from .executable import Executable
from .host import usable_cores
from .making import CheckMode, Maker
from .meter import latency_meter, wants_clock
from .specialize import Specialized, batch_feeds, free_batch, specialize
from .target import Target, resolve_target
from .tuning.session import open_database, why_not_tunable

DEFAULT_PIPELINE = (
    "simplify,fold-batch-norm,"
    "fuse-normalization,fuse-group-norm,merge-transposes,fuse-softmax,fuse-attention,fuse-activation,"
    "eliminate-dead"
)
"""What compiling does to a graph if nothing else is asked for; lossless.

Of `fuse` these make standard operators, for which there are kernels; functions would be taken apart again.
"""


def compile(
    model: ir.Model | str | Path,
    target: str | Target = "x86",
    *,
    pipeline: Any = None,
    trials: int = 0,
    database: str | Path | Literal[False] | None = None,
    calibration: Any = None,
    backend: str = "tvm",
    threads: int = 1,
    batch_sizes: Sequence[int] | None = None,
    check: CheckMode = True,
    check_feeds: Mapping[str, np.ndarray] | None = None,
    dims: Mapping[str, int] | None = None,
    seed: int = 0,
    verify_each: bool = True,
    check_each: bool = False,
    observers: Sequence[Observer] = (),
    source: str | Path | None = None,
    progress: Callable[[str], None] | None = None,
) -> Executable:
    """Optimize a model, lower it, build it for a target and compare it with the reference.

    Args:
        model: the model, which is not changed, or the file to load it from.
        target: a `Target` or its name; see `graphwright targets`.
        pipeline: passes to run first, as text or as passes; lossless ones if None, "" for none.
        trials: tuning trials to spend; records of this model's kernels in the database count as spent.
        database: file of tuning records, by which kernels are built before those that come with the
            package; with trials, where they are kept (in the user's cache if None). False for no records at
            all. Records are for `threads`.
        calibration: feeds for passes that look at activations.
        backend: "tvm"; "onnxruntime" to run the optimized graph there; "auto" for the faster of the two on
            this machine, or TVM, with a note, where the target does not run here.
        threads: threads that "auto" times both with, and that records and trials are for.
        batch_sizes: build a program for each of these sizes of the inputs' leading dimension into one
            library; they share weights, and a run takes the one that fits. A batch of another size is run
            in pieces (5 as 4 + 1) if rows do not depend on each other, which is proven on the reference,
            and refused if they do.
        check: run once against the reference where the target runs here. "qemu" also runs libraries for
            64-bit ARM, emulated.
        check_feeds: inputs for the check; random ones if None.
        dims: sizes to bind symbolic dimensions to, by name.
        seed: seed of everything random.
        verify_each: verify the graph after every pass.
        check_each: prove or measure every pass on the reference.
        observers: watchers of the passes.
        source: file the model came from, for the record.
        progress: called with the name of each step as it begins.

    Raises:
        TargetError: the target is unknown, or what it needs is missing here.
        ShapeError: a shape is not static; bind it with `dims`.
        CompileError: something cannot be lowered, or computes something else.
        PassError: a pass failed.
        VerifyError: the graph is invalid.
    """
    resolved = resolve_target(target)
    _refuse_early(resolved, trials, backend, threads)
    sizes = () if batch_sizes is None else checked_sizes(batch_sizes)
    if database is False and trials:
        raise CompileError("tuning needs a database to keep its trials in; leave database=False out")
    records = None
    if database is not False and resolved.kind == "llvm":
        records = open_database(database, keeps=trials > 0)
    say = progress or (lambda step: None)
    if isinstance(model, str | Path):
        from ..ir.load import load

        say("read")
        source = source or model
        given = load(model)
    elif isinstance(model, ir.Model):
        given = model
    else:
        raise CompileError(f"compile takes a model from load or trace, or a file; not {type(model).__name__}")
    report = CompileReport(given.graph.name or "model", resolved, backend)
    with report.step("prepare"):
        say("prepare")
        verify(given)
        working = clone(given)
        upgrade(working)
        bind_dims(working, dict(dims or {}))
        infer_shapes(working)
        symbol = free_batch(working) if sizes else ""
        report.source = _source(given, source)
        report.sizes["before"] = _sizes(working)
    with report.step("optimize"):
        say("optimize")
        text = DEFAULT_PIPELINE if pipeline is None else pipeline
        if text != "":
            result = optimize(
                working,
                text,
                calibration=calibration,
                target=resolved,
                verify_each=verify_each,
                check_each=check_each,
                observers=observers,
                seed=seed,
                measure=latency_meter(resolved) if wants_clock(str(text)) else None,
            )
            working = result.model
            report.pipeline = result.report.pipeline
            report.passes = [record.to_json() for record in result.report.records]
    report.sizes["after"] = _sizes(working)
    special = None
    if sizes:
        with report.step("specialize"):
            say("specialize")
            again = DEFAULT_PIPELINE if text != "" else ""
            special = specialize(
                working, symbol, sizes, lambda sized: _refined(sized, again, resolved), seed=seed
            )
    cases = _cases(working, special, check_feeds, seed)
    make = Maker(working, special, report, say, cases, check, records, trials, threads, seed)
    if backend != AUTO:
        return make(backend)
    return _faster(make, resolved, report, say, cases, threads)


def _refined(model: ir.Model, pipeline: str, target: Target) -> ir.Model:
    """A graph whose shapes have become known: what depended on them can go."""
    infer_shapes(model)
    if not pipeline:
        return model
    return optimize(model, pipeline, target=target).model


def _cases(
    model: ir.Model, special: Specialized | None, given: Mapping[str, np.ndarray] | None, seed: int
) -> list[dict[str, np.ndarray]]:
    """Inputs to check with: one set, or one per batch size."""
    if special is None:
        return [dict(given) if given is not None else random_inputs(model, seed=seed)]
    batches = special.batches
    feeds = {size: batch_feeds(model, batches.symbol, size, seed) for size in batches.sizes}
    if given is not None:
        names = [value.name for value in model.graph.inputs if value.name not in model.graph.initializers]
        arrays = [np.asarray(given[str(name)]) for name in names if name in given]
        size = batches.size_of(arrays) if len(arrays) == len(names) else 0
        if size in feeds:
            feeds[size] = dict(given)
    return list(feeds.values())


def _faster(
    make: Callable[[str], Executable],
    target: Target,
    report: CompileReport,
    say: Callable[[str], None],
    cases: Sequence[dict[str, np.ndarray]],
    threads: int,
) -> Executable:
    reason = why_no_choice(target)
    if reason:
        executable, choice = make(TVM), Choice(TVM, reason)
    else:
        made, failures = attempt({name: functools.partial(make, name) for name in (TVM, ONNXRUNTIME)})
        with report.step("time both backends"):
            say("time both backends")
            choice = decide(made, failures, cases, threads=threads)
        executable = made[choice.chosen]
        executable.set_threads(usable_cores())
    assert executable.report is not None
    executable.report.choice = choice
    return executable


def _refuse_early(target: Target, trials: int, backend: str, threads: int) -> None:
    """Everything that can be known to fail before minutes are spent."""
    if backend not in BACKENDS:
        raise CompileError(f"unknown backend {backend!r}; there are {', '.join(BACKENDS)}")
    if threads < 1:
        raise CompileError("timing backends needs at least one thread")
    if trials < 0:
        raise CompileError("trials must not be negative")
    if trials and backend == ONNXRUNTIME:
        raise CompileError("tuning is for kernels of the tvm backend; leave trials at 0")
    if trials and (reason := why_not_tunable(target)):
        raise CompileError(reason)
    if backend == ONNXRUNTIME:
        reason = target.why_not_here()
        if reason or target.device != "cpu":
            raise TargetError(
                f"the onnxruntime backend runs on this machine's CPU only, not on {target.name}: {reason}"
            )
        return
    linker_for(target)


def _sizes(model: ir.Model) -> dict[str, Any]:
    found = account(model)
    return {
        "nodes": found.nodes,
        "parameters": found.parameters,
        "parameter_bytes": found.parameter_bytes,
        "macs": found.macs,
    }


def _source(model: ir.Model, source: str | Path | None) -> dict[str, str]:
    """Name and hash of what was compiled: of the file where there is one, else of graph and weights."""
    if source is not None and Path(source).is_file():
        with open(source, "rb") as file:
            return {"name": Path(source).name, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}
    return {"name": str(source or model.graph.name or ""), "sha256": model_hash(model)}


def model_hash(model: ir.Model) -> str:
    """SHA-256 of a model's structure and weights, the same for the same model however it is stored."""
    digest = hashlib.sha256()
    skeleton = clone(model)
    for name, value in sorted(skeleton.graph.initializers.items()):
        tensor = value.const_value
        if tensor is None:
            continue
        digest.update(f"{name}:{tensor.dtype}:{list(tensor.shape)};".encode())
        digest.update(tensor.tobytes())
        value.const_value = ir.Tensor(np.zeros(0, np.float32), name=name)
    digest.update(ir.to_proto(skeleton).SerializeToString(deterministic=True))
    return digest.hexdigest()
