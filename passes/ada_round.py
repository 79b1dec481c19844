"""AdaRound: learns for every weight whether it is rounded up or down.

    min over V   |W x - W~(V) x|^2 + l sum (1 - |2 h(V) - 1|^b),    W~ = s (clip(floor(W / s) + h(V) + z) - z)

with h a stretched sigmoid clipped to [0, 1] and b annealed, so that h ends at 0 or 1 (Nagel et al., "Up or
Down? Adaptive Rounding for Post-Training Quantization", 2020). x is what the layer reads in the quantized
model: aiming at what the float layer computes from its own input fits the noise of the layers in front where
rows are few. Optimized with Adam in numpy; the gradient needs no more than x x^T, or, where a layer has many
inputs, some rows of x at a time.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from ..ir.errors import PassError
from .base import PassContext
from .quantization.repair.pairs import Sample
from .quantization.repair.rounding import Grids, input_rows, keep_better, replace_codes, report
from .quantization.repair.sampled import LayerRepair
from .registry import register

_STORED_ROWS = 8192
_BATCH_ROWS = 256
_RATE = 1e-2
_WARM_UP = 0.2
_FIRST_POWER, _LAST_POWER = 20.0, 2.0
_LOW, _HIGH = -0.1, 1.1


@register
@dataclass(frozen=True)
class AdaRound(LayerRepair):
    """Learn the rounding of integer weights, layer by layer (AdaRound; needs calibration data).

    For behind `insert-qdq` or `quantize-weights` in the same pipeline, or with the float model's file. Every
    weight moves by less than one step. A layer, or an output of it, whose error does not get smaller, also on
    rows that were held out, keeps its weights. Takes longer than `gptq` and errs less at 8 bits. Lossy.
    """

    name: ClassVar[str] = "ada-round"
    lossless: ClassVar[bool] = False

    iterations: int = 500
    """Steps of the optimization for each layer."""
    regularization: float = 10.0
    """How strongly weights are driven to one side, against the error that rounding makes on average."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require_positive("iterations")
        if not self.regularization > 0.0:
            raise PassError(
                f"{self.name}: option 'regularization' must be above 0, not {self.regularization}"
            )

    def apply(self, model: ir.Model, context: PassContext) -> None:
        """Learn layer by layer, front to back.

        Raises:
            PassError: There is no data, it does not suit the model, or the float model is not known.
        """
        rewriter = context.rewriter(model)
        generator = np.random.default_rng(context.seed)
        for sample in self.layers(model, context):
            inputs = _rows(sample, generator)
            layer, grids = sample.layer, Grids.of(sample.layer)
            if not np.isfinite(inputs).all():
                context.leave(layer.node, "its inputs are not finite")
                continue
            fit = np.arange(inputs.shape[1]) % 4 != 3
            held = ~fit if inputs.shape[1] >= 8 else fit
            seen, unseen = inputs[:, fit], inputs[:, held]
            found = learn_rounding(grids, seen, self.iterations, self.regularization, generator)
            codes, _, _ = keep_better(grids, found, functools.partial(_error, grids, seen))
            before = float(_error(grids, unseen, grids.codes).sum())
            after = float(_error(grids, unseen, codes).sum())
            if not after < before:
                context.leave(layer.node, "no rounding that was found helps on held-out rows")
                continue
            moved = replace_codes(layer, codes, rewriter)
            signal = np.matmul(unseen, grids.weight.transpose(0, 2, 1).astype(np.float32))
            report(context, layer, moved, before, after, float(np.square(signal).sum()))


def _rows(sample: Sample, generator: np.random.Generator) -> np.ndarray:
    """Inputs over all batches, float32 `[groups, rows, features]`."""
    most = max(_STORED_ROWS // max(len(sample.inputs), 1), 64)
    parts = [rows.astype(np.float32) for rows in input_rows(sample, generator, most)]
    return np.concatenate(parts, axis=1)


def _error(grids: Grids, inputs: np.ndarray, codes: np.ndarray) -> np.ndarray:
    """Squared error of each output, float64 `[groups, outputs]`."""
    difference = (grids.decode(codes) - grids.weight).astype(np.float32)
    results = np.matmul(inputs, difference.transpose(0, 2, 1))
    return np.square(results, out=results).sum(axis=1, dtype=np.float64)


def learn_rounding(
    grids: Grids,
    inputs: np.ndarray,
    iterations: int,
    regularization: float,
    generator: np.random.Generator,
) -> np.ndarray:
    """The rounding that brings the layer's results closest to the targets.

    Args:
        grids: Weights `[groups, outputs, features]` and their grids.
        inputs: float32 `[groups, rows, features]`.
        iterations: Steps of Adam.
        regularization: Weight of the term that drives h to 0 or 1, in units of the error that rounding one
            weight makes on average.
        generator: Draws rows.

    Returns:
        Codes, int32 like the weights, each next to its weight on the grid.
    """
    steps = grids.weight / grids.scales
    floor = np.floor(steps)
    lower = np.clip(floor + grids.zeros, grids.low, grids.high)
    upper = np.clip(floor + 1 + grids.zeros, grids.low, grids.high)
    base = (grids.scales * (lower - grids.zeros)).astype(np.float32)
    width = (grids.scales * (upper - lower)).astype(np.float32)
    share = np.clip(steps - floor, 1e-3, 1.0 - 1e-3).astype(np.float32)
    logits = -np.log((_HIGH - _LOW) / (share - _LOW) - 1.0)
    gradient = _Gradient(grids.weight.astype(np.float32), inputs, generator)
    # In units in which a rounding error of every weight costs 1 on average.
    energy = np.square(inputs).mean(axis=1, dtype=np.float64).astype(np.float32)[:, None, :]
    unit = float((np.square(width) * energy).mean()) / 12.0
    if not unit > 0.0:
        return grids.codes
    first, second = np.zeros_like(logits), np.zeros_like(logits)
    warm = int(_WARM_UP * iterations)
    for step in range(1, iterations + 1):
        sigmoid = 1.0 / (1.0 + np.exp(-logits))
        stretched = sigmoid * (_HIGH - _LOW) + _LOW
        up = np.clip(stretched, 0.0, 1.0)
        change = gradient.at(base + width * up) * (width / unit)
        if step > warm:
            done = (step - warm) / max(iterations - warm, 1)
            power = _LAST_POWER + 0.5 * (_FIRST_POWER - _LAST_POWER) * (1.0 + np.cos(done * np.pi))
            side = 2.0 * up - 1.0
            pull = -2.0 * power * np.sign(side) * np.abs(side) ** (power - 1.0)
            change += regularization * pull
        change *= (_HIGH - _LOW) * sigmoid * (1.0 - sigmoid) * ((stretched > 0.0) & (stretched < 1.0))
        first += 0.1 * (change - first)
        second += 0.001 * (np.square(change) - second)
        rate = _RATE * 10.0 / (1.0 - 0.9**step)
        logits -= rate * first / (np.sqrt(second / (1.0 - 0.999**step)) + 1e-8)
    chosen = np.where(logits > 0.0, upper, lower)
    return chosen.astype(np.int32)


class _Gradient:
    """Of the mean squared error over rows with respect to the weights, float32."""

    def __init__(self, weight: np.ndarray, inputs: np.ndarray, generator: np.random.Generator):
        self._weight, self._inputs, self._generator = weight, inputs, generator
        rows, features = inputs.shape[1:]
        # The product of all rows costs features^2 a step, a batch of rows 2 * batch * features.
        self._gram: np.ndarray | None = None
        if features <= 2 * min(_BATCH_ROWS, rows):
            self._gram = np.matmul(inputs.transpose(0, 2, 1), inputs) / rows

    def at(self, weight: np.ndarray) -> np.ndarray:
        difference = weight - self._weight
        if self._gram is not None:
            return 2.0 * np.matmul(difference, self._gram)
        inputs = self._inputs
        if inputs.shape[1] > _BATCH_ROWS:
            drawn = self._generator.choice(inputs.shape[1], _BATCH_ROWS, replace=False)
            inputs = inputs[:, drawn]
        results = np.matmul(inputs, difference.transpose(0, 2, 1))
        return 2.0 * np.matmul(results.transpose(0, 2, 1), inputs) / inputs.shape[1]
