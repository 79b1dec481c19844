"""HQQ: half-quadratic quantization, which needs no data.

    min over s, z   |W - s (q - z)|_p^p,  p < 1        q = clip(round(W / s) + z)

Norms below 1 let a few weights be far off for the sake of the many. With W_e = shrink_p(W - s (q - z)) the
outliers of the moment, scale and zero point are fitted to W - W_e in closed form, and so on in turns (Badri
and Shaji, "Half-Quadratic Quantization of Large Machine Learning Models", 2023). There the zero point is a
real number; DequantizeLinear wants an integer, so scales are fitted beside it.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from ..ir.constants import constant_array
from ..ir.errors import PassError
from ..ir.static import input_of, producer_of, static_shape
from .base import Pass, PassContext
from .quantization.one_sided import one_sided_window
from .quantization.repair.blocks import BlockedWeight, blocked
from .quantization.repair.layers import QuantizedLayer, dequantizer_of
from .quantization.repair.originals import layers_beside_original
from .registry import register

# The alternation only finds the minimum next to it: it starts from several shares of the scale.
_STARTS = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5)
_NOISE = 0.3
_PENALTY_GROWTH = 1.1
# Rounds without a gain anywhere after which a start is given up.
_PATIENCE = 2


@register
@dataclass(frozen=True)
class Hqq(Pass):
    """Choose scales and zero points of integer weights anew, by a norm that forgives outliers (HQQ; no data).

    For behind `quantize-weights{form=int4 scale=absmax}` or int8, or with the float model's file. A block
    keeps what it has where nothing errs less in the norm without erring more in squares. Left, and reported:
    layers with an int32 bias, which is tied to their scales, and convolutions, whose large weights matter to
    the outputs by more than the norm says. Lossy.
    """

    name: ClassVar[str] = "hqq"
    lossless: ClassVar[bool] = False

    p: float = 0.7
    """The norm's exponent, above 0 and at most 1."""
    iterations: int = 20
    """Rounds of the alternation."""
    convolutions: bool = False
    """Fit convolutions, too."""
    original: str | None = None
    """File of the float model; by default the one that this pipeline quantized."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0.0 < self.p <= 1.0:
            raise PassError(f"{self.name}: option 'p' must be above 0 and at most 1, not {self.p}")
        if self.iterations < 1:
            raise PassError(f"{self.name}: option 'iterations' must be at least 1, not {self.iterations}")

    def apply(self, model: ir.Model, context: PassContext) -> None:
        """Fit every layer's blocks.

        Raises:
            PassError: The float model is not known.
        """
        _, layers = layers_beside_original(model, self.original, self.selects, context.leave)
        if not layers and not context.left_alone:
            context.note("no layer has integer weights; quantize first")
        rewriter = context.rewriter(model)
        rows = context.details.setdefault("layers", [])
        for done, layer in enumerate(layers):
            if context.progress is not None:
                context.progress(done, len(layers), f"{self.name} {layer.node.name}")
            parts = self._parts(layer)
            if isinstance(parts, str):
                context.leave(layer.node, parts)
                continue
            fitted = fit_blocks(parts, self.p, self.iterations)
            better = norms(fitted, self.p) < norms(parts, self.p)
            chosen = fitted.where(better, parts)
            window = one_sided_window(layer.node, 1, static_shape(layer.linear.weight) or ())
            if better.any() and window:
                chosen = chosen.with_kept_sums(window)
            rows.append(
                {
                    "node": layer.node.name,
                    "blocks": int(better.size),
                    "changed": int(better.sum()),
                    "norm_before": float(norms(parts, self.p).sum()),
                    "norm_after": float(norms(chosen, self.p).sum()),
                }
            )
            if better.any():
                restored = dequantizer_of(layer.node.inputs[1])
                assert restored is not None
                chosen.write(layer, restored, rewriter)
                context.count("layers fitted")
                context.count("blocks fitted", int(better.sum()))
            else:
                context.leave(layer.node, "no block errs less in the norm without erring more in squares")

    def _parts(self, layer: QuantizedLayer) -> BlockedWeight | str:
        parts = blocked(layer)
        if isinstance(parts, str):
            return parts
        if _has_integer_bias(layer):
            return "its int32 bias is tied to its scales"
        if layer.node.op_type == "Conv" and not self.convolutions:
            return "large weights of a window matter more than the norm says; convolutions=true fits it"
        return parts


def norms(parts: BlockedWeight, p: float) -> np.ndarray:
    """|W - s (q - z)|_p^p of every block, `[outputs, blocks]`."""
    error = np.abs(parts.weight - parts.decode())
    return np.where(parts.real, error**p, 0.0).sum(axis=-1)


def fit_blocks(parts: BlockedWeight, p: float, iterations: int) -> BlockedWeight:
    """The alternation, over all blocks at once and from several scales; the best of all for each block."""
    found = _alternate(parts.of_type(np.float32), p, iterations).of_type(np.float64)
    found = dataclasses.replace(found, weight=parts.weight)
    better = (norms(found, p) < norms(parts, p)) & (norms(found, 2.0) <= norms(parts, 2.0))
    return found.where(better, parts)


def _alternate(parts: BlockedWeight, p: float, iterations: int) -> BlockedWeight:
    best, least, limit = parts, norms(parts, p), norms(parts, 2.0)
    for share in _STARTS:
        current = parts.rescaled(share)
        # Errors up to about this share of a step count as noise, larger ones as outliers.
        penalty = ((_NOISE * np.abs(current.scales)) ** (p - 2.0))[..., None]
        idle = 0
        for _ in range(iterations):
            error = current.weight - current.decode()
            magnitude = np.abs(error)
            with np.errstate(divide="ignore"):
                shrunk = np.maximum(magnitude - magnitude ** (p - 1.0) / penalty, 0.0)
            current = current.fitted(np.where(parts.real, current.weight - np.sign(error) * shrunk, 0.0))
            found = norms(current, p)
            # Outliers of weights matter to convolutions: what forgives them must not err more in squares.
            better = (found < least) & (norms(current, 2.0) <= limit)
            best, least = current.where(better, best), np.where(better, found, least)
            idle = 0 if better.any() else idle + 1
            if idle == _PATIENCE:
                break
            penalty = penalty * _PENALTY_GROWTH
    return best


def _has_integer_bias(layer: QuantizedLayer) -> bool:
    node = layer.node
    bias = input_of(node, 2)
    if node.op_type == "MatMul":
        readers = [user for user, _ in node.outputs[0].uses() if user.op_type == "Add"]
        others = [value for user in readers for value in user.inputs if value is not node.outputs[0]]
        bias = others[0] if others else None
    restored = producer_of(bias, "DequantizeLinear")
    return restored is not None and constant_array(restored.inputs[0]) is not None
