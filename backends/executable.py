"""The one face of everything that can run a model: compiled libraries, ONNX Runtime, loaded artifacts."""

from __future__ import annotations

import abc
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..ir.errors import CompileError, ModelError, TargetError

if TYPE_CHECKING:
    import onnx_ir as ir

    from .batches import Batches
    from .compile import CompileReport
    from .profile import Profile
    from .target import Target
    from .timing import Timing


@dataclass(frozen=True)
class TensorSpec:
    """Name, shape and element type of one input or output."""

    name: str
    shape: tuple[int | str, ...]
    """Sizes; a string is a dimension that may take any size."""
    dtype: str
    """NumPy's name of the element type ("float32"), "bfloat16" and the like as `ml_dtypes` spells them."""

    def numpy_dtype(self) -> np.dtype[Any]:
        """The element type as NumPy sees it."""
        try:
            return np.dtype(self.dtype)
        except TypeError:
            import ml_dtypes

            return np.dtype(getattr(ml_dtypes, self.dtype))

    @property
    def bytes(self) -> int:
        """Size of the tensor in bytes; unknown dimensions count once."""
        sizes = [size for size in self.shape if isinstance(size, int)]
        return int(np.prod(sizes, dtype=np.int64)) * self.numpy_dtype().itemsize

    def __str__(self) -> str:
        return f"{self.name}: {self.dtype}[{','.join(map(str, self.shape))}]"

    def to_json(self) -> dict[str, Any]:
        """A JSON-able dictionary."""
        return {"name": self.name, "shape": list(self.shape), "dtype": self.dtype}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> TensorSpec:
        """The description that `to_json` wrote."""
        return cls(name=data["name"], shape=tuple(data["shape"]), dtype=data["dtype"])


class Executable(abc.ABC):
    """A model ready to run.

    `exe(x)` takes arrays, torch tensors or nested lists, by position or by name, and returns one array or a
    tuple; `run` goes from a dictionary to a dictionary. Several threads may run one at the same time; each
    then has as many threads of its own as the executable is to use.

    Attributes:
        inputs: what `run` expects, in order.
        threads: how many threads a run uses.
        outputs: what it returns, in order.
        target: the device the model was compiled for.
        backend: "tvm" or "onnxruntime".
        model: the optimized graph, where it is at hand.
        report: how the executable came about, where it was compiled rather than loaded.
        manifest: the manifest of the artifact that it was loaded from.
        graph_file: the optimized graph's file in that artifact.
        batches: the batch sizes that it was compiled for; None where it was for one, or for any.
    """

    backend: str = ""

    def __init__(
        self,
        inputs: Sequence[TensorSpec],
        outputs: Sequence[TensorSpec],
        target: Target,
        batches: Batches | None = None,
    ):
        self.inputs = list(inputs)
        self.outputs = list(outputs)
        self.target = target
        self.batches = batches
        self.threads = 1
        self.model: ir.Model | None = None
        self.report: CompileReport | None = None
        self.manifest: dict[str, Any] | None = None
        self.graph_file: Path | None = None

    @abc.abstractmethod
    def _run(self, arrays: list[np.ndarray]) -> list[np.ndarray]:
        """Outputs in order for checked, contiguous inputs in order."""

    @abc.abstractmethod
    def set_threads(self, threads: int) -> None:
        """Use that many threads from the next run on."""

    def _timed_runs(self, arrays: list[np.ndarray], repeats: int) -> list[float]:
        """Milliseconds of `repeats` runs; a backend that can keep inputs on the device overrides it."""
        samples = []
        for _ in range(repeats):
            start = time.perf_counter()
            self._run(arrays)
            samples.append((time.perf_counter() - start) * 1e3)
        return samples

    def run(self, feeds: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """Outputs by name for inputs by name.

        Raises:
            ModelError: an input is missing, unknown, or has another shape or element type.
        """
        arrays = check_inputs(self.inputs, feeds)
        return dict(zip((spec.name for spec in self.outputs), self._run(arrays), strict=True))

    def __call__(self, *arrays: Any, **named: Any) -> np.ndarray | tuple[np.ndarray, ...]:
        """One array, or a tuple where the model has several outputs."""
        if len(arrays) == 1 and isinstance(arrays[0], Mapping) and not named:
            named, arrays = dict(arrays[0]), ()
        if len(arrays) > len(self.inputs):
            raise ModelError(f"the model takes {len(self.inputs)} input(s), {len(arrays)} were given")
        feeds = {spec.name: array for spec, array in zip(self.inputs, arrays, strict=False)}
        twice = sorted(feeds.keys() & named.keys())
        if twice:
            raise ModelError(f"input {twice[0]!r} is given twice, by position and by name")
        results = tuple(self.run({**feeds, **named}).values())
        return results[0] if len(results) == 1 else results

    def random_feeds(self, seed: int = 0, *, batch: int | None = None) -> dict[str, np.ndarray]:
        """Random inputs of the right shapes: normal floats, integers in the range the model can take.

        Args:
            seed: of the generator.
            batch: rows, where the executable was compiled for several batch sizes; the smallest size if None.
        """
        sizes: dict[str, int] = {}
        if self.batches is not None:
            sizes[self.batches.symbol] = self.batches.sizes[0] if batch is None else batch
        elif batch is not None:
            raise ModelError("this executable was not compiled for several batch sizes")
        if self.model is not None:
            from ..ir.inputs import random_inputs

            return random_inputs(self.model, seed=seed, dims=sizes)
        generator = np.random.default_rng(seed)
        return {spec.name: _random(spec, generator, sizes) for spec in self.inputs}

    def benchmark(
        self,
        feeds: Mapping[str, Any] | None = None,
        *,
        threads: int = 1,
        repeats: int | None = None,
        warmup: int = 3,
        seconds: float = 1.0,
    ) -> Timing:
        """Time single runs.

        Args:
            feeds: inputs by name; random ones if None.
            threads: threads to use; the executable keeps them.
            repeats: runs to time; as many as fit into `seconds` (5 to 200) if None.
            warmup: runs before the first that counts.
            seconds: time to spend where `repeats` is None.
        """
        from .timing import Timing, fitting_repeats

        if threads < 1 or (repeats is not None and repeats < 1):
            raise ModelError("benchmark needs at least one thread and one run")
        arrays = check_inputs(self.inputs, self.random_feeds() if feeds is None else feeds)
        self.set_threads(threads)
        first = self._timed_runs(arrays, max(1, warmup))
        if repeats is None:
            repeats = fitting_repeats(min(first), seconds, least=5, most=200)
        return Timing.of(self._timed_runs(arrays, repeats), self.threads)

    def profile(
        self,
        feeds: Mapping[str, Any] | None = None,
        *,
        threads: int = 1,
        repeats: int = 20,
        peaks: bool = True,
    ) -> Profile:
        """Time every kernel call, beside what this machine can do at best.

        Args:
            feeds: inputs by name; random ones if None.
            threads: threads to use; the executable keeps them.
            repeats: runs to take the medians of.
            peaks: measure the machine's arithmetic and bandwidth; imports TVM's compiler.

        Raises:
            ModelError: `threads` or `repeats` is not positive, or the feeds do not fit.
            TargetError: the backend or the device has no kernels that can be timed one by one.
        """
        raise TargetError(
            f"profile times the kernels of compiled libraries; this model runs on {self.backend}, compile it "
            "with the tvm backend"
        )

    def save(self, directory: str | Path) -> Path:
        """Write a self-contained artifact folder; see `artifact.save_artifact`."""
        from .artifact import save_artifact

        return save_artifact(self, directory)


def check_inputs(specs: Sequence[TensorSpec], feeds: Mapping[str, Any]) -> list[np.ndarray]:
    """Contiguous arrays in the order of `specs`.

    Arrays and tensors must have the right element type already; numbers and lists are converted.

    Raises:
        ModelError: an input is missing, unknown, or has another shape or element type.
    """
    names = {spec.name for spec in specs}
    unknown = [name for name in feeds if name not in names]
    if unknown:
        raise ModelError(f"the model has no input {unknown[0]!r}; it takes {_listed(specs)}")
    missing = [spec.name for spec in specs if spec.name not in feeds]
    if missing:
        raise ModelError(f"input {missing[0]!r} is missing; the model takes {_listed(specs)}")
    sizes: dict[str, int] = {}
    return [_check(spec, feeds[spec.name], sizes) for spec in specs]


def _check(spec: TensorSpec, value: Any, sizes: dict[str, int]) -> np.ndarray:
    array = _to_numpy(spec, value)
    if array.dtype != spec.numpy_dtype():
        raise ModelError(f"input {spec.name!r} is {array.dtype}, the model takes {spec}")
    fits = array.ndim == len(spec.shape)
    for size, expected in zip(array.shape, spec.shape, strict=False):
        fits = fits and size == (sizes.setdefault(expected, size) if isinstance(expected, str) else expected)
    if not fits:
        raise ModelError(f"input {spec.name!r} has shape {list(array.shape)}, the model takes {spec}")
    return np.ascontiguousarray(array) if array.ndim else array


def _to_numpy(spec: TensorSpec, value: Any) -> np.ndarray:
    if isinstance(value, np.ndarray | np.generic):
        return np.asarray(value)
    if hasattr(value, "detach"):  # a torch tensor, without importing torch
        value = value.detach().cpu()
        if str(value.dtype) == "torch.bfloat16":
            import ml_dtypes
            import torch

            return value.contiguous().view(torch.uint16).numpy().view(ml_dtypes.bfloat16)
        return value.contiguous().numpy()
    try:
        if hasattr(value, "__dlpack__"):  # a tensor of another library; it says itself where it is no CPU's
            return np.from_dlpack(value)
        return np.asarray(value, dtype=spec.numpy_dtype())
    except (TypeError, ValueError, BufferError, RuntimeError, OverflowError) as error:
        raise ModelError(f"input {spec.name!r} cannot be made an array of {spec.dtype}: {error}") from None


def _listed(specs: Sequence[TensorSpec]) -> str:
    return ", ".join(map(str, specs)) or "no inputs"


def _random(spec: TensorSpec, generator: np.random.Generator, sizes: Mapping[str, int]) -> np.ndarray:
    shape = [size if isinstance(size, int) else sizes.get(size, 1) for size in spec.shape]
    dtype = spec.numpy_dtype()
    if dtype.kind in "iub":
        return generator.integers(0, 2, shape).astype(dtype)
    return generator.standard_normal(shape).astype(dtype)


def specs_of(values: Sequence[ir.Value]) -> list[TensorSpec]:
    """Descriptions of graph inputs or outputs.

    Raises:
        CompileError: a value is no tensor of known type and rank.
    """
    specs = []
    for value in values:
        if value.dtype is None or value.shape is None:
            raise CompileError(f"{value.name!r} has no known element type or rank; run shape inference first")
        shape = tuple(size if isinstance(size, int) else str(size) for size in value.shape)
        specs.append(TensorSpec(value.name or "", shape, str(value.dtype.numpy())))
    return specs
