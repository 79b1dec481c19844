"""The layers of a quantized model beside those of the float model, which may come from a file.

Repair moves a layer towards the float layer of its name. Were that another one, as in a file from before
batch norms were folded, repair would ruin it; so weights of a file must be those that the integers stand for.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from ....ir.errors import PassError
from ....ir.shapes import infer_shapes
from ....ir.static import input_of
from ..operators import DEFAULT_DOMAINS
from ..original import original_of
from .layers import QuantizedLayer, dequantizer_of, find_layers

_RECURRENT = ("LSTM", "GRU", "RNN")

# What usually stands in front of quantization and changes weights without changing the model.
_PREPARATIONS = ("", "simplify", "simplify,fold-batch-norm")
# Measured on all forms of integers down to 4 bits, repaired or not: 99.8 % lie within two steps, and factors
# are off by 2 %. Folded batch norms and equalization are off by 20 % and more.
_STEPS, _WITHIN, _FACTOR = 2.0, 0.9, 0.1

Pair = tuple[ir.Model, list[QuantizedLayer]]


def layers_beside_original(
    model: ir.Model,
    path: str | None,
    selects: Callable[[ir.Node], bool],
    leave: Callable[[ir.Node, str], None],
) -> Pair:
    """The float model, and the quantized layers with theirs.

    Args:
        model: The quantized model.
        path: File of the float model, where the user named one; as it was quantized, or before `simplify` and
            `fold-batch-norm`.
        selects: Which nodes the user lets be touched.
        leave: Told of layers with quantized weights that cannot be worked on.

    Raises:
        PassError: The float model is not known, or is not the one that was quantized.
    """
    _leave_recurrent(model, selects, leave)
    before = original_of(model, path)
    if path is None:
        return before, find_layers(model, before, selects, leave)
    stranger: str | None = None
    for preparation in _PREPARATIONS:
        prepared = _prepared(before, preparation)
        if _norms(prepared) != _norms(model):
            continue
        left: dict[ir.Node, str] = {}
        layers = find_layers(model, prepared, selects, left.__setitem__)
        strange = next((str(layer.node.name) for layer in layers if not is_made_from(layer)), None)
        stranger = strange or stranger
        if strange is None and (layers or not left):
            for node, reason in left.items():
                leave(node, reason)
            return prepared, layers
    if stranger is None:
        raise PassError(f"'{path}' is not the float model of this one: its layers are others")
    raise PassError(
        f"weights of '{stranger}' in '{path}' are not those that were quantized: give the float model as it "
        "was right in front of quantization"
    )


def _leave_recurrent(
    model: ir.Model, selects: Callable[[ir.Node], bool], leave: Callable[[ir.Node, str], None]
) -> None:
    """Name recurrent layers with integer weights, which no repair works on."""
    for node in model.graph:
        if node.op_type not in _RECURRENT or node.domain not in DEFAULT_DOMAINS or not selects(node):
            continue
        if any(dequantizer_of(input_of(node, position)) is not None for position in (1, 2)):
            leave(
                node, "its weights meet other inputs at every step; repair works on products and convolutions"
            )


def is_made_from(layer: QuantizedLayer) -> bool:
    """Whether the integers of a layer stand for the float weights, up to rounding, clipping and repair."""
    restored, weight = layer.stored.decode(), layer.weight
    near = np.abs(restored - weight) <= _STEPS * np.abs(layer.stored.scales)
    product = (restored * weight).sum(axis=1)
    factors = [product / np.maximum((each * each).sum(axis=1), 1e-60) for each in (restored, weight)]
    live = np.abs(weight).max(axis=1) > 0.0
    if not live.any():
        return bool(near.all())
    off = min(float(np.median(np.abs(each[live] - 1.0))) for each in factors)
    return bool(near.mean() >= _WITHIN and off <= _FACTOR)


def _prepared(model: ir.Model, pipeline: str) -> ir.Model:
    if not pipeline:
        return model
    from ...optimize import optimize

    found = optimize(model, pipeline).model
    infer_shapes(found)
    return found


def _norms(model: ir.Model) -> int:
    return sum(node.op_type == "BatchNormalization" for node in model.graph)
