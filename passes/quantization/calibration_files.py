"""Calibration arrays from files; whatever is wrong with one is a line that names it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx_ir as ir

from ...ir.errors import PassError


def read_npz(path: Path) -> dict[str, np.ndarray]:
    """The arrays of a `.npz` file by name."""
    try:
        with np.load(path, allow_pickle=False) as file:
            if not isinstance(file, np.lib.npyio.NpzFile):
                raise ValueError("it is not a .npz archive")
            return {name: file[name] for name in file.files}
    except (OSError, ValueError, EOFError) as error:
        raise PassError(f"cannot read calibration file '{path}': {_first_line(error)}") from None
    except Exception as error:
        # numpy lets the errors of zipfile and zlib through.
        raise PassError(f"cannot read calibration file '{path}': {_first_line(error)}") from None


def read_npy(path: Path, inputs: Mapping[str, ir.Value]) -> dict[str, np.ndarray]:
    """The array of a `.npy` file, for a model with one input."""
    if len(inputs) != 1:
        raise PassError(
            f"calibration file '{path.name}' names no input, but the model has {len(inputs)} inputs; use .npz"
        )
    try:
        return {next(iter(inputs)): np.load(path, allow_pickle=False)}
    except Exception as error:
        raise PassError(f"cannot read calibration file '{path}': {_first_line(error)}") from None


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
