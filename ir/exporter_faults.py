"""What torch's ONNX exporter gets wrong, put right in the graph it gives."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import onnx_ir as ir

from .bodies import all_graphs

if TYPE_CHECKING:
    import torch


def simpler_program(program: torch.export.ExportedProgram) -> torch.export.ExportedProgram:
    """The program with plainer operators in place of those that the exporter only knows in one form.

    It takes attention over four axes alone, and no number minus a tensor of integers.
    """
    import torch

    def attention(query: Any, key: Any, value: Any, *options: Any, **named: Any) -> Any:
        order = ("attn_mask", "dropout_p", "is_causal")
        given = {**dict(zip(order, options, strict=False)), **named}
        mask = given.get("attn_mask")
        if mask is not None and mask.dtype == torch.bool:
            # What torch calls here adds a mask.
            given["attn_mask"] = torch.zeros_like(mask, dtype=query.dtype).masked_fill(~mask, -torch.inf)
        return torch.ops.aten._scaled_dot_product_attention_math(query, key, value, **given)[0]

    def reversed_difference(tensor: Any, other: Any, alpha: Any = 1) -> Any:
        return torch.add(torch.mul(tensor, -alpha), other)

    table = {
        torch.ops.aten.scaled_dot_product_attention.default: attention,
        torch.ops.aten.rsub.Scalar: reversed_difference,
    }
    with torch.no_grad():
        return program.run_decompositions(table)


def repair(model: ir.Model) -> None:
    """Repair known faults in place.

    A convolution over three axes without bias is given zeros of shape (O, 2), which no runtime accepts: the
    bias is dropped.
    """
    for graph in all_graphs(model):
        for node in list(graph):
            if node.op_type == "Conv" and len(node.inputs) == 3 and _is_matrix_of_zeros(node.inputs[2]):
                made = node.inputs[2]
                node.resize_inputs(2)
                _drop_unread(made)


def _is_matrix_of_zeros(value: ir.Value | None) -> bool:
    """Whether a value is Expand(CastLike(0, x), Concat(Shape(w)[:1], [2]))."""
    expand = value.producer() if value is not None else None
    if expand is None or expand.op_type != "Expand":
        return False
    zero, shape = (each.producer() if each is not None else None for each in expand.inputs)
    if zero is None or shape is None or (zero.op_type, shape.op_type) != ("CastLike", "Concat"):
        return False
    source = zero.inputs[0].producer() if zero.inputs[0] is not None else None
    number = source.attributes.get("value_float") if source is not None else None
    if source is not None and number is None and "value" in source.attributes:
        return not source.attributes["value"].as_tensor().numpy().any()
    return number is not None and number.as_float() == 0


def _drop_unread(value: ir.Value | None) -> None:
    """Remove the producer of a value that nothing reads and, going up, what only it had read."""
    node = value.producer() if value is not None else None
    if node is None or node.graph is None or any(o.uses() or o.is_graph_output() for o in node.outputs):
        return
    inputs = list(node.inputs)
    node.graph.remove(node, safe=True)
    for each in inputs:
        _drop_unread(each)
