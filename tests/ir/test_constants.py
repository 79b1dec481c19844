"""Stored constants, and constant parts of a graph computed by the reference."""

import numpy as np
import onnx_ir as ir
import pytest
from graphwright.ir.constants import (
    constant_array,
    constant_tensor,
    evaluate_node,
    evaluate_values,
    is_deterministic,
)
from graphwright.ir.errors import ModelError

HEADER = '<ir_version: 10, opset_import: ["" : 23, "local" : 1]>\n'


def graph(text: str) -> tuple[ir.Model, dict[str, ir.Node]]:
    model = ir.from_onnx_text(HEADER + text)
    return model, {str(node.outputs[0].name): node for node in model.graph}


def test_initializers_and_constant_nodes_are_stored():
    _, nodes = graph(
        """agraph (float[2] x) => (float[2] y) <float[2] w = {1.0, 2.0}> {
            a = Constant<value = float[2] {3.0, 4.0}>()
            b = Constant<value_float = 2.5>()
            c = Constant<value_ints = [1, 2, 3]>()
            d = Constant<value_string = "text">()
            s = Add(w, a)
            y = Mul(s, x)
        }"""
    )
    add = nodes["s"]
    np.testing.assert_array_equal(constant_array(add.inputs[0]), np.array([1, 2], np.float32))
    np.testing.assert_array_equal(constant_array(add.inputs[1]), np.array([3, 4], np.float32))
    b, c = (constant_array(nodes[name].outputs[0]) for name in "bc")
    assert (b.dtype, b.shape, float(b)) == (np.float32, (), 2.5)
    assert (c.dtype, c.tolist()) == (np.int64, [1, 2, 3])
    assert constant_array(nodes["d"].outputs[0]).item() == b"text"


def test_what_is_not_stored_gives_none():
    model, nodes = graph("agraph (float[2] x) => (float[2] y) <float[2] w = {1.0, 2.0}> { y = Add(x, w) }")
    assert constant_array(None) is None
    assert constant_array(nodes["y"].outputs[0]) is None
    assert constant_array(model.graph.inputs[0]) is None


def test_an_input_with_a_default_may_be_overridden():
    model = ir.from_onnx_text(HEADER + "agraph (float[2] x, float[2] w) => (float[2] y) { y = Add(x, w) }")
    default = model.graph.inputs[1]
    default.const_value = ir.tensor(np.ones(2, np.float32), name="w")
    model.graph.register_initializer(default)
    assert constant_array(default) is None


def test_limit_counts_elements_and_does_not_read_more():
    read = []

    def data():
        read.append(True)
        return ir.tensor(np.zeros(8, np.float32))

    value = ir.Value(name="w")
    value.const_value = ir.LazyTensor(data, dtype=ir.DataType.FLOAT, shape=ir.Shape([8]), name="w")
    ir.Graph([], [], nodes=[], initializers=[value], name="g")
    assert constant_array(value, limit=7) is None
    assert not read
    assert constant_array(value, limit=8).size == 8
    assert constant_tensor(value).size == 8


def test_one_node_is_evaluated():
    _, nodes = graph(
        """agraph () => (float[1] u, float[1] v) <float[2] w = {1.0, 2.0}> {
            u, v = Split<num_outputs = 2>(w)
        }"""
    )
    first, second = evaluate_node(nodes["u"])
    assert (first.tolist(), second.tolist()) == ([1.0], [2.0])


def test_a_constant_subgraph_is_evaluated_at_once():
    model, nodes = graph(
        """agraph (float[2] x) => (float[2] y) <float[2] w = {1.0, -2.0}> {
            a = Abs(w)
            b = Sqrt(a)
            c = Mul(a, b)
            y = Add(x, c)
        }"""
    )
    a, c, w = evaluate_values(model, [nodes["a"].outputs[0], nodes["c"].outputs[0], nodes["a"].inputs[0]])
    np.testing.assert_array_equal(w, np.array([1, -2], np.float32))
    np.testing.assert_array_equal(a, np.abs(w))
    np.testing.assert_allclose(c, np.abs(w) * np.sqrt(np.abs(w)), rtol=1e-6)


def test_bodies_capture_constants_from_outside():
    model, nodes = graph(
        """agraph () => (float[2] y) <float[2] w = {1.0, 2.0}, bool yes = {1}> {
            outer = Neg(w)
            y = If(yes) <
                then_branch = t () => (float[2] p) { p = Add(outer, w) },
                else_branch = e () => (float[2] q) { q = Identity(w) }
            >
        }"""
    )
    assert evaluate_values(model, [nodes["y"].outputs[0]])[0].tolist() == [0.0, 0.0]


def test_functions_of_the_model_are_called():
    model = ir.from_onnx_text(
        HEADER
        + """agraph () => (float[2] y) <float[2] w = {1.0, 2.0}> { y = local.twice(w) }
        <domain: "local", opset_import: ["" : 23]>
        twice (a) => (b) { b = Add(a, a) }"""
    )
    assert evaluate_values(model, [model.graph[0].outputs[0]])[0].tolist() == [2.0, 4.0]


def test_random_and_unknown_values_are_refused():
    model, nodes = graph(
        """agraph (float[2] x) => (float[2] y, float[2] z) {
            r = RandomNormal<shape = [2]>()
            y = Add(r, r)
            z = Neg(x)
        }"""
    )
    assert not is_deterministic(nodes["r"])
    assert is_deterministic(nodes["y"])
    with pytest.raises(ModelError, match="RandomNormal"):
        evaluate_values(model, [nodes["y"].outputs[0]])
    with pytest.raises(ModelError, match="'x' is not a constant"):
        evaluate_node(nodes["z"])


def test_dropout_is_random_only_while_training():
    _, nodes = graph(
        """agraph (float[2] x, bool t) => (float[2] a, float[2] b, float[2] c)
        <float r = {0.5}, bool no = {0}> {
            a = Dropout(x, r, no)
            b = Dropout(x, r, t)
            c = Dropout(x)
        }"""
    )
    assert [is_deterministic(nodes[name]) for name in "abc"] == [True, False, True]


def test_a_failing_node_is_named():
    _, nodes = graph(
        """agraph () => (float[3] y) <float[2] w = {1.0, 2.0}, int64[1] s = {3}> { [bad] y = Reshape(w, s) }"""
    )
    with pytest.raises(ModelError, match=r"'bad' \(Reshape\)"):
        evaluate_node(nodes["y"])


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float8e4m3fn", "int64", "bool"])
def test_element_types_survive(dtype):
    model = ir.from_onnx_text(HEADER + f"agraph ({dtype}[2] w) => ({dtype}[2] y) {{ y = Identity(w) }}")
    value = model.graph.inputs[0]
    array = np.array([1, 0]).astype(value.dtype.numpy())
    model.graph.inputs.clear()
    value.const_value = ir.tensor(array, name="w")
    model.graph.register_initializer(value)
    (result,) = evaluate_node(model.graph[0])
    assert result.dtype == array.dtype
    np.testing.assert_array_equal(result.astype(np.float32), array.astype(np.float32))
