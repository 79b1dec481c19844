"""A library built by TVM, ready to run."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..ir.errors import ModelError, TargetError, ToolError
from .executable import Executable, TensorSpec
from .host import logical_cores, usable_cores
from .identity import identity
from .manifest import ENTRY
from .target import Target

if TYPE_CHECKING:
    from .batches import Batches
    from .profile import Profile
    from .tvm.runtime import TvmProgram


class TvmExecutable(Executable):
    """A shared library with packed weights; loaded when it is first run.

    Args:
        library: the shared library. It must stay where it is.
        weights: packed weights in the order of the library's last argument.
        inputs: what the model takes.
        outputs: what it returns.
        target: what the library was built for.
        folder: a temporary folder that holds the library and lives as long as this object.
        batches: the batch sizes that it has programs for; None if there is one program.
    """

    backend = "tvm"

    def __init__(
        self,
        library: Path,
        weights: Sequence[np.ndarray],
        inputs: Sequence[TensorSpec],
        outputs: Sequence[TensorSpec],
        target: Target,
        folder: Any = None,
        batches: Batches | None = None,
    ):
        super().__init__(inputs, outputs, target, batches)
        self.library = library
        self.weights = list(weights)
        self.threads = usable_cores()
        self._folder = folder
        self._program: TvmProgram | None = None
        self._loading = threading.Lock()
        self._identity = identity(library)

    def set_threads(self, threads: int) -> None:
        """Use that many threads from the next run on, at most one per logical core."""
        if threads < 1:
            raise ModelError("a model needs at least one thread")
        self.threads = min(threads, logical_cores())

    def load(self) -> TvmProgram:
        """The running program; raises TargetError where the machine cannot run the library."""
        if self._program is None:
            with self._loading:
                self._program = self._program or self._loaded()
        self._program.set_threads(self.threads)
        return self._program

    def _loaded(self) -> TvmProgram:
        reason = self.target.why_not_here()
        if reason:
            raise TargetError(f"a library for {self.target.name} cannot run here: {reason}")
        from .tvm.runtime import TvmProgram

        return TvmProgram(self.library, self.weights, self.target.device)

    def _run(self, arrays: list[np.ndarray]) -> list[np.ndarray]:
        if self.batches is None:
            return self.load().run(arrays)
        entries = self.batches.entries
        return self.batches.run(arrays, lambda size, part: self.load().run(part, entries[size]))

    def _timed_runs(self, arrays: list[np.ndarray], repeats: int) -> list[float]:
        program = self.load()
        parts = [(entry, program.prepare(part)) for entry, part in self.calls(arrays)]
        samples = []
        for _ in range(repeats):
            start = time.perf_counter()
            for entry, tensors in parts:
                program.invoke(tensors, entry)
            program.synchronize()
            samples.append((time.perf_counter() - start) * 1e3)
        return samples

    def require_files(self) -> None:
        """Raise ToolError where the library of a later compilation has taken the place of this one."""
        if identity(self.library) != self._identity:
            raise ToolError(
                f"{self.library.parent} was replaced or removed since it was loaded; load it again with "
                "load_executable"
            )

    def calls(self, arrays: list[np.ndarray]) -> list[tuple[str, list[np.ndarray]]]:
        """The programs that a run on checked inputs calls, with their inputs: one, or one per piece."""
        if self.batches is None:
            return [(ENTRY, arrays)]
        pieces = self.batches.plan(self.batches.size_of(arrays))
        return [(self.batches.entries[piece.size], self.batches.cut(arrays, piece)) for piece in pieces]

    def profile(
        self,
        feeds: Mapping[str, Any] | None = None,
        *,
        threads: int = 1,
        repeats: int = 20,
        peaks: bool = True,
    ) -> Profile:
        """Time every kernel call; see `Executable.profile`."""
        from .profile import profile_library

        self.require_files()
        return profile_library(self, feeds, threads=threads, repeats=repeats, peaks=peaks)

    def kernel_table(self) -> tuple[list[dict[str, Any]], str | None]:
        """What the library's functions compute, from the report of compiling; and why it is not known."""
        if self.report is not None:
            return self.report.kernels, None
        path = self.library.with_name("report.json")
        try:
            kernels = json.loads(path.read_text(encoding="utf-8"))["kernels"]
            return [{**kernel, "name": kernel["name"]} for kernel in kernels], None
        except FileNotFoundError:
            return [], f"{path.name} is missing: nodes, kernels and operations are not known."
        except (OSError, ValueError, KeyError, TypeError):
            return [], f"{path.name} is damaged: nodes, kernels and operations are not known."
