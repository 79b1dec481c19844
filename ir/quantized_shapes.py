"""Shapes and types of ONNX Runtime's quantized operators, where `onnx-shape-inference` errs.

It gives the result of a QGemm the type of its scale, and pools the shape of what they read.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, cast

import onnx_ir as ir
import onnx_shape_inference as osi

DOMAIN = "com.microsoft"


def install() -> None:
    """Put these rules in the place of those of the library's registry (once)."""
    osi.registry.collect()
    base = osi.registry.get(DOMAIN, "QGemm", version=1)

    def gemm(context: Any, node: ir.Node) -> None:
        """The type is that of the result's zero point; without a scale it is float."""
        inputs = [*node.inputs, None, None, None][: max(9, len(node.inputs))]
        if inputs[7] is not None:
            inputs[7] = inputs[8]
        if base is not None:
            base(context, _seen(node, inputs))

    osi.registry.register(DOMAIN, "QGemm", since_version=1)(gemm)
    for op_type, plain, version in (
        ("QLinearAveragePool", "AveragePool", 11),
        ("QLinearGlobalAveragePool", "GlobalAveragePool", 1),
    ):
        osi.registry.register(DOMAIN, op_type, since_version=1)(_as_plain(plain, version))


def _as_plain(op_type: str, version: int) -> Any:
    """The rule of the operator on floats, which reads the data alone."""

    def rule(context: Any, node: ir.Node) -> None:
        plain = osi.registry.get("", op_type, version=version)
        data = node.inputs[0]
        if plain is None or data is None:
            return
        if node.attributes.get_int("channels_last", 0):
            context.set_shape_and_dtype(node.outputs[0], None, data.dtype)
        else:
            plain(context, _seen(node, [data]))

    return rule


def _seen(node: ir.Node, inputs: Sequence[ir.Value | None]) -> ir.Node:
    """A node as a rule is to see it."""
    seen = SimpleNamespace(
        inputs=tuple(inputs),
        outputs=node.outputs,
        attributes=node.attributes,
        name=node.name,
        op_type=node.op_type,
    )
    return cast(ir.Node, seen)
