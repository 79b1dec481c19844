"""What the TVM backend does with calls of model functions.

A call of a function in `LOWERED` becomes the one operator that the backend has for it; every other function
is replaced by its body, from which fusion groups are formed as always: a convolution takes the element-wise
operators behind it into its kernel. Either way nodes keep the name of their function, and the report of a
compilation says for every kernel which functions it came from.
"""

from __future__ import annotations

from collections.abc import Callable

import onnx_ir as ir

from ..ir.clone import clone
from ..ir.errors import CompileError, PassError
from ..ir.shapes import infer_shapes
from ..passes.functions import DOMAIN, FUNCTION_KEY, inline_calls
from ..passes.functions.activations import QUICK_GELU, SWISH
from ..passes.rewriter import Rewriter


def without_functions(model: ir.Model) -> ir.Model:
    """A copy without calls of functions; the model itself where it has none.

    Raises:
        CompileError: The body of a function cannot be put in the place of its call.
    """
    if not model.functions:
        return model
    flat = clone(model)
    rewriter = Rewriter(flat, origin="lowering")
    try:
        inline_calls(rewriter, lambda node, function: node.op_identifier() not in LOWERED)
    except PassError as error:
        raise CompileError(f"cannot compile a call of a function: {error}") from error
    infer_shapes(flat)
    for node in list(flat.graph.all_nodes()):
        handler = LOWERED.get(node.op_identifier())
        if handler is not None and node.op_identifier() in flat.functions:
            _replace(node, handler, rewriter)
    for identifier in list(flat.functions):
        rewriter.remove_function(identifier)
    return flat


def _replace(node: ir.Node, handler: Callable[[ir.Node, Rewriter], ir.Value], rewriter: Rewriter) -> None:
    origin = node.metadata_props.get(FUNCTION_KEY, f"{node.domain}::{node.op_type}")
    node.metadata_props[FUNCTION_KEY] = origin
    rewriter.replace(node, [handler(node, rewriter)])


def _swish(node: ir.Node, rewriter: Rewriter) -> ir.Value:
    """The operator Swish, which later opsets have and the backend's kernels know."""
    default = 1.0 if node.op_type == SWISH.name else 1.702
    attributes = {"alpha": node.attributes.get_float("alpha", default)}
    return rewriter.insert_before(node, "Swish", [node.inputs[0]], attributes)[0]


LOWERED: dict[ir.OperatorIdentifier, Callable[[ir.Node, Rewriter], ir.Value]] = {
    (DOMAIN, SWISH.name, ""): _swish,
    (DOMAIN, QUICK_GELU.name, ""): _swish,
}
"""Functions that have an operator in the backend: what inserts it in front of the call."""
