"""Calibration data: example inputs from files, an iterable, or (for speed only) random numbers.

Data is read one batch at a time and checked against the model's inputs before it is used; every complaint is
one line that names the input and the batch.
"""

from __future__ import annotations

import copy
import functools
import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from ...ir.contiguous import bytes_of
from ...ir.errors import PassError
from .calibration_files import read_npy, read_npz

Feeds = dict[str, np.ndarray]

# Samples per batch where the model leaves the batch open: enough to keep the reference busy, few enough that
# the activations of a large model stay small.
DEFAULT_BATCH = 8


class Calibration:
    """A source of example inputs.

    Made by `load` (a file or a folder), `from_arrays`, `from_iterable` or `random_data`; `batches(model)`
    yields checked feeds.

    Attributes:
        source: where the data comes from, for messages and reports.
        total: number of batches if it is known beforehand.
        repeatable: whether the data can be read more than once.
        random: whether the numbers are made up, so that ranges mean nothing.
        identity: what tells this data from other data, where that is known: results can be reused then.
        cache: file that measured ranges are saved to and reused from, or None.
        has_data: False where there is nothing but the cache.
    """

    def __init__(
        self,
        open_batches: Callable[[ir.Model], Iterable[Any]],
        *,
        source: str,
        total: int | None = None,
        repeatable: bool = True,
        random: bool = False,
        identity: Callable[[], str] | None = None,
        count: Callable[[ir.Model], int] | None = None,
    ):
        self._open = open_batches
        self.source = source
        self.total = total
        self.repeatable = repeatable
        self.random = random
        self.cache: Path | None = None
        self.has_data = True
        self._identify = identity
        self._count = count

    def __repr__(self) -> str:
        return f"Calibration({self.source})"

    @functools.cached_property
    def identity(self) -> str | None:
        """A digest of the data, or None where it is only known as it comes."""
        return None if self._identify is None else self._identify()

    def with_cache(self, path: str | Path) -> Calibration:
        """The same data, with a file that measured ranges are saved to and reused from."""
        other = copy.copy(self)
        other.cache = Path(path)
        return other

    @classmethod
    def saved(cls, path: str | Path) -> Calibration:
        """No data, only ranges that were saved before; asking for others is refused."""

        def open_batches(model: ir.Model) -> Iterator[Feeds]:
            raise PassError(
                f"there is no calibration data, and '{path}' holds no ranges for this model and method"
            )

        made = cls(open_batches, source=Path(path).name).with_cache(path)
        made.has_data = False
        return made

    def count(self, model: ir.Model) -> int | None:
        """The number of batches for a model where it is known beforehand."""
        return self.total if self._count is None else self._count(model)

    def batches(self, model: ir.Model) -> Iterator[Feeds]:
        """Yields feeds for `model`, checked, one batch at a time.

        Raises:
            PassError: a name, shape or type does not suit the model, a number is not finite, or there is no
                data.
        """
        inputs = _inputs_of(model)
        count = 0
        for count, batch in enumerate(self._open(model), start=1):
            where = f"calibration data ({self.source}), batch {count}"
            yield _checked(batch, inputs, where)
        if count == 0:
            raise PassError(f"calibration data ({self.source}) holds no batch")

    @classmethod
    def from_npz(cls, path: str | Path, *, batch: int = DEFAULT_BATCH) -> Calibration:
        """Reads a `.npz` file whose arrays are named by the model's inputs, samples along the leading axis.

        Args:
            path: the file.
            batch: samples per run where the model leaves its batch size open.

        Raises:
            PassError: the file cannot be read, or its arrays differ in their number of samples.
        """
        arrays = read_npz(Path(path))
        return cls.from_arrays(arrays, batch=batch, source=Path(path).name)

    @classmethod
    def from_arrays(
        cls, arrays: Mapping[str, np.ndarray], *, batch: int = DEFAULT_BATCH, source: str = "arrays"
    ) -> Calibration:
        """Takes arrays by input name, samples along the leading axis.

        Raises:
            PassError: there is no array, or they differ in their number of samples.
        """
        data = {name: np.asarray(array) for name, array in arrays.items()}
        samples = _sample_count(data, source)

        def open_batches(model: ir.Model) -> Iterator[Feeds]:
            yield from _slices(data, samples, _inputs_of(model), batch, source)

        def count(model: ir.Model) -> int:
            return -(-samples // _batch_size(data, samples, _inputs_of(model), batch))

        return cls(open_batches, source=source, identity=lambda: _digest_of(data), count=count)

    @classmethod
    def from_folder(cls, path: str | Path, *, batch: int = DEFAULT_BATCH) -> Calibration:
        """Reads a folder of `.npz` files (as for `from_npz`), or of `.npy` files for a model with one input.

        Files are opened one after the other in the order of their names; none stays in memory.

        Raises:
            PassError: the folder holds no such file.
        """
        folder = Path(path)
        files = sorted(p for p in folder.iterdir() if p.suffix in (".npz", ".npy")) if folder.is_dir() else []
        if not files:
            raise PassError(f"calibration folder '{path}' holds no .npz or .npy file")

        def open_batches(model: ir.Model) -> Iterator[Feeds]:
            inputs = _inputs_of(model)
            for file in files:
                arrays = read_npz(file) if file.suffix == ".npz" else read_npy(file, inputs)
                yield from _slices(arrays, _sample_count(arrays, file.name), inputs, batch, file.name)

        def identify() -> str:
            seen = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files]
            return hashlib.blake2b(repr((batch, seen)).encode(), digest_size=16).hexdigest()

        return cls(open_batches, source=folder.name, identity=identify)

    @classmethod
    def from_iterable(
        cls, batches: Iterable[Any] | Callable[[], Iterable[Any]], *, identity: str | None = None
    ) -> Calibration:
        """Takes batches as the model wants them: feeds by name, a tuple in input order, or one array.

        Args:
            batches: an iterable, or a function that returns a fresh one each time.
            identity: a name for exactly these batches in this order, with which saved ranges are reused.
        """
        identify = None if identity is None else lambda: identity
        if callable(batches):
            return cls(lambda model: batches(), source="function", identity=identify)
        total = len(batches) if isinstance(batches, Sequence) else None
        once = iter(batches) is batches
        return cls(
            lambda model: batches,
            source="iterator" if once else "iterable",
            total=total,
            repeatable=not once,
            identity=identify,
        )

    @classmethod
    def random_data(cls, batches: int = 4, seed: int = 0) -> Calibration:
        """Makes numbers up, for people who only want to measure speed: the accuracy means nothing."""

        def open_batches(model: ir.Model) -> Iterator[Feeds]:
            from ...ir.inputs import random_inputs

            for index in range(batches):
                yield random_inputs(model, seed=seed + index)

        return cls(
            open_batches,
            source="random numbers",
            total=batches,
            random=True,
            identity=lambda: f"random {batches} {seed}",
        )

    @classmethod
    def load(cls, path: str | Path, *, batch: int = DEFAULT_BATCH) -> Calibration:
        """Opens a `.npz` file or a folder; see `from_npz` and `from_folder`."""
        if Path(path).is_dir():
            return cls.from_folder(path, batch=batch)
        return cls.from_npz(path, batch=batch)


def as_calibration(data: Any) -> Calibration:
    """Wraps what a user may pass as calibration data.

    Args:
        data: a `Calibration`, a path, arrays by input name, or an iterable of batches.

    Raises:
        PassError: it is none of these.
    """
    if isinstance(data, Calibration):
        return data
    if isinstance(data, str | Path):
        return Calibration.load(data)
    if isinstance(data, Mapping):
        return Calibration.from_arrays(data)
    if callable(data) or isinstance(data, Iterable):
        return Calibration.from_iterable(data)
    raise PassError(
        f"calibration data must be a path, arrays or an iterable of feeds, not {type(data).__name__}"
    )


def _inputs_of(model: ir.Model) -> dict[str, ir.Value]:
    initializers = model.graph.initializers
    return {str(value.name): value for value in model.graph.inputs if value.name not in initializers}


def _sample_count(arrays: Mapping[str, np.ndarray], source: str) -> int:
    if not arrays:
        raise PassError(f"calibration data ({source}) holds no array")
    for name, array in arrays.items():
        if array.ndim == 0:
            raise PassError(
                f"calibration data ({source}): '{name}' is a single number; samples go along axis 0"
            )
    counts = {name: len(array) for name, array in arrays.items()}
    first = next(iter(counts))
    for name, count in counts.items():
        if count != counts[first]:
            raise PassError(
                f"calibration data ({source}): '{first}' has {counts[first]} samples, '{name}' has {count}"
            )
    if counts[first] == 0:
        raise PassError(f"calibration data ({source}): '{first}' has no samples")
    return counts[first]


def _slices(
    arrays: Mapping[str, np.ndarray], samples: int, inputs: Mapping[str, ir.Value], batch: int, source: str
) -> Iterator[Feeds]:
    """Cuts arrays into batches, as large as the model's leading dimension, or `batch` where it is open.

    Inputs without a sample axis make it one sample at a time.
    """
    named = _by_name(arrays, inputs, f"calibration data ({source})")
    flat = _without_sample_axis(named, inputs)
    fixed = _fixed_batch(inputs.values())
    size = _batch_size(arrays, samples, inputs, batch)
    if samples < size:
        raise PassError(
            f"calibration data ({source}) has {samples} samples, but the model takes batches of {size}"
        )
    for start in range(0, samples, size):
        stop = min(start + size, samples)
        # The last batch of a fixed size is filled up with samples that came before it.
        first = stop - size if fixed else start
        yield {name: array[start] if name in flat else array[first:stop] for name, array in named.items()}


def _batch_size(
    arrays: Mapping[str, np.ndarray], samples: int, inputs: Mapping[str, ir.Value], batch: int
) -> int:
    """Samples per run."""
    named = _by_name(arrays, inputs, "calibration data")
    return 1 if _without_sample_axis(named, inputs) else _fixed_batch(inputs.values()) or min(batch, samples)


def _without_sample_axis(named: Mapping[str, np.ndarray], inputs: Mapping[str, ir.Value]) -> set[str]:
    """Inputs that take a single sample as it is."""
    ranks = {name: len(value.shape) for name, value in inputs.items() if value.shape is not None}
    return {name for name, array in named.items() if ranks.get(name) == array.ndim - 1}


def _digest_of(arrays: Mapping[str, np.ndarray]) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for name, array in sorted(arrays.items()):
        digest.update(repr((name, str(array.dtype), array.shape)).encode())
        digest.update(bytes_of(array).data)
    return digest.hexdigest()


def _fixed_batch(inputs: Iterable[ir.Value]) -> int | None:
    """The leading dimension of the first input that fixes it."""
    for value in inputs:
        if value.shape is not None and len(value.shape) > 0 and isinstance(value.shape[0], int):
            return max(int(value.shape[0]), 1)
    return None


def _checked(batch: Any, inputs: Mapping[str, ir.Value], where: str) -> Feeds:
    feeds = _by_name(batch, inputs, where)
    for name in feeds:
        if name not in inputs:
            raise PassError(f"{where} has '{name}', but the model's inputs are {_names(inputs)}")
    missing = [name for name in inputs if name not in feeds]
    if missing:
        raise PassError(f"{where} has no array for input '{missing[0]}'; it has {_names(feeds)}")
    return {name: _checked_array(name, feeds[name], inputs[name], where) for name in inputs}


def _by_name(batch: Any, inputs: Mapping[str, ir.Value], where: str) -> Mapping[str, Any]:
    if isinstance(batch, Mapping):
        positional = [f"arr_{i}" for i in range(len(inputs))]
        # What numpy.savez makes of arrays without names.
        if set(batch) != set(positional) or set(inputs) == set(positional):
            return batch
        return {name: batch[key] for name, key in zip(inputs, positional, strict=True)}
    values = list(batch) if isinstance(batch, tuple | list) else [batch]
    if len(values) != len(inputs):
        raise PassError(f"{where} has {len(values)} arrays, but the model has {len(inputs)} inputs")
    return dict(zip(inputs, values, strict=True))


def _checked_array(name: str, data: Any, value: ir.Value, where: str) -> np.ndarray:
    # Torch tensors and lists arrive here too.
    array = np.asarray(data.detach().cpu().numpy() if hasattr(data, "detach") else data)
    if value.dtype is not None and value.dtype != ir.DataType.STRING:
        array = _converted(name, array, value.dtype.numpy(), where)
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        kind = "NaN" if np.isnan(array).any() else "infinity"
        raise PassError(f"{where}: input '{name}' holds {kind}")
    if value.shape is not None:
        _check_shape(name, array, value.shape, where)
    return array


def _converted(name: str, array: np.ndarray, wanted: np.dtype, where: str) -> np.ndarray:
    """Converts between widths of one kind of number (float64 to float32), never between kinds."""
    if array.dtype == wanted:
        return array
    # Floating types of ml_dtypes have kind "V".
    same_kind = array.dtype.kind == wanted.kind or {array.dtype.kind, wanted.kind} <= {"f", "V"}
    if not same_kind:
        raise PassError(f"{where}: input '{name}' is {array.dtype}, but the model wants {wanted}")
    converted = array.astype(wanted)
    if array.dtype.kind in "iu" and not np.array_equal(converted, array):
        raise PassError(f"{where}: input '{name}' holds numbers that do not fit {wanted}")
    return converted


def _check_shape(name: str, array: np.ndarray, shape: ir.Shape, where: str) -> None:
    fits = array.ndim == len(shape) and all(
        not isinstance(dim, int) or dim == size for dim, size in zip(shape, array.shape, strict=False)
    )
    if not fits:
        wanted = ", ".join(str(dim) if isinstance(dim, int) else str(dim.value or "?") for dim in shape)
        raise PassError(
            f"{where}: input '{name}' has shape {list(array.shape)}, but the model wants [{wanted}]"
        )


def _names(names: Iterable[str]) -> str:
    return ", ".join(f"'{name}'" for name in names) or "none"
