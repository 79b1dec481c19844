"""From an optimized model to a checked executable of one backend."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import onnx_ir as ir

from ..ir.errors import CompileError, ShapeError
from ..ir.shapes import require_static
from ..ir.symbols import input_symbols
from .batch_report import BatchReport, rows_of
from .batches import Batches
from .check import Check
from .checking import Disagreement, check_against_reference
from .choice import ONNXRUNTIME
from .compile_report import CompileReport
from .executable import Executable, TensorSpec, specs_of
from .float_products import SPLIT_FEATURE, first_target, next_target, splits_floats, too_near_the_bound
from .functions import without_functions
from .host import usable_cores
from .manifest import ENTRY
from .specialize import Specialized
from .target import Target
from .tuning.database import Database
from .tuning.session import records_used
from .tuning.step import tuned
from .weights import stored_bytes

if TYPE_CHECKING:
    from .tvm.strategy import Schedules

_WORKING_BYTES = 128 << 20
"""Room for object files and a library; the largest of the usual networks take a third of it."""

CheckMode = bool | Literal["qemu"]


@dataclass
class Maker:
    """Makes executables of one optimized model.

    Attributes:
        model: the optimized model.
        special: its versions for several batch sizes, if there are to be several.
        report: what is common to all backends.
        say: called with the name of each step as it begins.
        cases: inputs to check with: one set, or one per batch size.
        check: whether to compare with the reference.
        records: tuning records to build by.
        trials: tuning trials to spend.
        threads: threads that records are for.
        seed: seed of what is tried.
    """

    model: ir.Model
    special: Specialized | None
    report: CompileReport
    say: Callable[[str], None]
    cases: list[dict[str, np.ndarray]]
    check: CheckMode
    records: Database | None = None
    trials: int = 0
    threads: int = 1
    seed: int = 0
    _programs: dict[str, ir.Model] = field(default_factory=dict)

    def __call__(self, backend: str) -> Executable:
        """Build for one backend and check; where products of float32 are not exact enough, with better ones.

        Raises:
            CompileError: something cannot be lowered, or computes something else.
            ShapeError: a dimension of an input is not static.
        """
        target, said = self.report.target, ""
        if backend != ONNXRUNTIME:
            target = first_target(target, is_checked=bool(self.check) and target.runs_here)
        while True:
            report = replace(
                self.report, backend=backend, target=target, fallback=said, notes=list(self.report.notes)
            )
            try:
                executable = self._checked(report)
                why = too_near_the_bound(target, report.check) if splits_floats(report.kernels) else ""
                if not why:
                    return executable
                error = _error(report.check)
            except Disagreement as found:
                if not splits_floats(report.kernels) or next_target(target) is None:
                    raise
                why, error = str(found), found.error
            better = next_target(target, error)
            assert better is not None
            said = _said(target, better, why)
            self.say(said)
            target = better

    def _checked(self, report: CompileReport) -> Executable:
        executable = self._onnxruntime(report) if report.backend == ONNXRUNTIME else self._tvm(report)
        executable.model = self.model
        executable.report = report
        checks = self._checks(executable, report)
        report.check = max(checks, key=_error)
        if report.batches is not None:
            for row, check in zip(report.batches.rows, checks, strict=True):
                row.check = check
        return executable

    def _checks(self, executable: Executable, report: CompileReport) -> list[Check]:
        with report.step("check"):
            self.say("check")
            return [self._compared(executable, feeds) for feeds in self.cases]

    def _onnxruntime(self, report: CompileReport) -> Executable:
        from .onnxruntime import OnnxRuntimeExecutable

        with report.step("build"):
            self.say("build")
            executable = OnnxRuntimeExecutable(self.model, threads=usable_cores(), target=report.target)
        report.weight_bytes = report.sizes["after"]["parameter_bytes"]
        if self.special is not None:
            executable.batches = replace(self.special.batches, refusal="")
            report.notes.append("ONNX Runtime runs all batch sizes by one program")
        return executable

    def _tvm(self, report: CompileReport) -> Executable:
        if self.special is None:
            self._programs = {ENTRY: without_functions(self.model)}
        else:
            entries = self.special.batches.entries
            self._programs = {
                entries[size]: without_functions(model) for size, model in self.special.models.items()
            }
        for program in self._programs.values():
            _require_static(program)
        return self._built(report)

    def _built(self, report: CompileReport) -> Executable:
        """Build by the analytic model, by records, or after tuning."""
        target, records = report.target, self.records

        def build(schedules: Schedules | None) -> Executable:
            executable = self._library(report, schedules)
            if self.trials and splits_floats(report.kernels):
                # Before trials are spent on what may have to go.
                check = max(self._checks(executable, report), key=_error)
                if why := too_near_the_bound(target, check):
                    raise Disagreement(why, _error(check))
            return executable

        if records is None:
            return build(None)
        if self.trials:
            return tuned(
                self._programs, target, records, self.trials, self.threads, build, report, self.say, self.seed
            )
        executable = build(records.schedules(target, self.threads))
        report.notes += records_used(report.kernels, records, target, self.threads)
        return executable

    def _library(self, report: CompileReport, schedules: Schedules | None) -> Executable:
        from .compiled import TvmExecutable
        from .library import build_library
        from .lossless import shrunk

        batches = self.special.batches if self.special is not None else None
        shapes = batches.functions if batches is not None else None
        folder = tempfile.TemporaryDirectory(prefix="graphwright-")
        try:
            _require_space(folder.name)
            built = build_library(
                self._programs, report.target, Path(folder.name), report, self.say, schedules, shapes
            )
        except OSError as error:
            folder.cleanup()
            raise CompileError(
                f"cannot write the library to {folder.name}: {error.strerror or error}"
            ) from error
        except BaseException:
            folder.cleanup()
            raise
        report.kernels = built.kernels
        report.library_bytes = built.path.stat().st_size
        weights = shrunk(built.weights)
        report.weight_bytes = sum(stored_bytes(weight) for weight in weights)
        if batches is not None:
            rows = rows_of(batches, built.kernels, built.code, weights, built.used)
            report.batches = BatchReport(batches, rows)
        return TvmExecutable(built.path, weights, *self._signature(batches), report.target, folder, batches)

    def _signature(self, batches: Batches | None) -> tuple[list[TensorSpec], list[TensorSpec]]:
        """What the executable takes and returns; the batch dimension by its name."""
        graph = self.model.graph if batches is None else next(iter(self._programs.values())).graph
        inputs = specs_of([value for value in graph.inputs if value.name not in graph.initializers])
        outputs = specs_of(graph.outputs)
        if batches is None:
            return inputs, outputs
        return (
            [_batched(spec, axis, batches) for spec, axis in zip(inputs, batches.input_axes, strict=True)],
            [_batched(spec, axis, batches) for spec, axis in zip(outputs, batches.output_axes, strict=True)],
        )

    def _compared(self, executable: Executable, feeds: Mapping[str, np.ndarray]) -> Check:
        if not self.check:
            return Check(False, reason="it was switched off")
        reason = executable.target.why_not_here()
        if reason is None:
            return check_against_reference(self.model, executable.run, feeds)
        if self.check != "qemu":
            return Check(False, reason=f"the library cannot run here: {reason}")
        from .compiled import TvmExecutable
        from .cross import run_emulated

        assert isinstance(executable, TvmExecutable)
        return check_against_reference(
            self.model, lambda given: run_emulated(executable, given), feeds, where="qemu"
        )


def _batched(spec: TensorSpec, axis: int, batches: Batches) -> TensorSpec:
    shape = tuple(batches.symbol if each == axis else size for each, size in enumerate(spec.shape))
    return replace(spec, shape=shape)


def _said(target: Target, better: Target, why: str) -> str:
    number = "six" if target.float_parts == 3 else "three"
    how = "with six of them" if better.float_parts else f"without {SPLIT_FEATURE}"
    if better.exact_share:
        how = f"with six of them in the first {better.exact_share} % of the layers"
    return f"{number} products of bfloat16 for one of float32 are not exact enough here ({why}): built {how}"


def _error(check: Check) -> float:
    return check.comparison.max_rel if check.comparison is not None else -1.0


def _require_space(folder: str) -> None:
    """LLVM ends the process if the disk fills up while it writes, so that is found out before."""
    free = shutil.disk_usage(folder).free
    if free < _WORKING_BYTES:
        raise CompileError(
            f"{tempfile.gettempdir()} has {free >> 20} MB left, compiling needs about "
            f"{_WORKING_BYTES >> 20} MB; make room there or point TMPDIR elsewhere"
        )


def _require_static(program: ir.Model) -> None:
    """What the size of an input would settle is a ShapeError; TVM has no answer to what depends on data."""
    try:
        require_static(program)
    except ShapeError as error:
        if input_symbols(program):
            raise
        raise CompileError(f"{error}; TVM compiles fixed sizes only, use --backend onnxruntime") from None
