"""Where reference results meet ONNX Runtime: sessions, tensors in and out, its error texts."""

from __future__ import annotations

import ctypes
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from .errors import ModelError
from .opset import LAST_RUNNABLE

# Newest versions that ONNX Runtime of the pinned line reads.
MAX_IR_VERSION = 13
MAX_OPSET = 26

_PLAIN_DTYPES = frozenset(
    {
        ir.DataType.FLOAT,
        ir.DataType.FLOAT16,
        ir.DataType.DOUBLE,
        ir.DataType.INT8,
        ir.DataType.INT16,
        ir.DataType.INT32,
        ir.DataType.INT64,
        ir.DataType.UINT8,
        ir.DataType.UINT16,
        ir.DataType.UINT32,
        ir.DataType.UINT64,
        ir.DataType.BOOL,
    }
)
_PACKED_BITS = {2, 4}
# Rearranged copies of weights speed up repeated runs but double the memory of large models.
_PREPACK_BELOW = 1 << 30


_NO_KERNEL = re.compile(r"Could not find an implementation for (\w+)\(\d+\) node")


class MissingKernel(ModelError):
    """ONNX Runtime has no kernel for an operator in the types of a node.

    Attributes:
        op_type: The operator.
    """

    def __init__(self, message: str, op_type: str):
        super().__init__(message)
        self.op_type = op_type


def is_shareable(dtype: ir.DataType) -> bool:
    """Whether a tensor of this type can be handed over without a copy."""
    return dtype in _PLAIN_DTYPES or dtype.bitwidth in (8, 16)


def to_ort_value(array: np.ndarray) -> Any:
    """Wraps an array of numbers (ml_dtypes included) as an `OrtValue` that shares its memory."""
    import onnxruntime

    array = np.require(array, requirements=["C", "A"]).reshape(np.shape(array))
    dtype = ir.DataType.from_numpy(array.dtype)
    if dtype in _PLAIN_DTYPES:
        return onnxruntime.OrtValue.ortvalue_from_numpy(array)
    if dtype.bitwidth in _PACKED_BITS:
        value = onnxruntime.OrtValue.ortvalue_from_shape_and_type(list(array.shape), int(dtype))
        packed = ir.Tensor(array, dtype=dtype).tobytes()
        ctypes.memmove(value.data_ptr(), packed, len(packed))
        return value
    bits = array.view(np.uint8 if dtype.itemsize == 1 else np.uint16)
    return onnxruntime.OrtValue.ortvalue_from_numpy_with_onnx_type(bits, int(dtype))


def from_ort_value(value: Any) -> np.ndarray:
    """The contents of an `OrtValue` that holds a tensor, as an array of a numpy or ml_dtypes dtype."""
    dtype = ir.DataType(value.element_type())
    if dtype in _PLAIN_DTYPES or dtype == ir.DataType.STRING:
        return value.numpy()
    shape = tuple(value.shape())
    size = int(np.prod(shape, dtype=np.int64))
    if size == 0:
        return np.empty(shape, dtype=dtype.numpy())
    count = -(-size * dtype.bitwidth // 8)
    raw = np.frombuffer(ctypes.string_at(value.data_ptr(), count), dtype=np.uint8)
    if dtype.bitwidth in _PACKED_BITS:
        return ir.PackedTensor(raw, dtype, shape=ir.Shape(shape)).numpy()
    return raw.view(dtype.numpy()).reshape(shape)


def open_session(
    proto: bytes, *, threads: int | None = None, shared: Mapping[str, np.ndarray] | None = None
) -> Any:
    """Opens a CPU session with every graph optimization off and the log silent.

    Args:
        proto: a serialized ModelProto.
        threads: intra-operator threads; None lets ONNX Runtime use all cores.
        shared: contents of initializers that `proto` declares as external; their memory is shared.

    Raises:
        ModelError: ONNX Runtime refuses the model; the line names the node and the reason.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if threads is not None:
        options.intra_op_num_threads = threads
    if sum(array.nbytes for array in (shared or {}).values()) > _PREPACK_BELOW:
        options.add_session_config_entry("session.disable_prepacking", "1")
    lent = {name: to_ort_value(array) for name, array in (shared or {}).items()}
    if lent:
        options.add_external_initializers(list(lent), list(lent.values()))
    try:
        session = onnxruntime.InferenceSession(proto, options, providers=["CPUExecutionProvider"])
    except Exception as error:
        text = f"the reference cannot run this model: {explain(error)}"
        missing = _NO_KERNEL.search(str(error))
        raise (MissingKernel(text, missing[1]) if missing else ModelError(text)) from error
    # The session reads this memory as long as it lives.
    session.lent_to_it = lent
    return session


def run_session(session: Any, feeds: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """Runs a session and returns the named outputs as arrays.

    Raises:
        ModelError: an operator failed; the line names the node and the reason.
    """
    import onnxruntime

    options = onnxruntime.RunOptions()
    options.log_severity_level = 4
    try:
        if not _only_numbers(session, feeds):
            return dict(zip(names, session.run(list(names), dict(feeds), options), strict=True))
        values = session.run_with_ort_values(
            list(names), {name: to_ort_value(array) for name, array in feeds.items()}, options
        )
    except Exception as error:
        raise ModelError(f"the reference failed: {explain(error)}") from error
    return {name: from_ort_value(value) for name, value in zip(names, values, strict=True)}


def _only_numbers(session: Any, feeds: Mapping[str, Any]) -> bool:
    """Whether all goes in and out as tensors of numbers: strings, sequences and optionals share no memory."""
    return all(
        isinstance(array, np.ndarray) and array.dtype.kind not in "OSU" for array in feeds.values()
    ) and all(output.type.startswith("tensor(") for output in session.get_outputs())


def explain(error: Exception) -> str:
    """The reason in an ONNX Runtime exception as one line that names node and operator."""
    text = " ".join(str(error).split())
    text = re.sub(r"^\[ONNXRuntimeError\] : \d+ : \w+ : ", "", text)
    if match := re.search(
        r"Could not find an implementation for (\w+)\((\d+)\) node with name '(.*?)'", text
    ):
        op_type, version, name = match.groups()
        if op_type in LAST_RUNNABLE:
            last = LAST_RUNNABLE[op_type]
            return (
                f"{_node(name, op_type)} only runs in opsets up to {last}, and another node needs a later one"
            )
        return f"{_node(name, f'{op_type}, since opset {version}')} has no implementation for its types"
    if match := re.search(r"running (\w+) node\. Name:'(.*?)' Status Message: (.*)", text):
        op_type, name, reason = match.groups()
        return f"{_node(name, op_type)}: {_without_source_position(reason)}"
    if match := re.search(r'In Node, \("(.*?)", (\w+), "(.*?)", -?\d+\).*?, Error (.*)', text):
        name, op_type, _, reason = match.groups()
        return f"{_node(name, op_type)}: {reason}"
    return _without_source_position(text)


def _node(name: str, what: str) -> str:
    return f"node '{name}' ({what})" if name else f"an unnamed node ({what})"


def _without_source_position(text: str) -> str:
    return re.sub(r"^\S*/onnxruntime/\S+?:\d+ .*?\) (?=\S)", "", text)
