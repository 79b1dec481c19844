"""Element types of ONNX in torch."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx_ir as ir
import torch

from ..errors import ModelError

_D = ir.DataType
_CARRIERS: dict[ir.DataType, torch.dtype] = {
    _D.FLOAT: torch.float32,
    _D.DOUBLE: torch.float64,
    _D.FLOAT16: torch.float16,
    _D.BFLOAT16: torch.bfloat16,
    _D.BOOL: torch.bool,
    _D.INT8: torch.int8,
    _D.INT16: torch.int16,
    _D.INT32: torch.int32,
    _D.INT64: torch.int64,
    _D.UINT8: torch.uint8,
    _D.COMPLEX64: torch.complex64,
    _D.COMPLEX128: torch.complex128,
    _D.FLOAT8E4M3FN: torch.float8_e4m3fn,
    _D.FLOAT8E5M2: torch.float8_e5m2,
    _D.FLOAT8E4M3FNUZ: torch.float8_e4m3fnuz,
    _D.FLOAT8E5M2FNUZ: torch.float8_e5m2fnuz,
    # torch computes on few unsigned types and on none below a byte.
    _D.UINT16: torch.int32,
    _D.UINT32: torch.int64,
    _D.UINT64: torch.int64,
    _D.INT4: torch.int8,
    _D.UINT4: torch.uint8,
    _D.INT2: torch.int8,
    _D.UINT2: torch.uint8,
}


def carrier(dtype: ir.DataType | None) -> torch.dtype:
    """The torch type that holds values of an ONNX type; wider where torch lacks it.

    Raises:
        ModelError: no torch type holds them (texts, 4-bit floats).
    """
    if dtype not in _CARRIERS:
        raise ModelError(f"torch has no tensors of type {getattr(dtype, 'name', 'unknown')}")
    return _CARRIERS[dtype]


def tensor_from(array: np.ndarray) -> torch.Tensor:
    """A tensor with a copy of the data."""
    if array.dtype.kind in "OSU":
        raise ModelError("torch has no tensors of type STRING")
    wanted = carrier(ir.DataType.from_numpy(array.dtype))
    if array.dtype == ml_dtypes.bfloat16:
        return torch.from_numpy(array.astype(np.float32)).to(torch.bfloat16)
    if wanted.is_floating_point and wanted.itemsize == 1:
        return torch.from_numpy(np.array(array).view(np.uint8)).view(wanted)
    if array.dtype.kind == "V" or (array.dtype.itemsize == 1 and array.dtype.kind not in "biu"):
        return torch.from_numpy(array.astype(np.int8)).to(wanted)
    if array.dtype in (np.uint16, np.uint32, np.uint64):
        return torch.from_numpy(array.astype(np.int64)).to(wanted)
    return torch.from_numpy(np.array(array)).to(wanted)


def bounds(dtype: ir.DataType) -> tuple[int, int]:
    """Least and largest integer of an integer type."""
    bits = dtype.bitwidth
    return (-(1 << bits - 1), (1 << bits - 1) - 1) if dtype.is_signed() else (0, (1 << bits) - 1)
