"""From the graph to torch: a module that trains, runs on any device, and can be traced again."""

from __future__ import annotations

from typing import TYPE_CHECKING

import onnx_ir as ir

from .clone import clone
from .errors import ModelError
from .shapes import infer_shapes

if TYPE_CHECKING:
    import torch


def to_torch(model: ir.Model) -> torch.fx.GraphModule:
    """The `torch.fx.GraphModule` that computes a graph.

    It takes the graph's inputs in their order and returns the output, or a tuple of them. Layers become
    torch's own modules (`Conv2d`, `Linear`, `BatchNorm2d`, `LayerNorm`, `Embedding`, ...) under the names
    their weights have; other initializers become parameters or buffers under their own names. A graph that
    was traced keeps the parameter names of the module that it came from (tied weights are one, under one of
    their names), so that `load_state_dict` works both ways, and which of them are parameters. In a graph
    from elsewhere a floating-point initializer is a parameter where it is a weight by its place, or has
    several numbers that are no mask.

    The module is in evaluation mode; after `train()` batch normalization learns its statistics again and
    dropout drops. Pairs of QuantizeLinear and DequantizeLinear pass gradients straight through, and weights
    that are stored as integers become float parameters which the module quantizes: such a module is trained
    quantization-aware. Weights are copied. `gw.trace(module, inputs)` turns it into a graph again, also
    with dynamic shapes, unless it holds If, Loop or Scan.

    Types that torch lacks are carried by wider ones: 4-bit integers by 8 bits, unsigned ones by the next
    signed type.

    Raises:
        ModelError: an operator or a type has no torch form; the line names the node.
    """
    try:
        from torch import fx

        from .fx.emitter import Emitter
        from .fx.translate import translate
    except ImportError as error:
        raise ModelError("to_torch needs torch: pip install 'graphwright[torch]'") from error

    copy = clone(model)
    if copy.functions:
        ir.passes.common.InlinePass()(copy)
    infer_shapes(copy)
    emitter = Emitter(copy)
    for value in copy.graph.inputs:
        if value.name not in copy.graph.initializers:
            emitter.placeholder(value)
    translate(emitter, copy.graph)
    outputs = tuple(emitter.tensor(value) for value in copy.graph.outputs)
    emitter.graph.output(outputs[0] if len(outputs) == 1 else outputs)
    name = "".join(part if part.isalnum() else "_" for part in str(copy.graph.name or "Graph"))
    module = fx.GraphModule(
        emitter.root, emitter.graph, class_name=name if name.isidentifier() else f"_{name}"
    )
    return module.eval()
