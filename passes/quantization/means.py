"""Means over the whole image as the operator that has an integer kernel.

    ReduceMean(x, axes=[2, 3])   ->   GlobalAveragePool(x)   (-> Flatten, where the axes are dropped)

Exporters write adaptive pooling as a mean; kernels and tables know it as pooling.
"""

from __future__ import annotations

from typing import ClassVar

import onnx_ir as ir

from ...ir.static import constant_ints, input_of, rank_of
from ..rewriter import Rewriter
from ..rules import Rule


class MeanToPool(Rule):
    """ReduceMean over all axes behind the second  =>  GlobalAveragePool."""

    op_types: ClassVar[tuple[str, ...]] = ("ReduceMean",)
    label: ClassVar[str] = "means made pooling"

    def match_and_rewrite(self, node: ir.Node, rewriter: Rewriter) -> bool | str:
        """Replace the mean of float32 images [N, C, ...]."""
        data = node.inputs[0]
        rank = rank_of(data)
        if data is None or rank is None or rank < 3 or data.dtype != ir.DataType.FLOAT:
            return False
        axes = constant_ints(input_of(node, 1))
        if axes is None or sorted(axis % rank for axis in axes) != list(range(2, rank)):
            return False
        (pooled,) = rewriter.insert_before(node, "GlobalAveragePool", [data])
        assert data.shape is not None
        pooled.type = data.type
        pooled.shape = ir.Shape([*data.shape.dims[:2], *[1] * (rank - 2)])
        if node.attributes.get_int("keepdims", 1) == 0:
            (pooled,) = rewriter.insert_before(node, "Flatten", [pooled], {"axis": 1})
        rewriter.replace(node, [pooled])
        return True
