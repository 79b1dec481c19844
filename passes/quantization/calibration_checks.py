"""Whether calibration data suits a model: names, types, shapes and numbers, each complaint one line."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from ...ir.errors import PassError, one_line

Feeds = dict[str, np.ndarray]


def checked(batch: Any, inputs: Mapping[str, ir.Value], where: str) -> Feeds:
    """A batch as the reference takes it.

    Args:
        batch: feeds by name, a tuple in input order, or one array.
        inputs: the model's inputs.
        where: how messages begin.

    Raises:
        PassError: it does not suit the inputs, or holds NaN or infinity.
    """
    feeds = by_name(batch, inputs, where)
    check_names(feeds, inputs, where)
    return {name: _checked_array(name, feeds[name], inputs[name], where) for name in inputs}


def check_names(given: Mapping[str, Any], inputs: Mapping[str, ir.Value], where: str) -> None:
    """Refuses arrays that are no input, and inputs without an array."""
    for name in given:
        if name not in inputs:
            raise PassError(
                f"{where} has '{name}', but the model's inputs are {_names(inputs)}; rename or remove it"
            )
    missing = [name for name in inputs if name not in given]
    if missing:
        raise PassError(f"{where} has no array for input '{missing[0]}'; it has {_names(given)}")


def by_name(batch: Any, inputs: Mapping[str, ir.Value], where: str) -> Mapping[str, Any]:
    """A batch by input name, also where it goes by position."""
    if isinstance(batch, Mapping):
        positional = [f"arr_{i}" for i in range(len(inputs))]
        # What numpy.savez makes of arrays without names.
        if set(batch) != set(positional) or set(inputs) == set(positional):
            return batch
        return {name: batch[key] for name, key in zip(inputs, positional, strict=True)}
    values = list(batch) if isinstance(batch, tuple | list) else [batch]
    if len(values) != len(inputs):
        labels = (
            "; leave labels out: (x for x, label in data)" if (len(values), len(inputs)) == (2, 1) else ""
        )
        raise PassError(f"{where} has {len(values)} arrays, but the model has {len(inputs)} inputs{labels}")
    return dict(zip(inputs, values, strict=True))


def _checked_array(name: str, data: Any, value: ir.Value, where: str) -> np.ndarray:
    array = as_array(data)
    if value.dtype is not None and value.dtype != ir.DataType.STRING:
        array = _converted(name, array, value.dtype.numpy(), where)
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        kind = "NaN" if np.isnan(array).any() else "infinity"
        raise PassError(f"{where}: input '{name}' holds {kind}; leave such samples out")
    if value.shape is not None:
        check_shape(name, array.shape, value.shape, where)
    return array


def _converted(name: str, array: np.ndarray, wanted: np.dtype, where: str) -> np.ndarray:
    """Converts between widths of one kind of number (float64 to float32), never between kinds."""
    if array.dtype == wanted:
        return array
    check_kind(name, array.dtype, wanted, where)
    if array.dtype.type is np.void and array.dtype.itemsize == wanted.itemsize:
        # What files make of the types of ml_dtypes.
        return array.view(wanted)
    with np.errstate(over="ignore"):
        converted = array.astype(wanted)
    if array.dtype.kind in "iu" and not np.array_equal(converted, array):
        raise PassError(f"{where}: input '{name}' holds numbers that do not fit {wanted}")
    return converted


def as_array(data: Any) -> np.ndarray:
    """An array of what may also be a torch tensor (bfloat16, which numpy lacks, as float32) or a list."""
    if hasattr(data, "detach"):
        tensor = data.detach().cpu()
        return np.asarray((tensor.float() if "bfloat16" in str(tensor.dtype) else tensor).numpy())
    try:
        return np.asarray(data)
    except ValueError as error:
        raise PassError(f"calibration data is no array of numbers: {one_line(error)}") from None


def check_kind(name: str, given: np.dtype, wanted: np.dtype, where: str) -> None:
    """Refuses another kind of number."""
    # Floating types of ml_dtypes have kind "V".
    if given.kind != wanted.kind and not {given.kind, wanted.kind} <= {"f", "V"}:
        raise PassError(f"{where}: input '{name}' is {given}, but the model wants {wanted}; convert it")


def check_shape(name: str, given: Sequence[int], shape: ir.Shape, where: str) -> None:
    """Refuses a shape that does not fit the declared one."""
    fits = len(given) == len(shape) and all(
        not isinstance(dim, int) or dim == size for dim, size in zip(shape, given, strict=False)
    )
    if not fits:
        wanted = ", ".join(str(dim) if isinstance(dim, int) else str(dim.value or "?") for dim in shape)
        raise PassError(f"{where}: input '{name}' has shape {list(given)}, but the model wants [{wanted}]")


def _names(names: Iterable[str]) -> str:
    return ", ".join(f"'{name}'" for name in names) or "none"
