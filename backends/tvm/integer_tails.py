"""What follows int32 sums, made as short as it can be: it runs once per output element."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from ...ir.constants import constant_array
from ...ir.static import only_reader, static_shape
from ...passes.rewriter import Rewriter
from .elementwise import FUSED
from .integer_ops import DOMAIN
from .op import attributes_of

_FUSED_BEHIND = 8
"""Element-wise operators between sums and their quantization, at most."""


def shorten_tails(model: ir.Model, rewriter: Rewriter) -> None:
    """Drop limits that saturation implies, scale sums once, and let quantizers behind them multiply."""
    quantizers = [node for node in model.graph if node.op_type == "QuantizeLinear" and node.domain == ""]
    for node in quantizers:
        _drop_inner_pair(node, rewriter)
    for node in quantizers:
        if node.graph is None:
            continue
        while _drop_limit(node, rewriter):
            pass
        quantizer = _scale_once(node, rewriter) or node
        if _follows_sums(quantizer):
            rewriter.set_attribute(quantizer, FUSED, 1)


def _grid(node: ir.Node) -> tuple[np.ndarray, int, np.iinfo] | None:  # type: ignore[type-arg]
    """Scale, zero point and range of a quantizer with one scale."""
    scale, dtype = constant_array(node.inputs[1]), node.outputs[0].dtype
    given = node.inputs[2] if len(node.inputs) > 2 else None
    zero_point = np.zeros((), np.int64) if given is None else constant_array(given)
    if scale is None or zero_point is None or scale.size != 1 or zero_point.size != 1 or dtype is None:
        return None
    if dtype not in (ir.DataType.INT8, ir.DataType.UINT8, ir.DataType.INT16, ir.DataType.UINT16):
        return None
    return scale.reshape(()), int(zero_point.reshape(-1)[0]), np.iinfo(dtype.numpy())


def _drop_limit(node: ir.Node, rewriter: Rewriter) -> bool:
    """Relu or Clip in front of a quantizer that saturates where they do."""
    value, grid = node.inputs[0], _grid(node)
    limit = value.producer() if value is not None else None
    if value is None or limit is None or grid is None or limit.domain != "" or not only_reader(value):
        return False
    if limit.op_type == "Relu":
        low, high = 0.0, np.inf
    elif limit.op_type == "Clip":
        bounds = [
            _number(each, default) for each, default in zip(_bounds(limit), (-np.inf, np.inf), strict=True)
        ]
        if None in bounds:
            return False
        low, high = bounds  # type: ignore[assignment]
    else:
        return False
    scale, zero_point, info = grid
    below = low == -np.inf or np.rint(np.float32(low) / scale) + zero_point <= info.min
    above = high == np.inf or np.rint(np.float32(high) / scale) + zero_point >= info.max
    if not below or not above or low > high:
        return False
    rewriter.set_input(node, 0, limit.inputs[0])
    rewriter.erase_unread(limit)
    return True


def _drop_inner_pair(node: ir.Node, rewriter: Rewriter) -> None:
    """A pair in front of a Relu or Clip where the one behind has its scale: rounding once is the same.

    Limits commute with rounding, and the numbers between lie on the grid already. Such pairs stand there for
    runtimes that would not see an integer kernel otherwise.
    """
    limit = node.inputs[0].producer() if node.inputs[0] is not None else None
    if limit is None or limit.op_type not in ("Relu", "Clip") or limit.domain != "":
        return
    restored = limit.inputs[0].producer() if limit.inputs[0] is not None else None
    if restored is None or restored.op_type != "DequantizeLinear" or restored.inputs[0] is None:
        return
    inner = restored.inputs[0].producer()
    if inner is None or inner.op_type != "QuantizeLinear" or not only_reader(restored.outputs[0]):
        return
    own, other = _grid(node), _grid(inner)
    if (
        own is None
        or other is None
        or own[:2] != other[:2]
        or inner.outputs[0].dtype != node.outputs[0].dtype
    ):
        return
    if all(each is not None and restored.inputs[i] is each for i, each in enumerate(inner.inputs) if i):
        rewriter.set_input(limit, 0, inner.inputs[0])
        rewriter.erase_unread(restored)


def _bounds(clip: ir.Node) -> list[ir.Value | None]:
    given = list(clip.inputs[1:3])
    return [*given, *[None] * (2 - len(given))]


def _number(value: ir.Value | None, default: float) -> float | None:
    """A scalar bound; None where it is only known at run time or is no number."""
    if value is None:
        return default
    array = constant_array(value)
    if array is None or array.size != 1 or np.isnan(array).any():
        return None
    return float(array.reshape(-1)[0])


def _scale_once(node: ir.Node, rewriter: Rewriter) -> ir.Node | None:
    """Sums -> DequantizeLinear -> QuantizeLinear becomes one QuantizeLinear of the sums."""
    value, grid = node.inputs[0], _grid(node)
    source = value.producer() if value is not None else None
    if value is None or source is None or grid is None or source.op_type != "DequantizeLinear":
        return None
    sums, scale = source.inputs[0], constant_array(source.inputs[1])
    maker = sums.producer() if sums is not None else None
    if maker is None or maker.domain != DOMAIN or scale is None or len(source.inputs) > 2:
        return None
    if not only_reader(value) or sums is None or not only_reader(sums):
        return None
    ratio = np.asarray(grid[0].astype(np.float64) / scale.astype(np.float64), scale.dtype)
    if not np.isfinite(ratio).all():
        return None
    attributes = {**attributes_of(node), **attributes_of(source)}
    inputs = [sums, rewriter.initializer(f"{node.name}/ratio", ratio), *node.inputs[2:]]
    (made,) = rewriter.insert_before(node, "QuantizeLinear", inputs, attributes)
    made.type, made.shape = node.outputs[0].type, node.outputs[0].shape
    rewriter.replace(node, [made])
    rewriter.erase_unread(source)
    return made.producer()


def _follows_sums(node: ir.Node) -> bool:
    """Whether a quantization ends the tail of an integer operator."""
    value, shape = node.inputs[0], static_shape(node.outputs[0])
    for _ in range(_FUSED_BEHIND):
        producer = value.producer() if value is not None else None
        if producer is None:
            return False
        if producer.domain == DOMAIN:
            return True
        whole = [each for each in producer.inputs if each is not None and static_shape(each) == shape]
        made = [each for each in whole if each.producer() is not None]
        value = next(iter(made), None)
    return False
