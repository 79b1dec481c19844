"""Reshape, Transpose, Reshape that spell out DepthToSpace or SpaceToDepth."""

from __future__ import annotations

from typing import Any, ClassVar

import onnx_ir as ir

from ...ir.static import only_reader, producer_of, same_dim
from ..leftovers import supersede
from ..rewriter import Rewriter
from ..rules import Rule

# What runtimes have kernels for.
_TYPES = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.DOUBLE)


class PixelShuffle(Rule):
    """Blocks of channels become blocks of pixels (DepthToSpace), or the other way round (SpaceToDepth).

    With N, C, H, W the sizes behind DepthToSpace divided by the block b where they are spatial:

        DepthToSpace DCR   [N, b, b, C, H, W]  by [0, 3, 4, 1, 5, 2]
        DepthToSpace CRD   [N, C, b, b, H, W]  by [0, 1, 4, 2, 5, 3]
        SpaceToDepth       [N, C, H, b, W, b]  by [0, 3, 5, 1, 2, 4]
    """

    op_types: ClassVar[tuple[str, ...]] = ("Reshape",)

    def match_and_rewrite(self, node: ir.Node, rewriter: Rewriter) -> bool | str:
        """Replace the three by one."""
        transpose = producer_of(node.inputs[0], "Transpose")
        first = producer_of(transpose.inputs[0], "Reshape") if transpose is not None else None
        if transpose is None or first is None or first.inputs[0] is None:
            return False
        if first.inputs[0].dtype not in _TYPES:
            return False
        source, middle, result = first.inputs[0].shape, first.outputs[0].shape, node.outputs[0].shape
        if (
            source is None
            or middle is None
            or result is None
            or (len(source), len(middle), len(result)) != (4, 6, 4)
        ):
            return False
        perm = tuple(transpose.attributes.get_ints("perm", ()) or ())
        found = _read(perm, middle.dims)
        if found is None or not same_dim(source[0], middle[0]) or not same_dim(source[0], result[0]):
            return False
        if not only_reader(first.outputs[0]) or not only_reader(transpose.outputs[0]):
            return "what stands in between has other readers"
        op_type, attributes, before, behind = found
        if list(source.dims[1:]) != before or list(result.dims[1:]) != behind:
            return False
        return supersede(node, op_type, [first.inputs[0]], rewriter, attributes)


def _read(perm: tuple[int, ...], middle: Any) -> tuple[str, dict[str, Any], list[int], list[int]] | None:
    """Operator, attributes, and `[channels, height, width]` before and behind; None for anything else."""
    sizes = [dim for dim in middle[1:] if type(dim) is int]
    if len(sizes) != 5:
        return None
    if perm == (0, 3, 4, 1, 5, 2):
        b, same, c, h, w = sizes
        op_type, mode = "DepthToSpace", "DCR"
    elif perm == (0, 1, 4, 2, 5, 3):
        c, b, same, h, w = sizes
        op_type, mode = "DepthToSpace", "CRD"
    elif perm == (0, 3, 5, 1, 2, 4):
        c, h, b, w, same = sizes
        op_type, mode = "SpaceToDepth", ""
    else:
        return None
    if b != same or b < 1 or 0 in sizes:
        return None
    deep, wide = [c * b * b, h, w], [c, h * b, w * b]
    if op_type == "SpaceToDepth":
        return op_type, {"blocksize": b}, wide, deep
    return op_type, {"blocksize": b, "mode": mode}, deep, wide
