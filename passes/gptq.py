"""GPTQ: weights are rounded one input feature at a time, and those to come make up for the error.

With H = sum of x x^T over calibration inputs (damped), the rounding error of feature j is pushed onto the
features behind it so that |W x - Q x|^2 grows the least (Frantar et al., "GPTQ: Accurate Post-Training
Quantization for Generative Pre-trained Transformers", 2022):

    e = (w_j - q_j) / U_jj,   W_k -= e U_jk for k > j,   U the upper Cholesky factor of H^-1

The grids (scales, zero points, blocks) stay those that quantization chose, so that any form of integer
weights keeps its form, and orders of features are free to choose.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from ..ir.errors import PassError
from .base import PassContext
from .quantization.repair.rounding import (
    Grids,
    input_rows,
    keep_better,
    quadratic_error,
    replace_codes,
    report,
    split_grams,
)
from .quantization.repair.sampled import LayerRepair
from .registry import register

_ROWS = 4096
# With fewer rows for each feature it is tried on held-out rows first whether the layer gains.
_FEW = 4
_MAX_FEATURES = 12288
_BLOCK = 128


@register
@dataclass(frozen=True)
class Gptq(LayerRepair):
    """Round integer weights anew so that errors of a layer's features cancel (GPTQ; needs calibration data).

    For behind `quantize-weights` or `insert-qdq` in the same pipeline, or with the float model's file. Takes
    int8, int4 and int2 weights of Conv, ConvTranspose, Gemm and MatMul, with scales per tensor, channel or
    block. An output whose error does not get smaller on the data keeps its weights; where rows are few, so
    does a layer that does not gain on held-out ones. Lossy.
    """

    name: ClassVar[str] = "gptq"
    lossless: ClassVar[bool] = False

    damping: float = 0.01
    """Added to the diagonal of H, as a share of its mean."""
    act_order: bool = True
    """Round the features with the largest inputs first."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0.0 < self.damping <= 1.0:
            raise PassError(
                f"{self.name}: option 'damping' must be above 0 and at most 1, not {self.damping}"
            )

    def apply(self, model: ir.Model, context: PassContext) -> None:
        """Round layer by layer, front to back.

        Raises:
            PassError: There is no data, it does not suit the model, or the float model is not known.
        """
        rewriter = context.rewriter(model)
        generator = np.random.default_rng(context.seed)
        for sample in self.layers(model, context):
            layer = sample.layer
            if layer.linear.features > _MAX_FEATURES:
                context.leave(layer.node, f"its {layer.linear.features} inputs are too many for GPTQ")
                continue
            seen, held, count = split_grams(input_rows(sample, generator, _ROWS))
            gram = seen + held
            if not np.isfinite(gram).all():
                context.leave(layer.node, "its inputs are not finite")
                continue
            grids = Grids.of(layer)
            if count < _FEW * layer.linear.features and not self._helps(grids, seen, held):
                context.leave(layer.node, f"no rounding that was found helps on held-out rows of the {count}")
                continue
            found = round_by_hessian(grids, gram, self.damping, self.act_order)
            if found is None:
                context.leave(layer.node, "its Hessian cannot be inverted; raise 'damping'")
                continue
            codes, before, after = keep_better(grids, found, functools.partial(_error, grids, gram))
            moved = replace_codes(layer, codes, rewriter)
            if not moved:
                context.leave(layer.node, "no rounding that was found errs less")
                continue
            signal = float(quadratic_error(grids.weight, gram).sum())
            report(context, layer, moved, before, after, signal)

    def _helps(self, grids: Grids, seen: np.ndarray, held: np.ndarray) -> bool:
        """Whether what is fitted to some rows errs less on others, too."""
        found = round_by_hessian(grids, seen, self.damping, self.act_order)
        if found is None:
            return False
        codes, _, _ = keep_better(grids, found, functools.partial(_error, grids, seen))
        return float(_error(grids, held, codes).sum()) < float(_error(grids, held, grids.codes).sum())


def _factor_of_inverse(matrices: np.ndarray) -> np.ndarray:
    """Upper triangular U with U^T U = H^-1, `[groups, n, n]`, at a third of the cost of inverting H first.

    H read backwards is L L^T; forwards that is R R^T with R upper triangular, and U = R^-1.

    Raises:
        numpy.linalg.LinAlgError: a matrix is not positive definite.
    """
    lower = np.linalg.cholesky(matrices[:, ::-1, ::-1])
    return _inverse_of_upper(np.ascontiguousarray(lower[:, ::-1, ::-1]))


def _inverse_of_upper(matrices: np.ndarray) -> np.ndarray:
    count = matrices.shape[-1]
    if count <= _BLOCK:
        return np.triu(np.linalg.inv(matrices))
    half = count // 2
    inverse = np.zeros_like(matrices)
    first = inverse[:, :half, :half] = _inverse_of_upper(matrices[:, :half, :half])
    last = inverse[:, half:, half:] = _inverse_of_upper(matrices[:, half:, half:])
    inverse[:, :half, half:] = -first @ (matrices[:, :half, half:] @ last)
    return inverse


def _error(grids: Grids, gram: np.ndarray, codes: np.ndarray) -> np.ndarray:
    """Squared error of each output, `[groups, outputs]`."""
    return quadratic_error(grids.decode(codes) - grids.weight, gram)


def round_by_hessian(
    grids: Grids, gram: np.ndarray, damping: float = 0.01, act_order: bool = True
) -> np.ndarray | None:
    """GPTQ's rounding.

    Args:
        grids: Weights `[groups, outputs, features]` and their grids.
        gram: H up to a factor, float64 `[groups, features, features]`.
        damping: Share of the mean diagonal that is added to it.
        act_order: Features of large diagonal first.

    Returns:
        Codes, float64 like the weights; None where H cannot be inverted.
    """
    diagonal = np.diagonal(gram, axis1=1, axis2=2)
    dead = diagonal <= 0.0
    count = gram.shape[-1]
    level = damping * diagonal.mean(axis=1)
    level = np.where(level > 0.0, level, 1.0)
    damped = gram + np.eye(count) * (level[:, None] + np.where(dead, 1.0, 0.0))[:, None, :]
    order = np.argsort(-diagonal, axis=1, kind="stable") if act_order else np.arange(count)[None]
    order = np.broadcast_to(order, diagonal.shape)
    damped = np.take_along_axis(np.take_along_axis(damped, order[:, :, None], 1), order[:, None, :], 2)
    try:
        upper = _factor_of_inverse(damped)
    except np.linalg.LinAlgError:
        return None
    weight = np.take_along_axis(grids.weight, order[:, None, :], 2)
    scales = np.take_along_axis(grids.scales, order[:, None, :], 2)
    zeros = np.take_along_axis(grids.zeros, order[:, None, :], 2)
    codes = np.empty_like(weight)
    for start in range(0, count, _BLOCK):
        stop = min(start + _BLOCK, count)
        errors = np.empty_like(weight[:, :, start:stop])
        for j in range(start, stop):
            column, scale, zero = weight[:, :, j], scales[:, :, j], zeros[:, :, j]
            codes[:, :, j] = np.clip(np.rint(column / scale) + zero, grids.low, grids.high)
            error = (column - scale * (codes[:, :, j] - zero)) / upper[:, j, j][:, None]
            weight[:, :, j:stop] -= error[:, :, None] * upper[:, None, j, j:stop]
            errors[:, :, j - start] = error
        weight[:, :, stop:] -= np.matmul(errors, upper[:, start:stop, stop:])
    back = np.argsort(order, axis=1)
    return np.take_along_axis(codes, back[:, None, :], 2)
