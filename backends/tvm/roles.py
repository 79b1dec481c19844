"""What part an operator can play in a fusion group."""

from __future__ import annotations

from enum import Enum

import numpy as np

from .blockwise import ATTENTION
from .elementwise import ELEMENTWISE_TYPES
from .expressions import is_identity_training
from .integer_ops import INTEGER_ANCHORS
from .movement import MOVEMENT, VIEWS
from .op import STATIC_INPUTS, Op
from .recurrent import RECURRENCE
from .stencil import STENCIL


class Role(Enum):
    """How an operator takes part in fusion."""

    ELEMENTWISE = "elementwise"
    MOVEMENT = "movement"
    STENCIL = "stencil"
    ANCHOR = "anchor"
    """Reads whole tensors from memory; element-wise operators may follow inside its kernel."""
    ROWS = "rows"
    """Works row by row: may be preceded as well as followed by element-wise operators."""
    OPAQUE = "opaque"
    """Left to TVM's converters."""


CONVOLUTIONS = frozenset({"Conv", "ConvTranspose"})
POOLS = frozenset({"MaxPool", "AveragePool"})
PRODUCTS = frozenset({"MatMul", "Gemm"})
REDUCTIONS = frozenset(
    {
        "ReduceMax",
        "ReduceMin",
        "ReduceSum",
        "ReduceMean",
        "ReduceProd",
        "ReduceSumSquare",
        "ReduceL1",
        "ReduceL2",
        "ReduceLogSum",
        "GlobalAveragePool",
        "GlobalMaxPool",
    }
)
NORMALIZATIONS = frozenset({"Softmax", "LogSoftmax", "LayerNormalization", "RMSNormalization"})


def role_of(op: Op) -> Role:
    """The role of an operator, by its type and by what of it we support."""
    if op.type in ELEMENTWISE_TYPES:
        plain = op.type != "Dropout" or is_identity_training(op)
        return Role.ELEMENTWISE if plain and not any(op.used_outputs[1:]) else Role.OPAQUE
    if op.type in MOVEMENT or op.type in STENCIL:
        if not _statics_known(op):
            return Role.OPAQUE
        return Role.MOVEMENT if op.type in MOVEMENT else Role.STENCIL
    if op.type in CONVOLUTIONS or op.type in PRODUCTS:
        return Role.ANCHOR if _is_float(op) else Role.OPAQUE
    if op.type in INTEGER_ANCHORS or op.type in (ATTENTION, RECURRENCE):
        return Role.ANCHOR
    if op.type in POOLS:
        return Role.ANCHOR if not any(op.used_outputs[1:]) else Role.OPAQUE
    if op.type in REDUCTIONS:
        return Role.ROWS if _statics_known(op) else Role.OPAQUE
    if op.type in NORMALIZATIONS:
        return Role.ROWS if not any(op.used_outputs[1:]) and "float" in op.outputs[0].dtype else Role.OPAQUE
    return Role.OPAQUE


def is_view(op: Op) -> bool:
    """Whether the output is the input's memory with another shape."""
    return op.type in VIEWS


def _is_float(op: Op) -> bool:
    return op.input(0).dtype in {"float32", "float64", "float16"}


def _statics_known(op: Op) -> bool:
    return all(not op.has(i) or i in op.static for i in STATIC_INPUTS.get(op.type, ()))


def is_scalar_static(op_type: str, position: int, array: np.ndarray) -> bool:
    """Whether a constant of one element is written into the code.

    Scales and zero points of quantization and what is gathered stay arguments, so that layers and time steps
    that differ only in them share a function.
    """
    if array.size != 1 or op_type == "Gather":
        return False
    if op_type not in {"QuantizeLinear", "DequantizeLinear"}:
        return True
    # A zero point of zero costs nothing when it is known.
    return position == 2 and not array.any()
