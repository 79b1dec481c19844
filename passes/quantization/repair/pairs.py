"""Goes through the quantized layers of a model, front to back, beside the float model."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from ...base import Pass, PassContext
from ..calibration import as_calibration
from .layers import QuantizedLayer
from .originals import layers_beside_original
from .walk import Walk, some_batches


@dataclass(frozen=True)
class Sample:
    """What one layer sees on the calibration data, by batch.

    Attributes:
        layer: The layer.
        inputs: What it reads in the quantized model, whose layers in front are repaired already.
        walk: The walk through the quantized model; `walk.peek(layer.result)` computes the layer.
        float_inputs, float_results: What the float layer reads and computes.
    """

    layer: QuantizedLayer
    inputs: list[np.ndarray]
    walk: Walk
    float_inputs: list[np.ndarray]
    float_results: list[np.ndarray]


def sampled_layers(
    model: ir.Model, instance: Pass, context: PassContext, *, original: str | None, samples: int
) -> Iterator[Sample]:
    """Yield every quantized layer with what it sees; the caller may change the layer before the next.

    Args:
        model: The quantized model.
        instance: The pass at work, for its selectors and its name.
        context: Calibration data, progress and reports.
        original: File of the float model, where the user named one.
        samples: Samples of the calibration data that are looked at.

    Raises:
        PassError: The data does not suit the model, or the float model is not known.
    """
    before, layers = layers_beside_original(model, original, instance.selects, context.leave)
    if not layers:
        if not context.left_alone:
            context.note("no layer has integer weights; quantize first")
        return
    batches = some_batches(as_calibration(context.calibration), model, samples)
    quantized, float_walk = Walk(model, batches), Walk(before, batches)
    for done, layer in enumerate(layers):
        if context.progress is not None:
            context.progress(done, len(layers), f"{instance.name} {layer.node.name}")
        inputs = [values[0] for values in quantized.values([layer.source])]
        found = float_walk.values([layer.float_source, layer.float_result])
        yield Sample(
            layer, inputs, quantized, [values[0] for values in found], [values[1] for values in found]
        )
    if context.progress is not None:
        context.progress(len(layers), len(layers), instance.name)
