"""`fuse-skip-normalization`: a residual sum and the normalization behind it become one function."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import onnx_ir as ir

from ..ir.constants import constant_tensor
from ..ir.static import input_of, known_equal, producer_of, rank_of, static_shape
from .base import Pass, PassContext
from .functions import KnownFunction, call_function, define
from .registry import register
from .rewriter import Rewriter
from .rules import Rule


@register
@dataclass(frozen=True)
class FuseSkipNormalization(Pass):
    """Fuse x + skip (+ bias) and the normalization that reads it.

    1. s = x + skip, y = LayerNormalization(s, g, b)  ->  y, s = SkipLayerNormalization(x, skip, g, b).
    2. s = x + skip, y = RMSNormalization(s, g)  ->  y, s = SkipRMSNormalization(x, skip, g).
    3. s = (x + c) + skip with a constant c over the last axis: the variants Skip...BiasNormalization.

    The sum is the second output, as residual branches read it further on. The standard has no such operator:
    each is a function with a body. They stand for what is known from ONNX Runtime's contrib operators as
    SkipLayerNormalization and SkipSimplifiedLayerNormalization.

    It does not fire where x and skip broadcast each other, over other axes than the last, or where mean or
    deviation of the normalization are used.
    """

    name: ClassVar[str] = "fuse-skip-normalization"

    def apply(self, model: ir.Model, context: PassContext) -> None:
        """Drive the rule to a fixpoint."""
        context.rewrite(model, SkipNormalization())


_LAYER = "epsilon: float = 0.00001, stash_type: int = 1"
_REFERENCE = "x + skip, normalized over the last axis, and the sum; "
_BA = _REFERENCE + "Ba, Kiros and Hinton, 2016"
_ZHANG = _REFERENCE + "Zhang and Sennrich, 2019"


def _layer_function(name: str, inputs: str, sums: str, norm: str, reference: str) -> KnownFunction:
    return define(
        f"""
        {name} <{_LAYER}> ({inputs}) => (y, sum)
        {{
            {sums}
            y = {norm}
        }}
        """,
        reference,
    )


_NORM_ATTRIBUTES = "<axis = -1, epsilon: float = @epsilon, stash_type: int = @stash_type>"
_SUM = "sum = Add (x, skip)"
_BIASED = "moved = Add (x, c)\n            sum = Add (moved, skip)"

SKIP_LAYER = _layer_function(
    "SkipLayerNormalization",
    "x, skip, scale, bias",
    _SUM,
    f"LayerNormalization {_NORM_ATTRIBUTES} (sum, scale, bias)",
    _BA,
)
SKIP_LAYER_BIAS = _layer_function(
    "SkipLayerBiasNormalization",
    "x, skip, scale, bias, c",
    _BIASED,
    f"LayerNormalization {_NORM_ATTRIBUTES} (sum, scale, bias)",
    _BA + "; c is added to x",
)
SKIP_RMS = _layer_function(
    "SkipRMSNormalization",
    "x, skip, scale",
    _SUM,
    f"RMSNormalization {_NORM_ATTRIBUTES} (sum, scale)",
    _ZHANG,
)
SKIP_RMS_BIAS = _layer_function(
    "SkipRMSBiasNormalization",
    "x, skip, scale, c",
    _BIASED,
    f"RMSNormalization {_NORM_ATTRIBUTES} (sum, scale)",
    _ZHANG + "; c is added to x",
)


class SkipNormalization(Rule):
    """Norm(x + skip) and the sum = Skip...Normalization(x, skip)."""

    op_types: ClassVar[tuple[str, ...]] = ("LayerNormalization", "RMSNormalization")

    def match_and_rewrite(self, node: ir.Node, rewriter: Rewriter) -> bool | str:
        """Take the Add in front, and a constant added to one of its operands."""
        add = producer_of(node.inputs[0], "Add")
        if add is None:
            return False
        refusal = _refusal(node, add)
        if refusal is not None:
            return refusal
        x, skip = add.inputs
        assert x is not None and skip is not None
        moved = _with_constant(x, skip) or _with_constant(skip, x)
        parameters = [input_of(node, 1)]
        layer = node.op_type == "LayerNormalization"
        if layer:
            parameters.append(input_of(node, 2))
        if moved is not None:
            x, skip, constant = moved
            function = SKIP_LAYER_BIAS if layer else SKIP_RMS_BIAS
            inputs = [x, skip, *parameters, constant]
        else:
            function = SKIP_LAYER if layer else SKIP_RMS
            inputs = [x, skip, *parameters]
        attributes: Mapping[str, Any] = {
            "epsilon": node.attributes.get_float("epsilon", 1e-5),
            "stash_type": node.attributes.get_int("stash_type", 1),
        }
        # It stands at the sum, whose other readers may come before the normalization.
        sources = [value.producer() for value in add.inputs if value is not None]
        y, total = call_function(rewriter, add, function, inputs, attributes)
        rewriter.replace(node, [y, *[None] * (len(node.outputs) - 1)])
        rewriter.replace(add, [total])
        for source in sources:
            rewriter.erase_unread(source)
        return True


def _refusal(node: ir.Node, add: ir.Node) -> str | None:
    if add.graph is not node.graph:
        return "the sum is made in another graph"
    if any(output.uses() or output.is_graph_output() for output in node.outputs[1:]):
        return "its mean or deviation is used"
    rank = rank_of(node.inputs[0])
    if node.attributes.get_int("axis", -1) not in (-1, (rank or 0) - 1) or rank is None:
        return "it does not normalize over the last axis"
    x, skip = add.inputs
    if x is None or skip is None or constant_tensor(x) is not None or constant_tensor(skip) is not None:
        return "it normalizes the sum with a constant"
    if not known_equal(x.shape, skip.shape):
        return "the two addends are not known to have the same shape"
    for value in node.inputs[1:]:
        if value is not None and value.producer() is not None:
            # A parameter made in between would not be there yet.
            return "its scale or bias is computed"
    return None


def _with_constant(value: ir.Value, other: ir.Value) -> tuple[ir.Value, ir.Value, ir.Value] | None:
    """(x, other, c) where `value` is x + c, c a constant over the last axis, and nobody else reads it."""
    add = producer_of(value, "Add")
    if add is None or len(value.uses()) != 1 or value.is_graph_output() or value.shape is None:
        return None
    for data, constant in ((0, 1), (1, 0)):
        x, c = add.inputs[data], add.inputs[constant]
        if x is None or c is None or constant_tensor(c) is None or constant_tensor(x) is not None:
            continue
        if static_shape(c) == (value.shape[-1],) and known_equal(x.shape, value.shape):
            return x, other, c
    return None
