"""Which values are stored channels last."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import onnx_ir as ir

from .groups import Group
from .layout import CANONICAL, Layout
from .movement import MOVEMENT
from .prepare import Prepared
from .roles import CONVOLUTIONS, POOLS
from .strategy import Strategy

_RESIZES = frozenset({"Resize", "Upsample"})
_SPATIAL = CONVOLUTIONS | POOLS
# Moving data through these mixes axes: what comes out is a new beginning.
_FORGETS = frozenset(
    {"Transpose", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Gather", "GatherND", "OneHot"}
)


def data_layout(group: Group, strategy: Strategy) -> Layout | None:
    """The layout in which a group's anchor reads and writes; None if any will do."""
    if group.anchor is None or group.opaque:
        return None
    rank = len(group.anchor.outputs[0].shape or ())
    if group.anchor.op_type in _SPATIAL and rank in (3, 4, 5):
        return strategy.convolution_layout
    return CANONICAL if group.anchor.op_type in {"MatMul", "Gemm", "Attention", "Recurrence"} else None


def needs_channels_last(groups: Sequence[Group], prepared: Prepared, strategy: Strategy) -> set[ir.Value]:
    """Values that some anchor reads channels last."""
    found: set[ir.Value] = set()
    for group in groups:
        layout = data_layout(group, strategy)
        if layout is not None and layout.channels_last and group.anchor is not None:
            value = group.anchor.inputs[0]
            if value is not None and value not in prepared.constants:
                found.add(value)
    return found


def choose_layout(
    group: Group,
    layouts: Mapping[ir.Value, Layout],
    outputs: Collection[ir.Value],
    wanted: Collection[ir.Value],
    strategy: Strategy,
) -> Layout:
    """How the output of a group is stored.

    Args:
        group: the group.
        layouts: how earlier values are stored.
        outputs: graph outputs; they keep ONNX's order.
        wanted: values that an anchor reads channels last.
        strategy: names the layout of convolutional regions.
    """
    fixed = data_layout(group, strategy)
    if fixed is not None:
        return fixed
    rank = len(group.output.shape or ())
    if rank not in (3, 4, 5):
        return CANONICAL
    if group.output in outputs:
        # Resizing is quick along channels, and so is a copy behind it; resizing across them is not.
        resizes = any(node.op_type in _RESIZES for node in group.nodes)
        return _inherited(group, layouts, rank) if resizes else CANONICAL
    if group.output in wanted:
        return strategy.convolution_layout
    return _inherited(group, layouts, rank)


def _inherited(group: Group, layouts: Mapping[ir.Value, Layout], rank: int) -> Layout:
    """The layout of what flows through a group, if its axes stay what they are."""
    types = {node.op_type for node in group.nodes}
    if types & _FORGETS and types & (set(MOVEMENT) & _FORGETS):
        return CANONICAL
    sizes = [
        (value, _size(value))
        for value in group.inputs
        if len(value.shape or ()) == rank and value.shape is not None
    ]
    if not sizes:
        return CANONICAL
    largest = max(size for _, size in sizes)
    main = [value for value, size in sizes if size == largest]
    return (
        CANONICAL
        if any(not layouts.get(value, CANONICAL).channels_last for value in main)
        else layouts[main[0]]
    )


def _size(value: ir.Value) -> int:
    size = 1
    for dim in value.shape or ():
        size *= int(str(dim))
    return size
