"""AWQ: weights that large activations meet are made larger before they are rounded, and clipped by error.

    Q(s W) (x / s)  ~  W x,      s_j = mean|x_j|^a,  a in [0, 1]

One per cent of the weights, those behind the channels with the largest activations, make most of the error
of weight-only quantization. A factor on their channel shrinks their rounding error relative to them; what
makes the channels, a normalization or a layer in front, takes up 1 / s. Exponents, and for each block how far
its range is cut, are searched with the layer's own squared error (Lin et al., "AWQ: Activation-aware Weight
Quantization for LLM Compression and Acceleration", 2023).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import onnx_ir as ir

from ..ir.errors import PassError
from .base import PassContext
from .quantization.repair.linear_sites import is_linear, linear_sites
from .quantization.repair.sampled import SampledPass
from .quantization.repair.scaling import Constants, Edit
from .quantization.repair.sites import Site
from .quantization.repair.smoothing import rows_at
from .quantization.repair.walk import Walk
from .quantization.weight_forms import WEIGHT_FORMS, Rule, encode
from .registry import register

_EXPONENTS = tuple(i / 20 for i in range(1, 21))
_CUTS = tuple(1.0 - i / 20 for i in range(1, 11))
_ROWS = 2048
# Less than this share of the error is within what other calibration data would change.
_LEAST_GAIN = 0.02


@register
@dataclass(frozen=True)
class Awq(SampledPass):
    """Scale and clip weights by the activations they meet, before quantize-weights (AWQ).

    For MatMul and Gemm with constant weights; needs calibration data. Give it the options that
    `quantize-weights` gets behind it: `awq{form=int4 block=64},quantize-weights{form=int4 block=64}`. Scaling
    alone changes no output; clipping does. Layers whose input is made by nothing that could take the factor
    are reported, and at most clipped. Lossy.
    """

    name: ClassVar[str] = "awq"
    lossless: ClassVar[bool] = False

    form: Literal["int8", "int4", "int2"] = "int4"
    """How weights will be stored."""
    block: int | None = None
    """Numbers that will share a scale, 0 for a whole row; by default as in quantize-weights."""
    symmetric: bool = True
    """Whether zero will stand in the middle."""
    clip: bool = False
    """Cut the range of blocks where that lowers the layer's error, for `quantize-weights{scale=absmax}`: by
    default that pass chooses ranges itself."""
    min_size: int = 1024
    """Weights with fewer numbers stay as they are, as in quantize-weights."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.block is not None and self.block < 0:
            raise PassError(f"{self.name}: option 'block' must be 0 or more, not {self.block}")
        if not self.symmetric and WEIGHT_FORMS[self.form].asymmetric is None:
            raise PassError(f"{self.name}: symmetric=false is there for int8 and int4, not for {self.form}")

    def apply(self, model: ir.Model, context: PassContext) -> None:
        """Search the factors, then the cuts, front to back.

        Raises:
            PassError: There is no calibration data, or it does not suit the model.
        """
        self.require_data(context, "measures activations")
        sites, left = linear_sites(model.graph, self.selects)
        first = {site.readers[0]: site for site in sites}
        linear = [node for node in model.graph if is_linear(node) and self.selects(node)]
        if not linear:
            context.note("no MatMul or Gemm has constant weights")
            return
        batches = self.batches(model, context)
        walk, generator = Walk(model, batches), np.random.default_rng(context.seed)
        constants = Constants()
        # Inputs are those of the model as it was; a factor that was moved is what they are divided by.
        divided: dict[ir.Node, np.ndarray] = {}
        for done, node in enumerate(linear):
            if context.progress is not None:
                context.progress(done, len(linear), f"{self.name} {node.name}")
            rows = rows_at(walk, str(node.inputs[0].name), generator, _ROWS)  # type: ignore[union-attr]
            if not np.isfinite(rows).all():
                context.leave(node, "its inputs are not finite")
                continue
            if node in first:
                factors = self._scale(first[node], rows, constants, context)
                divided.update((reader, factors) for reader in first[node].readers)
            elif node in left:
                context.leave(node, left[node])
            if self.clip and constants.get((node, 1)).ndim == 2:
                self._clip(node, rows / divided.get(node, 1.0), constants, context)
        constants.write(context.rewriter(model))

    def _scale(self, site: Site, rows: np.ndarray, constants: Constants, context: PassContext) -> np.ndarray:
        """Move the factors with the least error, 1 included; returns them."""
        gram = rows.T @ rows
        mean = np.abs(rows).mean(axis=0)
        weights = [_matrix(edit, constants.get(edit.operand)) for edit in site.multiplied]
        best = np.ones(len(mean))
        first = least = self._error(weights, best, gram)
        chosen = 0.0
        floor = mean[mean > 0.0].min(initial=1.0)
        for exponent in _EXPONENTS:
            factors = np.maximum(mean, floor) ** exponent
            factors /= np.sqrt(factors.max() * factors.min())
            error = self._error(weights, factors, gram)
            if error < least:
                best, least, chosen = factors, error, exponent
        if chosen != 0.0 and not self.clip:
            # Ranks of candidates are found with simple scales; what counts are those that will be chosen.
            plain, found = (self._error(weights, each, gram, "search") for each in (np.ones(len(mean)), best))
            if not found < (1.0 - _LEAST_GAIN) * plain:
                chosen, best = 0.0, np.ones(len(mean))
        if chosen == 0.0:
            context.leave(site.root, "no factor lowers the error of what reads it")
            return best
        constants.scale(site.edits, best)
        context.count("scaled layers", len(site.readers))
        context.details.setdefault("scaled", []).append(
            {
                "root": site.root.name,
                "readers": [node.name for node in site.readers],
                "exponent": chosen,
                "error_before": first,
                "error_after": least,
            }
        )
        return best

    def _error(
        self, weights: list[np.ndarray], factors: np.ndarray, gram: np.ndarray, rule: Rule = "absmax"
    ) -> float:
        """Squared error of all readers `[outputs, features]` at some factors."""
        total = 0.0
        for weight in weights:
            difference = self._rounded(weight * factors, rule) / factors - weight
            total += float(((difference @ gram) * difference).sum())
        return total

    def _rounded(self, matrix: np.ndarray, rule: Rule = "absmax") -> np.ndarray:
        encoded = encode(
            matrix.astype(np.float32),
            WEIGHT_FORMS[self.form],
            block=self.block,
            symmetric=self.symmetric,
            bits=4,
            rule=rule,
        )
        return encoded.decode().astype(np.float64)[:, : matrix.shape[1]]

    def _clip(self, node: ir.Node, rows: np.ndarray, constants: Constants, context: PassContext) -> None:
        """Cut every block of the weights where its share of the results errs least."""
        array = constants.get((node, 1))
        if array.size < self.min_size:
            return
        outputs_first = node.op_type == "Gemm" and node.attributes.get_int("transB", 0) == 1
        matrix = (array if outputs_first else array.T).astype(np.float64)
        size = _block_size(self, matrix.shape[1])
        cut = matrix.copy()
        changed = 0
        for start in range(0, matrix.shape[1], size):
            part = matrix[:, start : start + size]
            gram = rows[:, start : start + size].T @ rows[:, start : start + size]
            reach = np.abs(part).max(axis=1, keepdims=True)
            best = part.copy()
            difference = self._rounded(part) - part
            least = ((difference @ gram) * difference).sum(axis=1)
            for share in _CUTS:
                tried = np.clip(part, -share * reach, share * reach)
                difference = self._rounded(tried) - part
                error = ((difference @ gram) * difference).sum(axis=1)
                better = error < least
                best[better], least = tried[better], np.minimum(error, least)
            changed += int((best != part).any(axis=1).sum())
            cut[:, start : start + size] = best
        if changed:
            constants.set((node, 1), (cut if outputs_first else cut.T).astype(array.dtype))
            context.count("clipped blocks", changed)


def _block_size(options: Awq, features: int) -> int:
    form = WEIGHT_FORMS[options.form]
    size = form.block if options.block is None else options.block
    return size or features


def _matrix(edit: Edit, array: np.ndarray) -> np.ndarray:
    """The weights that an edit scales, float64 `[outputs, features]`."""
    moved = np.moveaxis(array.astype(np.float64), edit.axes[0], -1)
    return moved.reshape(-1, moved.shape[-1])
