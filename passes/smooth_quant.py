"""SmoothQuant: outliers of activations move into the weights that read them.

    (X / s) (s W)  =  X W,      s_j = max|X_j|^a / max|W_j|^(1 - a)      per input channel j

Transformers have a few channels with values a hundred times larger than the rest; one scale per tensor then
leaves the rest a handful of integers. 1 / s is taken up by what makes the channels, a normalization or a
layer in front, so that nothing is added to the graph (Xiao et al., "SmoothQuant: Accurate and Efficient
Post-Training Quantization for Large Language Models", 2022).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from ..ir.errors import PassError
from ..ir.static import rank_of
from .base import PassContext
from .quantization.calibration import Feeds
from .quantization.repair.linear_sites import insertable, linear_sites
from .quantization.repair.magnitudes import measure_magnitudes
from .quantization.repair.places import Place
from .quantization.repair.sampled import SampledPass
from .quantization.repair.scaling import Constants, Edit, weight_edit
from .quantization.repair.sites import Site
from .quantization.repair.smoothing import best_strength, rows_at
from .quantization.repair.walk import Walk
from .registry import register
from .rewriter import Rewriter

_LARGEST = 2.0**16


@register
@dataclass(frozen=True)
class SmoothQuant(SampledPass):
    """Move outlier channels of activations into the weights behind them, before insert-qdq (SmoothQuant).

    For MatMul and Gemm with constant weights; needs calibration data. Outputs stay the same up to float
    rounding. Layers whose input is made by nothing that could take the factor (a residual addition reads it
    too, a GELU stands between) are left and reported, or, with `insert=true`, get a multiplication in front.
    """

    name: ClassVar[str] = "smooth-quant"
    lossless: ClassVar[bool] = True

    alpha: float | None = None
    """How much of the difficulty moves from activations into weights: 0 none, 1 all of it. By default each
    place gets the strength that errs least at 8 bits on held-out rows, and none where none helps."""
    insert: bool = False
    """Multiply in front of layers whose factor nothing else can take, which costs time on the device."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.alpha is not None and not 0.0 <= self.alpha <= 1.0:
            raise PassError(f"{self.name}: option 'alpha' must be 0 to 1, not {self.alpha}")

    def apply(self, model: ir.Model, context: PassContext) -> None:
        """Find where factors can go, measure, and move them.

        Raises:
            PassError: There is no calibration data, or it does not suit the model.
        """
        self.require_data(context, "measures activations")
        rewriter = context.rewriter(model)
        sites, left = linear_sites(model.graph, self.selects)
        inserted = _inserted(left) if self.insert else {}
        for node, reason in left.items():
            if not any(node in nodes for nodes in inserted.values()):
                context.leave(node, reason)
        values = [value for site in sites for value, _ in site.entries] + list(inserted)
        if not values:
            return
        batches = self.batches(model, context)
        scan = _Scan(self, model, batches, [str(value.name) for value in values], context)
        constants = Constants()
        for site in sites:
            self._move(site, scan, constants, context)
        for value, nodes in inserted.items():
            self._insert(value, nodes, scan, constants, rewriter, context)
        constants.write(rewriter)

    def _move(self, site: Site, scan: _Scan, constants: Constants, context: PassContext) -> None:
        names = [str(value.name) for value, _ in site.entries]
        factors = scan.factors(names, site.multiplied, constants)
        if isinstance(factors, str):
            context.leave(site.root, factors)
            return
        constants.scale(site.edits, factors)
        _report(site.root, site.readers, scan.largest(names), factors, context)

    def _insert(
        self,
        value: ir.Value,
        nodes: list[ir.Node],
        scan: _Scan,
        constants: Constants,
        rewriter: Rewriter,
        context: PassContext,
    ) -> None:
        rank, names = rank_of(value), [str(value.name)]
        assert rank is not None
        place = Place((rank - 1,), (len(scan.largest(names)),))
        edits = [edit for node in nodes if isinstance(edit := weight_edit(node, 0, place), Edit)]
        factors = scan.factors(names, edits, constants)
        if isinstance(factors, str):
            context.leave(nodes[0], factors)
            return
        inverse = rewriter.initializer(f"{value.name}.smooth", (1.0 / factors).astype(np.float32))
        (scaled,) = rewriter.insert_before(nodes[0], "Mul", [value, inverse])
        scaled.shape, scaled.type = value.shape, value.type
        for edit in edits:
            constants.multiply(edit, factors)
        for node in nodes:
            rewriter.set_input(node, 0, scaled)
        context.count("inserted multiplications")
        _report(nodes[0], nodes, scan.largest(names), factors, context)


class _Scan:
    """What the calibration data says about the inputs of linear layers."""

    def __init__(
        self,
        options: SmoothQuant,
        model: ir.Model,
        batches: list[Feeds],
        names: list[str],
        context: PassContext,
    ):
        self._alpha = options.alpha
        self._measured = measure_magnitudes(model, names, batches)
        self._rows: dict[str, np.ndarray] = {}
        if self._alpha is not None:
            return
        walk, generator = Walk(model, batches), np.random.default_rng(context.seed)
        order = {str(value.name): i for i, node in enumerate(model.graph) for value in node.outputs}
        wanted = sorted(dict.fromkeys(names), key=lambda name: order.get(name, -1))
        for done, name in enumerate(wanted):
            if context.progress is not None:
                context.progress(done, len(wanted), f"reading {name}")
            self._rows[name] = rows_at(walk, name, generator)

    def largest(self, names: list[str]) -> np.ndarray:
        """The largest magnitude per channel over some values, float64 `[channels]`."""
        return np.maximum.reduce([self._measured[name].largest for name in names])

    def factors(self, names: list[str], edits: list[Edit], constants: Constants) -> np.ndarray | str:
        """The factors of a site, or why it is left."""
        largest = self.largest(names)
        if not np.isfinite(largest).all():
            return "what its inputs are is not finite"
        arrays = [(edit, constants.get(edit.operand)) for edit in edits]
        weights = np.maximum.reduce([edit.magnitudes(array) for edit, array in arrays])
        alpha = self._alpha
        if alpha is None:
            rows = np.concatenate([self._rows[name] for name in dict.fromkeys(names)])
            matrices = [
                np.moveaxis(array, edit.axes[0], 0).reshape(len(largest), -1) for edit, array in arrays
            ]
            alpha = best_strength(rows, matrices, lambda each, strength: smoothing(each, weights, strength))
        if alpha is None:
            return "no factor makes it err less in 8 bits"
        return smoothing(largest, weights, alpha)


def smoothing(largest: np.ndarray, weights: np.ndarray, alpha: float) -> np.ndarray:
    """The paper's factors, float64 `[channels]`, scaled to 1 in the geometric mean.

    Args:
        largest: Largest magnitude of each channel of the activations.
        weights: Largest magnitude of the weights that read it.
        alpha: Strength.
    """
    sound = (largest > 0.0) & (weights > 0.0) & np.isfinite(weights)
    if not sound.any():
        return np.ones(len(largest))
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        factors = largest**alpha / weights ** (1.0 - alpha)
    factors = np.where(sound, factors / np.exp(np.log(factors[sound]).mean()), 1.0)
    return np.clip(factors, 1.0 / _LARGEST, _LARGEST)


def _inserted(left: dict[ir.Node, str]) -> dict[ir.Value, list[ir.Node]]:
    """Layers that can have a factor inserted, by what they read, in graph order."""
    found: dict[ir.Value, list[ir.Node]] = {}
    for node in left:
        place = insertable(node)
        if place is not None:
            found.setdefault(place[0], []).append(node)
    return found


def _report(
    root: ir.Node, readers: list[ir.Node], largest: np.ndarray, factors: np.ndarray, context: PassContext
) -> None:
    def outlier(magnitudes: np.ndarray) -> float:
        positive = magnitudes[magnitudes > 0.0]
        return float(positive.max() / np.median(positive)) if positive.size else 1.0

    context.count("smoothed layers", len(readers))
    context.details.setdefault("smoothed", []).append(
        {
            "root": root.name,
            "readers": [node.name for node in readers],
            "outlier_before": outlier(largest),
            "outlier_after": outlier(largest / factors),
        }
    )
