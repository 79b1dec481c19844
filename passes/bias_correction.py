"""Bias correction: takes back the mean error that quantization gave each output channel of a layer.

    b' = b + E[W x] - E[W~ x~]          means over calibration data and positions, per channel

Rounding shifts the mean of a channel whenever its weights are few (depthwise layers above all) or its inputs
are not centred, and such shifts add up behind it (Nagel et al., "Data-Free Quantization Through Weight
Equalization and Bias Correction", 2019, section 4.2, in its empirical form). Layers are corrected front to
back, each on the model as corrected so far.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from ..ir.constants import constant_array
from ..ir.static import input_of, only_reader, producer_of
from .base import PassContext
from .quantization.repair.pairs import Sample
from .quantization.repair.sampled import LayerRepair
from .registry import register
from .rewriter import Rewriter


@register
@dataclass(frozen=True)
class BiasCorrection(LayerRepair):
    """Add to every bias what quantization changed in the mean of its channel (needs calibration data).

    For behind `insert-qdq` or `quantize-weights` in the same pipeline, or with the float model's file. An
    int32 bias stays int32. Layers without a bias get one where the operator has a place for it; a MatMul with
    no addition behind it is left and reported. Lossy only in that it comes closer to the float model.
    """

    name: ClassVar[str] = "bias-correction"
    lossless: ClassVar[bool] = False

    samples: int = field(default=256, kw_only=True)
    """Samples of the calibration data that means are taken over."""
    shrink: bool = field(default=True, kw_only=True)
    """Take only as much of a mean as is not chance, judged by how the samples differ; otherwise all of it."""

    def apply(self, model: ir.Model, context: PassContext) -> None:
        """Correct layer by layer.

        Raises:
            PassError: There is no data, it does not suit the model, or the float model is not known.
        """
        rewriter = context.rewriter(model)
        rows = []
        for sample in self.layers(model, context):
            shift = _mean_error(sample, self.shrink)
            if not np.isfinite(shift).all():
                context.leave(sample.layer.node, "its results are not finite")
                continue
            problem = add_to_bias(sample.layer.node, shift, rewriter)
            if problem is not None:
                context.leave(sample.layer.node, problem)
                continue
            context.count("corrected biases")
            rows.append({"node": sample.layer.node.name, "largest_shift": float(np.abs(shift).max())})
        context.details["corrected"] = rows


def _mean_error(sample: Sample, shrink: bool) -> np.ndarray:
    """E[W x] - E[W~ x~] for each output channel, float64, or as much of it as is not chance."""
    layer = sample.layer
    axis = layer.linear.channel_axis
    means = []
    actual = sample.walk.peek(layer.result)
    for expected, found in zip(sample.float_results, actual, strict=True):
        difference = np.moveaxis(expected.astype(np.float64) - found, axis, -1)
        if difference.size:
            rows = len(difference) if difference.ndim > 1 else 1
            means.append(difference.reshape(rows, -1, difference.shape[-1]).mean(axis=1))
    if not means:
        return np.zeros(layer.linear.outputs)
    every = np.concatenate(means)
    return shrunk_mean(every) if shrink else every.mean(axis=0)


def shrunk_mean(samples: np.ndarray) -> np.ndarray:
    """Means over samples, each drawn towards zero as far as it may be chance.

    A mean over n samples errs by s^2 / n, the variance of the samples over their number, which would be added
    where the true shift is smaller than that. The shifts of a layer are taken to scatter around zero with one
    variance t^2, estimated from all channels as the mean of mean^2 - s^2 / n; a channel keeps the share
    t^2 / (t^2 + s^2 / n) of its mean (empirical Bayes: Efron and Morris 1973).

    Args:
        samples: float64 `[samples, channels]`; of one sample nothing is known, its mean is taken as it is.

    Returns:
        float64 `[channels]`.
    """
    mean = samples.mean(axis=0)
    if len(samples) < 2:
        return mean
    chance = samples.var(axis=0, ddof=1) / len(samples)
    real = max(float((mean**2 - chance).mean()), 0.0)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(real > 0.0, mean * (real / (real + chance)), 0.0 * mean)


def add_to_bias(node: ir.Node, shift: np.ndarray, rewriter: Rewriter) -> str | None:
    """Add to the bias of a quantized layer, in the form it has; returns why that cannot be done, or None.

    Args:
        node: A Conv, Gemm or MatMul.
        shift: float64 `[outputs]`.
        rewriter: Of the model.
    """
    place = bias_place(node)
    if place is None:
        return "it has no bias, and no addition behind it"
    reader, index = place
    bias = input_of(reader, index)
    if bias is None:
        return _new_bias(node, shift, rewriter)
    restored = producer_of(bias, "DequantizeLinear")
    if restored is None:
        array = constant_array(bias)
        if array is None:
            return "its bias is not a constant"
        if array.size not in (1, len(shift)) or (array.ndim and array.shape[-1] != array.size):
            return "its bias is not one number per channel"
        factor = node.attributes.get_float("beta", 1.0) if reader is node else 1.0
        flat = array.reshape(-1).astype(np.float64) + shift / (factor or 1.0)
        rank = max(array.ndim, 1)
        flat = flat.reshape([1] * (rank - 1) + [-1]).astype(array.dtype)
        rewriter.set_input(reader, index, rewriter.initializer(str(bias.name), flat))
        rewriter.drop_orphans()
        return None
    return _shift_integers(restored, shift, rewriter)


def _shift_integers(restored: ir.Node, shift: np.ndarray, rewriter: Rewriter) -> str | None:
    stored = restored.inputs[0]
    integers, scale = constant_array(stored), constant_array(restored.inputs[1])
    if integers is None or scale is None or integers.dtype != np.int32 or stored is None:
        return "its bias is not stored as int32"
    if not only_reader(restored.outputs[0]):
        return "it shares its bias with other nodes"
    if integers.size not in (1, len(shift)):
        return "its bias is not one number per channel"
    moved = integers.astype(np.float64).reshape(-1) + shift / scale.astype(np.float64).reshape(-1)
    if len(moved) != integers.size or not (np.abs(moved) < 2.0**30).all():
        return "its bias does not fit 32 bits at its scale"
    changed = np.rint(moved).astype(np.int32).reshape(integers.shape)
    rewriter.set_input(restored, 0, rewriter.initializer(str(stored.name), changed))
    rewriter.drop_orphans()
    return None


def bias_place(node: ir.Node) -> tuple[ir.Node, int] | None:
    """The input that is, or would be, the bias."""
    if node.op_type != "MatMul":
        return node, 2
    output = node.outputs[0]
    if not only_reader(output):
        return None
    (reader,) = output.consumers()
    if reader.op_type != "Add" or reader.domain not in ("", "ai.onnx"):
        return None
    index = 1 if reader.inputs[0] is output else 0
    other = reader.inputs[index]
    restored = producer_of(other, "DequantizeLinear")
    constant = constant_array(restored.inputs[0] if restored is not None else other)
    return (reader, index) if constant is not None else None


def _new_bias(node: ir.Node, shift: np.ndarray, rewriter: Rewriter) -> str | None:
    """Give a Conv or Gemm a bias: int32 where its input and its weights are integers, else float."""
    weight, data = producer_of(node.inputs[1], "DequantizeLinear"), node.inputs[0]
    source = producer_of(data, "DequantizeLinear")
    if weight is None or source is None:
        dtype = data.dtype.numpy() if data is not None and data.dtype is not None else np.dtype(np.float32)
        bias = rewriter.initializer(f"{node.name}.bias", shift.astype(dtype))
        rewriter.set_input(node, 2, bias)
        return None
    scales = constant_array(weight.inputs[1])
    step = constant_array(source.inputs[1])
    if scales is None or step is None or step.size != 1 or scales.size not in (1, len(shift)):
        return "its scales are not constant, or not one per channel"
    products = np.broadcast_to(scales.reshape(-1) * step.reshape(()), shift.shape).astype(np.float32)
    steps = np.rint(shift / products.astype(np.float64))
    if not (np.abs(steps) < 2.0**30).all():
        return "its bias would not fit 32 bits at its scale"
    operands = [
        rewriter.initializer(f"{node.name}.bias_quantized", steps.astype(np.int32)),
        rewriter.initializer(f"{node.name}.bias_scale", products),
        rewriter.initializer(f"{node.name}.bias_zero_point", np.zeros(len(shift), np.int32)),
    ]
    (restored,) = rewriter.insert_before(node, "DequantizeLinear", operands, {"axis": 0})
    restored.type, restored.shape = ir.TensorType(ir.DataType.FLOAT), ir.Shape([len(shift)])
    rewriter.set_input(node, 2, restored)
    return None
