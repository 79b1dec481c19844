"""Functions out of the way of passes that look at standard operators only."""

from __future__ import annotations

import onnx_ir as ir

from ...ir.shapes import infer_shapes
from ..base import PassContext
from .inline import inline_calls, why_not_inline


def flatten_functions(model: ir.Model, context: PassContext) -> None:
    """Inline every call that can be, infer the shapes inside, and say so in the report."""
    counts = inline_calls(
        context.rewriter(model), lambda node, function: not why_not_inline(node, function, model)
    )
    if counts:
        infer_shapes(model)
        calls = ", ".join(f"{count} of {name}" for name, count in counts.items())
        context.note(f"inlined calls of model functions: {calls}")
