"""Inputs of models read from `.npz` files."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..ir.errors import PassError, ToolError

if TYPE_CHECKING:
    import onnx_ir as ir

    from ..passes.quantization.calibration import Calibration


def read_npz(path: Path) -> dict[str, np.ndarray]:
    """The arrays of one `.npz` file.

    Raises:
        ToolError: the file is missing, is no `.npz`, or holds pickled objects.
    """
    if not path.is_file():
        raise ToolError(f"there is no file '{path}'")
    try:
        loaded = np.load(path, allow_pickle=False)
        if not isinstance(loaded, np.lib.npyio.NpzFile):
            raise ToolError(
                f"'{path}' holds a single array without a name, not .npz (numpy.savez writes that)"
            )
        with loaded as archive:
            return {name: archive[name] for name in archive.files}
    except (ValueError, EOFError, OSError, zipfile.BadZipFile) as error:
        raise ToolError(f"'{path}' is not a readable .npz file: {error}") from error


def write_npz(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write arrays to exactly `path`, whole or not at all; unlike in numpy.savez any name will do.

    Raises:
        ToolError: the file cannot be written.
    """
    temporary = path.with_name(f".{path.name}.partial")
    try:
        with zipfile.ZipFile(temporary, "w") as archive:
            for name, array in arrays.items():
                with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
                    np.lib.format.write_array(file, np.asanyarray(array), allow_pickle=False)
        temporary.replace(path)
    except OSError as error:
        raise ToolError(f"cannot write '{path}': {error.strerror or error}") from error
    finally:
        temporary.unlink(missing_ok=True)


def input_signature(model: ir.Model) -> list[tuple[str, list[int | str], np.dtype]]:
    """Name, shape (symbolic dimensions by name) and dtype of each input that a caller must give."""
    signature = []
    for value in model.graph.inputs:
        if value.name in model.graph.initializers:
            continue
        if value.shape is None or value.dtype is None:
            raise ToolError(f"input '{value.name}' of the model has no declared shape or type")
        shape = [dim if isinstance(dim, int) else str(dim.value) for dim in value.shape]
        signature.append((str(value.name), shape, value.dtype.numpy()))
    return signature


def match_feeds(
    arrays: Mapping[str, np.ndarray], signature: Sequence[tuple[str, Sequence[int | str], Any]], source: str
) -> dict[str, np.ndarray]:
    """The arrays under the names of the inputs, checked against shape and type.

    Arrays that `numpy.savez` named by position (`arr_0`, ...) are taken in the order of the inputs. Types are
    converted within their kind (float64 to float32, int32 to int64).

    Raises:
        ToolError: an input is missing or unknown, or of another shape or kind; names the input and `source`.
    """
    named = _by_name(arrays, signature, source)
    return {name: _fitting(named[name], name, shape, dtype, source) for name, shape, dtype in signature}


def _by_name(
    arrays: Mapping[str, np.ndarray], signature: Sequence[tuple[str, Sequence[int | str], Any]], source: str
) -> dict[str, np.ndarray]:
    names = [name for name, _, _ in signature]
    positional = [f"arr_{i}" for i in range(len(names))]
    if set(arrays) == set(positional) and set(names) != set(positional):
        return {name: arrays[key] for name, key in zip(names, positional, strict=True)}
    missing = [name for name in names if name not in arrays]
    unknown = [name for name in arrays if name not in names]
    if missing:
        has = ", ".join(f"'{name}'" for name in arrays) or "nothing"
        raise ToolError(f"{source} lacks input '{missing[0]}'; it holds {has}")
    if unknown:
        takes = ", ".join(f"'{name}'" for name in names)
        raise ToolError(f"{source} holds '{unknown[0]}', but the model takes only {takes}")
    return dict(arrays)


def _fitting(array: np.ndarray, name: str, shape: Sequence[int | str], dtype: Any, source: str) -> np.ndarray:
    fits = array.ndim == len(shape) and all(
        isinstance(want, str) or want == have for want, have in zip(shape, array.shape, strict=False)
    )
    if not fits:
        wanted = "[" + ", ".join(map(str, shape)) + "]"
        raise ToolError(f"{source}: input '{name}' has shape {list(array.shape)}, the model takes {wanted}")
    if not np.can_cast(array.dtype, dtype, casting="same_kind"):
        raise ToolError(f"{source}: input '{name}' is {array.dtype}, the model takes {np.dtype(dtype)}")
    # Not `ascontiguousarray`: that makes vectors of scalars.
    return np.asarray(array, dtype=dtype, order="C")


def calibration_feeds(
    model: ir.Model,
    path: Path | None,
    random_count: int = 0,
    seed: int = 0,
    cache: Path | None = None,
) -> Calibration | None:
    """Calibration data for passes that look at activations, or None where the user gave none.

    The data is read batch by batch when a pass wants it; only the first batch is checked right away. With a
    cache, ranges are saved there and reused; alone, it is all there is.

    Raises:
        ToolError: a file or folder is missing, empty or does not fit the model's inputs.
    """
    if path is not None and random_count:
        raise ToolError("give either --calibration or --calibrate-random, not both")
    from ..passes.quantization.calibration import Calibration

    if random_count:
        made = Calibration.random_data(random_count, seed)
        return made if cache is None else made.with_cache(cache)
    if path is None:
        return None if cache is None else Calibration.saved(cache)
    try:
        calibration = Calibration.load(path)
        next(calibration.batches(model))
    except PassError as error:
        raise ToolError(str(error)) from None
    return calibration if cache is None else calibration.with_cache(cache)
