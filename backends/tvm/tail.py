"""The long tail: operators that TVM's ONNX converters lower, one node at a time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from ...ir.errors import CompileError
from .op import Op

# Converters that were seen to compute something else than ONNX says (silently), or that only build on some
# inputs.
_WRONG = frozenset(
    {"SpaceToDepth", "Resize", "ConvTranspose", "IsInf", "Attention", "PRelu"}
    | {"Dropout", "BatchNormalization", "NonMaxSuppression"}
)


def converts(op_type: str) -> bool:
    """Whether TVM has a converter for an operator that we trust."""
    from tvm.relax.frontend.onnx.onnx_frontend import _get_convert_map

    return op_type in _get_convert_map() and op_type not in _WRONG


def convert(builder: Any, node: ir.Node, op: Op, inputs: Sequence[Any], opset: int) -> list[Any]:
    """Emit one node through TVM's converter.

    Args:
        builder: block builder inside a dataflow block.
        node: the node.
        op: the same as the lowering sees it.
        inputs: one expression per input, stored as ONNX orders it; None where absent.
        opset: the opset of the model.

    Returns:
        One bound variable per output.

    Raises:
        CompileError: there is no converter, or it refuses the node.
    """
    import onnx
    from tvm import relax
    from tvm.relax.frontend.onnx import onnx_frontend

    if node.domain not in ("", "ai.onnx") or not converts(op.type):
        raise CompileError(
            f"node '{node.name}': the TVM backend has no lowering for operator {op.type}; "
            "rewrite it with a pass or compile with --backend onnxruntime"
        )
    importer = onnx_frontend.ONNXGraphImporter({}, "float32")
    importer.bb = builder
    proto: onnx.NodeProto = ir.to_proto(node)
    attributes = importer._parse_attr(proto.attribute)
    if op.type == "TopK":
        attributes["sorted"] = 1  # any order will do where it is 0, which TVM refuses
    attributes["tvm_custom"] = {"name": node.name, "num_outputs": len(node.outputs)}
    arguments = onnx_frontend.onnx_input()
    for each in inputs:
        arguments.append(each)
    try:
        result = importer._convert_operator(op.type, arguments, attributes, opset)
    except Exception as error:
        detail = str(error).strip().splitlines()
        raise op.error(f"TVM cannot lower it ({detail[-1] if detail else type(error).__name__})") from error
    return _outputs(builder, relax, result, op)


def _outputs(builder: Any, relax: Any, result: Any, op: Op) -> list[Any]:
    if isinstance(result, relax.Tuple):
        parts = list(result.fields)
    elif isinstance(result.ty, relax.TupleType):
        bound = builder.emit(result)
        parts = [relax.TupleGetItem(bound, i) for i in range(len(result.ty.fields))]
    else:
        parts = [result]
    if len(parts) < len(op.outputs):
        raise op.error(f"TVM's converter gives {len(parts)} outputs, {len(op.outputs)} are needed")
    outputs = []
    for part, wanted, used in zip(parts, op.outputs, op.used_outputs, strict=False):
        bound = builder.emit(part)
        if used:
            _check(bound, wanted, op)
        outputs.append(bound)
    return outputs


def _check(bound: Any, wanted: Any, op: Op) -> None:
    """The converter must give what shape inference says, or what follows reads the wrong memory."""
    shape = getattr(bound.ty, "shape", None)
    try:
        dims = tuple(int(dim) for dim in shape) if shape is not None else None
    except TypeError:
        dims = None
    if dims != wanted.shape or str(bound.ty.dtype) != wanted.dtype:
        raise op.error(
            f"TVM's converter gives {bound.ty.dtype} of shape {dims}, "
            f"ONNX says {wanted.dtype} of {wanted.shape}"
        )


def constant(array: np.ndarray) -> Any:
    """A constant that a converter may look into."""
    from tvm import relax

    return relax.const(np.require(array, requirements="C"), str(array.dtype))
