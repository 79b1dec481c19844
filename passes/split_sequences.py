"""`split-sequences`: the sequences that `torch.chunk` and `torch.split` leave behind become plain Splits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from ..ir.constants import constant_array
from ..ir.static import constant_ints, input_of
from .base import Pass, PassContext
from .registry import register
from .rewriter import Rewriter
from .rules import Rule


@register
@dataclass(frozen=True)
class SplitSequences(Pass):
    """Replace SplitToSequence whose parts are picked by SequenceAt with constant positions by one Split.

    SequenceAt(SplitToSequence(x, sizes), i)  =>  output i of Split(x, sizes). It does not fire where the
    sizes or positions are computed, the split axis is symbolic, the parts lose their axis (keepdims=0), or
    something else reads the sequence.
    """

    name: ClassVar[str] = "split-sequences"

    def apply(self, model: ir.Model, context: PassContext) -> None:
        """Drive one rule over the graph."""
        context.rewrite(model, SequenceToSplit())


class SequenceToSplit(Rule):
    """SequenceAt(SplitToSequence(x, sizes), i)  =>  Split(x, sizes)[i]."""

    op_types: ClassVar[tuple[str, ...]] = ("SplitToSequence",)
    label: ClassVar[str] = "sequences split"

    def match_and_rewrite(self, node: ir.Node, rewriter: Rewriter) -> bool | str:
        """Build the Split and hand its outputs to the readers of the sequence."""
        data, sequence = node.inputs[0], node.outputs[0]
        readers = [reader for reader, _ in sequence.uses()]
        if data is None or data.shape is None or not readers or sequence.is_graph_output():
            return False
        axis = node.attributes.get_int("axis", 0) % len(data.shape)
        size = data.shape[axis]
        if not isinstance(size, int):
            return f"axis {axis} of its input is symbolic"
        sizes = _sizes(node, size)
        if sizes is None:
            return "its sizes are computed, or its parts lose their axis"
        picked: dict[ir.Node, int] = {}
        for reader in readers:
            index = constant_array(reader.inputs[1], 1) if reader.op_type == "SequenceAt" else None
            if index is None:
                return f"its sequence is read by {reader.op_type}, or at a computed position"
            picked[reader] = int(index.ravel()[0])
        if any(not -len(sizes) <= index < len(sizes) for index in picked.values()):
            return "a position lies outside the sequence"
        lengths = rewriter.initializer(f"{node.name}.sizes", np.array(sizes, np.int64))
        parts = rewriter.insert_before(node, "Split", [data, lengths], {"axis": axis}, num_outputs=len(sizes))
        for part, length in zip(parts, sizes, strict=True):
            # Those that nobody picks too: a Split of unknown sizes stops whatever follows axes.
            part.type = data.type
            dims = list(data.shape)
            dims[axis] = length
            rewriter.set_shape(part, ir.Shape(dims))
        for reader, index in picked.items():
            rewriter.replace(reader, [parts[index]])
        rewriter.erase(node)
        return True


def _sizes(node: ir.Node, size: int) -> list[int] | None:
    """Lengths of the parts, or None where they are not known."""
    split = input_of(node, 1)
    if split is None:
        return [1] * size if node.attributes.get_int("keepdims", 1) else None
    given = constant_ints(split)
    if given is None:
        return None
    if constant_array(split).ndim == 1:  # type: ignore[union-attr]
        return given
    # One number: parts of that length, the last one may be shorter.
    step = given[0]
    return [min(step, size - start) for start in range(0, size, step)] if step > 0 else None
