"""Whether a fusion may use an operator in the opset that a model is written in."""

from __future__ import annotations

import onnx_ir as ir

from ..ir.opset import CANONICAL_OPSET, LAST_RUNNABLE
from ..ir.runtime_gaps import nodes_that_limit
from ..ir.schemas import op_spec


def lacks(model: ir.Model, op_type: str) -> str | None:
    """Why a model cannot hold the standard operator `op_type`, None where it can.

    Models are in the canonical opset, unless ONNX Runtime has one of their operators in earlier ones only.
    """
    version = model.opset_imports.get("", CANONICAL_OPSET)
    if version >= CANONICAL_OPSET or op_spec("", op_type, version) is not None:
        return None
    reason = f"opset {version}, in which the model is written, has no {op_type}"
    held = next(iter(nodes_that_limit(model)), None)
    if held is None:
        return reason
    last = LAST_RUNNABLE[held.op_type]
    return f"{reason}; ONNX Runtime runs node '{held.name}' ({held.op_type}) only up to opset {last}"
