"""Activation equalization: every channel of an activation gets its share of the one grid they have in common.

    Conv(W1, b1) -> Relu -> Conv(W2)   =   Conv(W1 / s, b1 / s) -> Relu -> Conv(W2 * s),    s > 0 per channel

Activations have one scale per tensor, weights one per output channel. A channel whose values stay small
beside those of another has few of the 256 steps left; with s ~ its range all channels use them alike, and
the weights behind become uneven instead, which can be rounded with the data in view (Meller et al., "Same,
Same But Different", 2019; SmoothQuant, 2022, for products). Strengths are chosen place by place, by the
error that rounding is expected to cause in the layers behind; residual sums get one factor for all the
layers that are added up.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from .base import PassContext
from .quantization.repair.activation_error import Candidate, best_factors
from .quantization.repair.channel_statistics import channel_statistics
from .quantization.repair.sampled import SampledPass
from .quantization.repair.scaling import Constants
from .quantization.repair.sites import Site, joint_sites
from .registry import register

_LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul", "LayerNormalization", "RMSNormalization")


@register
@dataclass(frozen=True)
class EqualizeActivations(SampledPass):
    """Even out the ranges of an activation's channels, before insert-qdq (needs calibration data).

    Between the layers that make the channels and those that read them may stand what is positively
    homogeneous: ReLU, LeakyReLU, PReLU, pooling, reshapes, gates, residual sums. Fold batch norms first.
    Outputs stay the same up to float rounding. For tables with weight scales per channel.
    """

    name: ClassVar[str] = "equalize-activations"
    lossless: ClassVar[bool] = True

    def apply(self, model: ir.Model, context: PassContext) -> None:
        """Find where factors can go, measure, and move them.

        Raises:
            PassError: There is no calibration data, or it does not suit the model.
        """
        self.require_data(context, "measures activations")
        sites = joint_sites(
            model.graph, lambda node: node.op_type in _LAYERS and self.selects(node), context.leave
        )
        sites = [site for site in sites if self._may_change(site, context)]
        batches = self.batches(model, context)
        places = [(value, place) for site in sites for value, place in site.places]
        statistics = channel_statistics(model, places, batches)
        constants = Constants()
        rows = []
        for site in sites:
            if not all(statistics[str(value.name)].finite for value, _ in site.places):
                context.leave(site.roots[0], "what its readers read is not finite")
                continue
            found = best_factors(Candidate.of(site, statistics, constants))
            if found is None:
                context.leave(site.roots[0], "no factor is expected to lower the error")
                continue
            constants.scale(site.edits, found.factors)
            rows.append(
                {
                    "made by": [str(node.name) for node in site.roots],
                    "read by": [str(node.name) for node in site.readers],
                    "expected_gain_db": found.gain_db,
                }
            )
        constants.write(context.rewriter(model))
        if rows:
            context.count("equalized activations", len(rows))
            context.details["equalized"] = rows

    def _may_change(self, site: Site, context: PassContext) -> bool:
        kept = next((node for node in site.readers if not self.selects(node)), None)
        if kept is not None:
            context.leave(site.roots[0], f"'{kept.name}' behind it is not selected")
        return kept is None
