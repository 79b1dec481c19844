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

from ...ir.errors import PassError
from .calibration_checks import as_array, by_name, check_kind, check_names, check_shape, checked
from .calibration_files import Member, digest_of, open_npy, open_npz
from .given_batches import Once, in_turn, once_at_most

Feeds = dict[str, np.ndarray]
Array = np.ndarray | Member

# Samples per batch where the model leaves the batch open: enough to keep the reference busy, few enough that
# the activations of a large model stay small.
DEFAULT_BATCH = 8


class NoRanges(PassError):
    """There is no data, and the ranges that are asked for were not saved."""


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
        count: Callable[[ir.Model], int | None] | None = None,
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
                f"it looks at the data itself, for which the ranges saved in '{path}' do not stand in: give "
                "`--calibration FILE.npz|FOLDER` (in Python: `calibration=`)"
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
            PassError: a name, shape or type does not suit the model, a number is not finite, there is no
                data, or what makes it raised something.
        """
        inputs = _inputs_of(model)
        count = 0
        given = in_turn(lambda: self._open(model), f"calibration data ({self.source})")
        for count, batch in enumerate(given, start=1):
            where = f"calibration data ({self.source}), batch {count}"
            yield checked(batch, inputs, where)
        if count == 0:
            raise PassError(f"calibration data ({self.source}) holds no batch; give at least one")

    @classmethod
    def from_npz(cls, path: str | Path, *, batch: int = DEFAULT_BATCH) -> Calibration:
        """Reads a `.npz` file whose arrays are named by the model's inputs, samples along the leading axis.

        A batch is in memory at a time; a pass over the data unpacks the file anew.

        Args:
            path: the file.
            batch: samples per run where the model leaves its batch size open.

        Raises:
            PassError: the file cannot be read, or its arrays differ in their number of samples.
        """
        return cls._of(open_npz(Path(path)), batch, Path(path).name)

    @classmethod
    def from_arrays(
        cls, arrays: Mapping[str, np.ndarray], *, batch: int = DEFAULT_BATCH, source: str = "arrays"
    ) -> Calibration:
        """Takes arrays by input name, samples along the leading axis.

        Raises:
            PassError: there is no array, or they differ in their number of samples.
        """
        return cls._of({name: as_array(array) for name, array in arrays.items()}, batch, source)

    @classmethod
    def _of(cls, data: Mapping[str, Array], batch: int, source: str) -> Calibration:
        samples = _sample_count(data, source)

        def open_batches(model: ir.Model) -> Iterator[Feeds]:
            yield from _slices(data, samples, _inputs_of(model), batch, source)

        def count(model: ir.Model) -> int:
            return -(-samples // _batch_size(data, samples, _inputs_of(model), batch))

        return cls(open_batches, source=source, identity=lambda: digest_of(data), count=count)

    @classmethod
    def from_folder(cls, path: str | Path, *, batch: int = DEFAULT_BATCH) -> Calibration:
        """Reads a folder of `.npz` files (as for `from_npz`), or of `.npy` files for a model with one input.

        Files are opened one after the other in the order of their names, and read batch by batch.

        Raises:
            PassError: the folder holds no such file.
        """
        folder = Path(path)
        files = sorted(p for p in folder.iterdir() if p.suffix in (".npz", ".npy")) if folder.is_dir() else []
        if not files:
            raise PassError(
                f"calibration folder '{path}' holds no .npz or .npy file; pictures are not decoded, save "
                "them as the arrays that the model takes"
            )
        return cls._of_files(files, batch, folder.name)

    @classmethod
    def _of_files(cls, files: Sequence[Path], batch: int, source: str) -> Calibration:
        def open_batches(model: ir.Model) -> Iterator[Feeds]:
            inputs = _inputs_of(model)
            for file in files:
                arrays: Mapping[str, Array] = (
                    open_npz(file) if file.suffix == ".npz" else open_npy(file, inputs)
                )
                yield from _slices(arrays, _sample_count(arrays, file.name), inputs, batch, file.name)

        def identify() -> str:
            seen = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files]
            return hashlib.blake2b(repr((batch, seen)).encode(), digest_size=16).hexdigest()

        return cls(open_batches, source=source, identity=identify)

    @classmethod
    def from_iterable(
        cls, batches: Iterable[Any] | Callable[[], Iterable[Any]], *, identity: str | None = None
    ) -> Calibration:
        """Takes batches: feeds by name, a tuple in input order, or one array.

        Batches several times as large as a model's fixed batch are cut.

        Args:
            batches: an iterable, or a function that returns a fresh one each time.
            identity: a name for exactly these batches in this order, with which saved ranges are reused.
        """
        identify = None if identity is None else lambda: identity
        if callable(batches):
            return cls(lambda model: _cut(batches(), model), source="function", identity=identify)
        given: Iterable[Any] = once_at_most(batches)
        once = isinstance(given, Once)
        return cls(
            lambda model: _cut(given, model),
            source="iterator" if once else "iterable",
            repeatable=not once,
            identity=identify,
            count=lambda model: sum(1 for _ in _cut(given, model)) if isinstance(given, Sequence) else None,
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
        """Opens a `.npz` file, a `.npy` file or a folder; see `from_npz` and `from_folder`."""
        if Path(path).is_dir():
            return cls.from_folder(path, batch=batch)
        if Path(path).suffix == ".npy" and Path(path).is_file():
            return cls._of_files([Path(path)], batch, Path(path).name)
        return cls.from_npz(path, batch=batch)


def as_calibration(data: Any) -> Calibration:
    """Wraps what a user may pass as calibration data.

    Args:
        data: a `Calibration`, a path, arrays by input name, one array for a model with one input, or
            an iterable of batches.

    Raises:
        PassError: it is none of these.
    """
    if isinstance(data, Calibration):
        return data
    if isinstance(data, str | Path):
        return Calibration.load(data)
    if isinstance(data, Mapping):
        return Calibration.from_arrays(data)
    if isinstance(data, np.ndarray) or hasattr(data, "detach"):
        # The samples of a model with one input, named as numpy.savez would.
        return Calibration.from_arrays({"arr_0": as_array(data)}, source="array")
    if callable(data) or isinstance(data, Iterable):
        return Calibration.from_iterable(data)
    raise PassError(
        f"calibration data must be a path, arrays or an iterable of feeds, not {type(data).__name__}"
    )


def _inputs_of(model: ir.Model) -> dict[str, ir.Value]:
    initializers = model.graph.initializers
    return {str(value.name): value for value in model.graph.inputs if value.name not in initializers}


def _cut(batches: Iterable[Any], model: ir.Model) -> Iterator[Any]:
    """Batches of the model's own size; those that cannot be cut come as they are, to be complained about."""
    inputs = _inputs_of(model)
    size = _fixed_batch(inputs.values())
    for batch in batches:
        rows = _rows(batch, inputs)
        if size is None or rows <= size or rows % size:
            yield batch
            continue
        for start in range(0, rows, size):
            yield {name: array[start : start + size] for name, array in by_name(batch, inputs, "").items()}


def _rows(batch: Any, inputs: Mapping[str, ir.Value]) -> int:
    """The common leading dimension of a batch whose arrays have the inputs' ranks; 0 if there is none."""
    given = len(batch) if isinstance(batch, Mapping | tuple | list) else 1
    if given != len(inputs):
        return 0
    named = by_name(batch, inputs, "")
    shapes = {name: tuple(getattr(array, "shape", ())) for name, array in named.items()}
    ranks = {name: len(value.shape) for name, value in inputs.items() if value.shape is not None}
    if {name: len(shape) for name, shape in shapes.items()} != ranks:
        return 0
    rows = {shape[0] if shape else 0 for shape in shapes.values()}
    return int(rows.pop()) if len(rows) == 1 else 0


def _sample_count(arrays: Mapping[str, Array], source: str) -> int:
    if not arrays:
        raise PassError(f"calibration data ({source}) holds no array; save one per input of the model")
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
    arrays: Mapping[str, Array], samples: int, inputs: Mapping[str, ir.Value], batch: int, source: str
) -> Iterator[Feeds]:
    """Cuts arrays into batches, as large as the model's leading dimension, or `batch` where it is open.

    Inputs without a sample axis make it one sample at a time.
    """
    named = by_name(arrays, inputs, f"calibration data ({source})")
    flat = _without_sample_axis(named, inputs)
    fixed = _fixed_batch(inputs.values())
    size = _batch_size(arrays, samples, inputs, batch)
    if samples < size:
        raise PassError(
            f"calibration data ({source}) has {samples} samples, but the model takes batches of {size}"
        )
    _check_before_reading(named, inputs, flat, size, f"calibration data ({source})")
    try:
        for start in range(0, samples, size):
            stop = min(start + size, samples)
            # The last batch of a fixed size is filled up with samples that came before it.
            first = stop - size if fixed else start
            yield {name: array[start] if name in flat else array[first:stop] for name, array in named.items()}
    finally:
        for array in named.values():
            if isinstance(array, Member):
                array.close()


def _batch_size(arrays: Mapping[str, Array], samples: int, inputs: Mapping[str, ir.Value], batch: int) -> int:
    """Samples per run."""
    named = by_name(arrays, inputs, "calibration data")
    return 1 if _without_sample_axis(named, inputs) else _fixed_batch(inputs.values()) or min(batch, samples)


def _without_sample_axis(named: Mapping[str, Array], inputs: Mapping[str, ir.Value]) -> set[str]:
    """Inputs that take a single sample as it is."""
    ranks = {name: len(value.shape) for name, value in inputs.items() if value.shape is not None}
    return {name for name, array in named.items() if ranks.get(name) == array.ndim - 1}


def _check_before_reading(
    named: Mapping[str, Array], inputs: Mapping[str, ir.Value], flat: set[str], size: int, where: str
) -> None:
    """Refuses what headers say is wrong before anything as large is read."""
    check_names(named, inputs, where)
    for name, value in inputs.items():
        array = named[name]
        if value.dtype is not None and value.dtype != ir.DataType.STRING:
            check_kind(name, array.dtype, value.dtype.numpy(), where)
        if value.shape is not None:
            rows = array.shape[1:] if name in flat else (size, *array.shape[1:])
            check_shape(name, rows, value.shape, where)


def _fixed_batch(inputs: Iterable[ir.Value]) -> int | None:
    """The leading dimension of the first input that fixes it."""
    for value in inputs:
        if value.shape is not None and len(value.shape) > 0 and isinstance(value.shape[0], int):
            return max(int(value.shape[0]), 1)
    return None
