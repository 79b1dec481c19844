"""Tensors around numpy arrays, made in a tenth of the time that `onnx_ir.tensor` takes."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx_ir as ir

from .shape_memo import as_shape

_TYPES: dict[np.dtype, ir.DataType] = {
    np.dtype(kind): ir.DataType.from_numpy(np.dtype(kind))
    for kind in (
        *(np.float32, np.float64, np.float16, np.bool_, ml_dtypes.bfloat16),
        *(np.int8, np.int16, np.int32, np.int64, np.uint8, np.uint16, np.uint32, np.uint64),
    )
}


def tensor_of(array: np.ndarray, name: str | None = None) -> ir.TensorProtocol:
    """A tensor that shares the memory of `array`; element types as numpy and `ml_dtypes` have them."""
    dtype = _TYPES.get(array.dtype) if isinstance(array, np.ndarray) else None
    if dtype is None:
        # What numpy makes of a number, such as `np.float32(1)`, is an array only after this.
        return ir.tensor(np.asarray(array), name=name)
    # `ir.Tensor()` asks what kind of array this is in several ways, at five times the cost of all the rest.
    made = ir.Tensor.__new__(ir.Tensor)
    ir.Tensor.__mro__[1].__init__(made, name)  # type: ignore[misc]
    made._raw = array
    made._dtype = dtype
    made._shape = as_shape(array.shape)
    return made


def element_type(array: np.ndarray) -> ir.DataType:
    """The element type of an array; texts of any kind are STRING."""
    known = _TYPES.get(array.dtype)
    if known is not None:
        return known
    return ir.DataType.STRING if array.dtype.kind in "OSU" else ir.DataType.from_numpy(array.dtype)


def byte_count(tensor: ir.TensorProtocol) -> int:
    """Bytes of a tensor's data, as `tensor.nbytes` counts them."""
    if type(tensor) is ir.Tensor:
        array = tensor.raw
        if type(array) is np.ndarray and array.dtype in _TYPES:
            return array.nbytes
    return tensor.nbytes
