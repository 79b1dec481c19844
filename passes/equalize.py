"""Cross-layer equalization: neighbouring layers share out the ranges of their channels.

    Conv(W1, b1) -> Relu -> Conv(W2)   =   Conv(W1 / s, b1 / s) -> Relu -> Conv(W2 * s),    s > 0 per channel

For r1, r2 the largest weights of a channel on both sides, s = sqrt(r1 / r2) makes both sqrt(r1 r2): no
channel wastes the grid of its layer any more (Nagel et al., "Data-Free Quantization Through Weight
Equalization and Bias Correction", 2019). Chains and depthwise layers are gone through until nothing moves.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from ..ir.errors import PassError
from .base import Pass, PassContext
from .quantization.repair.scaling import Constants
from .quantization.repair.sites import Site, find_sites
from .registry import register

_LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
# Factors beyond bring nothing and would only wear float32 out.
_LARGEST = 2.0**16
_SETTLED = 1e-3


@register
@dataclass(frozen=True)
class Equalize(Pass):
    """Even out the weight ranges of neighbouring layers, before quantization (cross-layer equalization).

    Between two layers may stand what is positively homogeneous: ReLU, LeakyReLU, PReLU, pooling, reshapes,
    gates. A clipped ReLU (ReLU6) is not: `relax-clips` makes a ReLU of it where it never clips. Fold batch
    norms first. Outputs stay the same up to float rounding. Worth most where weights have one scale per
    tensor.
    """

    name: ClassVar[str] = "equalize"
    lossless: ClassVar[bool] = True

    iterations: int = 20
    """How often the layers are gone through at most; it ends earlier once nothing moves."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.iterations < 1:
            raise PassError(f"{self.name}: option 'iterations' must be at least 1, not {self.iterations}")

    def apply(self, model: ir.Model, context: PassContext) -> None:
        """Find the pairs, share the ranges out in memory, and write the weights that changed."""
        sites = find_sites(
            model.graph, lambda node: node.op_type in _LAYERS and self.selects(node), context.leave
        )
        sites = [site for site in sites if self._may_change(site, context)]
        constants = Constants()
        moved: dict[int, float] = {}
        for _ in range(self.iterations):
            largest = 0.0
            for index, site in enumerate(sites):
                factors = _factors(site, constants)
                change = float(np.abs(np.log2(factors)).max(initial=0.0))
                if change <= _SETTLED:
                    continue
                constants.scale(site.edits, factors)
                moved[index] = max(change, moved.get(index, 0.0))
                largest = max(largest, change)
            if largest <= _SETTLED:
                break
        constants.write(context.rewriter(model))
        if moved:
            context.count("equalized layers", len(moved))
            context.details["equalized"] = {
                str(sites[index].root.name): {
                    "readers": [str(node.name) for node in sites[index].readers],
                    "largest_factor": 2.0**change,
                }
                for index, change in moved.items()
            }

    def _may_change(self, site: Site, context: PassContext) -> bool:
        kept = next((node for node in site.readers if not self.selects(node)), None)
        if kept is not None:
            context.leave(site.root, f"'{kept.name}' behind it is not selected")
        return kept is None


def _factors(site: Site, constants: Constants) -> np.ndarray:
    """What evens the ranges on both sides of a site out, float64 `[channels]`; 1 for dead channels."""
    made = site.divided[0]
    first = made.magnitudes(constants.get(made.operand))
    second = np.zeros(site.channels)
    for edit in site.multiplied:
        second = np.maximum(second, edit.magnitudes(constants.get(edit.operand)))
    sound = np.isfinite(first) & np.isfinite(second) & (first > 0.0) & (second > 0.0)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        factors = np.where(sound, np.sqrt(first / second), 1.0)
    return np.clip(factors, 1.0 / _LARGEST, _LARGEST)
