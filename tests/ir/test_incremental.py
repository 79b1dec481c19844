"""Shapes brought up to date around a change equal those of a walk over the whole model."""

import numpy as np
import onnx_ir as ir
import pytest
from graphwright.ir.clone import clone
from graphwright.ir.errors import ShapeError
from graphwright.ir.incremental import infer_changed
from graphwright.ir.shapes import infer_shapes
from graphwright.passes.rewriter import Rewriter


def model_of(text: str) -> ir.Model:
    model = ir.from_onnx_text('<ir_version: 10, opset_import: ["" : 23]>\n' + text)
    infer_shapes(model)
    return model


def shapes(model: ir.Model) -> dict[str, str]:
    return {str(v.name): str(v.shape) for node in model.graph for v in node.outputs}


CHAIN = """
    g (float[N,4] x) => (float[N,K] y) <int64[1] axis = {0}> {
        a = Relu(x)
        b = Unsqueeze(a, axis)
        c = Concat <axis = 1> (b, b)
        y = Neg(c)
    }"""


def test_a_changed_size_is_followed_to_the_outputs():
    model = model_of(CHAIN)
    rewriter = Rewriter(model)
    concat = model.graph[2]
    rewriter.set_attribute(concat, "axis", 2)
    infer_changed(model, rewriter.take_stale())
    whole = clone(model)
    infer_shapes(whole)
    assert shapes(model) == shapes(whole)
    assert shapes(model)["y"] == "[1,N,8]"


def test_nothing_is_visited_where_nothing_changed(monkeypatch):
    model = model_of(CHAIN)
    monkeypatch.setattr(
        "graphwright.ir.incremental.infer_shapes", lambda model: pytest.fail("whole model inferred")
    )
    infer_changed(model, [])
    rewriter = Rewriter(model)
    unsqueeze = model.graph[1]
    (again,) = rewriter.insert_before(unsqueeze, "Abs", [unsqueeze.inputs[0]])
    rewriter.set_input(unsqueeze, 0, again)
    infer_changed(model, rewriter.take_stale())
    assert str(again.shape) == "[N,4]"


def test_sizes_made_up_for_run_time_fall_back_to_the_whole_model():
    model = model_of(
        """
        g (float[N] x) => (float[M] y) { y = Relu(x) }"""
    )
    rewriter = Rewriter(model)
    node = model.graph[0]
    (picked,) = rewriter.insert_before(node, "NonZero", [node.inputs[0]])
    (cast,) = rewriter.insert_before(node, "Cast", [picked], {"to": 1})
    infer_changed(model, rewriter.take_stale())
    again = clone(model)
    infer_shapes(again)
    assert str(cast.shape) == str(picked.shape) == shapes(again)[cast.name]


def test_a_contradiction_names_the_node():
    model = model_of("g (float[2,3] x, float[2,3] z) => (float[2,3] y) { y = Add(x, z) }")
    rewriter = Rewriter(model)
    weight = rewriter.initializer("w", np.zeros((5, 7), np.float32))
    rewriter.set_input(model.graph[0], 1, weight)
    with pytest.raises(ShapeError, match="do not broadcast"):
        infer_changed(model, rewriter.take_stale())
