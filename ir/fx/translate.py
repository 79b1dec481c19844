"""Emitting a whole graph, node by node."""

from __future__ import annotations

import onnx_ir as ir

from . import (
    attention,
    control,
    convolution,
    elementwise,
    generators,
    images,
    indexing,
    movement,
    normalization,
    quantized,
    recurrent,
    reduction,
    sequences,
)
from .emitter import Emitter, Form, refusal
from .host_forms import emit_host

FORMS: dict[str, Form] = {
    name: form
    for family in (
        elementwise, movement, indexing, convolution, normalization, reduction, recurrent, quantized,
        attention, images, generators, control, sequences,
    )
    for name, form in family.FORMS.items()
}  # fmt: skip
"""How each operator of ONNX is emitted."""


def translate(emitter: Emitter, graph: ir.Graph) -> None:
    """Emits all nodes of a graph whose inputs are defined.

    Raises:
        ModelError: a node has no torch form; it is named.
    """
    for node in graph:
        if node.op_type == "Constant" and node.domain in ("", "ai.onnx"):
            continue
        if emit_host(emitter, node):
            continue
        form = FORMS.get(node.op_type) if node.domain in ("", "ai.onnx") else None
        if form is None:
            raise refusal(node, f"operator {node.domain or 'ai.onnx'}.{node.op_type} is not supported")
        made = form(emitter, node)
        outputs = made if isinstance(made, list) else [made]
        for value, each in zip(node.outputs, outputs, strict=False):
            if each is not None:
                emitter.define(value, each)
