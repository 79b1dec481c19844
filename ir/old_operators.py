"""What the opset converter of the onnx package gets wrong without a word, put right around it."""

from __future__ import annotations

import onnx_ir as ir

from .bodies import all_graphs
from .constants import constant_array, evaluate_values
from .errors import ModelError


def prepare_old_operators(model: ir.Model, version: int) -> None:
    """Before conversion: makes explicit what only the old version of an operator implies.

    Raises:
        ModelError: an operator means something else now and its old meaning cannot be expressed.
    """
    for graph in all_graphs(model):
        for node in list(graph):
            if node.domain != "":
                continue
            if node.op_type == "PRelu" and version < 7:
                _align_slope(graph, node)
            if node.op_type == "Hardmax" and version < 13:
                as_matrix(graph, node)


def finish_old_operators(model: ir.Model, version: int) -> None:
    """After conversion: sets attributes whose new defaults differ from the old fixed behaviour.

    Raises:
        ModelError: the old behaviour depends on what is not known before the model runs.
    """
    if version >= 11:
        return
    for graph in all_graphs(model):
        for node in graph:
            if node.op_type == "Resize" and node.domain == "":
                _keep_old_sampling(model, node, version)


def _keep_old_sampling(model: ir.Model, node: ir.Node, version: int) -> None:
    """Before opset 11 Upsample and Resize took output pixel i from i / scale, without a half-pixel shift.

    The nearest pixel was the one below when enlarging and the one above when shrinking (the standard left it
    open; this is what the reference does).
    """
    node.attributes["coordinate_transformation_mode"] = ir.AttrString(
        "coordinate_transformation_mode", "asymmetric"
    )
    if node.attributes.get_string("mode", "nearest") == "nearest":
        # Before opset 10 there was only Upsample, which never shrinks.
        mode = "floor" if version < 10 else _old_nearest_mode(model, node)
        node.attributes["nearest_mode"] = ir.AttrString("nearest_mode", mode)


def _old_nearest_mode(model: ir.Model, node: ir.Node) -> str:
    where = f"node '{node.name}' ({node.op_type}) is of an opset before 11"
    given = node.inputs[2] if len(node.inputs) > 2 else None
    if given is None:
        raise ModelError(f"{where} and has no scales")
    try:
        (scales,) = evaluate_values(model, [given])
    except ModelError as error:
        raise ModelError(f"{where} and its scales are computed at run time") from error
    if (scales >= 1).all():
        return "floor"
    if (scales <= 1).all():
        return "ceil"
    raise ModelError(f"{where}, enlarges one axis and shrinks another, which later opsets cannot express")


def as_matrix(graph: ir.Graph, node: ir.Node) -> None:
    """Before opset 13 Softmax and its kin took all axes from their axis (1 by default) on as one."""
    data, result = node.inputs[0], node.outputs[0]
    axis = node.attributes.get_int("axis", 1)
    node.attributes["axis"] = ir.AttrInt64("axis", axis)
    if data is None or (data.shape is not None and axis in (-1, len(data.shape) - 1)):
        return
    stem = f"{node.name}_as_matrix"
    matrix = ir.node("Flatten", [data], {"axis": axis}, name=f"{stem}_in")
    result_of = ir.node(node.op_type, matrix.outputs, {"axis": 1}, name=stem)
    shape = ir.node("Shape", [data], name=f"{stem}_shape")
    back = ir.node("Reshape", [result_of.outputs[0], shape.outputs[0]], name=f"{stem}_out")
    made = [matrix, result_of, shape, back]
    for each in made[:-1]:
        each.outputs[0].name = str(each.name)
    ir.convenience.replace_nodes_and_values(graph, node, [node], made, [result], back.outputs)


def _align_slope(graph: ir.Graph, node: ir.Node) -> None:
    """Before opset 7 a slope of C numbers belonged to axis 1, now it would be aligned to the last axis."""
    data, slope = node.inputs
    if data is None or slope is None or slope.shape is None or len(slope.shape) != 1 or slope.shape[0] == 1:
        return
    if data.shape is None:
        raise ModelError(
            f"node '{node.name}' (PRelu) is of an opset before 7 and the rank of its input is unknown"
        )
    trailing = len(data.shape) - 2
    if trailing <= 0:
        return
    stored = constant_array(slope)
    if stored is None:
        raise ModelError(f"node '{node.name}' (PRelu) is of an opset before 7 and its slope is computed")
    array = stored.reshape(-1, *[1] * trailing)
    name = f"{slope.name}_per_channel_{node.name}"
    aligned = ir.Value(
        name=name,
        type=slope.type,
        shape=ir.Shape(array.shape),
        const_value=ir.Tensor(array, name=name),
    )
    graph.register_initializer(aligned)
    node.replace_input_with(1, aligned)
