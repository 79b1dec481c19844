"""Declarative patterns: operands, constants, alternatives, commutativity, captures, and why they fail."""

import numpy as np
import onnx_ir as ir
import pytest
from graphwright.ir.shapes import infer_shapes
from graphwright.passes.base import Pass, PassContext
from graphwright.passes.driver import drive
from graphwright.passes.matcher import match_pattern
from graphwright.passes.pattern_rule import PatternRule
from graphwright.passes.patterns import any_of, constant, maybe, op, value


def model_of(text: str) -> ir.Model:
    model = ir.from_onnx_text('<ir_version: 10, opset_import: ["" : 23]>\n' + text)
    for i, node in enumerate(model.graph):
        node.name = f"{node.op_type}_{i}"
    return model


def match(pattern, text: str):
    model = model_of(text)
    return match_pattern(pattern, model.graph[-1])


x, y = value("x"), value("y")


def test_captures_values_and_nodes():
    found, _ = match(
        op("Add", op("Relu", x, name="relu"), y),
        "g (float[2] a, float[2] b) => (float[2] c) { r = Relu(a)\n c = Add(r, b) }",
    )
    assert (found["x"].name, found["y"].name) == ("a", "b")
    assert found.nodes["relu"].op_type == "Relu"
    assert [node.op_type for node in found.covered] == ["Add", "Relu"]


def test_the_same_name_means_the_same_value():
    square = op("Mul", x, x)
    assert match(square, "g (float[2] a) => (float[2] c) { c = Mul(a, a) }")[0]
    found, reason = match(square, "g (float[2] a, float[2] b) => (float[2] c) { c = Mul(a, b) }")
    assert found is None
    assert reason == "'x' would be two different values"


def test_the_same_pattern_object_means_the_same_node():
    shared = op("Relu", x)
    pattern = op("Add", shared, op("Neg", shared))
    assert match(pattern, "g (float[2] a) => (float[2] c) { r = Relu(a)\n n = Neg(r)\n c = Add(r, n) }")[0]
    found, _ = match(
        pattern, "g (float[2] a) => (float[2] c) { r = Relu(a)\n s = Relu(a)\n n = Neg(s)\n c = Add(r, n) }"
    )
    assert found is None


def test_commutative_operands_may_stand_in_either_order():
    text = "g (float[2] a) => (float[2] c) {{ s = Sigmoid(a)\n c = Mul({}) }}"
    pattern = op("Mul", x, op("Sigmoid", x), commutative=True)
    assert match(pattern, text.format("a, s"))[0]
    assert match(pattern, text.format("s, a"))[0]
    assert match(op("Mul", x, op("Sigmoid", x)), text.format("s, a"))[0] is None


def test_nested_commutative_operands_backtrack():
    """The first order of the inner Add binds x and y the wrong way for the outer one."""
    pattern = op("Mul", op("Add", x, y, commutative=True), op("Sub", y, x))
    text = "g (float[2] a, float[2] b) => (float[2] c) { p = Add(a, b)\n q = Sub(a, b)\n c = Mul(p, q) }"
    found, _ = match(pattern, text)
    assert (found["x"].name, found["y"].name) == ("b", "a")


def test_alternatives_are_tried_in_order_and_backtrack():
    pattern = op("Add", any_of(op("Relu", x), op("Relu", y), x), op("Neg", y))
    found, _ = match(pattern, "g (float[2] a) => (float[2] c) { r = Relu(a)\n n = Neg(a)\n c = Add(r, n) }")
    assert found.get("x").name == "a"
    assert found.get("y").name == "a"


def test_an_optional_node_may_be_there_or_not():
    pattern = op("Neg", maybe("Relu", x))
    assert match(pattern, "g (float[2] a) => (float[2] c) { r = Relu(a)\n c = Neg(r) }")[0]["x"].name == "a"
    assert match(pattern, "g (float[2] a) => (float[2] c) { r = Abs(a)\n c = Neg(r) }")[0]["x"].name == "r"


def test_constants_are_compared_with_a_tolerance():
    pattern = op("Mul", x, constant("k", 0.7071067811865476, scalar=True))
    text = "g (float[2] a) => (float[2] c) <{}> {{ c = Mul(a, k) }}"
    found, _ = match(pattern, text.format("float k = {0.70710677}"))
    np.testing.assert_allclose(found.array("k"), 0.70710677)
    found, reason = match(pattern, text.format("float k = {0.708}"))
    assert (found, reason) == (None, "'k' is not 0.707107")
    found, reason = match(pattern, text.format("float[2] k = {0.70710677, 0.70710677}"))
    assert (found, reason) == (None, "'k' is not a scalar")


def test_attributes_by_value_default_and_predicate():
    text = "g (float[2,3] a) => (float[2,3] c) {{ c = Softmax {} (a) }}"
    last = op("Softmax", x, axis=(-1, -1))
    assert match(last, text.format(""))[0]
    assert match(last, text.format("<axis = -1>"))[0]
    assert match(last, text.format("<axis = 0>"))[1] == "attribute 'axis' of 'Softmax_0' does not fit"
    assert match(op("Softmax", x, axis=lambda axis: axis in (0, None)), text.format("<axis = 0>"))[0]


def test_absent_inputs_can_be_demanded_or_captured():
    clip = "g (float[2] a) => (float[2] c) <float h = {1.0}> { c = Clip(a, , h) }"
    found, _ = match(op("Clip", x, value("low", optional=True), value("high")), clip)
    assert found.get("low") is None
    assert found["high"].name == "h"
    assert match(op("Clip", x, None, constant("h")), clip)[0]
    assert match(op("Clip", x, None, None), clip)[0] is None


def test_inner_values_used_elsewhere_forbid_the_match_unless_they_escape():
    text = "g (float[2] a) => (float[2] c, float[2] d) { r = Relu(a)\n d = Abs(r)\n c = Neg(r) }"
    found, reason = match(op("Neg", op("Relu", x)), text)
    assert (found, reason) == (None, "inner value 'r' is also used by 'Abs_1'")
    assert match(op("Neg", op("Relu", x, escapes=True)), text)[0]
    text = "g (float[2] a) => (float[2] c, float[2] r) { r = Relu(a)\n c = Neg(r) }"
    assert match(op("Neg", op("Relu", x)), text)[1] == "inner value 'r' is a graph output"


def test_the_deepest_failure_is_reported():
    pattern = op(
        "Mul", x, op("Sigmoid", op("Add", x, constant(equals=3.0), commutative=True)), commutative=True
    )
    text = (
        "g (float[2] a) => (float[2] c) <float k = {2.0}> { p = Add(a, k)\n s = Sigmoid(p)\n c = Mul(a, s) }"
    )
    assert match(pattern, text)[1] == "'k' is not 3"


class FuseSilu(PatternRule):
    """x * Sigmoid(x) = Swish(x)."""

    pattern = op("Mul", x, op("Sigmoid", x), commutative=True)

    def check(self, match):
        return None if match["x"].dtype == ir.DataType.FLOAT else "only float32"

    def rewrite(self, match, rewriter):
        return rewriter.insert_before(match.root, "Elu", [match["x"]])[0]


def test_a_pattern_rule_replaces_and_cleans_up():
    model = model_of("g (float[2] a) => (float[2] c) { r = Relu(a)\n s = Sigmoid(r)\n c = Mul(s, r) }")
    infer_shapes(model)
    context = PassContext().for_pass(Pass())
    assert drive(model, [FuseSilu()], context)
    assert [node.op_type for node in model.graph] == ["Relu", "Elu"]
    assert context.statistics == {"FuseSilu": 1}
    assert model.graph.outputs[0].name == "c"


def test_a_refused_check_gives_its_reason():
    model = model_of("g (double[2] a) => (double[2] c) { s = Sigmoid(a)\n c = Mul(s, a) }")
    context = PassContext()
    assert not drive(model, [FuseSilu()], context)
    assert [left.reason for left in context.left_alone] == ["only float32"]


def test_a_pattern_must_be_rooted_at_an_operator():
    with pytest.raises(TypeError, match="root of a pattern"):

        class Bad(PatternRule):
            pattern = value("x")
