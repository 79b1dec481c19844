"""Clipped ReLUs that hardly ever clip become ReLUs, which equalization can cross.

    Clip(x, 0, 6)  ->  Relu(x)        where at most a given share of x is above 6 on the calibration data

ReLU6 is not positively homogeneous: a factor per channel cannot pass it. Nagel et al. ("Data-Free
Quantization Through Weight Equalization and Bias Correction", 2019) replace them all; here data decides.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from ..ir.clone import clone
from ..ir.constants import constant_array
from ..ir.errors import PassError
from ..ir.reference import Reference
from ..ir.static import input_of
from .base import PassContext
from .quantization.calibration import Feeds
from .quantization.repair.sampled import SampledPass
from .registry import register


@register
@dataclass(frozen=True)
class RelaxClips(SampledPass):
    """Replace Clip(0, m) by Relu where the calibration data hardly ever reaches m; for before `equalize`.

    Clips that cut more than `share` of what they see stay and are reported. Exact on the data where nothing
    is cut; elsewhere numbers above m come through. Lossy.
    """

    name: ClassVar[str] = "relax-clips"
    lossless: ClassVar[bool] = False

    share: float = 0.0
    """Share of the numbers, 0 to 1, that may be above the bound; 1 replaces every one."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0.0 <= self.share <= 1.0:
            raise PassError(f"{self.name}: option 'share' must be 0 to 1, not {self.share}")

    def apply(self, model: ir.Model, context: PassContext) -> None:
        """Count what each clip cuts, and replace those that cut little.

        Raises:
            PassError: There is no calibration data, or it does not suit the model.
        """
        clips = [(node, bound) for node in model.graph if self.selects(node) and (bound := _bound(node))]
        if not clips:
            return
        self.require_data(context, "counts what clips cut")
        batches = self.batches(model, context)
        shares = _shares(model, [(str(node.name), bound) for node, bound in clips], batches)
        rewriter = context.rewriter(model)
        for node, bound in clips:
            share = shares[str(node.name)]
            if share > self.share:
                context.leave(node, f"it cuts {share:.2%} of what it sees at {bound:g}")
                continue
            (relu,) = rewriter.insert_before(node, "Relu", [node.inputs[0]])
            rewriter.replace(node, [relu])
            context.count("clips relaxed")
        rewriter.drop_orphans()


def _bound(node: ir.Node) -> float | None:
    """The upper bound of a Clip from 0 to a positive constant, else None."""
    if node.op_type != "Clip" or node.domain not in ("", "ai.onnx"):
        return None
    low, high = (constant_array(input_of(node, index)) for index in (1, 2))
    if low is None or high is None or low.size != 1 or high.size != 1 or float(low.reshape(())) != 0.0:
        return None
    bound = float(high.reshape(()))
    return bound if 0.0 < bound < float("inf") else None


def _shares(model: ir.Model, clips: list[tuple[str, float]], batches: list[Feeds]) -> dict[str, float]:
    """The share of its numbers that each clip cuts, counted inside the graph; NaN counts as cut."""
    probe = clone(model)
    graph = probe.graph
    nodes = {str(node.name): node for node in graph}
    outputs: list[ir.Value] = []

    def append(op_type: str, inputs: list[ir.Value], **attributes: int) -> ir.Value:
        node = ir.node(op_type, inputs, attributes, name=f"graphwright.clip.{len(graph)}")
        node.outputs[0].name = node.name
        graph.append(node)
        return node.outputs[0]

    for name, _ in clips:
        node = nodes[name]
        value, high = node.inputs[0], node.inputs[2]
        assert value is not None and high is not None
        inside = append("LessOrEqual", [value, high])
        outputs.append(
            append("ReduceMean", [append("Cast", [inside], to=int(ir.DataType.FLOAT))], keepdims=0)
        )
    graph.outputs[:] = outputs
    names = [str(value.name) for value in outputs]
    reference = Reference(probe)
    kept = np.mean([[float(found[name]) for name in names] for found in map(reference.run, batches)], axis=0)
    return {name: 1.0 - float(share) for (name, _), share in zip(clips, kept, strict=True)}
