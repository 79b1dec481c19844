"""Quantizers out of the way of operators that only move data, and integers of the kind that kernels read."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from ...ir.constants import constant_array
from ...ir.static import static_shape
from ...passes.rewriter import Rewriter
from .op import attributes_of

_MOVES = frozenset(
    {"Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze", "Slice", "Gather", "Expand", "Identity"}
    | {"DepthToSpace", "SpaceToDepth", "MaxPool", "Split", "Concat", "Tile"}
)
_MOST_ROUNDS = 64


def move_integers(model: ir.Model, rewriter: Rewriter) -> None:
    """Let data be moved as integers: dequantize behind moves, quantize in front of them, cancel the pairs."""
    _one_each(model, rewriter)
    for _ in range(_MOST_ROUNDS):
        changed = False
        for node in list(model.graph):
            if node.graph is None or node.domain not in ("", "ai.onnx"):
                continue
            if node.op_type in _MOVES:
                changed |= _dequantize_behind(node, rewriter) or _quantize_in_front(node, rewriter)
            elif node.op_type == "QuantizeLinear":
                changed |= _cancel(node, rewriter)
        if not changed:
            break
        _one_each(model, rewriter)


def _one_each(model: ir.Model, rewriter: Rewriter) -> None:
    """Give every reader of a dequantized value a DequantizeLinear of its own, computed where it is read."""
    for node in list(model.graph):
        if node.op_type != "DequantizeLinear" or node.domain != "":
            continue
        uses = list(node.outputs[0].uses())
        first = 0 if node.outputs[0].is_graph_output() else 1
        for user, position in uses[first:]:
            (copy,) = rewriter.insert_after(node, "DequantizeLinear", list(node.inputs), attributes_of(node))
            copy.type, copy.shape = node.outputs[0].type, node.outputs[0].shape
            rewriter.set_input(user, position, copy)


def _grid(node: ir.Node) -> tuple[object, ...] | None:
    """Scale, zero point and type of a quantizer with one scale; None where it has several or they vary."""
    integers = node.outputs[0] if node.op_type == "QuantizeLinear" else node.inputs[0]
    number = node.inputs[0] if node.op_type == "QuantizeLinear" else node.outputs[0]
    scale = constant_array(node.inputs[1])
    given = node.inputs[2] if len(node.inputs) > 2 else None
    if integers is None or number is None or integers.dtype is None:
        return None
    zero_point = np.zeros((), np.int64) if given is None else constant_array(given)
    if scale is None or zero_point is None or scale.size != 1 or zero_point.size != 1:
        return None
    value = float(scale.reshape(-1)[0])
    # The scale of a block has the rank of what it belongs to, which a move may change.
    if scale.ndim > 1 or not (value > 0 and np.isfinite(value)):
        return None
    return value, int(zero_point.reshape(-1)[0]), integers.dtype, number.dtype


def _moved_inputs(node: ir.Node) -> list[ir.Value]:
    """The inputs whose elements a move hands on."""
    count = len(node.inputs) if node.op_type == "Concat" else 1
    return [value for value in node.inputs[:count] if value is not None]


def _is_plain(node: ir.Node) -> bool:
    """Whether a move leaves nothing but elements of its input."""
    read = [each for each in node.outputs if each.uses() or each.is_graph_output()]
    if node.op_type == "MaxPool" and any(each is not node.outputs[0] for each in read):
        return False
    return all(static_shape(each) is not None for each in read)


def _quantizer(value: ir.Value, op_type: str) -> ir.Node | None:
    node = value.producer()
    return node if node is not None and node.op_type == op_type and node.domain == "" else None


def _dequantize_behind(node: ir.Node, rewriter: Rewriter) -> bool:
    sources = [_quantizer(value, "DequantizeLinear") for value in _moved_inputs(node)]
    grids = [_grid(each) if each is not None else None for each in sources]
    if not sources or None in grids or len(set(grids)) != 1 or not _is_plain(node):
        return False
    first = sources[0]
    assert first is not None
    if all(value.const_value is not None for each in sources if each for value in each.inputs[:1] if value):
        return False
    for position, source in enumerate(sources):
        assert source is not None
        rewriter.set_input(node, position, source.inputs[0])
    for output in node.outputs:
        if not output.uses() and not output.is_graph_output():
            continue
        # What leaves the graph keeps its name and its value; the integers get a value of their own.
        _dequantize_output(node, output, first, rewriter)
    for source in sources:
        assert source is not None
        rewriter.erase_unread(source)
    return True


def _dequantize_output(node: ir.Node, output: ir.Value, like: ir.Node, rewriter: Rewriter) -> None:
    number, integers = output.type, like.inputs[0]
    (restored,) = rewriter.insert_after(
        node, "DequantizeLinear", [output, *like.inputs[1:]], attributes_of(like)
    )
    restored.type, restored.shape = number, output.shape
    maker = restored.producer()
    rewriter.replace_uses(output, restored)
    assert maker is not None and integers is not None
    rewriter.set_input(maker, 0, output)
    output.type = integers.type


def _quantize_in_front(node: ir.Node, rewriter: Rewriter) -> bool:
    """Move -> Q becomes Q -> move, where all that reads the move is quantized alike."""
    if node.op_type == "Concat" or not _is_plain(node):
        return False
    readers: list[ir.Node] = []
    for output in node.outputs:
        if output.is_graph_output():
            return False
        for user, _ in output.uses():
            if user.op_type != "QuantizeLinear" or user.domain != "":
                return False
            readers.append(user)
    grids = [_grid(each) for each in readers]
    source = node.inputs[0]
    if (
        not readers
        or None in grids
        or len(set(grids)) != 1
        or source is None
        or source.const_value is not None
    ):
        return False
    if any(each.outputs[0].is_graph_output() for each in readers):
        return False
    like = readers[0]
    (made,) = rewriter.insert_before(node, "QuantizeLinear", [source, *like.inputs[1:]], attributes_of(like))
    made.type, made.shape = like.outputs[0].type, source.shape
    rewriter.set_input(node, 0, made)
    for reader in readers:
        moved = reader.inputs[0]
        assert moved is not None
        moved.type = reader.outputs[0].type
        rewriter.replace(reader, [moved])
    return True


def _cancel(node: ir.Node, rewriter: Rewriter) -> bool:
    """DQ -> Q on the same grid gives back the integers."""
    value = node.inputs[0]
    source = _quantizer(value, "DequantizeLinear") if value is not None else None
    if source is None or _grid(source) is None or _grid(source) != _grid(node):
        return False
    if source.inputs[0] is None or node.outputs[0].is_graph_output():
        return False
    rewriter.replace(node, [source.inputs[0]])
    rewriter.erase_unread(source)
    return True


def share_signs(model: ir.Model, rewriter: Rewriter, signed: bool) -> None:
    """Store activations as int8 or as uint8, whichever the target's instructions read, and as int16.

    Numbers move by half their range with their zero points, so nothing that is dequantized changes. Only
    values that start at a QuantizeLinear and end in DequantizeLinear, through moves at most, change unseen.
    """
    wanted = {ir.DataType.UINT16: ir.DataType.INT16}
    if signed:
        wanted[ir.DataType.UINT8] = ir.DataType.INT8
    else:
        wanted[ir.DataType.INT8] = ir.DataType.UINT8
    done: set[ir.Value] = set()
    for node in list(model.graph):
        if node.op_type != "QuantizeLinear" or node.domain != "" or node.outputs[0] in done:
            continue
        dtype = wanted.get(node.outputs[0].dtype) if node.outputs[0].dtype is not None else None
        if dtype is None:
            continue
        family = _family(node.outputs[0])
        if family is None:
            continue
        values, quantizers = family
        done |= values
        for value in values:
            value.type = ir.TensorType(dtype)
        for each in quantizers:
            _shift(each, rewriter, dtype)


def _family(start: ir.Value) -> tuple[set[ir.Value], list[ir.Node]] | None:
    """Values that must be stored alike with `start`, and the quantizers at their ends."""
    values: set[ir.Value] = set()
    quantizers: dict[ir.Node, None] = {}
    stack = [start]
    while stack:
        value = stack.pop()
        if value in values:
            continue
        producer = value.producer()
        if value.is_graph_output() or value.const_value is not None or producer is None:
            return None
        values.add(value)
        for node in (producer, *(user for user, _ in value.uses())):
            if node.domain != "":
                return None
            if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
                if _grid(node) is None:
                    return None
                quantizers.setdefault(node)
            elif node.op_type in _MOVES:
                stack.extend(_moved_inputs(node))
                stack.extend(each for each in node.outputs if each.uses() and each.dtype == start.dtype)
            else:
                return None
    return values, list(quantizers)


def _shift(node: ir.Node, rewriter: Rewriter, dtype: ir.DataType) -> None:
    given = node.inputs[2] if len(node.inputs) > 2 else None
    old = constant_array(given) if given is not None else np.zeros((), np.uint8)
    assert old is not None
    half = 1 << (dtype.bitwidth - 1)
    moved = old.astype(np.int64) + (-half if dtype.is_signed() else half)
    stored = np.asarray(moved, dtype.numpy())
    constant = rewriter.initializer(f"{node.name}/zero_point", stored)
    node.attributes.pop("output_dtype", None)
    if len(node.inputs) > 2:
        rewriter.set_input(node, 2, constant)
        return
    kept = attributes_of(node)
    maker = rewriter.insert_before(node, node.op_type, [*node.inputs[:2], constant], kept)
    maker[0].type, maker[0].shape = node.outputs[0].type, node.outputs[0].shape
    rewriter.replace(node, maker)
