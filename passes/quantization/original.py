"""The float model that a quantized one was made from: what repair compares with.

Quantizing passes leave a copy of the graph (weights are shared, not copied) with the model; it is not saved.
A quantized file that was loaded has none: there the float file must be named.
"""

from __future__ import annotations

import onnx_ir as ir

from ...ir.clone import clone
from ...ir.errors import PassError

_KEY = "graphwright.unquantized"


def remember_original(model: ir.Model) -> None:
    """Keep a copy of a model that is about to be quantized; the first one of several stays."""
    if _KEY not in model.meta:
        model.meta[_KEY] = clone(model)


def original_of(model: ir.Model, path: str | None) -> ir.Model:
    """The float model behind a quantized one.

    Args:
        model: The quantized model.
        path: File of the float model, where the user named one.

    Raises:
        PassError: It is not known.
    """
    if path is not None:
        from ...ir.load import load
        from ...ir.shapes import infer_shapes

        loaded = load(path)
        infer_shapes(loaded)
        return loaded
    kept = model.meta.get(_KEY)
    if not isinstance(kept, ir.Model):
        raise PassError(
            "the float model is not known; run this in one pipeline behind insert-qdq or quantize-weights, "
            "or name the float model's file: original=FILE.onnx"
        )
    return kept
